import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seguq import functional as F
from seguq.core.errors import SeguqError
from tests.oracles import dice as oracle


def labels(samples=4, images=3, size=(5, 6), classes=3, seed=0, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (samples, images, *size), generator=generator).to(dtype)


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=3)


@given(st.integers(2, 5), st.integers(0, 3), shapes, st.integers(2, 4), st.sampled_from([0, None, 1]), st.integers(0))
def test_it_is_that_of_a_loop_over_pairs_classes_and_pixels(samples, images, size, classes, background, seed):
    given_labels = labels(samples, images, size, classes, seed % 2**32)
    expected = oracle.pairwise_dice(given_labels, classes, background)
    found = F.pairwise_dice(given_labels, classes, background)
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(expected, abs=1e-6)


@given(st.integers(2, 5), st.integers(0, 3), shapes, st.integers(1, 3), st.integers(0))
def test_of_several_labels_each_is_a_class(samples, images, size, count, seed):
    masks = labels(samples, images, (count, *size), 2, seed % 2**32)
    expected = oracle.multilabel_pairwise_dice(masks)
    assert F.multilabel_pairwise_dice(masks).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(F.multilabel_pairwise_dice(masks.bool()), F.multilabel_pairwise_dice(masks))


def test_one_label_is_the_foreground_of_two_classes():
    masks = labels(classes=2)
    assert torch.equal(F.multilabel_pairwise_dice(masks[:, :, None]), F.pairwise_dice(masks, 2))


def test_samples_that_agree_score_0_and_those_with_nothing_in_common_1():
    same = labels(1).expand(4, -1, -1, -1)
    assert F.pairwise_dice(same, 3).tolist() == [0, 0, 0]
    apart = torch.tensor([[[1, 1, 2, 2]], [[2, 2, 1, 1]]])
    assert F.pairwise_dice(apart, 3).tolist() == [1]


def test_a_class_that_no_sample_has_counts_as_agreement():
    one = torch.tensor([[[1, 0]], [[0, 1]]])
    assert F.pairwise_dice(one, 2).tolist() == [1] and F.pairwise_dice(one, 5).tolist() == [0.25]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_the_type_of_the_labels_changes_nothing(dtype):
    assert torch.equal(F.pairwise_dice(labels(dtype=dtype), 3), F.pairwise_dice(labels(), 3))


def test_labels_of_8_bits_go_with_more_classes_than_8_bits_hold():
    assert F.pairwise_dice(labels(), 300).tolist() == pytest.approx(oracle.pairwise_dice(labels(), 300), abs=1e-6)


def test_images_in_several_pieces_and_under_autocast_are_the_same(monkeypatch):
    given_labels = labels(size=(64, 64))
    whole = F.pairwise_dice(given_labels, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(F.pairwise_dice(given_labels, 3), whole)
    monkeypatch.setattr("seguq.functional.dice._VALUES", 100)
    assert torch.equal(F.pairwise_dice(given_labels, 3), whole)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: F.pairwise_dice(labels(1), 3), "labels of 1 sample: .* two are needed"),
        (lambda: F.multilabel_pairwise_dice(labels(1)), "masks of 1 sample: .* two are needed"),
        (lambda: F.pairwise_dice(labels()[0, 0], 3), r"labels must be \(S, B, \*spatial\)"),
        (lambda: F.multilabel_pairwise_dice(labels(size=(4,))), r"masks must be \(S, B, L, \*spatial\)"),
        (lambda: F.pairwise_dice(labels(), 2), "labels holds the value 2"),
        (lambda: F.pairwise_dice(labels().float(), 3), "integer type"),
        (lambda: F.multilabel_pairwise_dice(labels()), "masks holds the value 2"),
        (lambda: F.pairwise_dice(labels(classes=1), 1), "leaves no class to compare"),
        (lambda: F.multilabel_pairwise_dice(labels(size=(0, 5))), "have no label to compare"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(act, said):
    with pytest.raises(SeguqError, match=said):
        act()
