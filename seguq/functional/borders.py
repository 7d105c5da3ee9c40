"""Which pixels lie near a border between classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError

_POOL = {1: nn_functional.max_pool1d, 2: nn_functional.max_pool2d, 3: nn_functional.max_pool3d}


def near_border(classes: Tensor, distance: int, ignore_index: int | None = None) -> Tensor:
    """Which pixels have another class within a distance.

    Distances are those of a square (cube): 1 is the 8 (26) neighbors. A pixel is near a border where any two classes
    meet within its square, of side ``2 * distance + 1``.

    Args:
        classes: class indices ``(B, *spatial)`` of one to three dimensions.
        distance: in pixels.
        ignore_index: value of pixels without a class, which make no border.

    Returns:
        bool, the same shape.

    Raises:
        SeguqError: for another shape.

    Example:
        >>> near_border(torch.tensor([[0, 0, 0, 1, 1]]), 1).tolist()
        [[False, False, True, True, False]]
    """
    require_count("the distance to a border", distance)
    dims = classes.ndim - 1
    if dims not in _POOL:
        raise SeguqError(
            f"borders are of images (B, *spatial) of 1 to 3 dimensions, but the classes have shape "
            f"{tuple(classes.shape)}"
        )
    if not classes.numel():  # which pooling refuses
        return torch.zeros_like(classes, dtype=torch.bool)
    if ignore_index is None:
        return _widened(_at_border(classes), distance - 1, list(range(1, classes.ndim)))
    values = classes.unsqueeze(1).float()  # class indices are exact up to 2^24
    ignored = values == ignore_index
    ends = [sign * _largest(sign * values.masked_fill(ignored, -sign * torch.inf), distance, dims) for sign in (1, -1)]
    return (ends[0] > ends[1]).squeeze(1)


def _largest(values: Tensor, distance: int, dims: int) -> Tensor:
    """The largest value within a square of each pixel, one axis after the other: ``(B, 1, *spatial)``."""
    for axis in range(dims):
        window, padding = [1] * dims, [0] * dims
        window[axis], padding[axis] = 2 * distance + 1, distance
        values = _POOL[dims](values, window, 1, padding)
    return values


def nearness_to_borders(classes: Tensor, doublings: int) -> Tensor:
    """How near each pixel lies to a border between classes, in steps that double.

    The share of the distances 1, 2, 4, ... within which there is another class, as `near_border` tells it of each; by
    moving masks about, which takes a hundredth of the time.

    Args:
        classes: class indices ``(B, *spatial)``, all of them counted.
        doublings: how many distances after the first.

    Returns:
        ``(B, *spatial)`` float32 from 0, far away, to 1, at a border.

    Example:
        >>> nearness_to_borders(torch.tensor([[0, 1, 1, 1, 1, 1]]), 2)
        tensor([[1.0000, 1.0000, 0.6667, 0.3333, 0.3333, 0.0000]])
    """
    near = _at_border(classes)
    nearness = near.float()
    for doubling in range(doublings):
        near = _widened(near, 2**doubling, list(range(1, classes.ndim)))
        nearness += near
    return nearness / (doublings + 1)


def _at_border(classes: Tensor) -> Tensor:
    """Which pixels have another class among their neighbors, or in a square of side 3 two that differ."""
    near = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(1, classes.ndim):
        size = classes.shape[axis] - 1
        differ = classes.narrow(axis, 1, size) != classes.narrow(axis, 0, size)
        along = torch.zeros_like(near)
        along.narrow(axis, 0, size).logical_or_(differ)
        along.narrow(axis, 1, size).logical_or_(differ)
        near |= _widened(along, 1, [other for other in range(1, classes.ndim) if other != axis])
    return near


def _widened(mask: Tensor, distance: int, axes: list[int]) -> Tensor:
    """A mask after so many dilations along each of some axes."""
    for axis in axes:
        reached, wanted = 0, distance
        while reached < wanted:  # what has grown by n moves on by n + 1 at most without leaving a gap
            step = min(wanted - reached, 2 * reached + 1, mask.shape[axis])
            size, grown = mask.shape[axis] - step, mask.clone()
            grown.narrow(axis, 0, size).logical_or_(mask.narrow(axis, step, size))
            grown.narrow(axis, step, size).logical_or_(mask.narrow(axis, 0, size))
            mask, reached = grown, reached + step
    return mask
