"""The measures of uncertainty as their definitions read: loops over pixels, samples and classes in double precision."""

import math
from collections import Counter

import numpy as np


def _classes(array, pixel):
    """The values of all classes at ``pixel = (b, *spatial)`` of an array ``(B, C, *spatial)``."""
    image, *where = pixel
    return [float(array[(image, c, *where)]) for c in range(array.shape[1])]


def _samples(array, pixel):
    """For each sample the values of all classes at ``pixel`` of an array ``(S, B, C, *spatial)``."""
    return [_classes(sample, pixel) for sample in array]


def _map(array, read, figure):
    """Apply ``figure`` to what ``read`` gives at each pixel; the class dimension is the second from ``B``."""
    image_dim = 0 if read is _classes else 1
    shape = (array.shape[image_dim], *array.shape[image_dim + 2 :])
    out = np.zeros(shape, dtype=np.float64)
    for pixel in np.ndindex(*shape):
        out[pixel] = figure(read(array, pixel))
    return out


def _entropy(probs):
    return math.fsum(-p * math.log(p) for p in probs if p > 0)


def _mean(samples):
    return [math.fsum(values) / len(values) for values in zip(*samples, strict=True)]


def predictive_entropy(probs):
    return _map(probs, _classes, _entropy)


def expected_entropy(sample_probs):
    return _map(sample_probs, _samples, lambda samples: math.fsum(map(_entropy, samples)) / len(samples))


def total_entropy(sample_probs):
    return _map(sample_probs, _samples, lambda samples: _entropy(_mean(samples)))


def mutual_information(sample_probs):
    """The mean Kullback-Leibler divergence of the samples from their mean, which is another form of BALD."""

    def divergence(samples):
        mean = _mean(samples)
        terms = [p * math.log(p / m) for probs in samples for p, m in zip(probs, mean, strict=True) if p > 0]
        return math.fsum(terms) / len(samples)

    return _map(sample_probs, _samples, divergence)


def least_confidence(probs):
    return _map(probs, _classes, lambda p: 1 - max(p))


def smallest_margin(probs):
    def margin(p):
        second, first = sorted(p)[-2:]
        return 1 - (first - second)

    return _map(probs, _classes, margin)


def variance(sample_probs):
    def spread(samples):
        mean = _mean(samples)
        return math.fsum((p - m) ** 2 for probs in samples for p, m in zip(probs, mean, strict=True)) / len(samples)

    return _map(sample_probs, _samples, spread)


def variation_ratio(sample_probs):
    """A sample whose largest probabilities tie votes for the lowest of these classes."""

    def ratio(samples):
        votes = Counter(probs.index(max(probs)) for probs in samples)
        return 1 - votes.most_common(1)[0][1] / len(samples)

    return _map(sample_probs, _samples, ratio)


def energy(logits, temperature=1.0):
    def free_energy(z):
        largest = max(z)
        rest = math.fsum(math.exp((value - largest) / temperature) for value in z)
        return -(largest + temperature * math.log(rest))

    return _map(logits, _classes, free_energy)


def max_logit(logits):
    return _map(logits, _classes, lambda z: -max(z))
