"""What every metric promises, asked of every metric that there is, and of some that break a promise."""

import pytest
import torch

from seguq import metrics
from seguq.testing import check_metric
from tests.metrics.builders import probs_and_target, uncertainty_and_error


def of_probs(size, ignore_index=255):
    probs, target = probs_and_target(images=6, size=size)
    return probs, target.where(target != 255, ignore_index)


def of_logits(size, ignore_index=255):
    probs, target = of_probs(size, ignore_index)
    return 30 * probs.log(), target


def of_classes(size, ignore_index=255):
    probs, target = of_probs(size, ignore_index)
    return probs.argmax(1), target


def of_uncertainty(size, ignore_index=255):
    uncertainty, error = uncertainty_and_error(images=6, size=size)
    return uncertainty, error.where(error != 255, ignore_index)


def case(name, data, /, *arguments, **options):
    return lambda **settings: getattr(metrics, name)(*arguments, n_boot=20, **options, **settings), data


def of_labels(size, ignore_index=255):
    uncertainty, error = of_uncertainty(size, ignore_index)
    return torch.stack((uncertainty, uncertainty.flip(0)), 1), torch.stack((error, error.flip(0)), 1)


CASES = {
    "BrierDecomposition": case("BrierDecomposition", of_probs, 3),
    "BrierScore": case("BrierScore", of_probs, 3),
    "CalibrationError": case("CalibrationError", of_probs, 3),
    "CalibrationError by class": case("CalibrationError", of_probs, 3, kind="classwise", norm="l2"),
    "CalibrationError in bins of equal mass": case("CalibrationError", of_probs, 3, kind="adaptive"),
    "CalibrationError of bins": case("CalibrationError", of_probs, 3, average="nonempty", norm="max"),
    "CalibrationError of foreground": case("CalibrationError", of_uncertainty, 2, task="binary"),
    "ErrorDetection": case("ErrorDetection", of_uncertainty),
    "ErrorRanking": case("ErrorRanking", of_uncertainty),
    "MeanIoU": case("MeanIoU", of_classes, 3),
    "NegativeLogLikelihood": case("NegativeLogLikelihood", of_probs, 3),
    "NegativeLogLikelihood of logits": case("NegativeLogLikelihood", of_logits, 3, from_logits=True),
    "OODDetection": case("OODDetection", of_uncertainty),
    "RiskCoverage": case("RiskCoverage", of_uncertainty),
}
WHOLE = {
    "CalibrationError of images": case("CalibrationError", of_probs, 3, average="image"),
    "CalibrationError near borders": case("CalibrationError", of_probs, 3, near_border=1),
    "CalibrationError of labels": case("CalibrationError", of_labels, 2, kind="classwise", task="multilabel"),
    "LocalCalibrationError": case("LocalCalibrationError", of_probs, 3, window=3),
    "PAvPU": case("PAvPU", of_uncertainty, 2),
}
OTHERS = {"FailureDetection", "HumanAgreement"}  # take something else than pixels and their labels
every_metric = pytest.mark.parametrize(("make", "data"), CASES.values(), ids=CASES.keys())


def test_every_metric_is_here():
    found = {name.split()[0] for name in (*CASES, *WHOLE)} | OTHERS
    assert found == set(metrics.__all__) - {"WorkingPoint"}


@every_metric
def test_every_metric_keeps_its_promises(make, data):
    check_metric(make, *data((6, 8)))


@pytest.mark.parametrize(("make", "data"), WHOLE.values(), ids=WHOLE.keys())
def test_metrics_that_look_around_a_pixel_keep_the_other_promises(make, data):
    check_metric(make, *data((6, 8)), by_pixel=False)
