"""Temperature likelihood and binned calibration error, one pixel after the other, from Guo et al. 2017."""

import math

import numpy as np


def temperature_nll(logits, target, inverse_temperature, ignore_index=255):
    """Number of pixels, and the sums of NLL and of its two derivatives along the inverse temperature."""
    pixels, nll, first, second = 0, [], [], []
    for image, *where in np.ndindex(*target.shape):
        label = int(target[(image, *where)])
        if label == ignore_index:
            continue
        z = [float(logits[(image, c, *where)]) for c in range(logits.shape[1])]
        largest = max(inverse_temperature * value for value in z)
        weights = [math.exp(inverse_temperature * value - largest) for value in z]
        probs = [weight / math.fsum(weights) for weight in weights]
        mean = math.fsum(p * value for p, value in zip(probs, z, strict=True))
        pixels += 1
        nll.append(largest + math.log(math.fsum(weights)) - inverse_temperature * z[label])
        first.append(mean - z[label])
        second.append(math.fsum(p * (value - mean) ** 2 for p, value in zip(probs, z, strict=True)))
    return pixels, math.fsum(nll), math.fsum(first), math.fsum(second)


def top1_calibration_bins(probs, target, n_bins, ignore_index=255):
    """``(B, 3, n_bins)``: pixels, sum of confidence, and right predictions in ``(i / n_bins, (i + 1) / n_bins]``.

    The edges are rounded to the type of ``probs``, so that a confidence of float32(0.6) counts as 0.6.
    """
    edges = [float(probs.dtype.type((i + 1) / n_bins)) for i in range(n_bins)]
    out = np.zeros((len(probs), 3, n_bins), dtype=np.float64)
    for image, *where in np.ndindex(*target.shape):
        label = int(target[(image, *where)])
        if label == ignore_index:
            continue
        p = [float(probs[(image, c, *where)]) for c in range(probs.shape[1])]
        confidence = max(p)
        index = next((i for i, edge in enumerate(edges) if confidence <= edge), n_bins - 1)
        out[image, 0, index] += 1
        out[image, 1, index] += confidence
        out[image, 2, index] += p.index(confidence) == label
    return out


def expected_calibration_error(bins):
    """The error of one ``(3, n_bins)`` table, as the weighted mean of the gaps between accuracy and confidence."""
    total = sum(bins[0])
    error = 0.0
    for count, confidence, right in zip(*bins, strict=True):
        if count:
            error += count / total * abs(right / count - confidence / count)
    return error
