import json
import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.metrics import BrierScore, CalibrationError, ErrorDetection, MeanIoU, NegativeLogLikelihood
from seguq.metrics.bootstrap import poisson_weights
from tests.metrics import two_processes
from tests.metrics.builders import ids, probs_and_target, uncertainty_and_error
from tests.metrics.test_error_detection import of_scikit_learn
from tests.oracles import bootstrap as oracles

IMAGES, N_BOOT = 8, 30


def of_probs(**arguments):
    return probs_and_target(images=IMAGES, **arguments)


def of_classes(**arguments):
    probs, target = of_probs(**arguments)
    return probs.argmax(1), target


def of_uncertainty(**arguments):
    """Scores in eighths, so that no two of them share a bin even of the replicates."""
    uncertainty, error = uncertainty_and_error(images=IMAGES, size=(4, 6), **arguments)
    return (uncertainty * 8).floor() / 8, error


CASES = {
    "CalibrationError": (lambda **options: CalibrationError(3, **options), of_probs, oracles.calibration_error),
    "NegativeLogLikelihood": (
        lambda **options: NegativeLogLikelihood(3, **options),
        of_probs,
        oracles.negative_log_likelihood,
    ),
    "BrierScore": (lambda **options: BrierScore(3, **options), of_probs, oracles.brier_score),
    "MeanIoU": (lambda **options: MeanIoU(3, **options), of_classes, oracles.mean_iou),
}
# of the calibration error the interval is another one: test_calibration_interval.py
PERCENTILES = {name: case for name, case in CASES.items() if name != "CalibrationError"}
EVERY = {**CASES, "ErrorDetection": (ErrorDetection, of_uncertainty, None)}
each_metric = pytest.mark.parametrize(("make", "data"), [case[:2] for case in EVERY.values()], ids=EVERY.keys())


def filled(make, batch, group=None, batch_size=IMAGES, **options):
    """A metric that has seen a batch in parts of ``batch_size``."""
    metric = make(n_boot=N_BOOT, **options)
    group = ids(len(batch[0])) if group is None else group
    for start in range(0, len(batch[0]), batch_size):
        part = slice(start, start + batch_size)
        metric.update(*(tensor[part] for tensor in batch), group=group[part])
    return metric


def bounds(metric, level=0.95):
    """The interval, or the intervals, as one tensor."""
    interval = metric.compute_interval(level)
    if isinstance(interval, dict):
        return torch.stack([bound for name in sorted(interval) for bound in interval[name]])
    return torch.stack(interval)


def counts(seed=0, n_boot=N_BOOT, images=IMAGES):
    return np.stack([poisson_weights(seed, image_id, n_boot) for image_id in ids(images)])


def one_by_one(batch):
    return list(zip(*(tensor.numpy() for tensor in batch), strict=True))


# --- the interval is that of images drawn again


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("make", "data", "figure"), PERCENTILES.values(), ids=PERCENTILES.keys())
def test_the_interval_is_that_of_drawing_images_again_and_computing_the_metric_anew(make, data, figure, seed, level):
    expected = oracles.intervals(one_by_one(data()), counts(seed), figure, level)
    actual = bounds(filled(make, data(), seed=seed), level)
    assert actual.tolist() == pytest.approx(expected, rel=1e-5)


def drawn_figures(batch, name):
    """Figure of a list of (uncertainty, error) images, by scikit-learn on raw scores."""

    def figure(drawn):
        uncertainty, error = (
            torch.from_numpy(np.concatenate([i.ravel() for i in part])) for part in zip(*drawn, strict=True)
        )
        return of_scikit_learn(uncertainty, error)[name]

    return oracles.intervals(one_by_one(batch), counts(), figure)


@pytest.mark.parametrize("name", ["auroc", "aupr", "fpr95"])
def test_the_interval_of_error_detection_over_few_scores_is_that_of_drawing_images_again(name):
    actual = filled(ErrorDetection, of_uncertainty()).compute_interval()[name]
    assert [float(bound) for bound in actual] == pytest.approx(drawn_figures(of_uncertainty(), name), abs=1e-6)


@pytest.mark.parametrize(("name", "tolerance"), [("auroc", 2e-3), ("aupr", 1e-2), ("fpr95", 5e-2)])
def test_the_interval_of_error_detection_is_about_that_of_drawing_images_again(name, tolerance):
    batch = uncertainty_and_error(images=IMAGES, size=(40, 40))
    actual = filled(ErrorDetection, batch).compute_interval()[name]
    assert [float(bound) for bound in actual] == pytest.approx(drawn_figures(batch, name), abs=tolerance)


@pytest.mark.parametrize(("make", "data", "figure"), PERCENTILES.values(), ids=PERCENTILES.keys())
def test_replicates_without_a_labeled_pixel_are_left_out(make, data, figure):
    scores, target = data()
    target[2:] = 255  # images 2 and on have no label: a replicate without 0 and 1 has no value
    assert not counts()[:2].any(0).all()
    expected = oracles.intervals(one_by_one((scores, target)), counts(), figure)
    assert bounds(filled(make, (scores, target))).tolist() == pytest.approx(expected, rel=1e-5)


@each_metric
def test_an_interval_is_not_the_same_under_another_seed(make, data):
    assert not torch.equal(bounds(filled(make, data(), seed=1)), bounds(filled(make, data(), seed=2)))


def test_about_95_percent_intervals_hold_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    held = 0
    for experiment in range(200):
        # the loss of an image varies about 1, and the losses of its pixels about that of the image
        loss = random.gamma(4, 1 / 4, (40, 1)) * random.uniform(0.5, 1.5, (40, 16))
        true = torch.from_numpy(np.exp(-loss))
        metric = NegativeLogLikelihood(2)
        group = [f"{experiment}-{n}" for n in range(40)]
        metric.update(torch.stack((true, 1 - true), 1), torch.zeros(40, 16, dtype=torch.long), group=group)
        low, high = metric.compute_interval()
        held += bool(low <= 1 <= high)
    assert 176 <= held <= 198


# --- the weights


def test_weights_have_mean_and_variance_1():
    weights = np.stack([poisson_weights(0, f"image-{n}", 200) for n in range(2000)])
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.01)


def test_weights_are_how_often_a_poisson_variate_says():
    weights = np.stack([poisson_weights(0, f"image-{n}", 200) for n in range(2000)])
    shares = [(weights == k).mean() for k in range(5)]
    assert shares == pytest.approx([math.exp(-1) / math.factorial(k) for k in range(5)], abs=0.005)


def test_weights_of_different_images_are_unrelated():
    correlation = np.corrcoef(np.stack([poisson_weights(0, f"image-{n}", 4000) for n in range(20)]))
    assert np.abs(correlation - np.eye(20)).max() < 0.08


def test_weights_of_different_seeds_are_unrelated():
    correlation = np.corrcoef(np.stack([poisson_weights(seed, "image", 4000) for seed in range(20)]))
    assert np.abs(correlation - np.eye(20)).max() < 0.08


def test_weights_depend_on_seed_and_id_alone():
    draw = getattr(poisson_weights, "__wrapped__", poisson_weights)  # not what a cache remembers
    first = draw(3, "image", 50)
    draw(4, "other", 50)
    assert np.array_equal(draw(3, "image", 50), first)


# --- wrong use


@each_metric
def test_fewer_than_2_replicates_are_an_error(make, data):
    with pytest.raises(SeguqError, match="n_boot must be a whole number of at least 2, but is 1"):
        make(n_boot=1)


# --- two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found, and what one process finds with all the images."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo, with which two processes on a CPU talk")
    folder = tmp_path_factory.mktemp("two-processes")
    torch.multiprocessing.spawn(two_processes.run, args=(str(folder),), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], two_processes.results()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("share", two_processes.SHARES)
@pytest.mark.parametrize("name", EVERY)
def test_value_and_interval_of_two_processes_are_those_of_one(both, name, share, rank):
    processes, alone = both
    torch.testing.assert_close(processes[rank][share][name], alone[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_images_without_ids_on_one_process_are_an_error_on_both(both, rank):
    assert both[0][rank]["ungrouped"] == "SeguqError"


# --- the interval of a difference is that of the pair


def sharpened(batch):
    probs, target = batch
    return probs.square() / probs.square().sum(1, keepdim=True), target


@pytest.mark.parametrize("name", ["NegativeLogLikelihood", "BrierScore"])
def test_a_difference_is_bootstrapped_by_drawing_the_same_images_for_both(name):
    make, data, figure = CASES[name]
    first, second = filled(make, sharpened(data())), filled(make, data())
    value, interval = first.compute_difference(second)
    draws = [
        oracles.replicates(one_by_one(sharpened(data())), counts(), figure),
        oracles.replicates(one_by_one(data()), counts(), figure),
    ]
    expected = np.percentile(np.subtract(*draws), [2.5, 97.5])
    assert float(value) == pytest.approx(float(first.compute() - second.compute()), abs=1e-6)
    assert [float(bound) for bound in interval] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            lambda: filled(CASES["BrierScore"][0], of_probs()),
            lambda: filled(CASES["MeanIoU"][0], of_classes()),
            "one class",
        ),
        (
            lambda: filled(CASES["BrierScore"][0], of_probs(), seed=1),
            lambda: filled(CASES["BrierScore"][0], of_probs()),
            "seed",
        ),
    ],
    ids=["classes", "seeds"],
)
def test_metrics_that_do_not_go_together_have_no_difference(first, second, text):
    with pytest.raises(SeguqError, match=text):
        first().compute_difference(second())


def test_a_difference_of_several_values_is_one_of_each():
    one, other = filled(ErrorDetection, of_uncertainty()), filled(ErrorDetection, of_uncertainty(seed=1))
    values, bounds = one.compute_difference(other)
    mine, theirs = one._replicate_values(), other._replicate_values()
    for name in ("auroc", "aupr", "fpr95"):
        assert float(values[name]) == pytest.approx(float(one.compute()[name] - other.compute()[name]), abs=1e-6)
        expected = np.quantile((mine[name] - theirs[name]).numpy(), [0.025, 0.975])
        assert [float(bound) for bound in bounds[name]] == pytest.approx(expected.tolist(), abs=1e-6)


# inside a user's own LightningModule


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_stay_exact_in_a_module_that_is_cast_to_half_precision(dtype):
    metric, reference = NegativeLogLikelihood(2), NegativeLogLikelihood(2)
    torch.nn.ModuleList([metric]).to(dtype)
    probs, target = torch.full((1, 2, 64, 64), 0.5), torch.zeros(1, 64, 64, dtype=torch.long)
    for number in range(20):
        metric.update(probs, target, group=[str(number)])
        reference.update(probs, target, group=[str(number)])
    assert metric.sums.dtype == metric.replicates.dtype == torch.float64
    assert torch.equal(metric.sums, reference.sums) and torch.equal(metric.replicates, reference.replicates)
