"""Binned calibration error, and the negative log-likelihood with its derivatives along a temperature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seguq.core.checks import flat_images, require_target_shape

_FEW_BINS = 1 << 10
_SMALL = 1 << 16  # logits
_CPU_VALUES = 1 << 18  # logits at once: more would leave the cache
_GPU_VALUES = 1 << 26


class TemperatureNLL(NamedTuple):
    """The negative log-likelihood at one inverse temperature, summed over labeled pixels (float64 scalars)."""

    pixels: Tensor
    nll: Tensor
    first: Tensor
    second: Tensor


def temperature_nll(
    logits: Tensor, target: Tensor, inverse_temperature: float, ignore_index: int | None = 255
) -> TemperatureNLL:
    r"""Negative log-likelihood of ``softmax(beta z)`` and its first two derivatives in ``beta = 1 / T``.

    .. math::
        L(\beta) = \log \sum_c e^{\beta z_c} - \beta z_y, \quad
        L' = E_p[z] - z_y, \quad L'' = Var_p[z]

    65,000 logits and fewer are computed in double precision.

    Args:
        logits: ``(B, C, *spatial)``, float32 or float64, finite.
        target: class indices ``(B, *spatial)``, int64.
        inverse_temperature: beta.
        ignore_index: the value of ``target`` that is left out.

    Returns:
        The number of pixels counted and the three sums over them, each a float64 scalar on the device of ``logits``.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.

    Example:
        >>> out = temperature_nll(torch.tensor([[1.0, -1.0]]), torch.tensor([0]), 0.0)
        >>> [round(float(x), 4) for x in out]
        [1.0, 0.6931, -1.0, 1.0]
    """
    require_target_shape(logits, target)
    classes = logits.shape[1]
    if logits.device.type == "cpu" and logits.numel() <= _SMALL:
        logits = logits.double()  # costs nothing here, and few pixels leave a flat minimum, where rounding would count
    flat, labels = logits.movedim(1, 0).reshape(classes, -1), target.reshape(-1)
    sums = torch.zeros(4, dtype=torch.float64, device=logits.device)
    most = max(1, (_CPU_VALUES if logits.device.type == "cpu" else _GPU_VALUES) // classes)
    for start in range(0, flat.shape[1], most):
        z, y = flat[:, start : start + most], labels[start : start + most]
        labeled = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
        # softmax is the same for z and z + c: with the largest logit at 0 the sums lose no digits to a common offset
        # (nor do logits that rule a class out, such as the smallest float, overflow when they are squared)
        below = (z.amax(0) - z).clamp_max_(1e6)
        true_below = below.gather(0, y.where(labeled, torch.zeros_like(y))[None])[0]
        weights = torch.mul(below, -inverse_temperature).exp_()
        total = weights.sum(0)
        mean = weights.mul_(below).sum(0) / total
        square = weights.mul_(below).sum(0) / total
        nll = total.log() + inverse_temperature * true_below
        values = torch.stack((torch.ones_like(nll), nll, true_below - mean, square - mean**2))
        sums += values.masked_fill_(~labeled, 0).sum(1, dtype=torch.float64)
    return TemperatureNLL(*sums)


def top1_calibration_bins(probs: Tensor, target: Tensor, n_bins: int = 15, ignore_index: int | None = 255) -> Tensor:
    """Count, for every image, its pixels by confidence in bins of equal width, closed on the right.

    Args:
        probs: ``(B, C, *spatial)``.
        target: class indices ``(B, *spatial)``, int64.
        n_bins: number of bins over [0, 1]; bin i holds confidences in ``(i / n_bins, (i + 1) / n_bins]``.
        ignore_index: the value of ``target`` that is left out.

    Returns:
        ``(B, 3, n_bins)`` float64: the number of pixels, the sum of their confidences, the number predicted rightly.
        Flat ``(N, C)`` is one image.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 2.

    Example:
        >>> top1_calibration_bins(torch.tensor([[0.3, 0.7]]), torch.tensor([1]), n_bins=2)
        tensor([[[0.0000, 1.0000],
                 [0.0000, 0.7000],
                 [0.0000, 1.0000]]], dtype=torch.float64)
    """
    require_target_shape(probs, target, scores_name="probs")
    if target.ndim == 1:
        probs, target = probs.T.unsqueeze(0), target.unsqueeze(0)
    target = target.long()  # 156 of 8 bits compares as equal to an ignore_index of -100
    labeled = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    confidence = probs.amax(1).masked_fill(~labeled, 0)  # it may be NaN where it is ignored
    bins = flat_images(bin_numbers(confidence, n_bins))
    right = predicted_rightly(probs.detach(), target, labeled, confidence.detach())
    weights = torch.stack((labeled, confidence.double(), right)).double()
    out = torch.zeros(3, len(bins), n_bins, dtype=torch.float64, device=probs.device)
    out.scatter_add_(2, bins.expand(3, *bins.shape), weights.reshape(3, *bins.shape))
    return out.transpose(0, 1)


def bin_numbers(confidence: Tensor, n_bins: int) -> Tensor:
    """How many edges lie below each confidence, int64: what `torch.bucketize` finds, which is slow on a CPU."""
    edges = (torch.arange(1, n_bins, dtype=torch.float64, device=confidence.device) / n_bins).to(confidence.dtype)
    if n_bins > _FEW_BINS or confidence.dtype not in (torch.float32, torch.float64):
        return torch.bucketize(confidence, edges)
    # one part in 3 million lower, rounding cannot lift it over an edge: it is right, or one too low
    bins = (confidence * (n_bins * (1 - 3e-7))).clamp_(0, n_bins - 1).long().clamp_(0)  # the second for NaN
    bins += (confidence > torch.cat((edges, edges.new_full((1,), torch.nan))).take(bins)).long()
    return bins


def predicted_rightly(probs: Tensor, target: Tensor, labeled: Tensor, confidence: Tensor) -> Tensor:
    """Which labeled pixels are predicted rightly, ``(B, *spatial)``, given the largest probability of each.

    Of several largest ones the first is the prediction, as argmax has it. That kernel is slow on a CPU, so it is asked
    only where there are ties.
    """
    index = target.where(labeled, 0)
    right = (probs.gather(1, index.unsqueeze(1)).squeeze(1) == confidence) & labeled
    largest = torch.eq(probs, confidence.unsqueeze(1), out=torch.empty_like(probs)).sum(1)  # as bool it takes longer
    if bool((largest > 1).logical_and_(labeled).any()):
        right &= probs.max(1).indices == index
    return right


def expected_calibration_error(bins: Tensor) -> Tensor:
    r"""Expected calibration error from binned counts.

    .. math:: \sum_b \frac{n_b}{n} |acc_b - conf_b|

    Args:
        bins: ``(..., 3, n_bins)`` as `top1_calibration_bins` gives them, summed over any number of images.

    Returns:
        ``(...)`` from 0 to 1; NaN where nothing was counted.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, eq. 3.

    Example:
        >>> expected_calibration_error(torch.tensor([[0.0, 4.0], [0.0, 3.6], [0.0, 3.0]]))
        tensor(0.1500)
    """
    count, confidence, correct = bins.unbind(-2)
    return (confidence - correct).abs().sum(-1) / count.sum(-1)
