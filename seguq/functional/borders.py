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
    values = classes.unsqueeze(1).float()  # class indices are exact up to 2^24
    ignored = torch.zeros_like(values, dtype=torch.bool) if ignore_index is None else values == ignore_index
    ends = [sign * _largest(sign * values.masked_fill(ignored, -sign * torch.inf), distance, dims) for sign in (1, -1)]
    return (ends[0] > ends[1]).squeeze(1)


def _largest(values: Tensor, distance: int, dims: int) -> Tensor:
    """The largest value within a square of each pixel, one axis after the other: ``(B, 1, *spatial)``."""
    for axis in range(dims):
        window, padding = [1] * dims, [0] * dims
        window[axis], padding[axis] = 2 * distance + 1, distance
        values = _POOL[dims](values, window, 1, padding)
    return values
