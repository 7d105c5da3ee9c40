import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.functional import (
    area_under_risk_coverage,
    area_under_risk_coverage_of_shares,
    area_under_sparsification_error,
    area_under_sparsification_error_of_shares,
    class_balanced,
)
from tests.functional.test_ranking import histograms
from tests.oracles import ranking as oracles

OF_COUNTS = {
    area_under_risk_coverage_of_shares: area_under_risk_coverage,
    area_under_sparsification_error_of_shares: area_under_sparsification_error,
}
property_test = settings(max_examples=60, deadline=None)
every_area = pytest.mark.parametrize("area", OF_COUNTS)


def curve_of(negatives, positives):
    total = float((negatives + positives).sum())
    return [np.concatenate([[0], (each / total).cumsum(0).numpy()]) for each in (negatives + positives, positives)]


@given(counts=histograms(of_each=0))
@property_test
def test_the_area_is_the_integral_of_the_rate_among_what_is_accepted(counts):
    filled = counts[0] + counts[1] > 0
    accepted, wrong = curve_of(*(count[filled] for count in counts))
    expected = oracles.area_under_rates(accepted, wrong)
    assert float(area_under_risk_coverage_of_shares(*counts)) == pytest.approx(expected, abs=1e-9)


@every_area
@given(counts=histograms(of_each=0))
@property_test
def test_it_is_what_counts_come_to_when_each_score_is_repeated_without_end(area, counts):
    repeated = OF_COUNTS[area](*(count * 1e8 for count in counts))
    assert float(area(*counts)) == pytest.approx(float(repeated), abs=1e-6)


@every_area
@given(counts=histograms(of_each=0), factor=st.sampled_from([1e-12, 0.3, 1e12]))
@property_test
def test_shares_may_have_any_sum(area, counts, factor):
    assert float(area(*(count * factor for count in counts))) == pytest.approx(float(area(*counts)), abs=1e-12)


@every_area
def test_of_many_histograms_each_is_by_itself_and_an_empty_one_is_nan(area):
    right, wrong = torch.rand(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right[1], wrong[1] = 0, 0
    found = area(right, wrong)
    assert found[[0, 2]].tolist() == [float(area(right[row], wrong[row])) for row in (0, 2)]
    assert found[1].isnan()


def test_shares_that_are_far_smaller_than_the_rest_lose_no_digits():
    wrong = torch.tensor([1e-15, 0.0, 1e-15], dtype=torch.float64)
    right = torch.tensor([1e-15, 1.0, 0.0], dtype=torch.float64)
    # half of the first 2e-15 is wrong, 1e-15 of it all in what is accepted later
    expected = 1e-15 * (1 - np.log(2e-15))
    assert float(area_under_risk_coverage_of_shares(right, wrong)) == pytest.approx(expected, rel=1e-3)


@given(counts=st.lists(histograms(max_bins=1, of_each=0), min_size=1, max_size=5))
@property_test
def test_each_class_that_occurs_has_the_same_share(counts):
    right, wrong = (torch.stack(each) for each in zip(*counts, strict=True))
    apart = [class_balanced(right * one, wrong * one) for one in torch.eye(len(counts)).double().unsqueeze(-1)]
    together = class_balanced(right, wrong)
    for side in (0, 1):
        mean = sum(each[side] for each in apart) / len(apart)
        assert together[side].tolist() == pytest.approx(mean.tolist())


def test_a_class_that_does_not_occur_has_none_and_of_nothing_all_shares_are_0():
    right = torch.tensor([[[2.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    shares = torch.stack(class_balanced(right, right.roll(1, -1)))
    assert shares[:, 0].tolist() == [pytest.approx([2 / 6, 1 / 6]), pytest.approx([1 / 6, 2 / 6])]
    assert not shares[:, 1].any()
