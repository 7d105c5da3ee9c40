"""Fitting problems for calibrators: logits with errors in them, and the temperature that a plain search finds."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LOG_BOUND = math.log(20)


def problem(seed=0, classes=3, scale=4.0, error_rate=0.2, shape=(2, 10, 10), ignored=0.0):
    """float64 logits ``(B, C, *spatial)`` of normal variates and labels, a share of them drawn anew or ignored."""
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=(shape[0], classes, *shape[1:]))
    target = np.where(random.random(shape) < error_rate, random.integers(0, classes, shape), logits.argmax(1))
    target[random.random(shape) < ignored] = 255
    return torch.from_numpy(logits), torch.from_numpy(target)


def as_pixels(logits, target, ignore_index=255):
    """The labeled pixels of a batch as rows: ``(N, C)`` and ``(N,)``."""
    rows, labels = logits.movedim(1, -1).flatten(0, -2), target.flatten()
    return rows[labels != ignore_index], labels[labels != ignore_index]


def mean_nll(rows, labels, log_temperature):
    """Mean negative log-likelihood of ``softmax(z / T)``, in float64."""
    log_probs = log_softmax(rows.double().numpy() * math.exp(-log_temperature), axis=1)
    return -log_probs[np.arange(len(labels)), labels.numpy()].mean()


def searched_log_temperature(rows, labels):
    """log T between the bounds by a search over the likelihood of all pixels at once."""
    return minimize_scalar(
        lambda x: mean_nll(rows, labels, x), bounds=(-LOG_BOUND, LOG_BOUND), options={"xatol": 1e-12, "maxiter": 1000}
    ).x


class Counted:
    """A re-iterable that counts how often it is read."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)
