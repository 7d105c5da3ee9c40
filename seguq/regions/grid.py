"""Cells of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, image_size

_MOST = 2**31 - 1  # cells are counted in 32 bits


class Grid(Partition):
    """Square cells of equal size, row by row; those at the right and lower border are cut off by it.

    Args:
        size: side of a cell in pixels.
        stride: from the beginning of one cell to that of the next; what lies between them is in no region. None: that
            of the size, cell beside cell.

    Raises:
        UsageError: unless these are whole numbers from 1 to 2^31 - 1, or where cells would overlap.

    Example:
        >>> Grid(2)(torch.zeros(3, 2, 3)).tolist()
        [[0, 0, 1], [0, 0, 1]]
        >>> Grid(1, stride=2)(torch.zeros(3, 1, 4)).tolist()
        [[0, -1, 1, -1]]
    """

    fills_boxes = True

    def __init__(self, size: int, stride: int | None = None) -> None:
        if not is_whole(size, 1) or size > _MOST:
            raise UsageError(f"the side of a grid cell must be a whole number of at least 1 pixel, but is {size!r}")
        if stride is not None and (not is_whole(stride, size) or stride > _MOST):
            raise UsageError(
                f"the stride of a grid must be a whole number of at least {size}, the side of its cells, but is "
                f"{stride!r}: cells that overlap are no regions of their own"
            )
        self.size = size
        self.stride = stride

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The cell of each pixel, ``(H, W)`` int32; -1 between cells."""
        height, width = image_size(image, maps)
        stride = self.size if self.stride is None else self.stride
        rows, columns = torch.arange(height, dtype=torch.int32), torch.arange(width, dtype=torch.int32)
        cells = (rows // stride * -(-width // stride))[:, None] + columns // stride
        inside = (rows % stride < self.size)[:, None] & (columns % stride < self.size)
        return cells.where(inside, -1)
