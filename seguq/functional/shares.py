"""Ranking where scores do not all weigh the same: areas of shares of the whole in the place of counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def class_balanced(negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    r"""Shares of the whole, of counts by class and score, such that each class that occurs weighs the same in all.

    .. math:: a_k = \frac1C \sum_c \frac{n_{ck}}{n_c}

    with the count :math:`n_{ck}` of class c in bin k, the count :math:`n_c` of all of that class, right and wrong, and
    the number C of classes that occur.

    Args:
        negatives: counts of what is right by class and score, ``(..., C, n_bins)``, float64.
        positives: counts of what is wrong, the same shape.

    Returns:
        Shares of what is right and of what is wrong, each ``(..., n_bins)``; together they sum to 1, or to 0 where
        nothing was counted.

    Example:
        >>> class_balanced(torch.tensor([[6.0, 2.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        (tensor([0.3750, 0.3750]), tensor([0.0000, 0.2500]))
    """
    of_class = negatives.sum(-1) + positives.sum(-1)
    occurs = of_class > 0
    weights = torch.where(occurs, 1 / of_class, 0) / occurs.sum(-1, keepdim=True).clamp_min(1)
    right, wrong = (weights.unsqueeze(-2) @ counts for counts in (negatives, positives))
    return right.squeeze(-2), wrong.squeeze(-2)


def area_under_risk_coverage_of_shares(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area under the risk-coverage curve (AURC) where any share of the whole may be accepted, not whole scores alone.

    .. math:: \int_0^1 \frac{E(c)}{c} \, dc = \sum_{bins} e + \big(E - M \tfrac em\big) \log \frac{M + m}M

    where :math:`E(c)`, the wrong share among the accepted share c, grows linearly within a bin, whose scores tie: with
    the share ``m`` of all in the bin, ``e`` of it wrong, and ``M`` accepted before, ``E`` of it wrong. It is the limit
    of `area_under_risk_coverage` for scores that are repeated without end.

    Args:
        negatives: shares of what is right by score, ``(..., n_bins)``, lowest score first, float64; of any sum, since
            they are divided by that of all.
        positives: shares of what is wrong, the same shape.

    Returns:
        ``(...)`` from 0 to 1, lower is better; the error rate ``e`` where all scores tie, at best
        ``e + (1 - e) log(1 - e)``; NaN where nothing was counted.

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2019.

    Example:
        >>> area_under_risk_coverage_of_shares(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.2690)
    """
    total = (negatives + positives).sum(-1, keepdim=True)
    share, wrong = (negatives + positives) / total, positives / total
    before, errors = (pad(each.cumsum(-1)[..., :-1], (1, 0)) for each in (share, wrong))
    least = torch.finfo(share.dtype).tiny  # nothing was wrong before the first bin: 0 of any logarithm
    excess = errors - before * wrong / share.clamp_min(least)
    return (wrong + excess * torch.log1p(share / before.clamp_min(least))).sum(-1)


def area_under_sparsification_error_of_shares(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area between two sparsification curves (AUSE) where any share of the whole may be removed.

    It is the AURC of `area_under_risk_coverage_of_shares` less the best one of this error rate ``e``, in which all that
    is right is accepted first: ``e + (1 - e) log(1 - e)``.

    Args:
        negatives: shares of what is right by score, ``(..., n_bins)``, lowest score first, float64; of any sum.
        positives: shares of what is wrong, the same shape.

    Returns:
        ``(...)`` from 0 (all that is wrong scores above all that is right) to 1; NaN where nothing was counted.

    References:
        Ilg et al., Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow, 2018, section 5.2.

    Example:
        >>> area_under_sparsification_error_of_shares(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.1155)
    """
    right, wrong = negatives.sum(-1), positives.sum(-1)
    accuracy = right / (right + wrong)
    best = 1 - accuracy + torch.xlogy(accuracy, accuracy)
    return (area_under_risk_coverage_of_shares(negatives, positives) - best).clamp_min(0)
