"""Calibrators that learn for each class, against all others, how often it is right at each of its probabilities."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.sample import Sample
from seguq.calibration.sampled import SampledCalibrator
from seguq.core.checks import require_count
from seguq.functional.logits import Task


class OneVersusRest(SampledCalibrator):
    """Replace each class probability by how often the class was there at such a probability; then make all sum to 1.

    Probabilities are counted in a fixed number of bins, each of which counts as having seen one pixel more, with the
    probability in its middle: so a bin without pixels leaves that probability, and none gives 0 or 1.

    A subclass says where bins lie (`position`, `middles`) and what is made of the counts (`levels_of`).

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        levels: the calibrated probability of each class in each bin, before they are made to sum to 1,
            ``(C, n_bins)``, a buffer.
    """

    order_preserving: ClassVar[bool] = False
    n_bins: ClassVar[int]
    levels: Tensor

    def __init__(self, num_classes: int, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        self.num_classes = num_classes
        with torch.inference_mode(False):
            self.register_buffer("levels", self.middles().float().expand(num_classes, -1).clone())

    # ---- what a subclass says ----

    @abstractmethod
    def position(self, log_probs: Tensor) -> Tensor:
        """Where log-probabilities fall, of the same shape, from 0 to ``n_bins``: bin i holds what is in (i, i + 1]."""

    @abstractmethod
    def middles(self) -> Tensor:
        """The probability in the middle of each bin, ``(n_bins,)`` float64."""

    @abstractmethod
    def levels_of(self, counts: Tensor, rates: Tensor) -> Tensor:
        """The levels of one class, given pixels in each bin and how often it is the true one, both ``(n_bins,)``."""

    @abstractmethod
    def level_at(self, position: Tensor) -> Tensor:
        """The level of each class at positions ``(B, C, *spatial)``, of the same shape."""

    # ---- what follows ----

    def fitted(self) -> dict[str, Any]:
        """The range of the levels."""
        return {"levels": [float(self.levels.min()), float(self.levels.max())]}

    def require_valid(self) -> None:
        """Raise for levels that are no probabilities."""
        super().require_valid()
        if not bool(((self.levels > 0) & (self.levels <= 1)).all()):
            raise ValueError("its levels are not all above 0 and at most 1")

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """The logarithm of the levels, made to sum to 1."""
        level = self.level_at(self.position(_log_probs(logits)))
        return (level / level.sum(1, keepdim=True)).log()

    def learn(self, sample: Sample) -> None:
        """Count, and take over what is made of it."""
        bins = bin_of(self.position(_log_probs(sample.logits)), self.n_bins)
        middles, found = self.middles().to(bins.device), []
        for k in range(self.num_classes):
            counts = torch.bincount(bins[:, k], minlength=self.n_bins).double()
            right = torch.bincount(bins[sample.target == k, k], minlength=self.n_bins).double()
            found.append(self.levels_of(counts + 1, (right + middles) / (counts + 1)))
        with torch.inference_mode(False):
            self.levels = torch.stack(found).float().to(self.levels.device)

    def _looked_up(self, bins: Tensor) -> Tensor:
        """The level of each class in bins ``(B, C, *spatial)``."""
        first = torch.arange(self.num_classes, device=bins.device) * self.n_bins
        return self.levels.to(bins.device).flatten()[bins + first.view(-1, *[1] * (bins.ndim - 2))]


def bin_of(position: Tensor, n_bins: int) -> Tensor:
    """The bin of each position, int64: i for what is in (i, i + 1]."""
    return (position.ceil().long() - 1).clamp_(0, n_bins - 1)


def _log_probs(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(1, keepdim=True)
