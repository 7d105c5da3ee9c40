import math

import matplotlib
import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCalibrationError

from seguq.core.errors import SeguqError
from seguq.metrics import BrierScore, CalibrationError, NegativeLogLikelihood
from tests.metrics.builders import ids, probs_and_target
from tests.oracles import bootstrap as oracles

matplotlib.use("Agg")

METRICS = [CalibrationError, NegativeLogLikelihood, BrierScore]
ORACLES = {
    CalibrationError: oracles.calibration_error,
    NegativeLogLikelihood: oracles.negative_log_likelihood,
    BrierScore: oracles.brier_score,
}
SIZES = [(), (7,), (5, 6), (2, 3, 4)]


def value(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def one_by_one(probs, target):
    return list(zip(probs.numpy(), target.numpy(), strict=True))


# --- the values


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("metric", METRICS)
def test_the_value_is_that_of_a_loop_over_pixels(metric, size, classes):
    batch = probs_and_target(classes=classes, size=size)
    expected = ORACLES[metric](one_by_one(*batch))
    assert value(metric(classes), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 40])
def test_the_calibration_error_in_any_number_of_bins_is_that_of_a_loop(n_bins):
    batch = probs_and_target()
    expected = oracles.calibration_error(one_by_one(*batch), n_bins)
    assert value(CalibrationError(3, n_bins=n_bins), batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_bins", [5, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_calibration_error_is_that_of_torchmetrics(classes, n_bins):
    batch = probs_and_target(classes=classes, size=(20, 20))
    reference = MulticlassCalibrationError(classes, n_bins=n_bins, norm="l1", ignore_index=255)
    torch.testing.assert_close(value(CalibrationError(classes, n_bins), batch), value(reference, batch))


@pytest.mark.parametrize("classes", [2, 5])
def test_the_negative_log_likelihood_is_the_log_loss_of_scikit_learn(classes):
    probs, target = probs_and_target(classes=classes, size=(400,), ignored=0)
    rows = probs.movedim(1, -1).flatten(0, 1).double().numpy()
    expected = log_loss(target.flatten(), rows / rows.sum(1, keepdims=True), labels=range(classes))
    assert value(NegativeLogLikelihood(classes), (probs, target)).item() == pytest.approx(expected, rel=1e-5)


def test_the_brier_score_of_two_classes_is_twice_that_of_scikit_learn():
    probs, target = probs_and_target(classes=2, size=(400,), ignored=0)
    expected = 2 * brier_score_loss(target.flatten(), probs[:, 1].flatten())  # which counts one of the two classes
    assert value(BrierScore(2), (probs, target)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("metric", "best"), [(CalibrationError, 0), (NegativeLogLikelihood, 0), (BrierScore, 0)])
def test_the_value_of_certain_and_right_predictions_is_0(metric, best):
    assert value(metric(2), (torch.tensor([[1.0, 0.0]]), torch.tensor([0]))).item() == best


@pytest.mark.parametrize(("metric", "worst"), [(CalibrationError, 1), (BrierScore, 2)])
def test_the_value_of_certain_and_wrong_predictions_is_the_largest(metric, worst):
    assert value(metric(2), (torch.tensor([[1.0, 0.0]]), torch.tensor([1]))).item() == worst


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_probability_of_0_for_the_truth_keeps_the_mean_finite(dtype):
    loss = value(NegativeLogLikelihood(2), (torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([1])))
    assert 80 < loss < 800


def test_sums_do_not_lose_small_terms_beside_large_counts():
    metric = NegativeLogLikelihood(2)
    metric.sums += torch.tensor([2.0**25, 2.0**25])
    metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    assert metric.sums.tolist() == pytest.approx([2**25 + 1, 2**25 + math.log(2)], rel=1e-12)


def test_the_brier_score_of_a_sure_model_keeps_its_digits():
    probs = torch.tensor([[1 - 2**-20, 2**-20]])
    assert value(BrierScore(2), (probs, torch.tensor([0]))) == pytest.approx(2 * 2**-40, rel=1e-6)


# --- batches


FIRST_BATCHES = {
    "without labels": (torch.tensor([[0.0, 1.0]]), torch.tensor([255])),
    "predicted perfectly": (torch.tensor([[0.0, 1.0]]), torch.tensor([1])),
    "usual": (torch.tensor([[0.4, 0.6]]), torch.tensor([1])),
}


@pytest.mark.parametrize("first", FIRST_BATCHES.values(), ids=FIRST_BATCHES.keys())
def test_metrics_in_a_collection_have_the_values_that_they_have_alone(first):
    second = torch.tensor([[0.5, 0.5]]), torch.tensor([1])
    together = value(MetricCollection([metric(2) for metric in METRICS]), first, second)
    assert together == {metric.__name__: value(metric(2), first, second) for metric in METRICS}


# --- wrong input

PROBS, TARGET = torch.full((2, 3, 4), 1 / 3), torch.zeros(2, 4, dtype=torch.long)
WRONG = {
    "another number of classes": (torch.full((2, 4, 4), 0.25), TARGET, "probs have 4 classes .* num_classes=3"),
    "a smaller mask": (PROBS, TARGET[:, :3], r"target must be .*\(2, 4\) .* but has shape \(2, 3\)"),
    "whole numbers": (PROBS.long(), TARGET, r"probs must be floating point, but have dtype torch.int64"),
    "fewer masks": (PROBS, TARGET[:1], r"\(2, 4\)"),
    "no class dimension": (torch.zeros(3), TARGET, r"probs must be \(B, C, \*spatial\)"),
    "NaN": (PROBS.clone().index_fill_(2, torch.tensor([1]), math.nan), TARGET, "probs hold NaN"),
    "a class out of range": (PROBS, TARGET + 3, r"target holds the value 3, .* 0\.\.2"),
    "a negative class": (PROBS, TARGET - 1, "target holds the value -1"),
    "a mask of floats": (PROBS, TARGET.float(), "target must hold class indices in an integer type"),
}


@pytest.mark.parametrize(("probs", "target", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("metric", METRICS)
def test_wrong_input_is_one_clear_error(metric, probs, target, message):
    with pytest.raises(SeguqError, match=message) as caught:
        metric(3).update(probs, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "classwide"}, "kind must be one of .*'classwide'"),
        ({"n_bins": 0}, "n_bins must be a whole number of at least 1, but is 0"),
        ({"n_boot": 1}, "n_boot must be a whole number of at least 2, but is 1"),
    ],
)
def test_a_wrong_argument_is_an_error_when_the_metric_is_made(arguments, message):
    with pytest.raises(SeguqError, match=message):
        CalibrationError(3, **arguments)


# --- the reliability diagram


def two_bins():
    """8 pixels at 0.9, 6 of them right, and 2 at 0.6, one of them right."""
    confidence = torch.tensor([0.9] * 8 + [0.6] * 2)
    target = torch.tensor([0] * 6 + [1] * 2 + [0, 1])
    return torch.stack((confidence, 1 - confidence), 1), target


def diagram(*batches, group=None, **arguments):
    metric = CalibrationError(2, n_bins=10)
    for batch in batches:
        metric.update(*batch, group=group)
    return metric.plot(**arguments)


def curve(axes):
    """The points of the line that is not the dashed diagonal."""
    (line,) = [line for line in axes.lines if line.get_linestyle() != "--"]
    return line.get_xydata()


def test_the_diagram_has_the_accuracy_of_each_bin_over_its_mean_confidence():
    figure, axes = diagram(two_bins())
    assert axes in figure.axes
    np.testing.assert_allclose(curve(axes), [[0.6, 0.5], [0.9, 0.75]], atol=1e-6)


def test_the_diagram_has_the_diagonal():
    _, axes = diagram(two_bins())
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert line.get_xydata().tolist() == [[0, 0], [1, 1]]


def test_the_diagram_leaves_out_bins_with_fewer_than_one_pixel_in_ten_thousand():
    rare = torch.tensor([[0.6, 0.4]]), torch.tensor([0])
    usual = torch.tensor([[0.9, 0.1]]).expand(10_001, 2), torch.zeros(10_001, dtype=torch.long)
    assert len(curve(diagram(rare, usual)[1])) == 1


def test_the_diagram_tells_the_calibration_error():
    _, axes = diagram(two_bins(), label="before")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before: ECE 0.140"]


def test_a_diagram_can_be_drawn_into_given_axes():
    figure, axes = diagram(two_bins())
    assert diagram(two_bins(), ax=axes) == (figure, axes)
    assert len(axes.lines) == 4


def test_the_diagram_has_a_band_only_where_images_are_known():
    images = ["all of it"]  # flat values are one image; the bars of the histogram are always there
    assert (len(diagram(two_bins())[1].collections), len(diagram(two_bins(), group=images)[1].collections)) == (1, 2)


def test_the_band_of_the_diagram_holds_the_line():
    probs, target = probs_and_target(images=40, classes=2, ignored=0)
    _, axes = diagram((probs, target), group=ids(40))
    corners = axes.collections[0].get_paths()[0].vertices
    for x, y in curve(axes):
        low, high = (f(corners[np.isclose(corners[:, 0], x), 1]) for f in (np.min, np.max))
        assert low <= y <= high


# --- logits


def test_the_likelihood_of_logits_is_not_clamped():
    logits = torch.tensor([[[400.0, 0.0], [0.0, 3.0]]])
    target = torch.tensor([[1, 1]])
    metric = NegativeLogLikelihood(2, from_logits=True)
    metric.update(logits, target)
    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    torch.testing.assert_close(metric.compute(), expected.float())
    assert float(expected) > 200
