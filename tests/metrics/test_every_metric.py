"""What every metric promises, asked of every metric that there is, and of some that break a promise."""

import pytest

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


def case(kind, data, *arguments, **options):
    return lambda **settings: getattr(metrics, kind)(*arguments, n_boot=20, **options, **settings), data


CASES = {
    "BrierScore": case("BrierScore", of_probs, 3),
    "CalibrationError": case("CalibrationError", of_probs, 3),
    "ErrorDetection": case("ErrorDetection", of_uncertainty),
    "ErrorRanking": case("ErrorRanking", of_uncertainty),
    "MeanIoU": case("MeanIoU", of_classes, 3),
    "NegativeLogLikelihood": case("NegativeLogLikelihood", of_probs, 3),
    "NegativeLogLikelihood of logits": case("NegativeLogLikelihood", of_logits, 3, from_logits=True),
    "RiskCoverage": case("RiskCoverage", of_uncertainty),
}
every_metric = pytest.mark.parametrize(("make", "data"), CASES.values(), ids=CASES.keys())


def test_every_metric_is_here():
    assert {name.split()[0] for name in CASES} == set(metrics.__all__)


@every_metric
def test_every_metric_keeps_its_promises(make, data):
    check_metric(make, *data((6, 8)))
