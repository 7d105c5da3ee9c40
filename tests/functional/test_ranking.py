import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from seguq.core.errors import SeguqError
from seguq.functional import area_under_roc, average_precision, fpr_at_tpr, order_bins
from tests.oracles import ranking as oracles

property_test = settings(max_examples=100, deadline=None)
FIGURES = (area_under_roc, average_precision, fpr_at_tpr)
TINY = float(np.finfo(np.float32).smallest_subnormal)
NORMAL = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

floats = st.one_of(
    st.sampled_from([0.0, -0.0, TINY, -TINY, NORMAL, -NORMAL, LARGEST, -LARGEST, math.inf, -math.inf, 1.0, -1.0]),
    st.floats(width=32, allow_nan=False),
    st.floats(-1, 1, width=32),
)


@st.composite
def histograms(draw, max_bins=12):
    """Counts of negatives and positives, lowest score first, at least one of each."""
    n_bins = draw(st.integers(1, max_bins))
    counts = st.lists(st.integers(0, 9), min_size=n_bins, max_size=n_bins)
    negatives, positives = draw(counts), draw(counts)
    assume(sum(negatives) > 0 and sum(positives) > 0)
    return torch.tensor(negatives, dtype=torch.float64), torch.tensor(positives, dtype=torch.float64)


def scores_of(counts):
    """The scores that a histogram counts: the index of its bin, as often as it is counted."""
    return [i for i, count in enumerate(counts.tolist()) for _ in range(int(count))]


def labels_and_scores(negatives, positives):
    below, above = scores_of(negatives), scores_of(positives)
    return np.array([0] * len(below) + [1] * len(above)), np.array(below + above, dtype=np.float64)


def fpr_of_scikit_learn(label, score, tpr=0.95):
    false_rate, true_rate, _ = roc_curve(label, score, drop_intermediate=False)
    return false_rate[np.argmax(true_rate >= tpr)]


SCIKIT_LEARN = {
    area_under_roc: roc_auc_score,
    average_precision: average_precision_score,
    fpr_at_tpr: fpr_of_scikit_learn,
}


@pytest.mark.parametrize("bits", [1, 2, 8, 9, 12, 16, 24, 32])
@given(a=floats, b=floats)
@property_test
def test_order_bins_never_decrease_with_the_value(bits, a, b):
    low, high = order_bins(torch.tensor(sorted((a, b))), bits).tolist()
    assert low <= high


@given(a=floats, b=floats)
@property_test
def test_order_bins_of_all_bits_keep_different_values_apart(a, b):
    low, high = order_bins(torch.tensor([a, b]), bits=32).tolist()
    assert (low == high) == (a == b)


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
@given(value=floats)
@property_test
def test_order_bins_stay_in_their_range(bits, value):
    assert 0 <= order_bins(torch.tensor(value), bits).item() < 2**bits


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_both_zeros_are_in_the_same_bin(bits):
    negative, positive = order_bins(torch.tensor([-0.0, 0.0]), bits).tolist()
    assert negative == positive


@given(value=st.floats(NORMAL, LARGEST, width=32), step=st.floats(0.0078125, 0.5))
@property_test
def test_values_that_differ_by_a_128th_are_in_different_bins_of_16_bits(value, step):
    other = value * (1 + step)
    assume(other <= LARGEST)
    low, high = order_bins(torch.tensor([value, other])).tolist()
    assert low < high


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_order_bins_of_another_type_are_those_of_the_same_values_in_float32(dtype):
    values = torch.tensor([-math.inf, -2.5, -0.0, 0.0, 1e-3, 0.3, 7.0, math.inf], dtype=dtype)
    assert torch.equal(order_bins(values), order_bins(values.float()))


def test_order_bins_have_the_shape_of_the_values():
    values = torch.randn(2, 3, 4, 5)[..., ::2]
    assert torch.equal(order_bins(values), torch.stack([order_bins(v) for v in values.flatten()]).view(values.shape))


def test_order_bins_leave_the_values_as_they_were():
    values = torch.tensor([-0.0, 1.0])
    order_bins(values)
    assert values[0].signbit()


def test_order_bins_of_nan_raise():
    with pytest.raises(SeguqError, match="NaN"):
        order_bins(torch.tensor([0.1, math.nan]))


@pytest.mark.parametrize("figure", FIGURES)
@given(case=histograms())
@property_test
def test_figure_matches_the_loop(figure, case):
    negatives, positives = case
    expected = getattr(oracles, figure.__name__)(scores_of(negatives), scores_of(positives))
    assert figure(negatives, positives).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("figure", FIGURES)
@given(case=histograms())
@property_test
def test_figure_matches_scikit_learn(figure, case):
    expected = SCIKIT_LEARN[figure](*labels_and_scores(*case))
    assert figure(*case).item() == pytest.approx(expected, abs=1e-12)


@given(case=histograms(), percent=st.integers(1, 100))
@property_test
def test_fpr_at_any_tpr_matches_the_loop(case, percent):
    negatives, positives = case
    expected = oracles.fpr_at_tpr(scores_of(negatives), scores_of(positives), percent)
    assert fpr_at_tpr(negatives, positives, percent / 100).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("positives", [20, 40, 60, 100, 140, 1000, 2_000_000])
def test_exactly_95_percent_of_the_positives_are_enough(positives):
    kept = positives * 95 // 100
    assert Fraction(kept, positives) == Fraction(95, 100)
    low, high = torch.tensor([6.0, 2.0], dtype=torch.float64), torch.tensor([positives - kept, kept]).double()
    assert fpr_at_tpr(low, high).item() == 0.25


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_is_taken_row_by_row(figure):
    generator = torch.Generator().manual_seed(0)
    negatives, positives = torch.randint(0, 9, (2, 3, 4, 16), generator=generator).double()
    each = [figure(n, p) for n, p in zip(negatives.flatten(0, 1), positives.flatten(0, 1), strict=True)]
    assert torch.equal(figure(negatives, positives), torch.stack(each).view(3, 4))


@pytest.mark.parametrize(("figure", "best"), [(area_under_roc, 1.0), (average_precision, 1.0), (fpr_at_tpr, 0.0)])
def test_figure_is_at_its_best_where_all_positives_score_above_all_negatives(figure, best):
    assert figure(torch.tensor([5.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 3.0])).item() == best


@pytest.mark.parametrize(("figure", "chance"), [(area_under_roc, 0.5), (average_precision, 0.25), (fpr_at_tpr, 1.0)])
def test_figure_is_that_of_chance_where_all_scores_tie(figure, chance):
    assert figure(torch.tensor([0.0, 6.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])).item() == chance


@given(case=histograms())
@property_test
def test_area_under_roc_of_the_roles_exchanged_is_the_rest_to_1(case):
    negatives, positives = case
    total = area_under_roc(negatives, positives) + area_under_roc(positives, negatives)
    assert total.item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_without_a_positive_is_nan(figure):
    assert figure(torch.tensor([1.0, 2.0]), torch.zeros(2)).isnan()


@pytest.mark.parametrize("figure", [area_under_roc, fpr_at_tpr])
def test_figure_without_a_negative_is_nan(figure):
    assert figure(torch.zeros(2), torch.tensor([1.0, 2.0])).isnan()


def raw_scores(kind):
    """40,000 raw scores of pixels in float32, a fifth of them positive and tending to be higher."""
    random = np.random.default_rng(0)
    label = (random.random(40_000) < 0.2).astype(np.int64)
    normal = random.normal(size=label.size) + 0.8 * label
    score = {
        "uniform": lambda: 1 / (1 + np.exp(-normal)),
        "small": lambda: np.exp(4 * normal - 20),
        "negative": lambda: -np.exp(-normal),
        "both signs": lambda: normal,
        "tied": lambda: np.round(normal),
    }[kind]()
    return label, score.astype(np.float32)


@pytest.mark.parametrize("kind", ["uniform", "small", "negative", "both signs", "tied"])
@pytest.mark.parametrize("figure", FIGURES)
def test_figure_over_16_bit_bins_is_within_2e_3_of_scikit_learn_on_the_raw_scores(figure, kind):
    label, score = raw_scores(kind)
    bins = order_bins(torch.from_numpy(score), bits=16)
    counts = [torch.bincount(bins[torch.from_numpy(label == side)], minlength=2**16).double() for side in (0, 1)]
    assert figure(*counts).item() == pytest.approx(SCIKIT_LEARN[figure](label, score), abs=2e-3)
