"""Patches of a map of errors and one of uncertainty: accurate or not, and how uncertain."""

from __future__ import annotations

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
        >>> import torch
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


def _patch_sums(values: Tensor, window: int) -> Tensor:
    """Sums over patches, ``(B, *spatial)`` to ``(B, *patches)``."""
    missing = [-side % window for side in values.shape[1:]]
    padded = nn_functional.pad(values, [width for side in reversed(missing) for width in (0, side)])
    for axis in range(1, values.ndim):
        padded = padded.reshape(*padded.shape[:axis], -1, window, *padded.shape[axis + 1 :]).sum(axis + 1)
    return padded
