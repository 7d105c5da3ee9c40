"""How large the largest logit is as a rule, for each predicted class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seguq.core.checks import is_whole, require_dims
from seguq.core.errors import SeguqError
from seguq.functional.logits import full_precision


class MaxLogitStatistics(nn.Module):
    """Mean and deviation of the largest logit of the pixels that are predicted as each class, by running sums.

    Args:
        num_classes: number of classes, C.

    Attributes:
        count: pixels predicted as each class, ``(C,)`` float64, a buffer.

    References:
        Jung et al., Standardized Max Logits, 2021, section 3.1. The update of mean and squares by whole batches: Chan,
        Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.

    Example:
        >>> statistics = MaxLogitStatistics(2)
        >>> statistics.update(torch.tensor([[4.0, 0.0], [6.0, 0.0], [1.0, 2.0]]))
        >>> statistics.mean
        tensor([5., 2.], dtype=torch.float64)
    """

    count: Tensor
    _mean: Tensor
    _squares: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not is_whole(num_classes, 2):
            raise SeguqError(f"num_classes must be a whole number of at least 2, but is {num_classes!r}")
        for name in ("count", "_mean", "_squares"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Take in a batch of training data, ``(B, C, *spatial)``, finite.

        Raises:
            SeguqError: for another number of classes, or logits that hold NaN or infinity.
        """
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        classes = len(self.count)
        if logits.shape[1] != classes:
            raise SeguqError(f"logits have {logits.shape[1]} classes, but the statistics are of {classes}")
        largest, winner = (values.flatten() for values in full_precision(logits).max(1))
        if not bool(torch.isfinite(largest).all()):
            raise SeguqError("logits hold NaN or infinite values: the model has diverged or its input is damaged")
        largest = largest.double()
        zeros = torch.zeros(classes, dtype=torch.float64, device=logits.device)
        added = torch.bincount(winner, minlength=classes).double()
        mean = zeros.index_add(0, winner, largest) / added.clamp_min(1)
        squares = zeros.index_add(0, winner, (largest - mean[winner]).square_())
        before, added, mean = self.count.to(zeros), added, mean
        total = (before + added).clamp_min(1)
        delta = mean - self._mean.to(zeros)
        with torch.inference_mode(False):
            self._squares = (self._squares.to(zeros) + squares + delta.square() * before * added / total).clone()
            self._mean = (self._mean.to(zeros) + delta * added / total).clone()
            self.count = (before + added).clone()

    @property
    def mean(self) -> Tensor:
        """``(C,)`` float64; for a class that was never predicted that of all pixels.

        Raises:
            SeguqError: if there was no pixel.
        """
        seen, pixels = self._seen()
        return torch.where(seen, self._mean, (self._mean * self.count).sum() / pixels)

    @property
    def std(self) -> Tensor:
        """``(C,)`` float64, above 0; for a class that was predicted for fewer than two pixels that of all pixels.

        Raises:
            SeguqError: if there was no pixel.
        """
        _, pixels = self._seen()
        overall = (self._mean * self.count).sum() / pixels
        between = (self.count * (self._mean - overall).square()).sum()
        whole = ((self._squares.sum() + between) / pixels).sqrt()
        own = (self._squares / self.count.clamp_min(1)).sqrt()
        tiny = torch.finfo(torch.float32).tiny
        return torch.where((self.count > 1) & (own > 0), own, whole).clamp_min(tiny)

    def _seen(self) -> tuple[Tensor, Tensor]:
        pixels = self.count.sum()
        if not float(pixels):
            raise SeguqError("there are no statistics yet: call update(logits) with batches of training data")
        return self.count > 0, pixels
