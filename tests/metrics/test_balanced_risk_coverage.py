import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.metrics import BalancedRiskCoverage, RiskCoverage
from seguq.metrics.bootstrap import poisson_weights
from tests.metrics.builders import ids, uncertainty_and_error
from tests.oracles import bootstrap
from tests.oracles import ranking as oracles

FIGURES = ("aurc", "augrc", "ause")


def images_of_classes(images=6, size=(6, 8), ignored=0.1):
    """Scores, errors and classes, of which the first is frequent and sure, the last rare and often wrong."""
    random = np.random.default_rng(1)
    target = random.choice(4, (images, *size), p=[0.8, 0.1, 0.06, 0.04])
    uncertainty, error = uncertainty_and_error(images=images, size=size, ignored=ignored)
    error[torch.from_numpy(random.random(target.shape) < 0.15 * target) & (error == 0)] = 1
    uncertainty = (uncertainty.logit() + 0.4 * torch.from_numpy(target)).sigmoid().float()
    target[random.random(target.shape) < ignored] = 255
    return uncertainty, error, torch.from_numpy(target)


def in_eighths(**arguments):
    """Scores in eighths, so that no two of them share a bin even of the replicates; none is in the lowest eighth."""
    uncertainty, error, target = images_of_classes(**arguments)
    return 0.5 + (uncertainty * 4).floor() / 8, error, target


def of_sorting(uncertainty, error, target):
    """The figures of the raw scores of the pixels that count."""
    counted = (error != 255) & (target != 255)
    return oracles.areas_under_balanced_curve(*(each[counted].tolist() for each in (uncertainty, error, target)))


def filled(*batches, classes=4, n_boot=2, group=None, **arguments):
    metric = BalancedRiskCoverage(classes, n_boot=n_boot, **arguments)
    for batch in batches:
        metric.update(*batch, group=group)
    return metric


def figures(*batches, **arguments):
    return {name: float(value) for name, value in filled(*batches, **arguments).compute().items()}


# --- the values

SCORES = {
    "spread": (lambda u: u, 1e-4),
    "spread over 30 powers of ten": (lambda u: 10 ** (30 * (u - 1)), 1e-4),
    "of both signs": (lambda u: u.logit(), 1e-4),
    "crowded within a hundredth of 1": (lambda u: 1 - 0.01 * u, 0.02),
    "crowded below -1": (lambda u: -1 - 0.01 * (1 - u), 0.02),
    "tied": (lambda u: 0.5 + (u * 4).floor() / 8, 1e-6),
    "constant": (lambda u: torch.full_like(u, 0.3), 1e-6),
    "infinite": (lambda u: (u * 4).floor().sub(1).mul(math.inf).nan_to_num(0, math.inf, -math.inf), 1e-6),
}


@pytest.mark.parametrize(("scores", "within"), SCORES.values(), ids=SCORES.keys())
def test_values_are_those_of_sorting_the_pixels(scores, within):
    uncertainty, error, target = images_of_classes(size=(20, 20))
    batch = scores(uncertainty), error, target
    assert figures(batch) == pytest.approx(of_sorting(*batch), abs=within)


@pytest.mark.parametrize(("scores", "within"), SCORES.values(), ids=SCORES.keys())
def test_the_bounds_hold_the_values_of_sorting_the_pixels(scores, within):
    uncertainty, error, target = images_of_classes()
    batch = scores(uncertainty), error, target
    bounds, expected = filled(batch).compute_bounds(), of_sorting(*batch)
    for name in FIGURES:
        low, high = (float(bound) for bound in bounds[name])
        assert low - 1e-6 <= expected[name] <= high + 1e-6


def test_pixels_of_a_frequent_class_count_less_than_in_the_plain_metric():
    """All of the rare class is wrong and certain: half of everything, where plain pixels hardly show it."""
    target = (torch.arange(1000) == 0).long()[None]
    uncertainty = torch.where(target == 1, 0.1, 0.5)
    plain = RiskCoverage(n_boot=2)
    plain.update(uncertainty, target)
    assert float(plain.compute()["aurc"]) < 0.01
    assert figures((uncertainty, target, target))["aurc"] == pytest.approx(0.5 + 0.5 * math.log(2), abs=1e-6)


def test_more_of_the_same_pixels_of_one_class_change_nothing():
    uncertainty, error, target = images_of_classes()
    more = uncertainty, error, target.where(target == 2, 255)
    assert figures((uncertainty, error, target), *[more] * 50) == pytest.approx(figures((uncertainty, error, target)))


def test_with_one_class_it_is_the_plain_metric_of_many_pixels():
    uncertainty, error = uncertainty_and_error(images=20, size=(100, 100))
    plain = RiskCoverage(n_boot=2)
    plain.update(uncertainty, error)
    expected = {name: float(value) for name, value in plain.compute().items()}
    assert figures((uncertainty, error, torch.zeros_like(error)), classes=1) == pytest.approx(expected, abs=2e-5)


def test_classes_that_do_not_occur_have_no_weight():
    batch = images_of_classes()
    assert figures(batch, classes=9) == figures(batch)


@pytest.mark.parametrize(("label", "expected"), [(0, (0, 0, 0)), (1, (1, 0.5, 0))], ids=["right", "wrong"])
def test_values_where_every_pixel_is(label, expected):
    uncertainty, _, target = images_of_classes()
    found = figures((uncertainty, torch.full_like(target, label), target))
    assert tuple(found[name] for name in FIGURES) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ignore_index", [255, -1])
def test_a_pixel_is_left_out_where_its_class_is_ignored_whatever_its_error_and_score(ignore_index):
    uncertainty, error, target = in_eighths()
    expected = of_sorting(uncertainty, error, target)
    uncertainty = uncertainty.where(target != 255, torch.nan)
    error = error.where(error != 255, ignore_index).where(target != 255, 77)
    target = target.where(target != 255, ignore_index)
    assert figures((uncertainty, error, target), ignore_index=ignore_index) == pytest.approx(expected, abs=1e-6)


def test_a_class_may_be_the_one_that_is_ignored():
    uncertainty, error, target = in_eighths(ignored=0)
    expected = of_sorting(uncertainty, error, target.where(target != 3, 255))
    assert figures((uncertainty, error, target), ignore_index=3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("error", "target", "message"),
    [
        (
            torch.full((1, 4), 2),
            torch.zeros(1, 4).long(),
            r"error must hold 0 \(right\), 1 \(wrong\) or ignore_index=255",
        ),
        (torch.zeros(1, 4), torch.full((1, 4), 4), r"target holds the value 4, which is no class index in 0\.\.3"),
        (torch.zeros(1, 4), torch.zeros(1, 1, 4).long(), r"target of shape \(1, 1, 4\) does not go with error"),
        (torch.zeros(1, 3), torch.zeros(1, 4).long(), r"uncertainty of shape \(1, 4\) does not go with error"),
    ],
)
def test_wrong_input_is_one_clear_error(error, target, message):
    with pytest.raises(SeguqError, match=message):
        BalancedRiskCoverage(4, n_boot=2).update(torch.zeros(1, 4), error, target)


@pytest.mark.parametrize("num_classes", [0, 1.5, True])
def test_the_number_of_classes_is_a_whole_one(num_classes):
    with pytest.raises(SeguqError, match="num_classes must be a whole number of at least 1"):
        BalancedRiskCoverage(num_classes)


# --- the interval and the working point


def drawn_again(batch, figure, n_boot):
    """The interval of a figure of (uncertainty, error, target) over images that are drawn again and put together."""
    images = list(zip(*(tensor.numpy() for tensor in batch), strict=True))
    counts = np.stack([poisson_weights(0, image_id, n_boot) for image_id in ids(len(images))])

    def together(drawn):
        return figure(*(torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True)))

    return bootstrap.intervals(images, counts, together)


@pytest.mark.parametrize("name", FIGURES)
def test_the_interval_over_few_scores_is_that_of_drawing_images_again_and_weighing_their_classes_anew(name):
    batch = in_eighths()
    expected = drawn_again(batch, lambda *drawn: of_sorting(*drawn)[name], n_boot=30)
    found = filled(batch, n_boot=30, group=ids(6)).compute_interval()[name]
    assert [float(bound) for bound in found] == pytest.approx(expected, abs=1e-6)


def risk_at(threshold):
    def figure(uncertainty, error, target):
        counted = (error != 255) & (target != 255)
        uncertainty, error, target = (each[counted].numpy() for each in (uncertainty, error, target))
        weight = 1 / np.bincount(target)[target]
        taken = weight * (uncertainty <= threshold)
        return taken.sum() / weight.sum(), (taken * error).sum() / taken.sum()

    return figure


def test_a_working_point_is_one_of_the_weighted_pixels_with_intervals():
    batch = in_eighths()
    point = filled(batch, n_boot=30, group=ids(6)).working_point(threshold=0.7)
    assert (point.coverage, point.risk) == pytest.approx(risk_at(0.7)(*batch))
    for place, found in enumerate((point.coverage_interval, point.risk_interval)):
        expected = drawn_again(batch, lambda *drawn, place=place: risk_at(0.7)(*drawn)[place], n_boot=30)
        assert found == pytest.approx(expected)


def test_a_working_point_for_a_risk_keeps_to_it():
    batch = images_of_classes()
    point = filled(batch).working_point(risk=0.2)
    assert point.risk <= 0.2
    assert risk_at(point.threshold)(*batch) == pytest.approx((point.coverage, point.risk))


# --- the picture


def lines(axes, style):
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() == style]


def test_the_curve_and_the_best_one_are_those_of_the_weighted_pixels():
    batch = in_eighths()
    metric = filled(batch, n_boot=30, group=ids(6))
    _, axes = metric.plot()
    counted = (batch[1] != 255) & (batch[2] != 255)
    accepted, wrong = oracles.balanced_curve(*(each[counted].tolist() for each in batch))
    for (found,), curve in ((lines(axes, "-"), (accepted, wrong)), (lines(axes, "--"), oracles.best_curve(wrong[-1]))):
        coverage = found[:, 0]
        np.testing.assert_allclose(found[:, 1], np.interp(coverage, *curve) / coverage, atol=1e-6)
    (text,) = [text.get_text() for text in axes.get_legend().get_texts()]
    assert text.startswith(f"class-balanced AURC {float(metric.compute()['aurc']):.3f}, best ")
    corners = axes.collections[0].get_paths()[0].vertices
    at_all = corners[np.isclose(corners[:, 0], 1), 1]
    expected = drawn_again(batch, lambda *drawn: risk_at(1)(*drawn)[1], n_boot=30)
    assert (at_all.min(), at_all.max()) == pytest.approx(expected, abs=1e-6)
