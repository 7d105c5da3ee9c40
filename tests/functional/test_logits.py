import math

import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional import class_logits, class_target

ALL_SPACES = [(), (5,), (4, 5), (3, 4, 5)]


@pytest.mark.parametrize("spatial", ALL_SPACES)
def test_multiclass_logits_stay_as_they_are(spatial):
    logits = torch.randn(2, 3, *spatial)
    assert torch.equal(class_logits(logits), logits)


@pytest.mark.parametrize("spatial", ALL_SPACES)
def test_one_binary_logit_becomes_the_two_logits_0_and_z(spatial):
    logits = torch.randn(2, 1, *spatial)
    assert torch.equal(class_logits(logits, "binary"), torch.stack((torch.zeros_like(logits[:, 0]), logits[:, 0]), 1))


def test_two_binary_logits_stay_as_they_are():
    logits = torch.randn(2, 2, 4, 5)
    assert torch.equal(class_logits(logits, "binary"), logits)


@pytest.mark.parametrize("labels", [1, 2, 4])
@pytest.mark.parametrize("spatial", ALL_SPACES)
def test_multilabel_logits_become_0_and_z_with_the_labels_first_in_space(labels, spatial):
    logits = torch.randn(2, labels, *spatial)
    out = class_logits(logits, "multilabel")
    assert out.shape == (2, 2, labels, *spatial)
    assert out[:, 0].eq(0).all()
    assert torch.equal(out[:, 1], logits)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_softmax_of_class_logits_is_the_sigmoid(task):
    logits = torch.linspace(-80, 80, 41, dtype=torch.float64).view(1, 1, -1)
    probs = class_logits(logits, task).softmax(1)[:, 1].reshape(logits.shape)
    torch.testing.assert_close(probs, logits.sigmoid(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("task", "channels"), [("multiclass", 3), ("binary", 1), ("binary", 2), ("multilabel", 3)])
def test_half_precision_logits_become_float32_of_the_same_values(task, channels, dtype):
    logits = torch.randn(2, channels, 4).to(dtype)
    out = class_logits(logits, task)
    assert out.dtype == torch.float32
    assert torch.equal(out, class_logits(logits.float(), task))


@pytest.mark.parametrize(("task", "channels"), [("multiclass", 3), ("binary", 1), ("binary", 2), ("multilabel", 3)])
def test_float64_logits_stay_float64(task, channels):
    assert class_logits(torch.zeros(2, channels, 4, dtype=torch.float64), task).dtype == torch.float64


def test_multiclass_logits_of_one_channel_raise_and_name_the_binary_task():
    with pytest.raises(SeguqError, match=r"\(2, 1, 4, 5\).*task='binary'"):
        class_logits(torch.zeros(2, 1, 4, 5))


def test_binary_logits_of_three_channels_raise_with_the_shape():
    with pytest.raises(SeguqError, match=r"1 or 2 logits.*\(2, 3, 4, 5\)"):
        class_logits(torch.zeros(2, 3, 4, 5), "binary")


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_logits_of_too_few_dimensions_raise_with_the_shape(task):
    with pytest.raises(SeguqError, match=r"\(B, C, \*spatial\).*\(3,\)"):
        class_logits(torch.zeros(3), task)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_logits_that_are_no_floating_point_raise_with_the_type(dtype):
    with pytest.raises(SeguqError, match=f"floating point.*{dtype}"):
        class_logits(torch.zeros(2, 3, dtype=dtype))


def test_an_unknown_task_raises_with_the_choice():
    with pytest.raises(SeguqError, match=r"multiclass, binary, multilabel.*'regression'"):
        class_logits(torch.zeros(2, 3), "regression")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32])
def test_target_of_any_type_becomes_int64_of_the_same_values(dtype):
    target = torch.tensor([[0, 1, 1, 0]])
    out = class_target(target.to(dtype), torch.zeros(1, 2, 4))
    assert out.dtype == torch.int64
    assert torch.equal(out, target)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_target_keeps_the_ignored_index(dtype):
    assert class_target(torch.tensor([[255, 0]], dtype=dtype), torch.zeros(1, 2, 2)).tolist() == [[255, 0]]


@pytest.mark.parametrize(("task", "channels"), [("multiclass", 3), ("binary", 1), ("binary", 2)])
@pytest.mark.parametrize("spatial", ALL_SPACES)
def test_a_channel_of_size_1_is_dropped_from_the_target(task, channels, spatial):
    target = torch.randint(0, 2, (2, 1, *spatial))
    assert torch.equal(class_target(target, torch.zeros(2, channels, *spatial), task), target[:, 0])


@pytest.mark.parametrize(("task", "channels"), [("multiclass", 3), ("binary", 1), ("binary", 2)])
def test_a_target_without_a_channel_keeps_a_spatial_dimension_of_size_1(task, channels):
    assert class_target(torch.zeros(2, 1, 5), torch.zeros(2, channels, 1, 5), task).shape == (2, 1, 5)


@pytest.mark.parametrize("labels", [1, 3])
def test_multilabel_target_keeps_its_labels(labels):
    target = torch.randint(0, 2, (2, labels, 4, 5))
    assert torch.equal(class_target(target, torch.zeros(2, labels, 4, 5), "multilabel"), target)


@pytest.mark.parametrize("value", [0.5, -0.25, math.nan])
def test_target_of_values_that_are_no_whole_numbers_raises(value):
    with pytest.raises(SeguqError, match="no whole numbers"):
        class_target(torch.tensor([[0.0, value]]), torch.zeros(1, 2, 2))
