import itertools
import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.agreement import annotator_disagreement, generalized_energy_distance, normalized_cross_correlation


def masks_of(seed, images=3, count=4, size=(5, 6), classes=3, ignored=0.15):
    random = np.random.default_rng(seed)
    masks = random.integers(0, classes, (images, count, *size))
    masks[random.random(masks.shape) < ignored] = 255
    return torch.from_numpy(masks)


def iou_distance(one, other, classes, background, valid):
    found = []
    for each in range(classes):
        first, second = (one == each) & valid, (other == each) & valid
        if each != background and (first | second).any():
            found.append((first & second).sum() / (first | second).sum())
    return 1 - np.mean(found) if found else 0.0


def energy_distance_by_loop(samples, masks, classes, background):
    """All pairs one by one."""
    masks = [one for one in masks if (one != 255).any()]
    common = np.all([one != 255 for one in masks], axis=0)
    if not common.any():
        return math.nan

    def mean(first, second):
        return np.mean([iou_distance(*pair, classes, background, common) for pair in itertools.product(first, second)])

    return 2 * mean(samples, masks) - mean(samples, samples) - mean(masks, masks)


@pytest.mark.parametrize("background", [0, None, 2])
@pytest.mark.parametrize("size", [(4,), (5, 6), (2, 3, 4)])
def test_the_energy_distance_is_that_of_a_loop_over_all_pairs(size, background):
    samples, masks = masks_of(1, size=size, count=3, ignored=0), masks_of(2, size=size)
    masks[2] = 1  # annotators who agree
    found = generalized_energy_distance(samples, masks, 3, background=background)
    pairs = zip(samples.numpy(), masks.numpy(), strict=True)
    expected = [energy_distance_by_loop(s, m, 3, background) for s, m in pairs]
    assert found.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_a_mask_without_a_label_is_not_one_of_an_annotator():
    samples, masks = masks_of(1, count=3, ignored=0), masks_of(2)
    absent = torch.full_like(masks[:, :1], 255)
    with_absent = generalized_energy_distance(samples, torch.cat((masks, absent), 1), 3)
    assert torch.equal(with_absent, generalized_energy_distance(samples, masks, 3))
    assert generalized_energy_distance(samples, absent, 3).isnan().all()


def test_the_energy_distance_is_not_negative_where_annotators_left_pixels_out():
    samples = masks_of(1, images=300, count=3, size=(3,), ignored=0)
    masks = masks_of(2, images=300, count=3, size=(3,), ignored=0.3)
    assert generalized_energy_distance(samples, masks, 3).nan_to_num(0).min() > -1e-12


@pytest.mark.parametrize("ignore_index", [-100, 412])
def test_classes_of_8_bits_are_not_taken_for_ignored_ones(ignore_index):
    masks = torch.tensor([[[156, 1], [156, 2], [3, 3]]], dtype=torch.uint8)  # as 8 bits, -100 and 412
    samples = masks.flip(1)[:, :2]
    found = annotator_disagreement(masks, 200, ignore_index)
    assert torch.equal(found, annotator_disagreement(masks.long(), 200, ignore_index))
    found = generalized_energy_distance(samples, masks, 200, ignore_index)
    assert torch.equal(found, generalized_energy_distance(samples.long(), masks.long(), 200, ignore_index))


def test_images_in_several_pieces_have_the_same_energy_distance(monkeypatch):
    samples, masks = masks_of(1, count=3, ignored=0), masks_of(2)
    whole = generalized_energy_distance(samples, masks, 3)
    monkeypatch.setattr("seguq.functional.agreement._PIECE", 7)
    assert torch.equal(generalized_energy_distance(samples, masks, 3), whole)


def test_of_nothing_but_background_all_agree():
    nothing = torch.zeros(1, 2, 3, 3, dtype=torch.int64)
    assert generalized_energy_distance(nothing, nothing, 2).tolist() == [0.0]
    one = nothing.clone()
    one[:, :, 0, 0] = 1
    assert generalized_energy_distance(one, nothing, 2).tolist() == [2.0]


@pytest.mark.parametrize("classes", [2, 3])
def test_disagreement_is_the_variance_of_the_votes(classes):
    masks = masks_of(3, classes=classes, count=3, ignored=0.4)
    found = annotator_disagreement(masks, classes)
    for place in np.ndindex(found.shape):
        votes = masks.movedim(1, -1)[place].numpy()
        votes = votes[votes != 255]
        if len(votes) < 2:
            assert math.isnan(found[place])
        else:
            expected = sum((votes == each).var() for each in range(classes))
            assert float(found[place]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_correlation_is_numpys_over_the_pixels_that_both_have(offset):
    random = np.random.default_rng(0)
    first, second = random.random((4, 6, 7)) + offset, random.random((4, 6, 7))
    first[0, 0], second[1, 2] = np.nan, np.nan
    second[3] = 0.25  # constant
    found = normalized_cross_correlation(torch.from_numpy(first), torch.from_numpy(second)).tolist()
    for i in range(3):
        kept = ~np.isnan(first[i]) & ~np.isnan(second[i])
        assert found[i] == pytest.approx(np.corrcoef(first[i][kept], second[i][kept])[0, 1], abs=1e-9)
    assert math.isnan(found[3])


def test_what_does_not_go_together_is_an_error():
    masks = masks_of(0, ignored=0)
    for call in (
        lambda: generalized_energy_distance(masks[:, :, :2], masks, 3),
        lambda: generalized_energy_distance(masks, masks[0], 2),
        lambda: annotator_disagreement(masks[0, 0], 3),
        lambda: annotator_disagreement(masks.float(), 3),
        lambda: normalized_cross_correlation(torch.zeros(2, 3), torch.zeros(2, 4)),
    ):
        with pytest.raises(SeguqError, match=r"shape|class|integer"):
            call()
