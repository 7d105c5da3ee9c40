"""How often intervals over images hold what all images that there might be would show, for a metric of each kind."""

import numpy as np
import pytest
import torch

from seguq import metrics

pytestmark = pytest.mark.slow

IMAGES, SIDE, CLASSES = 40, 20, 3
# the first of few images to be accepted, the best of many thresholds, and the largest of several gaps are more or less
# than those of all images would be, which a bootstrap does not tell
OTHERWISE = {
    "failures of images: aurc": (0.88, 0.98),
    "patches: pavpu_max": (0.88, 0.98),
    "largest gap: value": (0.92, 0.99),
}
EXPERIMENTS = 400


def population(seed, images):
    """An over-confident model on images that differ in how far: probabilities, labels, and logits of the truth.

    Places of an image differ in how sure it is, and classes in how frequent they are.
    """
    random = np.random.default_rng(seed)
    sure = np.exp(0.8 * random.normal(size=(images, 1, SIDE // 5, SIDE // 5))).repeat(5, 2).repeat(5, 3)
    logits = random.normal(size=(images, CLASSES, SIDE, SIDE)) + np.array([0.5, 0, -0.5])[:, None, None]
    logits = torch.from_numpy(2 * sure * logits).float()
    factors = torch.from_numpy(0.5 * np.exp(0.4 * random.normal(size=(images, 1, 1, 1)))).float()
    return logits.softmax(1), drawn(logits * factors, random, 1)[:, 0], logits * factors, random


def drawn(logits, random, times):
    """Class indices drawn from softmax, ``(B, times, H, W)``."""
    images, _, *size = logits.shape
    below = torch.from_numpy(random.random((images, times, 1, *size))).float()
    return (logits.softmax(1).cumsum(1).unsqueeze(1) < below).sum(2).clamp_max(CLASSES - 1)


def of_probs(probs, labels, truth, random):
    return probs, labels


def of_errors(probs, labels, truth, random):
    return -(probs * probs.clamp_min(1e-30).log()).sum(1), (probs.argmax(1) != labels).long()


def of_errors_and_classes(probs, labels, truth, random):
    return *of_errors(probs, labels, truth, random), labels


def of_classes(probs, labels, truth, random):
    return probs.argmax(1), labels


def of_images(probs, labels, truth, random):
    _, error = of_errors(probs, labels, truth, random)
    noise = torch.from_numpy(random.normal(size=len(probs))).float()
    wrong = error.double().mean((1, 2))
    return wrong + 0.05 * noise, wrong


def of_people(probs, labels, truth, random):
    entropy, _ = of_errors(probs, labels, truth, random)
    return entropy, drawn(truth, random, 3), drawn(probs.clamp_min(1e-30).log(), random, 3)


CASES = {
    "likelihood": (lambda: metrics.NegativeLogLikelihood(CLASSES), of_probs),
    "Brier score": (lambda: metrics.BrierScore(CLASSES), of_probs),
    "parts of the Brier score": (lambda: metrics.BrierDecomposition(CLASSES), of_probs),
    "mean IoU": (lambda: metrics.MeanIoU(CLASSES), of_classes),
    "ranking": (metrics.ErrorRanking, of_errors),
    "balanced ranking": (lambda: metrics.BalancedRiskCoverage(CLASSES), of_errors_and_classes),
    "patches": (lambda: metrics.PAvPU(5), of_errors),
    "failures of images": (metrics.FailureDetection, of_images),
    "agreement with people": (lambda: metrics.HumanAgreement(CLASSES), of_people),
    "local calibration error": (lambda: metrics.LocalCalibrationError(CLASSES, 10), of_probs),
    "calibration error by class": (lambda: metrics.CalibrationError(CLASSES, kind="classwise"), of_probs),
    "in bins of equal mass": (lambda: metrics.CalibrationError(CLASSES, kind="adaptive"), of_probs),
    "root of the mean square": (lambda: metrics.CalibrationError(CLASSES, norm="l2"), of_probs),
    "largest gap": (lambda: metrics.CalibrationError(CLASSES, 5, norm="max"), of_probs),
    "of bins that hold a pixel": (lambda: metrics.CalibrationError(CLASSES, average="nonempty"), of_probs),
    "of images": (lambda: metrics.CalibrationError(CLASSES, average="image"), of_probs),
    "near borders": (lambda: metrics.CalibrationError(CLASSES, near_border=1), of_probs),
}


def as_dict(found):
    return found if isinstance(found, dict) else {"value": found}


@pytest.mark.parametrize("case", CASES)
def test_95_percent_intervals_hold_the_value_of_all_images_in_92_to_98_of_100_experiments(case):
    make, data = CASES[case]
    everything = make()
    for seed in range(10):
        everything.update(*data(*population([1, seed], 500)))
    true = {name: float(value) for name, value in as_dict(everything.compute()).items()}
    held = dict.fromkeys(true, 0)
    widths = dict.fromkeys(true, 0.0)
    for experiment in range(EXPERIMENTS):
        metric = make()
        ids = [f"{experiment % 100}-{number}" for number in range(IMAGES)]  # so that weights are drawn once
        metric.update(*data(*population([0, experiment], IMAGES)), group=ids)
        for name, (low, high) in as_dict(metric.compute_interval()).items():
            held[name] += bool(low <= true[name] <= high)
            widths[name] += float(high - low) / EXPERIMENTS
    for name, value in true.items():
        print(f"\n{name}: true {value:.4f}, held in {held[name] / EXPERIMENTS:.3f}, width {widths[name]:.4f}", end="")
    for name, count in held.items():
        least, most = OTHERWISE.get(f"{case}: {name}", (0.92, 0.98))
        assert least <= count / EXPERIMENTS <= most, name
