"""Masks that grow by 3 x 3 dilations, and how many of them it takes to reach a pixel."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.core.checks import require_count, require_dims


def dilate(mask: Tensor, distance: int) -> Tensor:
    """A mask after so many 3 x 3 (3 x 3 x 3) dilations.

    These are one dilation by a square (cube) of side ``2 * distance + 1``, which is taken one axis after the other from
    running counts: the work does not grow with the distance.

    Args:
        mask: bool, ``(B, *spatial)``.
        distance: number of dilations, from 0.

    Returns:
        bool, the same shape.

    Example:
        >>> dilate(torch.tensor([[False, False, True, False, False]]), 1).tolist()
        [[False, True, True, True, False]]
    """
    require_count("the number of dilations", distance, 0)
    require_dims("mask", mask, "(B, *spatial)", at_least=2)
    for axis in range(1, mask.ndim if distance else 0):
        size = mask.shape[axis]
        place = torch.arange(size, device=mask.device)
        before = nn_functional.pad(mask.cumsum(axis, dtype=torch.int32), _in_front(mask.ndim, axis))
        high = before.index_select(axis, (place + distance + 1).clamp_max(size))
        mask = high > before.index_select(axis, (place - distance).clamp_min(0))
    return mask


def dilations_to_reach(mask: Tensor, pixels: Tensor) -> Tensor:
    """How many 3 x 3 (3 x 3 x 3) dilations of masks it takes to reach each of some pixels.

    That is the distance to the nearest pixel of the mask, along the axis on which they lie furthest apart. It is
    searched for by halving, in running counts over the whole images, for all pixels together.

    Args:
        mask: bool, ``(B, *spatial)``.
        pixels: int64, ``(N, 1 + dims)``: indices into ``mask``, as of ``nonzero()``.

    Returns:
        int64, ``(N,)``: 0 for pixels of the mask; the longest side of an image, which is more than any distance within
        it, where the mask of that image is empty.

    Example:
        >>> dilations_to_reach(torch.tensor([[True, False, False, False]]), torch.tensor([[0, 0], [0, 3]])).tolist()
        [0, 3]
    """
    require_dims("mask", mask, "(B, *spatial)", at_least=2)
    counts = mask.to(torch.int32)
    for axis in range(1, mask.ndim):
        counts = nn_functional.pad(counts.cumsum(axis, dtype=torch.int32), _in_front(mask.ndim, axis))
    image, place = pixels[:, 0] * counts.stride(0), pixels[:, 1:]
    sizes = torch.tensor(mask.shape[1:], device=pixels.device)
    flat, steps = counts.reshape(-1), counts.stride()[1:]

    def reached(distance: Tensor) -> Tensor:
        ends = ((place - distance[:, None]).clamp_min(0), (place + distance[:, None] + 1).minimum(sizes))
        total = torch.zeros_like(distance)
        for corner in product((0, 1), repeat=len(steps)):  # the count in a box, from the counts at its corners
            at = sum((ends[end][:, axis] * steps[axis] for axis, end in enumerate(corner)), image)
            total += flat[at] if (len(steps) - sum(corner)) % 2 == 0 else -flat[at]
        return total > 0

    longest = max(mask.shape[1:])
    low, high = torch.zeros_like(image), torch.full_like(image, longest)
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        found = reached(middle)
        low, high = torch.where(found, low, torch.minimum(middle + 1, high)), torch.where(found, middle, high)
    return high


def _in_front(dims: int, axis: int) -> list[int]:
    """The padding that puts one 0 in front of an axis."""
    padding = [0, 0] * dims
    padding[2 * (dims - 1 - axis)] = 1
    return padding
