"""Losses against torch's own, and where torch's own would end a training."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from seguq.core.errors import SeguqError
from seguq.losses import LOSSES, SegmentationLoss

IGNORED = 255
TASKS = ("multiclass", "binary", "multilabel")
WEIGHTS = {"multiclass": (0.2, 1.0, 3.0), "binary": (0.5, 2.0), "multilabel": (0.5, 2.0)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def problem(task, *, ignored=0.2, channels=None):
    """Logits and a target with some ignored pixels."""
    channels = channels or {"multiclass": 3, "binary": 1, "multilabel": 3}[task]
    logits = torch.randn(2, channels, 6, 5)
    shape = (2, 3, 6, 5) if task == "multilabel" else (2, 6, 5)
    target = torch.randint(0, 3 if task == "multiclass" else 2, shape)
    return logits, target.masked_fill(torch.rand(shape) < ignored, IGNORED)


def right(target, confidence, task):
    """Logits that are right by ``confidence``."""
    if task == "multiclass":
        return confidence * nn.functional.one_hot(target.where(target != IGNORED, 0), 3).movedim(-1, 1).float()
    logits = confidence * (2.0 * (target == 1) - 1)
    return logits if task == "multilabel" else logits.unsqueeze(1)


@pytest.mark.parametrize("weights", [None, WEIGHTS["multiclass"], (0.0, 1.0, 1.0)])
@pytest.mark.parametrize("ignore_index", [255, -100, 1])
def test_cross_entropy_is_that_of_torch(ignore_index, weights):
    logits, target = problem("multiclass")
    target = target.masked_fill(target == IGNORED, ignore_index)
    expected = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights), ignore_index=ignore_index)
    assert_close(
        SegmentationLoss("ce", ignore_index=ignore_index, class_weights=weights)(logits, target),
        expected(logits, target),
    )


def test_cross_entropy_has_the_gradient_of_torch():
    logits, target = problem("multiclass")
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    SegmentationLoss("ce", class_weights=WEIGHTS["multiclass"])(ours, target).backward()
    nn.CrossEntropyLoss(torch.tensor(WEIGHTS["multiclass"]), ignore_index=IGNORED)(theirs, target).backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_cross_entropy_of_single_logits_is_the_binary_one_of_torch(task):
    logits, target = problem(task)
    labeled = (target != IGNORED).flatten()
    of_torch = nn.BCEWithLogitsLoss()(logits.flatten()[labeled], target.flatten()[labeled].float())
    assert_close(SegmentationLoss("ce", task)(logits, target), of_torch)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_weights_of_a_binary_loss_are_for_off_and_on(task):
    logits, target = problem(task)
    labeled = (target != IGNORED).flatten()
    on = target.flatten()[labeled].float()
    weight = torch.where(on == 1, 2.0, 0.5)
    each = nn.functional.binary_cross_entropy_with_logits(logits.flatten()[labeled], on, reduction="none")
    expected = (weight * each).sum() / weight.sum()
    assert_close(SegmentationLoss("ce", task, class_weights=(0.5, 2.0))(logits, target), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_two_logits_of_a_binary_task_are_the_one_logit_of_their_difference(name):
    logits, target = problem("binary", channels=2)
    loss = SegmentationLoss(name, "binary")
    assert_close(loss(logits, target), loss(logits[:, 1:] - logits[:, :1], target))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize("task", TASKS)
def test_targets_of_any_type_are_class_indices(task, kind):
    logits, target = problem(task)
    loss = SegmentationLoss("ce+dice", task)
    assert_close(loss(logits, target.to(kind)), loss(logits, target))


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_a_target_may_have_a_channel_of_size_1(task):
    logits, target = problem(task)
    loss = SegmentationLoss("ce+dice", task)
    assert_close(loss(logits, target.unsqueeze(1)), loss(logits, target))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_have_no_part_in_the_loss(name, task):
    logits, target = problem(task)
    ignored = (target == IGNORED).unsqueeze(1) if task != "multilabel" else target == IGNORED
    loss = SegmentationLoss(name, task)
    assert_close(loss(logits.where(~ignored, 50 * torch.randn_like(logits)), target), loss(logits, target))


@pytest.mark.parametrize("task", TASKS)
def test_dice_falls_as_the_prediction_improves(task):
    _, target = problem(task)
    loss = SegmentationLoss("dice", task)
    values = torch.stack([loss(right(target, confidence, task), target) for confidence in (-4, -1, 0, 1, 2, 4, 12)])
    assert (values.diff() < 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_dice_of_a_perfect_prediction_is_0(task):
    _, target = problem(task)
    assert SegmentationLoss("dice", task)(right(target, 40, task), target) < 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_dice_lies_between_0_and_1(task):
    logits, target = problem(task)
    assert 0 < SegmentationLoss("dice", task)(30 * logits, target) < 1


@pytest.mark.parametrize("task", TASKS)
def test_dice_has_finite_gradients_at_extreme_logits(task):
    logits, target = problem(task)
    logits = (1e4 * logits).requires_grad_()
    SegmentationLoss("dice", task)(logits, target).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("task", TASKS)
def test_ce_dice_is_the_sum_of_both(task):
    logits, target = problem(task)
    ce, dice, both = (SegmentationLoss(name, task)(logits, target) for name in ("ce", "dice", "ce+dice"))
    assert_close(both, ce + dice)


@pytest.mark.parametrize("task", TASKS)
def test_class_weights_are_for_the_cross_entropy_only(task):
    logits, target = problem(task)
    ce, dice, both = (
        SegmentationLoss(name, task, class_weights=WEIGHTS[task] if "ce" in name else None)(logits, target)
        for name in ("ce", "dice", "ce+dice")
    )
    assert_close(both, ce + dice)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_has_a_loss_of_0(name, task, weighted):
    logits, target = problem(task, ignored=2)
    assert SegmentationLoss(name, task, class_weights=WEIGHTS[task] if weighted else None)(logits, target) == 0


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_has_gradients_of_0(name, task, weighted):
    logits, target = problem(task, ignored=2)
    logits.requires_grad_()
    SegmentationLoss(name, task, class_weights=WEIGHTS[task] if weighted else None)(logits, target).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_batch_of_classes_without_weight_has_a_loss_of_0():
    logits, target = problem("multiclass", ignored=0)
    assert SegmentationLoss("ce", class_weights=(0, 1, 1))(logits, target.zero_()) == 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_give_the_loss_of_the_same_values_in_float32(name, task, kind):
    logits, target = problem(task)
    logits = logits.to(kind)
    loss = SegmentationLoss(name, task, class_weights=WEIGHTS[task])
    assert_close(loss(logits, target), loss(logits.float(), target))


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_does_not_overflow_over_many_pixels(task):
    shape = (1, 3, 400, 400) if task == "multilabel" else (1, 400, 400)
    logits = torch.zeros(1, 1 if task == "binary" else 3, 400, 400, dtype=torch.float16)
    loss = SegmentationLoss("ce", task)(logits, torch.ones(shape, dtype=torch.long))
    assert float(loss) == pytest.approx(math.log(3 if task == "multiclass" else 2), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", LOSSES)
def test_under_autocast_the_loss_is_float32_and_the_gradients_finite(name, task):
    features, target = torch.randn(2, 4, 6, 5), problem(task)[1]
    head = nn.Conv2d(4, 1 if task == "binary" else 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
        loss = SegmentationLoss(name, task, class_weights=WEIGHTS[task])(logits, target)
    loss.backward()
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32) and head.weight.grad.isfinite().all()


def test_volumes_are_taken_by_the_cross_entropy():
    logits, target = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6))
    assert_close(SegmentationLoss("ce")(logits, target), nn.CrossEntropyLoss()(logits, target))


@pytest.mark.parametrize("name", ["focal", "CE", "dice+ce", ""])
def test_an_unknown_loss_is_an_error_that_lists_those_there_are(name):
    with pytest.raises(SeguqError, match=r"ce, dice, ce\+dice"):
        SegmentationLoss(name)


@pytest.mark.parametrize("weights", [(1.0, -1.0), (float("nan"), 1.0)])
def test_a_negative_weight_is_an_error(weights):
    with pytest.raises(SeguqError, match="class_weights must not be negative"):
        SegmentationLoss("ce", class_weights=weights)


@pytest.mark.parametrize(
    ("task", "weights", "told"),
    [
        ("multiclass", (1, 1), "2 weights, but there are 3 classes"),
        ("binary", (1,), "1 weights, but there are 2 classes"),
        ("multilabel", (1, 1, 1), "3 weights, but there are 2 classes"),
    ],
)
def test_a_wrong_number_of_weights_is_an_error_with_both_numbers(task, weights, told):
    with pytest.raises(SeguqError, match=told):
        SegmentationLoss("ce", task, class_weights=weights)(*problem(task))


def test_one_logit_in_a_multiclass_task_is_an_error_that_names_the_task_for_it():
    with pytest.raises(SeguqError, match="task='binary'"):
        SegmentationLoss("ce")(*problem("multiclass", channels=1))


def test_a_target_of_fractions_is_an_error():
    logits, target = problem("multiclass")
    with pytest.raises(SeguqError, match="no whole numbers"):
        SegmentationLoss("ce")(logits, target + 0.5)


def test_weights_are_no_part_of_the_state_dict():
    assert not SegmentationLoss("ce+dice", class_weights=(1, 2)).state_dict()


def test_weights_move_with_the_module():
    assert SegmentationLoss("ce", class_weights=(1, 2)).to("meta").weights.device.type == "meta"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_weighted_losses_work_in_a_module_of_another_precision(task, kind):
    logits, target = problem(task)
    loss = SegmentationLoss("ce", task, class_weights=WEIGHTS[task])
    expected = loss(logits.to(kind).float(), target)
    assert_close(loss.to(kind)(logits.to(kind), target).float(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("task", "shape"), [("multilabel", (2, 6, 5)), ("multiclass", (2, 3, 5)), ("binary", (2, 6))])
@pytest.mark.parametrize("name", LOSSES)
def test_a_target_of_another_shape_is_an_error_with_both_shapes(name, task, shape):
    logits, _ = problem(task)
    with pytest.raises(SeguqError, match=rf"masks must have the shape .* but have shape \({shape[0]}, {shape[1]}"):
        SegmentationLoss(name, task)(logits, torch.zeros(shape, dtype=torch.long))
