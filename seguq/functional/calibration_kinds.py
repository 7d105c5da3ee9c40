"""Bins of calibration errors beside those of the predicted class's confidence, and what is made of bins."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seguq.functional.calibration import bin_numbers

Norm = Literal["l1", "l2", "max"]
NORMS: tuple[str, ...] = ("l1", "l2", "max")

_OCTAVES, _STEPS = 24, 128
FINE_BINS = _OCTAVES * _STEPS + 2
"""Bins of `fine_bin_numbers`: of 0 to 2^-24, of 128 steps an octave up to 1, and of 1."""


def fine_bin_numbers(confidence: Tensor) -> Tensor:
    """Bin confidences by the leading bits of what they lack to 1, so that those just below 1 are told apart.

    Args:
        confidence: float32 or float64, from 0 to 1.

    Returns:
        int64, the same shape, in ``0 .. 3073``: 0 for all above ``1 - 2^-24``, more the less confident; none spans more
        than 1/128 of what it lacks.

    Example:
        >>> fine_bin_numbers(torch.tensor([1.0, 0.999, 0.5, 0.0])).tolist()
        [0, 1796, 2945, 3073]
    """
    pattern = (1 - confidence).clamp(0, 1).float().view(torch.int32) >> 16
    least = (127 - _OCTAVES) * _STEPS
    return (pattern - least + 1).clamp_(0).long()


def scatter_bins(numbers: Tensor, labeled: Tensor, confidence: Tensor, right: Tensor, n_bins: int) -> Tensor:
    """Counts, confidences and hits by bin: all arguments ``(B, K, n)``.

    Returns:
        ``(B, K, 3, n_bins)`` float64: pixels, sum of confidences, number that is right.
    """
    out = torch.zeros(3, *numbers.shape[:2], n_bins, dtype=torch.float64, device=numbers.device)
    for place, weights in enumerate((labeled, confidence.detach().masked_fill(~labeled, 0), right & labeled)):
        out[place].scatter_add_(2, numbers, weights.double())
    return out.movedim(0, 2)


def classwise_calibration_bins(probs: Tensor, right: Tensor, labeled: Tensor, n_bins: int = 15) -> Tensor:
    """Count, for every image and class, the pixels by the probability of that class, in bins of equal width.

    Args:
        probs: ``(B, K, n)``; anything where not labeled.
        right: which pixels are of the class, ``(B, K, n)``.
        labeled: which pixels count, ``(B, K, n)``.
        n_bins: number of bins over [0, 1], closed on the right.

    Returns:
        ``(B, K, 3, n_bins)`` float64: pixels, sum of probabilities, number of the class.

    References:
        Nixon et al., Measuring Calibration in Deep Learning, 2019 (static calibration error).

    Example:
        >>> probs, right = torch.tensor([[[0.3, 0.7]]]), torch.tensor([[[False, True]]])
        >>> classwise_calibration_bins(probs, right, torch.ones_like(right), n_bins=2)[0, 0].tolist()
        [[1.0, 1.0], [0.30000001192092896, 0.699999988079071], [0.0, 1.0]]
    """
    probs = probs.detach()
    out = torch.zeros(3, *probs.shape[:2], n_bins, dtype=torch.float64, device=probs.device)
    # most classes are ruled out at most pixels: the first bin is what the others leave of all
    everywhere = bool(labeled.all())
    counted = probs if everywhere else probs.masked_fill(~labeled, 0)
    places = torch.nonzero((counted > 1 / n_bins).flatten()).squeeze(1)
    said = counted.flatten()[places]
    index = torch.div(places, probs.shape[2], rounding_mode="floor") * n_bins + bin_numbers(said, n_bins)
    hits = right if everywhere else right & labeled
    for place, weights in enumerate((torch.ones_like(said), said, hits.flatten()[places])):
        out[place].view(-1).scatter_add_(0, index, weights.double())
    totals = torch.stack((labeled.sum(-1), counted.sum(-1, dtype=torch.float64), hits.sum(-1)))
    out[..., 0] = totals - out[..., 1:].sum(-1)
    return out.movedim(0, 2)


def equal_mass(bins: Tensor, reference: Tensor, n_bins: int) -> Tensor:
    """Put fine bins together to bins that hold equally many pixels of a reference.

    A fine bin that lies over an edge is shared out, as if its pixels were alike.

    Args:
        bins: ``(..., rows, F)``, or ``(F,)``.
        reference: number of pixels in each fine bin, ``(F,)``, or one for each of the leading dimensions, ``(..., F)``.
        n_bins: number of bins.

    Returns:
        ``(..., rows, n_bins)``, or ``(n_bins,)``.

    References:
        Nguyen and O'Connor, Posterior Calibration and Exploratory Analysis for Natural Language Processing Models,
        2015 (adaptive binning).

    Example:
        >>> equal_mass(torch.tensor([2.0, 6.0, 0.0]), torch.tensor([2.0, 6.0, 0.0]), n_bins=2)
        tensor([4., 4.])
    """
    ends = reference.cumsum(-1) / reference.sum(-1, keepdim=True) * n_bins
    starts = torch.cat((torch.zeros_like(ends[..., :1]), ends[..., :-1]), -1)
    edges = torch.arange(n_bins, dtype=ends.dtype, device=ends.device)
    inside = ends.unsqueeze(-1).minimum(edges + 1) - starts.unsqueeze(-1).maximum(edges)
    shares = inside.clamp_min(0) / (ends - starts).unsqueeze(-1)
    return bins @ shares.nan_to_num(0, 0, 0).to(bins)


def bin_weights(bins: Tensor, nonempty: bool = False) -> Tensor:
    """The weight of each bin: its share of the pixels, or the same for each that holds any; each class counts alike.

    Args:
        bins: ``(..., K, 3, n_bins)``.
        nonempty: whether the bins with a pixel count the same.

    Returns:
        ``(..., K, n_bins)``, which add up to 1 over bins and classes that have pixels; NaN where nothing was counted.
    """
    count = bins[..., 0, :]
    if nonempty:
        filled = (count > 0).to(count)
        return filled / filled.sum((-2, -1), keepdim=True)
    total = count.sum(-1, keepdim=True)
    return torch.where(total > 0, count / total, 0) / (total > 0).sum(-2, keepdim=True)


def calibration_error(bins: Tensor, norm: Norm = "l1", nonempty: bool = False) -> Tensor:
    r"""A norm of the gaps between confidence and accuracy, over the bins of all classes.

    .. math:: \Big(\sum_b w_b |acc_b - conf_b|^p\Big)^{1/p}

    ``"l2"`` is free of the bias that a finite number of pixels brings, were they independent: each square is less by
    ``acc (1 - acc) / (n_b - 1)``, and the sum not below 0. ``"max"`` is the largest gap of a bin with a pixel.

    Args:
        bins: ``(..., K, 3, n_bins)``: of K classes pixels, sum of confidences, number that is right.
        norm: ``"l1"``, ``"l2"`` or ``"max"``.
        nonempty: whether each bin with a pixel counts the same, rather than each pixel.

    Returns:
        ``(...)`` from 0 to 1; NaN where nothing was counted.

    References:
        Kumar et al., Verified Uncertainty Calibration, 2019, definition 4.1 (debiased l2); Barfoot et al., Average
        Calibration Error: A Differentiable Loss for Improved Reliability in Image Segmentation, 2024 (``nonempty``).

    Example:
        >>> bins = torch.tensor([[[0.0, 4.0], [0.0, 3.6], [0.0, 3.0]]])
        >>> calibration_error(bins), calibration_error(bins, "max"), calibration_error(bins, "l2")
        (tensor(0.1500), tensor(0.1500), tensor(0.))
    """
    count, confidence, right = bins.unbind(-2)
    filled = count > 0
    gaps = torch.where(filled, (confidence - right) / count, 0)
    weights = bin_weights(bins, nonempty)
    if norm == "max":
        return gaps.abs().amax((-2, -1)).where(filled.any(-1).any(-1), torch.nan)
    if norm == "l1":
        return (weights * gaps.abs()).sum((-2, -1))
    accuracy = torch.where(filled, right / count, 0)
    noise = accuracy * (1 - accuracy) / (count - 1).clamp_min(1)
    return (weights * (gaps.square() - noise)).sum((-2, -1)).clamp_min(0).sqrt()


def brier_parts(bins: Tensor) -> dict[str, Tensor]:
    r"""The parts of the Brier score of binned probabilities, summed over the classes.

    With ``o`` the share of a class, and of a bin the mean probability ``p_b`` and the share ``o_b``:

    .. math:: rel = \sum_b w_b (p_b - o_b)^2, \quad res = \sum_b w_b (o_b - o)^2, \quad unc = o (1 - o)

    Args:
        bins: ``(..., K, 3, n_bins)`` as `classwise_calibration_bins` gives them, summed over any number of images.

    Returns:
        ``reliability`` (0 where calibrated), ``resolution`` (more is better) and ``uncertainty`` (of the data), each
        ``(...)``. The score is reliability - resolution + uncertainty, but for what varies within the bins.

    References:
        Murphy, A New Vector Partition of the Probability Score, 1973; Stephenson et al., Two Extra Components in the
        Brier Score Decomposition, 2008.

    Example:
        >>> bins = torch.tensor([[[4.0, 4.0], [1.0, 3.0], [0.0, 4.0]]])      # said .25 and .75: came in 0 and 4 of 4
        >>> {name: float(value) for name, value in brier_parts(bins).items()}
        {'reliability': 0.0625, 'resolution': 0.25, 'uncertainty': 0.25}
    """
    count, confidence, right = bins.unbind(-2)
    filled, total = count > 0, count.sum(-1, keepdim=True)
    said, came = (torch.where(filled, values / count, 0) for values in (confidence, right))
    weights, share = count / total, right.sum(-1, keepdim=True) / total
    return {
        "reliability": (weights * (said - came).square()).sum((-2, -1)),
        "resolution": (weights * (came - share).square()).sum((-2, -1)),
        "uncertainty": (share * (1 - share)).sum((-2, -1)),
    }
