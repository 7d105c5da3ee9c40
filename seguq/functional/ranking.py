"""How well a score ranks one kind of pixel above another, from histograms over the order of float32."""

from __future__ import annotations

import torch
from torch import Tensor

from seguq.core.errors import SeguqError


def order_bins(values: Tensor, bits: int = 16) -> Tensor:
    """Bin values by the leading bits of their float32 pattern, which sorts like the values themselves.

    No range has to be known beforehand, and the bins are fine where the values are small: with 16 bits a bin spans
    at most 1/128 of its value, from the smallest normal number to the largest.

    Args:
        values: floating point, any shape, no NaN.
        bits: number of leading bits to keep; there are ``2 ** bits`` bins.

    Returns:
        int64, the same shape, in ``0 .. 2 ** bits - 1``, never decreasing with the value.

    Raises:
        SeguqError: if a value is NaN.

    Example:
        >>> order_bins(torch.tensor([-1.0, -0.0, 0.0, 1e-9, 1.0]), bits=8).tolist()
        [64, 128, 128, 176, 191]
    """
    values = values.float() + 0.0  # -0.0 + 0.0 is 0.0: the two zeros are one value
    if bool(values.isnan().any()):
        raise SeguqError("uncertainty holds NaN: a pixel without a value cannot be ranked")
    pattern = values.view(torch.int32)
    # a negative float's pattern falls as the value rises: flip all bits but the sign
    ordered = pattern ^ ((pattern >> 31) & 0x7FFFFFFF)
    return (ordered >> (32 - bits)).long() + (1 << (bits - 1))


def area_under_roc(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.

    Args:
        negatives: counts of the negatives by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of the positives, the same shape.

    Returns:
        ``(...)`` from 0 to 1; NaN where there is no positive or no negative.

    References:
        Hanley and McNeil, The Meaning and Use of the Area under a ROC Curve, 1982.

    Example:
        >>> area_under_roc(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor(0.7500)
    """
    below = negatives.cumsum(-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(-1)
    return wins / (positives.sum(-1) * negatives.sum(-1))


def average_precision(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area under the precision-recall curve as a sum of steps (no interpolation), ties taken together.

    .. math:: \sum_k (R_k - R_{k-1}) P_k

    Args:
        negatives: counts of the negatives by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of the positives, the same shape.

    Returns:
        ``(...)`` from 0 to 1; NaN where there is no positive.

    References:
        Davis and Goadrich, The Relationship Between Precision-Recall and ROC Curves, 2006.

    Example:
        >>> average_precision(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.6667)
    """
    hits = positives.flip(-1).cumsum(-1)
    taken = hits + negatives.flip(-1).cumsum(-1)
    precision = hits / taken.clamp_min(1)
    return (positives.flip(-1) * precision).sum(-1) / positives.sum(-1)


def fpr_at_tpr(negatives: Tensor, positives: Tensor, tpr: float = 0.95) -> Tensor:
    """Share of the negatives that score as high as the highest threshold that keeps ``tpr`` of the positives.

    Args:
        negatives: counts of the negatives by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of the positives, the same shape.
        tpr: the share of positives to keep.

    Returns:
        ``(...)`` from 0 to 1; NaN where there is no positive or no negative.

    References:
        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, 2017.

    Example:
        >>> fpr_at_tpr(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0]))
        tensor(0.2500)
    """
    true_rate = positives.flip(-1).cumsum(-1) / positives.sum(-1, keepdim=True)
    false_rate = negatives.flip(-1).cumsum(-1) / negatives.sum(-1, keepdim=True)
    # the first threshold, from the top, at which enough positives are in; one part in 1e12 for rounding
    first = (true_rate < tpr - 1e-12).sum(-1, keepdim=True).clamp_max(true_rate.shape[-1] - 1)
    rate = false_rate.gather(-1, first).squeeze(-1)
    return rate.masked_fill(positives.sum(-1) == 0, float("nan"))
