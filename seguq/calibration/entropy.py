"""One temperature a pixel, by the entropy of its probabilities."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.log_linear import LogLinearTemperature


class EntropyTemperatureScaling(LogLinearTemperature):
    r"""Divide the logits of each pixel by a temperature T that follows its entropy H.

    .. math:: \log T = a + b \, H(p) / \log C, \quad p = \mathrm{softmax}(z)

    Two numbers, so that little can go wrong on images of another kind; with b = 0 it is one temperature for all. The
    predicted class of a pixel never changes. It is what the name ``"local"`` stands for.

    Args:
        task: ``"multiclass"`` (logits with one channel are taken as a sigmoid's), ``"binary"`` or ``"multilabel"``.
        ignore_index: value of the target that is left out.

    Attributes:
        weights: a and b, a buffer.

    References:
        Balanya, Maronas, Ramos, Adaptive Temperature Scaling for Robust Calibration of Deep Neural Networks, 2022.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> logits = 3 * torch.randn(2, 3, 64, 64)
        >>> target = torch.distributions.Categorical(logits=(logits / 2).movedim(1, -1)).sample()  # the true T is 2
        >>> cal = EntropyTemperatureScaling().fit([(logits, target)])
        >>> float(cal.temperature_map(logits).mean().round())
        2.0
    """

    name: ClassVar[str] = "entropy"
    size: ClassVar[int] = 2
    ridges: ClassVar[tuple[float, ...]] = (1e-6,)

    def fitted(self) -> dict[str, Any]:
        """T where the entropy is lowest, and where it is highest."""
        a, b = self.weights.tolist()
        return {"temperature_at_lowest_entropy": math.exp(a), "temperature_at_highest_entropy": math.exp(a + b)}

    def design(self, logits: Tensor, features: Tensor) -> Tensor:
        """1 and the entropy, from 0 to 1."""
        return torch.stack((torch.ones_like(logits[0]), relative_entropy(logits)))


def relative_entropy(logits: Tensor) -> Tensor:
    """Entropy over that of equal probabilities, from 0 to 1: ``(...)`` of logits ``(C, ...)``, the largest 0."""
    powers = logits.exp()
    total = powers.sum(0)
    expected = (powers * logits.clamp_min(-1e4)).sum(0) / total
    return ((total.log() - expected) / math.log(len(logits))).clamp(0, 1)
