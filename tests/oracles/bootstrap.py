"""The bootstrap over images as it is meant: draw the images again, one after the other, and compute the figure anew."""

import math
import warnings

import numpy as np

from tests.oracles import calibration


def replicates(images, counts, figure):
    """The figure of each replicate, the images drawn again one after the other."""
    values = []
    for replicate in counts.T:
        drawn = [image for image, count in zip(images, replicate, strict=True) for _ in range(int(count))]
        values.append(figure(drawn))
    return values


def intervals(images, counts, figure, level=0.95):
    """Percentile interval of a figure of a list of images.

    Args:
        images: what the figure takes a list of.
        counts: ``(images, replicates)``: how often each image is drawn in each replicate.
        figure: from a list of images to a number; NaN where it is not defined.
        level: share of the replicates inside; those without a value are left out.
    """
    values = replicates(images, counts, figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no replicate has a value
        return tuple(np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2]))


def _labeled_pixels(images, ignore_index):
    """The class probabilities and the label of each labeled pixel of ``(probs (C, *spatial), target)`` pairs."""
    for probs, target in images:
        for where in np.ndindex(*target.shape):
            if int(target[where]) != ignore_index:
                yield [float(probs[(c, *where)]) for c in range(len(probs))], int(target[where])


def _mean(values):
    return math.fsum(values) / len(values) if values else math.nan


def negative_log_likelihood(images, ignore_index=255):
    return _mean([-math.log(probs[label]) for probs, label in _labeled_pixels(images, ignore_index)])


def brier_score(images, ignore_index=255):
    return _mean(
        [
            math.fsum((p - (c == label)) ** 2 for c, p in enumerate(probs))
            for probs, label in _labeled_pixels(images, ignore_index)
        ]
    )


def calibration_error(images, n_bins=15, ignore_index=255):
    if not images:
        return math.nan
    bins = sum(calibration.top1_calibration_bins(p[None], t[None], n_bins, ignore_index)[0] for p, t in images)
    return calibration.expected_calibration_error(bins) if bins[0].any() else math.nan


def mean_iou(images, ignore_index=255):
    """Over ``(prediction, target)`` pairs; a class that is neither predicted nor the truth anywhere does not count."""
    pixels = [
        (int(p), int(t))
        for prediction, target in images
        for p, t in zip(prediction.flat, target.flat, strict=True)
        if t != ignore_index
    ]
    ratios = []
    for c in sorted({label for pixel in pixels for label in pixel}):
        both = sum(p == c and t == c for p, t in pixels)
        ratios.append(both / sum(p == c or t == c for p, t in pixels))
    return _mean(ratios)
