import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.patches import patch_errors
from seguq.metrics import PAvPU
from tests.metrics.builders import uncertainty_and_error


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("size", [(12, 12), (40,), (5, 6, 7)])
def test_the_best_value_is_that_of_a_search_over_thresholds(window, size):
    uncertainty, error = uncertainty_and_error(size=size, ignored=0.3)
    metric = PAvPU(window)
    for i in range(0, 6, 2):
        metric.update(uncertainty[i : i + 2], error[i : i + 2])
    means, wrong = (part.flatten().numpy() for part in patch_errors(uncertainty, error, window))
    means, wrong = means[wrong != 255], wrong[wrong != 255] == 1
    shares = [np.mean(wrong == (means > threshold)) for threshold in [-1, *means]]
    found = metric.compute()
    assert float(found["pavpu_max"]) == pytest.approx(max(shares), abs=0.005)
    order = np.argsort(means)
    curve = (wrong.sum() + np.concatenate(([0], np.cumsum(np.where(wrong[order], -1, 1))))) / len(wrong)
    assert float(found["pavpu_mean"]) == pytest.approx(
        float(torch.trapezoid(torch.from_numpy(curve))) / len(wrong), abs=0.002
    )


def test_the_curve_ends_at_the_shares_of_the_two_kinds():
    uncertainty, error = uncertainty_and_error()
    metric = PAvPU(2)
    metric.update(uncertainty, error, [str(i) for i in range(6)])
    _, ax = metric.plot()
    _, wrong = patch_errors(uncertainty, error, 2)
    curve, share = ax.lines[0].get_ydata(), float((wrong == 1).sum() / (wrong != 255).sum())
    assert (curve[0], curve[-1]) == pytest.approx((share, 1 - share))
    (band,) = ax.collections
    assert len(band.get_paths()[0].vertices) > 400


def test_a_nan_that_counts_is_an_error_before_anything_is_taken_in():
    uncertainty, error = uncertainty_and_error()
    error[:, 0] = 255
    uncertainty[:, 0] = math.nan
    metric = PAvPU(4)
    metric.update(uncertainty, error)
    before = metric.compute()
    uncertainty[0, 3, 3], error[0, 3, 3] = math.nan, 0
    with pytest.raises(SeguqError, match="NaN"):
        metric.update(uncertainty, error)
    metric._computed = None
    assert metric.compute() == before
    assert torch.equal(metric.sums.sum(), torch.tensor(6.0 * 9, dtype=torch.float64))


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 5)), ((3,), (3, 1)), ((), ())])
def test_shapes_that_do_not_fit_are_an_error_though_there_is_nan(shapes):
    with pytest.raises(SeguqError, match="shape"):
        PAvPU(2).update(torch.full(shapes[0], math.nan), torch.zeros(shapes[1], dtype=torch.int64))


@pytest.mark.parametrize("shape", [(0,), (2, 3, 0), (0, 3, 4)])
def test_an_empty_batch_changes_nothing(shape):
    metric = PAvPU(2)
    metric.update(torch.zeros(shape), torch.zeros(shape, dtype=torch.int64))
    assert metric.compute()["pavpu_max"].isnan()
