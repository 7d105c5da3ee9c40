"""Patches of a map of errors and one of uncertainty: accurate or not, and how uncertain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.core.checks import require_count, require_dims
from seguq.core.errors import SeguqError


def patch_errors(uncertainty: Tensor, error: Tensor, window: int, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """The mean uncertainty of each patch, and whether it is inaccurate: half of its pixels or more are wrong.

    Patches are squares (cubes) side by side from the first pixel on; those at the far border are cut off by it.

    Args:
        uncertainty: ``(B, *spatial)`` of one to three dimensions; NaN is allowed where ``error`` is ignored.
        error: the same shape, of 0 (right), 1 (wrong) or ``ignore_index``.
        window: side of a patch in pixels.
        ignore_index: value of pixels that are left out; a patch of these alone is ignored, too.

    Returns:
        The mean uncertainty ``(B, *patches)`` float32 (0 for an ignored patch), and int64 of the same shape: 0
        accurate, 1 inaccurate, or ``ignore_index``.

    References:
        Mukhoti and Gal, Evaluating Bayesian Deep Learning Methods for Semantic Segmentation, 2018, section 3.

    Example:
        >>> patch_errors(torch.tensor([[0.2, 0.4, 0.9]]), torch.tensor([[0, 1, 0]]), window=2)
        (tensor([[0.3000, 0.9000]]), tensor([[1, 0]]))
    """
    require_count("window", window)
    if uncertainty.shape != error.shape:
        raise SeguqError(
            f"uncertainty of shape {tuple(uncertainty.shape)} does not go with error of shape {tuple(error.shape)}"
        )
    require_dims("uncertainty", uncertainty, "(B, *spatial)", at_least=2)
    if uncertainty.ndim > 4:
        raise SeguqError(f"patches are of 1 to 3 dimensions, but uncertainty has shape {tuple(uncertainty.shape)}")
    counted = error != ignore_index
    wrong, scores = counted & (error == 1), uncertainty.double().masked_fill(~counted, 0)
    pixels, mistakes, total = (_patch_sums(values.double(), window) for values in (counted, wrong, scores))
    inaccurate = (2 * mistakes >= pixels).long().masked_fill(pixels == 0, ignore_index)
    return (total / pixels.clamp_min(1)).float(), inaccurate


def patches_right(accurate: Tensor, inaccurate: Tensor, certain: Tensor) -> Tensor:
    """PAvPU where given shares of the patches, the least uncertain ones, are called certain.

    Where a share ends within a bin, the expectation over the random orders of its patches is given.

    Args:
        accurate: counts of accurate patches by uncertainty, ``(..., n_bins)``, lowest first, float64.
        inaccurate: counts of the others, the same shape.
        certain: shares, ``(n,)`` from 0 to 1.

    Returns:
        ``(..., n)`` from 0 to 1; NaN where nothing was counted.

    Example:
        >>> patches_right(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.2500, 0.7500, 0.7500])
    """
    counts = accurate + inaccurate
    total = counts.sum(-1, keepdim=True)
    wanted, taken = certain.to(counts) * total, counts.cumsum(-1)
    last = torch.searchsorted(taken, wanted).clamp_max(counts.shape[-1] - 1)
    here = counts.gather(-1, last)
    part = torch.where(here > 0, (wanted - taken.gather(-1, last) + here) / here, 0)
    gain = accurate - inaccurate
    gained = gain.cumsum(-1).gather(-1, last) - (1 - part) * gain.gather(-1, last)
    return (inaccurate.sum(-1, keepdim=True) + gained) / total


def patches_right_best(accurate: Tensor, inaccurate: Tensor) -> Tensor:
    """PAvPU at the best threshold, ``(...)``; arguments as in `patches_right`.

    Example:
        >>> patches_right_best(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor(0.8000)
    """
    gained = (accurate - inaccurate).cumsum(-1).amax(-1).clamp_min(0)
    return (inaccurate.sum(-1) + gained) / (accurate + inaccurate).sum(-1)


def patches_right_area(accurate: Tensor, inaccurate: Tensor) -> Tensor:
    """The mean of PAvPU over all shares that may be called certain, ``(...)``; arguments as in `patches_right`.

    Example:
        >>> patches_right_area(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor(0.6250)
    """
    counts, gain = accurate + inaccurate, accurate - inaccurate
    total = counts.sum(-1)
    return (inaccurate.sum(-1) + (counts * (gain.cumsum(-1) - gain / 2)).sum(-1) / total) / total


def _patch_sums(values: Tensor, window: int) -> Tensor:
    """Sums over patches, ``(B, *spatial)`` to ``(B, *patches)``."""
    windows = [min(window, max(1, side)) for side in values.shape[1:]]
    missing = [-side % window for side, window in zip(values.shape[1:], windows, strict=True)]
    padded = nn_functional.pad(values, [width for side in reversed(missing) for width in (0, side)])
    for axis, window in enumerate(windows, 1):
        number = padded.shape[axis] // window
        padded = padded.reshape(*padded.shape[:axis], number, window, *padded.shape[axis + 1 :]).sum(axis + 1)
    return padded
