import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from seguq.core.errors import SeguqError
from seguq.functional import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    area_under_roc,
    area_under_sparsification_error,
    average_precision,
    fpr_at_tpr,
    order_bins,
    selective_risk,
)
from tests.oracles import ranking as oracles

property_test = settings(max_examples=100, deadline=None)
FIGURES = (area_under_roc, average_precision, fpr_at_tpr)
RISK_FIGURES = (area_under_risk_coverage, area_under_generalized_risk_coverage, area_under_sparsification_error)
TINY = float(np.finfo(np.float32).smallest_subnormal)
NORMAL = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

floats = st.one_of(
    st.sampled_from([0.0, -0.0, TINY, -TINY, NORMAL, -NORMAL, LARGEST, -LARGEST, math.inf, -math.inf, 1.0, -1.0]),
    st.floats(width=32, allow_nan=False),
    st.floats(-1, 1, width=32),
)


@st.composite
def histograms(draw, max_bins=12, most=9, of_each=1):
    """Counts of negatives and positives, lowest score first, at least one count and ``of_each`` of each."""
    n_bins = draw(st.integers(1, max_bins))
    counts = st.lists(st.integers(0, most), min_size=n_bins, max_size=n_bins)
    negatives, positives = draw(counts), draw(counts)
    assume(sum(negatives) >= of_each and sum(positives) >= of_each and sum(negatives) + sum(positives) > 0)
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


@pytest.mark.parametrize("figure", [*FIGURES, *RISK_FIGURES])
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


# --- what is accepted, the lowest scores first, and the errors in it


@pytest.mark.parametrize("figure", RISK_FIGURES)
@given(case=histograms(of_each=0))
@property_test
def test_risk_figure_matches_the_loop(figure, case):
    expected = getattr(oracles, figure.__name__)(*map(scores_of, case))
    assert figure(*case).item() == pytest.approx(expected, abs=1e-12)


@given(case=histograms(max_bins=3, most=2, of_each=0))
@settings(max_examples=40, deadline=None)
def test_aurc_is_the_mean_over_every_order_of_what_ties(case):
    assume(sum(counts.sum() for counts in case) <= 6)
    expected = oracles.area_under_risk_coverage_of_every_order(*map(scores_of, case))
    assert area_under_risk_coverage(*case).item() == pytest.approx(expected, abs=1e-12)


@given(case=histograms(of_each=0))
@property_test
def test_selective_risk_matches_the_loop_at_every_number_accepted(case):
    total = int(sum(counts.sum() for counts in case))
    accepted = range(1, total + 1)
    expected = [oracles.expected_errors(*map(scores_of, case), count) / count for count in accepted]
    risk = selective_risk(*case, torch.tensor(accepted, dtype=torch.float64) / total)
    assert risk.tolist() == pytest.approx(expected, abs=1e-12)


def test_selective_risk_within_a_bin_takes_its_errors_in_even_shares():
    negatives, positives = torch.tensor([2.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double()
    coverage = torch.tensor([0.1, 0.5, 0.625, 0.75, 1.0])
    assert selective_risk(negatives, positives, coverage).tolist() == pytest.approx([0, 0, 0.1, 1 / 6, 0.25])


def test_selective_risk_is_taken_row_by_row():
    generator = torch.Generator().manual_seed(0)
    negatives, positives = torch.randint(0, 9, (2, 3, 4, 16), generator=generator).double()
    coverage = torch.linspace(0.05, 1, 7).double()
    each = [
        selective_risk(n, p, coverage) for n, p in zip(negatives.flatten(0, 1), positives.flatten(0, 1), strict=True)
    ]
    assert torch.equal(selective_risk(negatives, positives, coverage), torch.stack(each).view(3, 4, 7))


@given(case=histograms(of_each=0))
@property_test
def test_selective_risk_of_everything_is_the_error_rate(case):
    rate = case[1].sum() / (case[0].sum() + case[1].sum())
    assert selective_risk(*case, torch.ones(1)).item() == pytest.approx(rate.item(), abs=1e-12)


@given(case=histograms())
@property_test
def test_augrc_follows_from_auroc_and_the_accuracy(case):
    accuracy = (case[0].sum() / (case[0].sum() + case[1].sum())).item()
    expected = (1 - area_under_roc(*case).item()) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert area_under_generalized_risk_coverage(*case).item() == pytest.approx(expected, abs=1e-12)


@st.composite
def perfect_histograms(draw):
    """Some bins of negatives, and above them some bins of positives."""
    right = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
    wrong = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
    assume(sum(right) + sum(wrong) > 0)
    negatives, positives = [*right, *[0] * len(wrong)], [*[0] * len(right), *wrong]
    return torch.tensor(negatives, dtype=torch.float64), torch.tensor(positives, dtype=torch.float64)


@given(case=perfect_histograms())
@property_test
def test_a_perfect_ranking_has_no_sparsification_error(case):
    assert 0 <= area_under_sparsification_error(*case).item() < 1e-14


@given(case=perfect_histograms())
@property_test
def test_a_perfect_ranking_has_an_augrc_of_half_the_squared_error_rate(case):
    rate = (case[1].sum() / (case[0].sum() + case[1].sum())).item()
    assert area_under_generalized_risk_coverage(*case).item() == pytest.approx(rate**2 / 2, abs=1e-12)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_a_perfect_ranking_of_many_scores_has_the_aurc_of_the_formula(rate):
    wrong = 1e10 * rate
    counts = torch.tensor([[1e10 - wrong, 0, 0], [0, wrong / 4, 3 * wrong / 4]], dtype=torch.float64)
    expected = rate + (1 - rate) * math.log(1 - rate)
    assert area_under_risk_coverage(*counts).item() == pytest.approx(expected, abs=1e-9)


@given(right=st.integers(0, 10**9), wrong=st.integers(0, 10**9))
@property_test
def test_scores_that_all_tie_have_the_error_rate_for_aurc_and_half_of_it_for_augrc(right, wrong):
    assume(right + wrong > 0)
    case, rate = torch.tensor([[0, right, 0], [0, wrong, 0]], dtype=torch.float64), wrong / (right + wrong)
    assert area_under_risk_coverage(*case).item() == pytest.approx(rate, abs=1e-12)
    assert area_under_generalized_risk_coverage(*case).item() == pytest.approx(rate / 2, abs=1e-12)


@pytest.mark.parametrize("figure", RISK_FIGURES)
@given(case=histograms())
@property_test
def test_no_ranking_is_better_than_right_first_or_worse_than_wrong_first(figure, case):
    right, wrong = (counts.sum().item() for counts in case)
    first, last = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    best, worst = figure(right * first, wrong * last).item(), figure(right * last, wrong * first).item()
    assert best - 1e-12 <= figure(*case).item() <= worst + 1e-12


@pytest.mark.parametrize("figure", RISK_FIGURES)
@given(case=histograms(), place=st.integers(0, 12))
@property_test
def test_an_empty_bin_changes_nothing(figure, case, place):
    wider = [torch.cat((counts[:place], torch.zeros(1).double(), counts[place:])) for counts in case]
    assert figure(*wider).item() == pytest.approx(figure(*case).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("figure", "none_wrong", "all_wrong"),
    [
        (area_under_risk_coverage, 0, 1),
        (area_under_generalized_risk_coverage, 0, 0.5),
        (area_under_sparsification_error, 0, 0),
    ],
)
def test_risk_figure_where_nothing_or_everything_is_wrong(figure, none_wrong, all_wrong):
    counts, nothing = torch.tensor([3.0, 0.0, 5.0]).double(), torch.zeros(3).double()
    found = figure(counts, nothing).item(), figure(nothing, counts).item()
    assert found == pytest.approx((none_wrong, all_wrong), abs=1e-12)


@pytest.mark.parametrize("figure", RISK_FIGURES)
def test_risk_figure_where_nothing_was_counted_is_nan(figure):
    assert figure(torch.zeros(2), torch.zeros(2)).isnan()


def test_selective_risk_where_nothing_was_counted_is_nan():
    assert selective_risk(torch.zeros(2), torch.zeros(2), torch.tensor([0.5, 1.0])).isnan().all()


@pytest.mark.parametrize("kind", ["uniform", "small", "negative", "both signs", "tied"])
@pytest.mark.parametrize("figure", RISK_FIGURES)
def test_risk_figure_over_16_bit_bins_is_within_2e_5_of_that_on_the_raw_scores(figure, kind):
    label, score = raw_scores(kind)
    bins = order_bins(torch.from_numpy(score), bits=16)
    rank = torch.from_numpy(np.unique(score, return_inverse=True)[1])
    coarse, exact = (
        figure(*(torch.bincount(index[torch.from_numpy(label == side)], minlength=2**16).double() for side in (0, 1)))
        for index in (bins, rank)
    )
    assert coarse.item() == pytest.approx(exact.item(), abs=2e-5)
