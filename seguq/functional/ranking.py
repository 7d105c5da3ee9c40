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
    if values.numel() and bool(values.amax().isnan()):  # the largest of values with a NaN is NaN
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


def average_precision(negatives: Tensor, positives: Tensor, mixed: Tensor | None = None) -> Tensor:
    r"""Area under the precision-recall curve as a sum of steps (no interpolation), ties taken together.

    .. math:: \sum_k (R_k - R_{k-1}) P_k

    A bin that is ``mixed`` holds scores that differ, in an order that was not kept. Its value is the exact expectation
    over their random orders; with ``m`` scores in it, ``e`` of them positive, and ``M`` above it, ``E`` of them
    positive, its positives have a sum of precisions of

    .. math:: \frac em \big(m r + (E + 1 - r (M + 1)) (H_{M + m} - H_M)\big), \qquad r = \frac{e - 1}{m - 1}

    with :math:`H_n = \sum_{j=1}^n 1/j`.

    Args:
        negatives: counts of the negatives by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of the positives, the same shape.
        mixed: ``(n_bins,)`` bool, which bins hold scores that differ; None: in each bin all scores are equal.

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
    here = positives.flip(-1)
    precisions = here * hits / taken.clamp_min(1)
    if mixed is not None:
        size = here + negatives.flip(-1)
        before, above = hits - here, taken - size
        rate = ((here - 1) / (size - 1).clamp_min(1)).clamp_min(0)
        harmonic = torch.digamma(taken + 1) - torch.digamma(above + 1)
        expected = here / size.clamp_min(1) * (size * rate + (before + 1 - rate * (above + 1)) * harmonic)
        precisions = torch.where(mixed.flip(-1), expected, precisions)
    return precisions.sum(-1) / positives.sum(-1)


def fpr_at_tpr(negatives: Tensor, positives: Tensor, tpr: float = 0.95, mixed: Tensor | None = None) -> Tensor:
    """Share of the negatives that score as high as the highest threshold that keeps ``tpr`` of the positives.

    Where the threshold falls into a bin that is ``mixed`` (see `average_precision`), the value is the exact expectation
    over the random orders of the scores in it: before the k-th of e positives come ``k n / (e + 1)`` of n negatives.

    Args:
        negatives: counts of the negatives by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of the positives, the same shape.
        tpr: the share of positives to keep.
        mixed: ``(n_bins,)`` bool, which bins hold scores that differ; None: in each bin all scores are equal.

    Returns:
        ``(...)`` from 0 to 1; NaN where there is no positive or no negative.

    References:
        Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, 2017.

    Example:
        >>> fpr_at_tpr(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0]))
        tensor(0.2500)
    """
    hits, alarms = positives.flip(-1).cumsum(-1), negatives.flip(-1).cumsum(-1)
    all_positives, all_negatives = positives.sum(-1, keepdim=True), negatives.sum(-1, keepdim=True)
    # the first threshold, from the top, at which enough positives are in; one part in 1e12 for rounding
    first = (hits / all_positives < tpr - 1e-12).sum(-1, keepdim=True).clamp_max(hits.shape[-1] - 1)
    false = alarms.gather(-1, first)
    if mixed is not None:
        inside = positives.flip(-1).gather(-1, first)
        wanted = (tpr * all_positives * (1 - 1e-12)).ceil() - (hits.gather(-1, first) - inside)
        others = negatives.flip(-1).gather(-1, first)
        expected = false - others + wanted * others / (inside + 1)
        false = torch.where(mixed.flip(-1)[first], expected, false)
    rate = (false / all_negatives).squeeze(-1)
    return rate.masked_fill(positives.sum(-1) == 0, float("nan"))


def area_under_risk_coverage(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area under the risk-coverage curve (AURC): the mean over all coverages of the error rate among what is accepted.

    The lowest scores are accepted first, one at a time. Scores in one bin tie, and the value is the exact expectation
    over the random orders of each tie; with ``m`` scores in a bin, ``e`` of them positive, and ``M`` accepted before,
    ``E`` of them positive:

    .. math:: \frac1N \sum_{bins} e + \big(E - M \tfrac em\big) (H_{M + m} - H_M), \qquad H_n = \sum_{j=1}^n \tfrac1j

    Args:
        negatives: counts of what is right by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of what is wrong, the same shape.

    Returns:
        ``(...)`` from 0 to 1, lower is better; the error rate where all scores tie, for many scores at best
        ``e + (1 - e) log(1 - e)`` with the error rate ``e``; NaN where nothing was counted.

    References:
        Geifman, Uziel and El-Yaniv, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2019.

    Example:
        >>> area_under_risk_coverage(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))      # 0, 1/3, 4/9 and 1/2
        tensor(0.3194)
    """
    counts = negatives + positives
    accepted, errors = counts.cumsum(-1), positives.cumsum(-1)
    before = accepted - counts
    # digamma(n + 1) is the harmonic number of n less a constant; at 1e12 scores in 2^16 bins the area is good to 1e-12
    harmonic = torch.digamma(accepted + 1) - torch.digamma(before + 1)
    excess = errors - positives - before * positives / counts.clamp_min(1)
    return (positives + excess * harmonic).sum(-1) / accepted[..., -1]


def area_under_generalized_risk_coverage(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area under the generalized risk-coverage curve (AUGRC): the mean share of accepted errors, over all coverages.

    The generalized risk is the number of errors among what is accepted, divided by the number of all scores: the
    chance that one is wrong and goes unnoticed. The lowest scores are accepted first, those of one bin together; the
    trapezoids start at (0, 0). Equal to ``(1 - AUROC) a (1 - a) + (1 - a)^2 / 2`` with the accuracy ``a``.

    Args:
        negatives: counts of what is right by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of what is wrong, the same shape.

    Returns:
        ``(...)`` from 0 to 1/2, lower is better: half the error rate where all scores tie, half its square at best;
        NaN where nothing was counted.

    References:
        Traub et al., Overcoming Common Flaws in the Evaluation of Selective Classification Systems, 2024.

    Example:
        >>> area_under_generalized_risk_coverage(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.1875)
    """
    counts = negatives + positives
    height = positives.cumsum(-1) - positives / 2
    return (counts * height).sum(-1) / counts.sum(-1).square()


def area_under_sparsification_error(negatives: Tensor, positives: Tensor) -> Tensor:
    r"""Area between two sparsification curves (AUSE): that of the scores, and that of an oracle.

    A sparsification curve is the error rate of what remains after a share was removed, over that share: the scores
    remove the highest first (ties as in `area_under_risk_coverage`), the oracle removes the wrong ones first. The area
    is the mean over the shares ``0, 1/N ... (N - 1)/N``. For errors of 0 and 1 it is the AURC less the best AURC of
    this error rate (E-AURC). It is not divided by the error rate; do that for the area between curves that start at 1.

    Args:
        negatives: counts of what is right by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of what is wrong, the same shape.

    Returns:
        ``(...)`` from 0 (all that is wrong scores above all that is right) to 1; NaN where nothing was counted.

    References:
        Ilg et al., Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow, 2018, section 5.2.

    Example:
        >>> area_under_sparsification_error(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.1111)
    """
    right, wrong = negatives.sum(-1), positives.sum(-1)
    total = right + wrong
    # the AURC of two bins, all that is right and all that is wrong
    best = (wrong - right * (torch.digamma(total + 1) - torch.digamma(right + 1))) / total
    return (area_under_risk_coverage(negatives, positives) - best).clamp_min(0)


def selective_risk(negatives: Tensor, positives: Tensor, coverage: Tensor) -> Tensor:
    """Error rate among the accepted share with the lowest scores: the risk-coverage curve at given coverages.

    Where the share ends within a bin, its scores are accepted in a random order, and the expected error rate is given.

    Args:
        negatives: counts of what is right by score, ``(..., n_bins)``, lowest score first, float64.
        positives: counts of what is wrong, the same shape.
        coverage: the shares to accept, ``(n,)``, above 0 and at most 1.

    Returns:
        ``(..., n)`` from 0 to 1; NaN where nothing was counted.

    References:
        Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017.

    Example:
        >>> selective_risk(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), torch.tensor([0.25, 0.5, 1.0]))
        tensor([0.0000, 0.3333, 0.5000])
    """
    counts = negatives + positives
    accepted = counts.cumsum(-1)
    wanted = coverage.to(counts) * accepted[..., -1:]
    last = torch.searchsorted(accepted, wanted).clamp_max(counts.shape[-1] - 1)
    missing = (accepted.gather(-1, last) - wanted) / counts.gather(-1, last)
    return (positives.cumsum(-1).gather(-1, last) - missing * positives.gather(-1, last)) / wanted
