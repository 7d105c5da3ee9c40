import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from seguq.core.errors import SeguqError
from seguq.metrics import ErrorDetection, ErrorRanking, RiskCoverage
from tests.metrics.builders import ids, uncertainty_and_error

FIGURES = ("auroc", "aupr", "fpr95")


def of_scikit_learn(uncertainty, error, ignore_index=255):
    """The three figures on the raw scores of the pixels that count."""
    counted = error.numpy() != ignore_index
    label, score = error.numpy()[counted], uncertainty.double().numpy()[counted]
    false_rate, true_rate, _ = roc_curve(label, score, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(label, score),
        "aupr": average_precision_score(label, score),
        "fpr95": false_rate[np.argmax(true_rate >= 0.95 - 1e-12)],
    }


def figures(*batches, **arguments):
    metric = ErrorDetection(n_boot=2, **arguments)
    for batch in batches:
        metric.update(*batch)
    return {name: float(figure) for name, figure in metric.compute().items()}


def scores(kind):
    """Scores of 30,000 pixels, the wrong ones tending to be higher."""
    _, error = uncertainty_and_error(images=3, size=(100, 100))
    normal = torch.randn(error.shape, generator=torch.Generator().manual_seed(0)) + 0.9 * (error == 1)
    return {
        "probabilities": lambda: normal.sigmoid(),
        "from 1e-20 to 1e3": lambda: 10 ** (normal * 3 - 8).clamp(-20, 3),
        "negative": lambda: -torch.exp(-normal),
        "of both signs": lambda: normal,
        "near 1": lambda: 1 - 1e-2 * torch.exp(-normal),
        "float64": lambda: normal.double().exp(),
    }[kind](), error


@pytest.mark.parametrize("kind", ["probabilities", "from 1e-20 to 1e3", "negative", "of both signs", "float64"])
def test_figures_are_within_2e_4_of_scikit_learn_on_raw_scores(kind):
    found, expected = figures(scores(kind)), of_scikit_learn(*scores(kind))
    assert found.pop("fpr95") == pytest.approx(expected.pop("fpr95"), abs=1e-3)
    assert found == pytest.approx(expected, abs=2e-4)


def test_two_measures_of_one_ranking_have_the_same_figures():
    uncertainty, error = scores("probabilities")
    found, other = figures((uncertainty, error)), figures((uncertainty.logit() - 20, error))
    assert found.pop("fpr95") == pytest.approx(other.pop("fpr95"), abs=1e-3)
    assert found == pytest.approx(other, abs=2e-4)


def test_figures_are_within_a_hundredth_where_most_scores_share_the_few_bins_just_below_1():
    assert figures(scores("near 1")) == pytest.approx(of_scikit_learn(*scores("near 1")), abs=0.015)


KINDS = ["probabilities", "from 1e-20 to 1e3", "negative", "of both signs", "float64", "near 1"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_of_raw_scores_are_within_the_bounds(kind):
    batch = scores(kind)
    metric = ErrorRanking(n_boot=2)
    metric.update(*batch)
    bounds, value = metric.compute_bounds(), metric.compute()
    for name, expected in of_scikit_learn(*batch).items():
        low, high = map(float, bounds[name])
        assert low - 1e-6 <= expected <= high + 1e-6
        assert low - 1e-6 <= float(value[name]) <= high + 1e-6


def test_scores_that_tie_leave_no_doubt():
    uncertainty, error = uncertainty_and_error()
    metric = ErrorRanking(n_boot=2)
    metric.update((uncertainty * 8).floor() / 8, error)
    for name, (low, high) in metric.compute_bounds().items():
        assert float(low) == float(high) == float(metric.compute()[name])


@pytest.mark.parametrize("metric", [ErrorDetection, RiskCoverage, ErrorRanking])
def test_flat_scores_are_one_image_and_cost_the_memory_of_one(metric):
    flat, error = torch.rand(200_000), torch.randint(0, 2, (200_000,))
    first, second = metric(n_boot=10), metric(n_boot=10)
    first.update(flat, error, group=["video"])  # a histogram a score would be 800 GB
    second.update(flat[None], error[None], group=["video"])
    assert first.compute() == second.compute()
    assert torch.equal(first.replicates, second.replicates)


def test_many_images_of_one_score_each_are_taken_in_parts():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(5000, 1, generator=generator)
    error = (torch.rand(5000, 1, generator=generator) < score).long()
    metric, other = ErrorRanking(n_boot=5), ErrorRanking(n_boot=5)
    metric.update(score, error, group=ids(5000))
    for i in range(0, 5000, 100):
        other.update(score[i : i + 100], error[i : i + 100], group=ids(5000)[i : i + 100])
    assert torch.equal(metric.sums, other.sums)
    assert torch.equal(metric.replicates, other.replicates)


def test_flat_scores_with_an_id_each_are_told_how_to_be_images():
    with pytest.raises(SeguqError, match=r"flat values \(N,\) are one image; N images of one value each are \(N, 1\)"):
        ErrorDetection(n_boot=2).update(torch.rand(3), torch.zeros(3), group=ids(3))


FEW = {
    "eighths": lambda n: n / 8,
    "powers of two": lambda n: 2.0 ** (3 * n - 20),
    "negative": lambda n: n / 8 - 2,
    "with 0 and infinity": lambda n: torch.where(n == 0, -math.inf, torch.where(n == 15, math.inf, (n - 7).float())),
    "from 1e-20 to 1e3": lambda n: 10.0 ** (n * 23 / 15 - 20),
}


@pytest.mark.parametrize("values", FEW.values(), ids=FEW.keys())
def test_figures_of_few_different_scores_are_those_of_scikit_learn(values):
    uncertainty, error = uncertainty_and_error()
    numbers = (uncertainty * 16).floor().clamp(0, 15)
    ranked = of_scikit_learn(numbers, error)  # scikit-learn takes no infinity; the order is the same
    assert figures((values(numbers).float(), error)) == pytest.approx(ranked, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong_score", "expected"),
    [(0.9, {"auroc": 1, "aupr": 1, "fpr95": 0}), (0.1, {"auroc": 0, "aupr": 0.25, "fpr95": 1})],
    ids=["the highest", "the lowest"],
)
def test_figures_where_the_wrong_pixel_has_a_score_that_is(wrong_score, expected):
    batch = torch.tensor([[wrong_score, 0.5, 0.4, 0.3]]), torch.tensor([[1, 0, 0, 0]])
    assert figures(batch) == expected


def test_scores_that_all_tie_rank_like_chance():
    batch = torch.full((1, 4), 0.3), torch.tensor([[1, 0, 0, 0]])
    assert figures(batch) == {"auroc": 0.5, "aupr": 0.25, "fpr95": 1}


def test_errors_may_be_bool():
    uncertainty, error = uncertainty_and_error(ignored=0)
    assert figures((uncertainty, error.bool())) == figures((uncertainty, error))


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_without_a_wrong_pixel_are_nan(figure):
    assert math.isnan(figures((torch.rand(1, 4), torch.zeros(1, 4)))[figure])


@pytest.mark.parametrize("figure", ["auroc", "fpr95"])
def test_figures_without_a_right_pixel_are_nan(figure):
    assert math.isnan(figures((torch.rand(1, 4), torch.ones(1, 4)))[figure])


def test_every_pixel_that_counts_is_in_the_state():
    uncertainty, error = uncertainty_and_error()
    metric = ErrorDetection(n_boot=2)
    metric.update(uncertainty, error)
    right, wrong = metric.sums.view(2, -1).sum(1).tolist()
    assert (right, wrong) == (int((error == 0).sum()), int((error == 1).sum()))


def test_calling_the_metric_gives_the_figures_of_the_batch_and_takes_it_in():
    first, second = uncertainty_and_error(seed=1), uncertainty_and_error(seed=2)
    metric = ErrorDetection(n_boot=2)
    metric(*first)
    assert {name: float(figure) for name, figure in metric(*second).items()} == figures(second)
    assert {name: float(figure) for name, figure in metric.compute().items()} == figures(first, second)


SCORES, RIGHT = torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("uncertainty", "error", "message"),
    [
        (SCORES.index_fill(1, torch.tensor([2]), math.nan), RIGHT, "uncertainty holds NaN"),
        (SCORES, RIGHT[:, :3], r"uncertainty of shape \(2, 4\) does not go with error of shape \(2, 3\)"),
        (SCORES, RIGHT + 2, r"error must hold 0 \(right\), 1 \(wrong\) or ignore_index=255"),
        (SCORES, RIGHT - 1, "error must hold 0"),
        (SCORES, RIGHT + 0.5, "error must hold 0"),
    ],
    ids=["NaN", "shapes", "2", "-1", "0.5"],
)
def test_wrong_input_is_one_clear_error(uncertainty, error, message):
    with pytest.raises(SeguqError, match=message):
        ErrorDetection(n_boot=2).update(uncertainty, error)
