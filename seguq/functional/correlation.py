"""Rank correlation with weights, for one set of weights or for all replicates of a bootstrap at once."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor, weights: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation: that of the ranks, of which equal values share the mean.

    Args:
        first: ``(N,)``, no NaN; infinite values rank last or first.
        second: ``(N,)``, no NaN.
        weights: how often each pair counts, ``(..., N)``; None: once.

    Returns:
        ``(...)`` float64 from -1 to 1; NaN where one of the two is constant, or nothing counts.

    References:
        Spearman, The Proof and Measurement of Association between Two Things, 1904.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.1, 0.5]))
        tensor(0.8660, dtype=torch.float64)
    """
    weights = torch.ones(len(first), dtype=torch.float64, device=first.device) if weights is None else weights.double()
    ranks = torch.stack([_mean_ranks(values, weights) for values in (first, second)])
    total = weights.sum(-1)
    # the mean of mean ranks is known
    ranks = ranks - (total / 2).unsqueeze(-1)
    product = (weights * ranks.prod(0)).sum(-1)
    squares = (weights * ranks.square()).sum(-1)
    return (product / squares.prod(0).sqrt()).clamp(-1, 1)


def _mean_ranks(values: Tensor, weights: Tensor) -> Tensor:
    """The mean rank of each value among all, ``(..., N)``, from half of its own weight on."""
    distinct, place = torch.unique(values, return_inverse=True)
    counts = weights.new_zeros(*weights.shape[:-1], len(distinct)).index_add_(-1, place, weights)
    return (counts.cumsum(-1) - counts / 2)[..., place]
