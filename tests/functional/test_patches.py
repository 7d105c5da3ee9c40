import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.patches import patch_errors, patches_right, patches_right_area, patches_right_best


def patches_by_loop(uncertainty, error, window):
    """The patches of one image one after the other, as the paper says it."""
    corners = np.ndindex(*(-(-side // window) for side in error.shape))
    shape = tuple(-(-side // window) for side in error.shape)
    means, wrong = np.zeros(shape), np.full(shape, 255)
    for corner in corners:
        place = tuple(slice(start * window, (start + 1) * window) for start in corner)
        kept = error[place] != 255
        if kept.any():
            means[corner] = uncertainty[place][kept].mean()
            wrong[corner] = (error[place][kept] == 0).mean() <= 0.5  # accurate where more than half are right
    return means, wrong


@pytest.mark.parametrize("size", [(9,), (7, 10), (3, 5, 4)])
@pytest.mark.parametrize("window", [1, 2, 3, 20])
def test_patches_are_those_of_a_loop(size, window):
    random = np.random.default_rng(0)
    uncertainty = random.random((3, *size))
    error = np.where(random.random((3, *size)) < 0.3, 255, random.integers(0, 2, (3, *size)))
    error[0] = 255
    uncertainty[error == 255] = np.nan
    means, inaccurate = patch_errors(torch.from_numpy(uncertainty), torch.from_numpy(error), window)
    for i in range(3):
        expected, wrong = patches_by_loop(uncertainty[i], error[i], window)
        assert inaccurate[i].numpy().tolist() == wrong.tolist()
        np.testing.assert_allclose(means[i].numpy(), expected, rtol=1e-6)


def scored(seed, ties):
    random = np.random.default_rng(seed)
    wrong = random.random(40) < 0.4
    score = random.normal(size=40) + wrong
    score = np.round(score) if ties else score
    distinct = np.unique(score)
    counts = [[int(((score == s) & (wrong == w)).sum()) for s in distinct] for w in (False, True)]
    return score, wrong, torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("ties", [False, True])
def test_the_best_threshold_is_the_best_of_all(ties):
    score, wrong, (right_counts, wrong_counts) = scored(0, ties)
    thresholds = [-np.inf, *np.unique(score)]
    by_loop = [np.mean((~wrong & (score <= t)) | (wrong & (score > t))) for t in thresholds]
    assert float(patches_right_best(right_counts, wrong_counts)) == pytest.approx(max(by_loop))


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_is_the_mean_over_orders_of_ties_and_the_area_that_under_it(ties):
    score, wrong, counts = scored(1, ties)
    random, curves = np.random.default_rng(2), []
    for _ in range(4000 if ties else 1):
        order = np.lexsort((random.random(40), score))
        accepted = np.concatenate(([0], np.cumsum(np.where(wrong[order], -1, 1))))
        curves.append((wrong.sum() + accepted) / 40)
    expected = np.mean(curves, 0)
    share = torch.linspace(0, 1, 41, dtype=torch.float64)
    found = patches_right(*counts, share)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.006 if ties else 1e-12)
    area = torch.trapezoid(found, share)
    assert float(patches_right_area(*counts)) == pytest.approx(float(area), abs=1e-12)


def test_what_does_not_go_together_is_an_error():
    for uncertainty, error, window in (
        (torch.zeros(1, 3), torch.zeros(1, 4), 2),
        (torch.zeros(3), torch.zeros(3), 2),
        (torch.zeros(1, 3), torch.zeros(1, 3), 0),
        (torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2), 2),
    ):
        with pytest.raises(SeguqError, match=r"shape|window"):
            patch_errors(uncertainty, error, window)


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 2)])
def test_a_window_larger_than_the_image_is_the_image(size):
    uncertainty, error = torch.rand(2, *size), torch.zeros(2, *size, dtype=torch.int64)
    means, wrong = patch_errors(uncertainty, error, window=10**9)
    assert means.flatten().tolist() == pytest.approx(uncertainty.flatten(1).mean(1).tolist())
    assert wrong.flatten().tolist() == [0, 0]


def test_the_curve_begins_with_a_number_in_single_precision_too():
    first_is_empty = torch.tensor([0.0, 1.0])
    assert patches_right(first_is_empty, first_is_empty, torch.zeros(1)).tolist() == [0.5]
