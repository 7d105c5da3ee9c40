"""How often each class is right, as a function that rises with its probability."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.one_vs_rest import OneVersusRest

_FARTHEST = 12.0  # of a class probability's logit: 6e-6 and less are one
_BINS_PER_UNIT = 8


class IsotonicCalibration(OneVersusRest):
    r"""Replace each class probability by a rising function of it, the closest to the labels; then make all sum to 1.

    .. math:: f_c = \arg\min_{f \text{ rising}} \sum_i (f(p_{ic}) - [y_i = c])^2

    found by pooling adjacent violators over 192 bins, each an eighth wide on the scale of log(p / (1 - p)) from -12 to
    12 and counting as one pixel more, with the probability in its middle. Between the middles of bins it is linear on
    that scale.

    **For comparison only.** It was measured worse than one temperature on an unseen video. The predicted class of a
    pixel can change.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        levels: f at the middles of the bins, ``(C, 192)``, a buffer.

    References:
        Zadrozny, Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002.

    Example:
        >>> cal = IsotonicCalibration(num_classes=2)
        >>> cal(torch.tensor([[0.0, 2.0]])).exp()           # nothing was fitted yet: as it was, but for the grid
        tensor([[0.1194, 0.8806]])
    """

    name: ClassVar[str] = "isotonic"
    n_bins: ClassVar[int] = int(2 * _FARTHEST * _BINS_PER_UNIT)

    def position(self, log_probs: Tensor) -> Tensor:
        """By log(p / (1 - p))."""
        logit = log_probs - torch.log(-torch.expm1(log_probs))
        return (logit.clamp(-_FARTHEST, _FARTHEST) + _FARTHEST) * _BINS_PER_UNIT

    def middles(self) -> Tensor:
        """From 6.5e-6 to 1 minus that."""
        middle = (torch.arange(self.n_bins, dtype=torch.float64) + 0.5) / _BINS_PER_UNIT - _FARTHEST
        return middle.sigmoid()

    def levels_of(self, counts: Tensor, rates: Tensor) -> Tensor:
        """The closest rising sequence."""
        return pool_adjacent_violators(rates, counts)

    def level_at(self, position: Tensor) -> Tensor:
        """Between those of the two bins whose middles are next."""
        position = (position - 0.5).clamp(0, self.n_bins - 1)
        below = position.floor().long()
        lower, upper = (self._looked_up(bins).to(position) for bins in (below, (below + 1).clamp_max(self.n_bins - 1)))
        return torch.lerp(lower, upper, position - below)


def pool_adjacent_violators(values: Tensor, weights: Tensor) -> Tensor:
    """The rising sequence with the least weighted squared distance to a given one.

    Args:
        values: ``(N,)``.
        weights: ``(N,)``, above 0.

    Returns:
        ``(N,)``, of the same type.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length; means rise
    for mean, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while blocks and blocks[-1][0] >= mean:
            earlier, its_weight, its_length = blocks.pop()
            mean = (earlier * its_weight + mean * weight) / (its_weight + weight)
            weight, length = weight + its_weight, length + its_length
        blocks.append((mean, weight, length))
    means = values.new_tensor([mean for mean, _, _ in blocks])
    return means.repeat_interleave(torch.tensor([length for _, _, length in blocks], device=values.device))
