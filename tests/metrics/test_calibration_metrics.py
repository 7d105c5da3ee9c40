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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_computed_in_float32(metric, dtype):
    probs, target = probs_and_target()
    half = probs.to(dtype)
    assert value(metric(3), (half, target)) == value(metric(3), (half.float(), target))


def test_sums_do_not_lose_small_terms_beside_large_counts():
    metric = NegativeLogLikelihood(2)
    metric.sums += torch.tensor([2.0**25, 2.0**25])
    metric.update(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    assert metric.sums.tolist() == pytest.approx([2**25 + 1, 2**25 + math.log(2)], rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_value_is_float32(metric):
    assert value(metric(3), probs_and_target()).dtype == torch.float32


# --- what is left out


@pytest.mark.parametrize("ignore_index", [255, -1, -100, 0, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_ignored_pixels_are_as_good_as_absent(metric, ignore_index):
    probs, target = probs_and_target(size=(40,), ignored=0)
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = ignore_index
    kept = target != ignore_index
    present = probs.movedim(1, -1)[kept], target[kept]
    actual = value(metric(3, ignore_index=ignore_index), (probs, target))
    torch.testing.assert_close(actual, value(metric(3), present))


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_has_seen_nothing_is_nan(metric):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric(3).compute().isnan()


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_has_seen_only_ignored_pixels_is_nan(metric):
    assert value(metric(3), (torch.full((2, 3, 4), 1 / 3), torch.full((2, 4), 255))).isnan()


# --- batches


@pytest.mark.parametrize("metric", METRICS)
def test_batches_are_as_good_as_one_batch(metric):
    probs, target = probs_and_target()
    parts = [(probs[:1], target[:1]), (probs[1:5], target[1:5]), (probs[5:], target[5:])]
    torch.testing.assert_close(value(metric(3), *parts), value(metric(3), (probs, target)))


@pytest.mark.parametrize("metric", METRICS)
def test_images_of_different_sizes_count_by_their_pixels(metric):
    small, large = probs_and_target(seed=1, size=(2, 3)), probs_and_target(seed=2, size=(9, 8))
    expected = ORACLES[metric](one_by_one(*small) + one_by_one(*large))
    assert value(metric(3), small, large).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_calling_a_metric_gives_the_value_of_the_batch_and_takes_it_in(metric):
    first, second = probs_and_target(seed=1), probs_and_target(seed=2)
    called = metric(3)
    called(*first)
    assert called(*second) == value(metric(3), second)
    torch.testing.assert_close(called.compute(), value(metric(3), first, second))


@pytest.mark.parametrize("metric", METRICS)
def test_the_state_does_not_grow_with_pixels_or_images(metric):
    seen = metric(3)
    before = {name: state.shape for name, state in seen.metric_state.items()}
    for seed in range(3):
        seen.update(*probs_and_target(seed, images=9, size=(30, 30)), group=ids(9))
    assert {name: state.shape for name, state in seen.metric_state.items()} == before


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
        ({"n_boot": 1}, "n_boot must be at least 2, but is 1"),
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


def test_drawing_opens_no_window_manager_figure():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    diagram(two_bins())
    assert pyplot.get_fignums() == before


# --- what is ignored, what is flat, and logits


def of_each_kind(**arguments):
    return [kind(3, n_boot=10, **arguments) for kind in (CalibrationError, NegativeLogLikelihood, BrierScore)]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -9999.0])
def test_the_probabilities_of_an_ignored_pixel_may_be_anything(garbage):
    probs, target = probs_and_target(classes=3, ignored=0.3)
    for metric, other in zip(of_each_kind(), of_each_kind(), strict=True):
        metric.update(probs.masked_fill((target == 255).unsqueeze(1), garbage), target)
        other.update(probs, target)
        assert metric.compute() == other.compute()


def test_nan_at_a_labeled_pixel_is_refused():
    probs, target = probs_and_target(classes=3, ignored=0.3)
    for metric in of_each_kind():
        with pytest.raises(SeguqError, match="NaN"):
            metric.update(probs.masked_fill((target != 255).unsqueeze(1), math.nan), target)


def test_flat_probabilities_are_one_image():
    probs, target = probs_and_target(classes=3, images=1)
    flat, labels = probs.flatten(2)[0].T, target.flatten()
    for metric, other in zip(of_each_kind(), of_each_kind(), strict=True):
        metric.update(flat, labels, group=["a"])
        other.update(probs, target, group=["a"])
        torch.testing.assert_close(metric.compute(), other.compute())
        torch.testing.assert_close(metric.replicates, other.replicates)
        assert metric.replicates.any()


def test_the_likelihood_of_logits_is_not_clamped():
    logits = torch.tensor([[[400.0, 0.0], [0.0, 3.0]]])
    target = torch.tensor([[1, 1]])
    metric = NegativeLogLikelihood(2, from_logits=True)
    metric.update(logits, target)
    expected = torch.nn.functional.cross_entropy(logits.double(), target)
    torch.testing.assert_close(metric.compute(), expected.float())
    assert float(expected) > 200


def test_logits_of_an_ignored_pixel_may_be_anything_and_those_of_a_labeled_one_not():
    logits, target = torch.tensor([[[1.0, math.nan], [0.0, math.nan]]]), torch.tensor([[1, 255]])
    metric = NegativeLogLikelihood(2, from_logits=True)
    metric.update(logits, target)
    assert float(metric.compute()) == pytest.approx(math.log(1 + math.e))
    with pytest.raises(SeguqError, match="logits hold NaN"):
        metric.update(logits, torch.tensor([[1, 0]]))
