"""Images for metrics: probabilities with labels that mostly follow them, and uncertainties with errors."""

import numpy as np
import torch


def probs_and_target(seed=0, images=6, classes=3, size=(5, 5), ignored=0.1):
    """float32 probabilities ``(B, C, *spatial)`` and labels, some of them 255; images differ in how sure they are."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes, *size)) * random.uniform(0.5, 4, (images, 1, *[1] * len(size)))
    target = np.where(random.random((images, *size)) < 0.6, logits.argmax(1), random.integers(0, classes, size))
    target[random.random(target.shape) < ignored] = 255
    return torch.from_numpy(logits).softmax(1).float(), torch.from_numpy(target)


def uncertainty_and_error(seed=0, images=6, size=(12, 12), ignored=0.1):
    """Uncertainties in [0, 1] ``(B, *spatial)``, and errors that tend to be uncertain, some of them 255."""
    random = np.random.default_rng(seed)
    error = (random.random((images, *size)) < random.uniform(0.05, 0.5, (images, *[1] * len(size)))).astype(np.int64)
    uncertainty = 1 / (1 + np.exp(-random.normal(size=error.shape) - 1.2 * error))
    error[random.random(error.shape) < ignored] = 255
    return torch.from_numpy(uncertainty).float(), torch.from_numpy(error)


def ids(count):
    return [f"image-{n}" for n in range(count)]
