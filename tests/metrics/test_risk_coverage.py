import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from seguq.core.errors import SeguqError
from seguq.metrics import ErrorDetection, ErrorRanking, RiskCoverage
from seguq.metrics.bootstrap import poisson_weights
from tests.metrics.builders import ids, uncertainty_and_error
from tests.metrics.test_error_detection import FEW, of_scikit_learn, scores
from tests.oracles import bootstrap
from tests.oracles import ranking as oracles

FIGURES = ("aurc", "augrc", "ause")
ORACLES = {
    "aurc": oracles.area_under_risk_coverage,
    "augrc": oracles.area_under_generalized_risk_coverage,
    "ause": oracles.area_under_sparsification_error,
}


def of_loops(uncertainty, error, names=FIGURES):
    """The figures by loops over the raw scores of the pixels that count."""
    right, wrong = (uncertainty[error == side].tolist() for side in (0, 1))
    return {name: ORACLES[name](right, wrong) for name in names}


def of_raw_scores(uncertainty, error):
    """The figures of the raw scores, each a bin of its own (the figures of bins are tested against loops)."""
    values, rank = torch.unique(uncertainty, return_inverse=True)
    counts = [torch.bincount(rank[error == side], minlength=len(values)).double() for side in (0, 1)]
    return {name: float(RiskCoverage.statistics[name](*counts)) for name in FIGURES}


def figures(*batches, metric=RiskCoverage, **arguments):
    metric = metric(n_boot=2, **arguments)
    for batch in batches:
        metric.update(*batch)
    return {name: float(figure) for name, figure in metric.compute().items()}


def in_eighths(**arguments):
    """Scores in eighths, so that no two of them share a bin even of the replicates."""
    uncertainty, error = uncertainty_and_error(**arguments)
    return (uncertainty * 8).floor() / 8, error


# --- the values


@pytest.mark.parametrize("size", [(), (7,), (6, 5), (2, 3, 4)])
def test_figures_of_few_different_scores_are_those_of_loops_over_pixels(size):
    batch = in_eighths(size=size, images=12)
    assert figures(batch) == pytest.approx(of_loops(*batch), abs=1e-6)


@pytest.mark.parametrize("values", FEW.values(), ids=FEW.keys())
def test_figures_depend_on_the_order_of_the_scores_alone(values):
    uncertainty, error = uncertainty_and_error()
    numbers = (uncertainty * 16).floor().clamp(0, 15)
    assert figures((values(numbers).float(), error)) == pytest.approx(of_raw_scores(numbers, error), abs=1e-6)


RISING = {
    "scaled": lambda u: 3 * u,
    "cubed": lambda u: u**3,
    "to the power of e": lambda u: u.exp(),
    "logarithm": lambda u: u.log(),
    "negative": lambda u: -1 / u,
    "shifted below 0": lambda u: u - 4,
}


@pytest.mark.parametrize("rising", RISING.values(), ids=RISING.keys())
@given(case=st.lists(st.tuples(st.integers(1, 16), st.sampled_from([0, 1, 255])), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_a_rising_function_of_the_scores_changes_nothing(rising, case):
    uncertainty = torch.tensor([[score / 8 for score, _ in case]])
    error = torch.tensor([[label for _, label in case]])
    assert figures((rising(uncertainty), error)) == pytest.approx(figures((uncertainty, error)), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("kind", ["probabilities", "from 1e-20 to 1e3", "negative", "of both signs"])
def test_figures_are_within_1e_5_of_those_of_raw_scores(kind):
    assert figures(scores(kind)) == pytest.approx(of_raw_scores(*scores(kind)), abs=1e-5)


def test_figures_are_within_two_thousandths_where_most_scores_share_the_few_bins_just_below_1():
    assert figures(scores("near 1")) == pytest.approx(of_raw_scores(*scores("near 1")), abs=0.002)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.6])
def test_a_perfect_ranking_has_no_sparsification_error_and_the_best_aurc(rate):
    score = torch.linspace(0.001, 1, 100_000)[None]
    error = (score > 1 - rate).long()
    rate = error.double().mean().item()
    expected = {"aurc": rate + (1 - rate) * math.log(1 - rate), "augrc": rate**2 / 2, "ause": 0}
    # the bin in which right meets wrong holds both
    assert figures((score, error)) == pytest.approx(expected, abs=5e-5)


@given(labels=st.lists(st.booleans(), min_size=1, max_size=50), score=st.floats(-1e3, 1e3, width=32))
@settings(max_examples=50, deadline=None)
def test_a_constant_uncertainty_has_the_error_rate_for_aurc(labels, score):
    found = figures((torch.full((1, len(labels)), score), torch.tensor([labels])))
    rate = sum(labels) / len(labels)
    assert (found["aurc"], found["augrc"]) == pytest.approx((rate, rate / 2), abs=1e-6)


@pytest.mark.parametrize(("label", "expected"), [(0, (0, 0, 0)), (1, (1, 0.5, 0))], ids=["right", "wrong"])
def test_figures_where_every_pixel_is(label, expected):
    found = figures((torch.rand(1, 9), torch.full((1, 9), label)))
    assert tuple(found[name] for name in FIGURES) == pytest.approx(expected, abs=1e-6)


def test_wrong_input_is_one_clear_error():
    with pytest.raises(SeguqError, match=r"error must hold 0 \(right\), 1 \(wrong\) or ignore_index=255"):
        RiskCoverage(n_boot=2).update(torch.zeros(1, 4), torch.full((1, 4), 2))


# --- one histogram for all


def test_error_ranking_gives_what_the_two_metrics_give():
    batch = uncertainty_and_error()
    both = {**figures(batch, metric=ErrorDetection), **figures(batch, metric=RiskCoverage)}
    assert figures(batch, metric=ErrorRanking) == both
    assert list(both) == ["auroc", "aupr", "fpr95", "aurc", "augrc", "ause"]


def test_error_ranking_gives_the_figures_of_loops():
    batch = in_eighths()
    expected = {**of_scikit_learn(*batch), **of_loops(*batch)}
    assert figures(batch, metric=ErrorRanking) == pytest.approx(expected, abs=1e-6)


def test_error_ranking_gives_the_intervals_that_the_two_metrics_give():
    batch = uncertainty_and_error()
    found = []
    for make in (ErrorDetection, RiskCoverage, ErrorRanking):
        metric = make(n_boot=20)
        metric.update(*batch, group=ids(6))
        intervals = metric.compute_interval()
        found.append({f"{name} {i}": float(pair[i]) for name, pair in intervals.items() for i in range(2)})
    assert found[2] == pytest.approx({**found[0], **found[1]}, abs=1e-6)


@pytest.mark.parametrize(("metric", "higher"), [(RiskCoverage, False), (ErrorDetection, True), (ErrorRanking, None)])
def test_a_metric_says_which_way_is_better(metric, higher):
    assert metric(n_boot=2).higher_is_better is higher


def test_a_collection_keeps_the_metrics_apart():
    batch = uncertainty_and_error()
    together = MetricCollection([ErrorDetection(n_boot=2), RiskCoverage(n_boot=2)])
    for _ in range(2):  # after the first update a collection looks for metrics of equal states
        together.update(*batch)
    expected = {**figures(batch, batch, metric=ErrorDetection), **figures(batch, batch, metric=RiskCoverage)}
    assert {name: float(figure) for name, figure in together.compute().items()} == expected


# --- the interval


def drawn_again(batch, figure, n_boot):
    """The interval of a figure of (uncertainty, error) over images that are drawn again and put together."""

    def together(drawn):
        return figure(
            *(torch.from_numpy(np.concatenate([i.ravel() for i in part])) for part in zip(*drawn, strict=True))
        )

    images = list(zip(*(tensor.numpy() for tensor in batch), strict=True))
    counts = np.stack([poisson_weights(0, image_id, n_boot) for image_id in ids(len(images))])
    return bootstrap.intervals(images, counts, together)


def interval(batch, n_boot):
    metric = RiskCoverage(n_boot=n_boot)
    metric.update(*batch, group=ids(len(batch[0])))
    return {name: tuple(float(bound) for bound in pair) for name, pair in metric.compute_interval().items()}


@pytest.mark.parametrize("name", FIGURES)
def test_the_interval_over_few_scores_is_that_of_drawing_images_again(name):
    batch = in_eighths(images=8, size=(4, 6))
    expected = drawn_again(batch, lambda *drawn: of_loops(*drawn, names=[name])[name], n_boot=30)
    assert interval(batch, n_boot=30)[name] == pytest.approx(expected, abs=1e-6)


SHAPES = {"probabilities": lambda u: u, "entropies": lambda u: -u * u.log(), "energies": lambda u: -15 + 3 * u.logit()}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", FIGURES)
def test_the_interval_is_that_of_drawing_images_again_up_to_3_percent_of_its_width(name, shape):
    uncertainty, error = uncertainty_and_error(images=8, size=(60, 60))
    batch = shape(uncertainty), error
    low, high = drawn_again(batch, lambda *drawn: of_raw_scores(*drawn)[name], n_boot=60)
    assert interval(batch, n_boot=60)[name] == pytest.approx((low, high), abs=0.03 * (high - low))


# --- the picture


def picture(*batches, group=None, **arguments):
    metric = RiskCoverage(n_boot=50)
    for batch in batches:
        metric.update(*batch, group=group)
    return metric.plot(**arguments)


def lines(axes, style):
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() == style]


def six_pixels():
    """Scores in three ties: two right, one of two wrong, and again one of two."""
    return torch.tensor([[0.1, 0.1, 0.4, 0.4, 0.9, 0.9]]), torch.tensor([[0, 0, 0, 1, 1, 0]])


def test_the_curve_has_the_error_rate_among_the_most_certain_over_the_share_of_them():
    figure, axes = picture(six_pixels())
    assert axes in figure.axes
    (curve,) = lines(axes, "-")
    assert np.interp([0.1, 1 / 3, 0.5, 2 / 3, 1], *curve.T) == pytest.approx([0, 0, 1 / 6, 1 / 4, 1 / 3], abs=5e-3)


def test_the_dashed_curve_is_the_best_of_that_error_rate():
    _, axes = picture(six_pixels())
    (best,) = lines(axes, "--")
    coverage = best[:, 0]
    np.testing.assert_allclose(best[:, 1], np.maximum(0, 1 - 2 / 3 / coverage), atol=1e-6)


def test_the_area_under_the_curves_is_what_the_legend_tells():
    _, axes = picture(uncertainty_and_error(images=20, size=(50, 50)), label="entropy")
    (text,) = [text.get_text() for text in axes.get_legend().get_texts()]
    areas = [
        np.sum(np.diff(curve[:, 0]) * (curve[1:, 1] + curve[:-1, 1]) / 2)
        for curve in (*lines(axes, "-"), *lines(axes, "--"))
    ]
    assert text.startswith("entropy: AURC ")
    assert [float(number) for number in text.removeprefix("entropy: AURC ").split(", best ")] == pytest.approx(
        areas, abs=3e-3
    )


def test_a_picture_can_be_drawn_into_given_axes_that_then_show_both():
    worse = six_pixels()[0], 1 - six_pixels()[1]
    figure, axes = picture(six_pixels())
    assert picture(worse, ax=axes) == (figure, axes)
    assert len(lines(axes, "-")) == 2
    bottom, top = axes.get_ylim()
    assert bottom == 0 and top >= max(curve[:, 1].max() for curve in lines(axes, "-"))


def test_a_color_is_that_of_curve_best_curve_and_band():
    _, axes = picture(uncertainty_and_error(images=8), group=ids(8), color="#336699")
    assert [line.get_color() for line in axes.lines] == ["#336699"] * 2
    assert axes.collections[0].get_facecolor()[0, :3] == pytest.approx([0x33 / 255, 0x66 / 255, 0x99 / 255])


def test_the_picture_has_a_band_only_where_images_are_known():
    batch = uncertainty_and_error(images=8)
    assert (len(picture(batch)[1].collections), len(picture(batch, group=ids(8))[1].collections)) == (0, 1)


def test_one_batch_without_ids_is_enough_for_no_band():
    metric = RiskCoverage(n_boot=10)
    metric.update(*uncertainty_and_error(images=8), group=ids(8))
    metric.update(*uncertainty_and_error(seed=1))
    assert len(metric.plot()[1].collections) == 0


def test_the_band_is_that_of_drawing_images_again():
    uncertainty, error = uncertainty_and_error(images=8, ignored=0)
    _, axes = picture((uncertainty, error), group=ids(8))
    corners = axes.collections[0].get_paths()[0].vertices
    at_all = corners[np.isclose(corners[:, 0], 1), 1]
    expected = drawn_again((uncertainty, error), lambda _, wrong: wrong.double().mean().item(), n_boot=50)
    assert (at_all.min(), at_all.max()) == pytest.approx(expected, abs=1e-6)


def test_the_band_holds_the_curve():
    _, axes = picture(uncertainty_and_error(images=40, size=(20, 20)), group=ids(40))
    corners = axes.collections[0].get_paths()[0].vertices
    (curve,) = lines(axes, "-")
    for x, y in curve[curve[:, 0] > 0.1]:
        low, high = (f(corners[np.isclose(corners[:, 0], x), 1]) for f in (np.min, np.max))
        assert low <= y <= high


def test_a_picture_of_nothing_is_empty_axes():
    _, axes = picture()
    assert np.isnan(lines(axes, "-")[0][:, 1]).all()
