"""Cells of a grid."""

from __future__ import annotations

from typing import Any, ClassVar

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

    Raises:
        UsageError: unless it is a whole number from 1 to 2^31 - 1.

    Example:
        >>> Grid(2)(torch.zeros(3, 2, 3)).tolist()
        [[0, 0, 1], [0, 0, 1]]
    """

    fills_boxes: ClassVar[bool] = True

    def __init__(self, size: int) -> None:
        if not is_whole(size, 1) or size > _MOST:
            raise UsageError(f"the side of a grid cell must be a whole number of at least 1 pixel, but is {size!r}")
        self.size = size

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The cell of each pixel, ``(H, W)`` int32."""
        height, width = image_size(image, maps)
        columns = -(-width // self.size)
        rows = torch.arange(height, dtype=torch.int32) // self.size * columns
        return rows[:, None] + torch.arange(width, dtype=torch.int32) // self.size
