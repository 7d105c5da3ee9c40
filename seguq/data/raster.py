"""The pixels of one file, with what it says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Raster:
    """The pixels of one file.

    Attributes:
        pixels: ``(H, W, channels)`` as stored, turned upright; palette indices where there is a ``palette``.
        alpha: whether the last channel is alpha.
        rgb: whether the file says that the first three channels are red, green and blue.
        bits: of a sample: 1 to 64.
        palette: ``(n, 3)`` uint8, the color of each index, or None.
        white_is_zero: whether small values are bright.
        nodata: the value of pixels without data, or None.
        masked: ``(H, W)``, True where the file masks a pixel out, or None.
        lossy: name of a compression that changes values, or None.
    """

    pixels: Array
    alpha: bool = False
    rgb: bool = False
    bits: int = 8
    palette: Array | None = None
    white_is_zero: bool = False
    nodata: float | None = None
    masked: Array | None = None
    lossy: str | None = None

    @property
    def colors(self) -> Array:
        """The pixels without alpha, ``(H, W, channels)``."""
        return self.pixels[..., : self.pixels.shape[2] - self.alpha]

    def upright(self, orientation: int) -> Raster:
        """The same, turned and flipped as a tag of EXIF or TIFF (1 to 8) asks for."""
        if orientation not in range(2, 9):
            return self
        masked = None if self.masked is None else turned(self.masked, orientation)
        return replace(self, pixels=turned(self.pixels, orientation), masked=masked)

    def without_data(self) -> Array | None:
        """Where samples hold the nodata value, ``(H, W, channels)`` without alpha; None where the file names none."""
        colors = self.colors
        found = None
        if self.nodata is not None:
            if np.isnan(self.nodata):
                found = np.isnan(colors) if colors.dtype.kind == "f" else None
            elif colors.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    found = colors == colors.dtype.type(self.nodata)
            elif float(self.nodata).is_integer():
                found = colors == int(self.nodata)
        if self.masked is not None:
            found = self.masked[..., None] | (np.zeros(colors.shape, np.bool_) if found is None else found)
        return found


def turned(array: Array, orientation: int) -> Array:
    """An array ``(H, W, ...)`` as the orientation 1 to 8 of EXIF and TIFF says that it is shown.

    Example:
        >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()  # a quarter clockwise
        [[3, 1], [4, 2]]
    """
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    rows = orientation in (3, 4, 7, 8)
    columns = orientation in (2, 3, 6, 7)
    return array[:: -1 if rows else 1, :: -1 if columns else 1]
