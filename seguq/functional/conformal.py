"""Conformal risk control: from the losses of exchangeable units to a level that keeps the expected loss of another."""

from __future__ import annotations

import torch
from torch import Tensor

from seguq.functional.ranking import order_bins

_BITS = 14  # the sign, the exponent and 5 binary digits of a float32
_ZERO = 1 << (_BITS - 1)
PROBABILITY_BINS = 4065
"""Number of bins of `probability_bins`: the last holds 1 alone."""


def units_needed(alpha: float) -> int:
    """The smallest number of units from which a risk of at most ``alpha`` can be promised: 1 / (n + 1) <= alpha.

    Args:
        alpha: the risk, between 0 and 1.

    Example:
        >>> units_needed(0.1), units_needed(0.05), units_needed(0.3)
        (9, 19, 3)
    """
    needed = max(int(1 / alpha) - 2, 0)
    while 1 / (needed + 1) > alpha:
        needed += 1
    return needed


def conformal_level(losses: Tensor, units: int, alpha: float) -> int | None:
    r"""The first level that keeps the expected loss of a new unit at or below ``alpha``.

    .. math:: \hat\ell = \min\{\ell : \tfrac{n}{n + 1} R_n(\ell) + \tfrac{1}{n + 1} \le \alpha\}

    Where the n units and the new one are exchangeable, and no loss rises with the level, the expected loss of the new
    one at this level is at most ``alpha``. For losses of 0 and 1 the level is the conformal quantile: the smallest
    that is large enough for ``ceil((n + 1) (1 - alpha))`` of the units.

    Args:
        losses: sum of the losses of all units at each level, ``(levels,)`` float64; each loss is in [0, 1], and never
            rises with the level.
        units: their number n.
        alpha: the risk, between 0 and 1.

    Returns:
        The level, from 0; None where no level keeps it.

    References:
        Angelopoulos et al., Conformal Risk Control, 2022, theorem 1.

    Example:
        >>> conformal_level(torch.tensor([3.0, 1.0, 0.5, 0.0]), units=9, alpha=0.2)
        1
    """
    kept = (losses + 1) / (units + 1) <= alpha
    return int(kept.int().argmax()) if bool(kept.any()) else None


def probability_bins(probs: Tensor) -> Tensor:
    """Bin probabilities by exponent and five binary digits: a bin spans at most 1/32 of its values.

    ``p >= bin_edge(k)`` is exactly ``probability_bins(p) >= k``, in float32.

    Args:
        probs: any shape, no NaN; what lies below 0 counts as 0, above 1 as 1.

    Returns:
        int64, the same shape, from 0 to ``PROBABILITY_BINS - 1``.

    Example:
        >>> probability_bins(torch.tensor([0.0, 0.5, 0.51, 1.0])).tolist()
        [0, 4032, 4032, 4064]
    """
    return order_bins(probs.float().clamp(0, 1), _BITS) - _ZERO


def bin_edge(number: int) -> float:
    """The smallest probability in a bin of `probability_bins`; the number of bins gives one above 1.

    Example:
        >>> bin_edge(0), bin_edge(4032), bin_edge(PROBABILITY_BINS - 1), bin_edge(PROBABILITY_BINS)
        (0.0, 0.5, 1.0, 1.03125)
    """
    return float(torch.tensor(number << (32 - _BITS), dtype=torch.int32).view(torch.float32))


def class_sets(probs: Tensor, threshold: Tensor | float, *, top: bool) -> Tensor:
    """Every class with a probability of at least a threshold.

    Args:
        probs: ``(B, C, *spatial)``, no NaN; compared as float32, which half precision and float64 become.
        threshold: 1 - lambda.
        top: whether the most probable class (of equals each) is in the set in any case.

    Returns:
        bool, the same shape.

    Example:
        >>> class_sets(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]), 0.3, top=True).long().tolist()
        [[1, 0, 0], [1, 1, 0]]
    """
    probs = probs.float().clamp(0, 1)
    least = torch.as_tensor(threshold, dtype=torch.float32, device=probs.device)
    return probs >= (probs.amax(1, keepdim=True).clamp_max(least) if top else least)
