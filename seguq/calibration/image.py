"""One temperature an image, by the mean entropy of its pixels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.entropy import relative_entropy
from seguq.calibration.log_linear import LogLinearTemperature
from seguq.core.checks import require_count
from seguq.functional.logits import Task


class ImageTemperatureScaling(LogLinearTemperature):
    r"""Divide all logits of an image by one temperature T, which follows the mean entropy of its pixels.

    .. math:: \log T = a + b \, \overline{H} / \log C, \quad \overline{H} = \mathrm{mean}_i \, H(p_i)

    b is held to 0 by a ridge of 1e-4 of a pixel's loss, as images are few. An image has the same T alone and among
    others. The predicted class of a pixel never changes.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        weights: a and b, a buffer.

    References:
        Ding et al., Local Temperature Scaling for Probability Calibration, 2021, section 3 (one T an image, there from
        a network); Balanya, Maronas, Ramos, 2022 (log T linear in the entropy, there of one classified image).

    Example:
        >>> cal = ImageTemperatureScaling(num_classes=2)
        >>> cal.temperature_map(torch.randn(1, 2, 2, 2)).unique()           # nothing was fitted yet
        tensor([1.])
    """

    name: ClassVar[str] = "image"
    size: ClassVar[int] = 2
    ridges: ClassVar[tuple[float, ...]] = (1e-4,)  # images differ by little, and are few

    def __init__(self, num_classes: int, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        self.num_classes = num_classes

    def fitted(self) -> dict[str, Any]:
        """T of an image of the lowest mean entropy, and of the highest."""
        a, b = self.weights.tolist()
        return {"temperature_at_lowest_entropy": math.exp(a), "temperature_at_highest_entropy": math.exp(a + b)}

    def features(self, logits: Tensor, image: Tensor | None) -> Tensor | None:
        """The mean entropy of each image, at all its pixels, ``(B, 1, *spatial)``."""
        entropy = relative_entropy(logits.movedim(1, 0))
        if entropy.ndim > 1:
            mean = entropy.flatten(1).nanmean(1)  # pixels without data have none
            entropy = mean.view(-1, *[1] * (entropy.ndim - 1)).expand_as(entropy)
        return entropy.unsqueeze(1)

    def design(self, logits: Tensor, features: Tensor) -> Tensor:
        """1 and the mean entropy, from 0 to 1."""
        return torch.cat((torch.ones_like(features), features))
