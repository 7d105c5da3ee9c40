import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from seguq.core.errors import SeguqError
from seguq.metrics import ErrorDetection
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
def test_figures_are_within_2e_3_of_scikit_learn_on_raw_scores(kind):
    assert figures(scores(kind)) == pytest.approx(of_scikit_learn(*scores(kind)), abs=2e-3)


def test_figures_are_within_a_tenth_where_most_scores_share_the_few_bins_just_below_1():
    assert figures(scores("near 1")) == pytest.approx(of_scikit_learn(*scores("near 1")), abs=0.1)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_scores_of_any_precision_are_taken(dtype):
    uncertainty, error = uncertainty_and_error()
    rounded = (uncertainty * 16).floor() / 16
    assert figures((rounded.to(dtype), error)) == figures((rounded, error))


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


@pytest.mark.parametrize("ignore_index", [255, -1, 7])
def test_ignored_pixels_are_as_good_as_absent(ignore_index):
    uncertainty, error = uncertainty_and_error(ignored=0.4)
    kept = error != 255
    marked = error.where(kept, ignore_index)
    assert figures((uncertainty, marked), ignore_index=ignore_index) == figures((uncertainty[kept], error[kept]))


def test_errors_may_be_bool():
    uncertainty, error = uncertainty_and_error(ignored=0)
    assert figures((uncertainty, error.bool())) == figures((uncertainty, error))


def test_batches_and_images_of_different_sizes_are_as_good_as_one_batch():
    small, large = uncertainty_and_error(seed=1, size=(3, 4)), uncertainty_and_error(seed=2, size=(9, 8))
    together = tuple(torch.cat((a.flatten(), b.flatten()))[None] for a, b in zip(small, large, strict=True))
    assert figures(small, large) == figures(together)


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_without_a_wrong_pixel_are_nan(figure):
    assert math.isnan(figures((torch.rand(1, 4), torch.zeros(1, 4)))[figure])


@pytest.mark.parametrize("figure", ["auroc", "fpr95"])
def test_figures_without_a_right_pixel_are_nan(figure):
    assert math.isnan(figures((torch.rand(1, 4), torch.ones(1, 4)))[figure])


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_of_ignored_pixels_alone_are_nan(figure):
    assert math.isnan(figures((torch.rand(1, 4), torch.full((1, 4), 255)))[figure])


def test_the_state_does_not_grow_with_pixels_or_images():
    metric = ErrorDetection(n_boot=5)
    before = {name: state.shape for name, state in metric.metric_state.items()}
    for seed in range(3):
        metric.update(*uncertainty_and_error(seed, images=4, size=(60, 60)), group=ids(4))
    assert {name: state.shape for name, state in metric.metric_state.items()} == before


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
