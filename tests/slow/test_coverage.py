"""How often intervals of the calibration error hold the true one, in experiments whose truth is known.

The pixels of an image go together: its errors are, as a whole, up to twice as many as those of others, or none. A true
error is that of all images there might be, in the metric's own 15 bins, and known in closed form: every pixel is right
less often than it says by the same amount, which is then the gap of each bin, and the calibration error.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from seguq.metrics import CalibrationError

pytestmark = pytest.mark.slow

PIXELS = 100
IMAGES = {20: 1500, 40: 1500, 200: 500}  # and how many experiments: where coverage is .97, it shows to .004 or .008
TRUE = (0.0, 0.01, 0.05)
SURE, SPREAD = 5, 1  # confidence is 1 - .4 u^k: near 1 as that of segmentation models (mean .93), or even over [.6, 1]


class Case(NamedTuple):
    """How sure pixels are, and the standard deviation of the factor by which an image has more errors than others."""

    power: float
    scatter: float


CASES = {"sure": Case(SURE, 0.5), "spread": Case(SPREAD, 0.35)}


def confidences(random, case, number):
    """``(number, PIXELS)`` in [.6, 1]; some images are surer than others."""
    return 1 - 0.4 * random.random((number, PIXELS)) ** (case.power * random.uniform(0.5, 1.5, (number, 1)))


def factors(random, case, number):
    """``(number, 1)``: by how much an image has more errors than others, 0 to 2 and 1 on average."""
    shape = (1 / case.scatter**2 - 1) / 2
    return 2 * random.beta(shape, shape, (number, 1))


def metric_of(confidence, wrong, ids):
    metric = CalibrationError(2)
    probs = torch.from_numpy(np.stack((confidence, 1 - confidence), 1)).float()
    metric.update(probs, torch.from_numpy(wrong.astype(np.int64)), group=ids)
    return metric


def experiments(case, number, count):
    """Of each: a generator, confidences, factors, a number in [0, 1) by which each pixel is right or wrong, and ids."""
    for experiment in range(count):
        random = np.random.default_rng([number, experiment])
        confidence, factor = confidences(random, case, number), factors(random, case, number)
        ids = [f"{experiment % 100}-{n}" for n in range(number)]  # so that the weights of an image are drawn once
        yield random, confidence, factor, random.random(confidence.shape), ids


def intervals(case, number, true, count):
    """Of each experiment the value, the debiased value and the interval: ``(4, count)``."""
    out = []
    for _, confidence, factor, decides, ids in experiments(case, number, count):
        metric = metric_of(confidence, decides < factor * (1 - confidence + true), ids)
        # a mean of a hundred is enough of the debiased value
        debiased = metric.compute_debiased() if len(out) < 100 else math.nan
        out.append([metric.compute(), debiased, *metric.compute_interval()])
    return np.array(out, dtype=float).T


def coverage(name, case):
    """Print the table of a case, and give of each row the truth, the number of images, and how often it was held.

    Where the truth is 0 that is how often the lower end was at most .002.
    """
    print(f"\ncalibration error, {name}: {case}")
    print("  true  images  coverage  median width  lower end > .002  value  debiased")
    rows = []
    for true in TRUE:
        for number, count in IMAGES.items():
            value, debiased, low, high = intervals(case, number, true, count)
            assert ((low <= value) & (value <= high) & ~(debiased > value)).all()
            above, held = np.mean(low > 0.002), np.mean((low <= true) & (true <= high))
            print(
                f"  {true:.2f}  {number:6}  {held:8.3f}  {np.median(high - low):12.4f}"
                f"  {'-' if true else format(above, '.3f'):>16}  {value.mean():.4f}  {np.nanmean(debiased):.4f}"
            )
            rows.append((true, number, held if true else 1 - above))
    return rows


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_the_true_calibration_error_in_92_to_98_of_100_experiments(name):
    for true, number, held in coverage(name, CASES[name]):
        assert 0.92 <= held <= (0.98 if true else 1), (true, number)


def before_and_after(random, case, confidence, factor, decides):
    """.02 too sure, and those pixels with .02 less."""
    wrong = decides < factor * (1 - confidence + 0.02)
    return (confidence, wrong), (confidence - 0.02, wrong)


def two_calibrations(random, case, confidence, factor, decides):
    """Calibrated, and calibrated with the mean of every two pixels: the same pixels are wrong."""
    mean = confidence.reshape(len(confidence), -1, 2).mean(-1).repeat(2, -1)
    wrong = decides < factor * (1 - confidence)
    return (confidence, wrong), (mean, wrong)


def two_models(true):
    """Models with errors of their own, and half of the images as hard for the one as for the other."""

    def pair(random, case, confidence, factor, decides):
        other = np.where(random.random(factor.shape) < 0.5, factor, factors(random, case, len(factor)))
        first = confidence, decides < factor * (1 - confidence + true)
        return first, (confidence, random.random(confidence.shape) < other * (1 - confidence))

    return pair


PAIRS = {
    "before and after": (0.02, before_and_after),
    "two calibrations": (0.0, two_calibrations),
    "two calibrated models": (0.0, two_models(0.0)),
    "two models, one calibrated": (0.02, two_models(0.02)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pair", PAIRS)
def test_intervals_of_a_difference_hold_the_true_one_in_most_experiments(pair, name):
    true, make = PAIRS[pair]
    print(f"\ndifference, {pair}, {name}: {true}\n  images  coverage  median width  difference")
    for number in IMAGES:
        found = []
        for random, *experiment, ids in experiments(CASES[name], number, 100):
            first, second = (metric_of(*model, ids) for model in make(random, CASES[name], *experiment))
            difference, interval = first.compute_difference(second)
            found.append([difference, *interval])
        difference, low, high = np.array(found, dtype=float).T
        held = np.mean((low <= true) & (true <= high))
        print(f"  {number:6}  {held:8.3f}  {np.median(high - low):12.4f}  {difference.mean():.4f}")
        assert ((low <= difference) & (difference <= high)).all()
        assert held >= 0.9, number
