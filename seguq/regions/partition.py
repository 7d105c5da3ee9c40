"""How an image is cut into regions."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.inference import UncertaintyMaps


@runtime_checkable
class Partition(Protocol):
    """Anything that cuts an image into regions.

    ``needs`` names the maps it reads. Called with an image ``(channels, H, W)`` and the maps of that one image, it
    gives the region of each pixel: ``(H, W)`` int32 in ``0 .. R - 1``, or -1 for a pixel in no region.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the maps that it reads."""

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The region of each pixel."""


def _size(image: Any, maps: UncertaintyMaps | None) -> tuple[int, int]:
    if image is not None:
        # tensors have their channels first, arrays as OpenCV and scikit-image give them last
        shape = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    elif maps is not None:
        shape = maps.prediction.shape[-2:]
    else:
        raise SeguqError("a partition needs an image or maps, to know the size")
    return int(shape[0]), int(shape[1])


class Grid:
    """Square cells of equal size, row by row; those at the right and lower border are cut off by it.

    Args:
        cell: side of a cell in pixels.

    Example:
        >>> Grid(2)(torch.zeros(3, 2, 3)).tolist()
        [[0, 0, 1], [0, 0, 1]]
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, cell: int) -> None:
        if not is_whole(cell, 1):
            raise UsageError(f"the side of a grid cell must be a whole number of at least 1 pixel, but is {cell!r}")
        self.cell = cell

    def __repr__(self) -> str:
        return f"Grid({self.cell})"

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The cell of each pixel, ``(H, W)`` int32."""
        height, width = _size(image, maps)
        columns = -(-width // self.cell)
        rows = torch.arange(height, dtype=torch.int32) // self.cell * columns
        return rows[:, None] + torch.arange(width, dtype=torch.int32) // self.cell


class WholeImage:
    """One region: the image.

    Example:
        >>> WholeImage()(torch.zeros(3, 1, 2)).tolist()
        [[0, 0]]
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        return "WholeImage()"

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """Zeros, ``(H, W)`` int32."""
        return torch.zeros(_size(image, maps), dtype=torch.int32)
