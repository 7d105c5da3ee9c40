"""Image and mask files, as arrays for a network. Everything that is wrong with a file is one sentence with its name.

What is read how, whatever the ending of the file's name says:

=========================  ============================================  =============================================
the file holds             an image (`read_image`)                       a mask (`read_mask`)
=========================  ============================================  =============================================
gray, 1 to 8 bits          uint8; fewer bits are spread over 0..255      class indices as stored
gray, 9 to 16 bits         float32, by its bits (or `scale`) to 0..1     class indices as stored
float TIFF                 float32 as stored, or divided by ``scale``    class indices, where all are whole numbers
other whole numbers        refused                                       class indices as stored
three channels             RGB                                           colors of ``classes``; indices where the three
                                                                         are equal, unless a gray of ``classes`` says
                                                                         otherwise
palette                    its colors                                    class indices
alpha                      dropped to reach ``channels``                 dropped
white is zero (TIFF)       inverted                                      of one bit inverted, else refused
orientation tag            turned as viewers show it                     turned
bands, pages of a TIFF     channels                                      refused, unless all are equal
nodata value, GDAL's mask  the mean of the other pixels                  the ignored index, unless it is a class
CMYK, Lab, other spaces    refused                                       refused
film (PNG, WebP)           refused                                       refused
JPEG, lossy WebP           read                                          refused: such a compression changes indices
cut off, damaged           refused                                       refused
=========================  ============================================  =============================================

A compression that tifffile does not know is read by rasterio (``pip install 'seguq[gis]'``), OpenCV or Pillow where
these can; else the error says what to install.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.checks import is_number
from seguq.core.errors import SeguqError, UsageError
from seguq.core.out_of_memory import memory_for
from seguq.data.classes import Classes
from seguq.data.decoding import decode_image, decode_mask
from seguq.data.raster import Raster

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """An image for a network.

    Attributes:
        pixels: ``(H, W, channels)`` uint8 or float32, as `read_image` gives them.
        alpha: whether the last channel is alpha.
        missing: ``(H, W)``, True where the file says that there is no data; None where it says nothing.
        range: what its values stand for 1 by: 255 (8 bit), 65535 (16 bit), 1 (float).
        largest: the largest value with data, as stored.
    """

    pixels: Array
    alpha: bool
    missing: Array | None
    range: float
    largest: float


def require_scale(scale: float | None) -> float | None:
    """The value that stands for 1, checked.

    Raises:
        UsageError: if it is no number above 0.
    """
    if scale is not None and not (is_number(scale) and math.isfinite(scale) and scale > 0):
        raise UsageError(f"scale must be a number above 0, the value of a file that stands for 1, but is {scale!r}")
    return None if scale is None else float(scale)


def read_image(path: str | os.PathLike[str], channels: int | None = None, scale: float | None = None) -> Array:
    """Read an image file; the table at the head of `seguq.data.reading` says what is read how.

    Args:
        path: jpg, png, tif, bmp or webp; 8 or 16 bit, TIFF also float; 1, 3 or more channels.
        channels: the number of channels wanted. An alpha channel is dropped, and a gray image is repeated, to reach
            it; anything else that differs is an error. None: as the file has them.
        scale: what the values of 16-bit and float files are divided by, such as 4095 for 12 bits in files of 16;
            None: 65535 for 16 bit (what a file of 9 to 15 bits can hold), 1 for float. Not of 8-bit files.

    Returns:
        ``(H, W, channels)``: uint8 as stored, or float32 (16 bit scaled to 0..1; float as stored). RGB order. Pixels
        that the file says are without data have the mean of the others.

    Raises:
        SeguqError: naming the file, if it cannot be read, holds NaN or infinity, or has other channels.
    """
    return read_picture(path, channels, scale).pixels


def read_picture(path: str | os.PathLike[str], channels: int | None = None, scale: float | None = None) -> Picture:
    """Read an image file as `read_image` does, with what is known of it beside its pixels."""
    with memory_for(f"the image {os.fspath(path)}", _SMALLER):
        return _picture(Path(path), channels, scale)


_SMALLER = "cut it into tiles, or read fewer at a time (num_workers)"


def _picture(path: Path, channels: int | None, scale: float | None) -> Picture:
    require_scale(scale)
    raster = decode_image(path)
    pixels, white = raster.pixels, float(2**raster.bits - 1)
    if raster.palette is not None:
        if int(raster.colors.max(initial=0)) >= len(raster.palette):
            raise SeguqError(f"{path} holds a palette index that its palette has no color for: it is damaged")
        pixels, white = raster.palette[raster.colors[..., 0]], 255.0
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    kind = pixels.dtype.kind
    if kind not in "uf" or (kind == "u" and pixels.dtype.itemsize > 2):
        raise SeguqError(f"{path} has pixels of type {pixels.dtype}: 8 bit, 16 bit unsigned and float are understood")
    absent = raster.without_data()
    missing: Array | None = None if absent is None else np.asarray(absent.all(-1))
    if kind == "f" and not np.isfinite(pixels if missing is None else pixels[~missing]).all():
        partly = absent is not None and np.isfinite(raster.colors[~absent]).all()
        if not partly:
            raise SeguqError(f"{path} holds NaN or infinite values: fill them before use")
    if raster.white_is_zero:
        if kind == "f":
            raise SeguqError(f"{path} is of float and white is zero, which does not say where black is: invert it")
        pixels = (int(white) - pixels).astype(pixels.dtype)
    known = pixels if missing is None else pixels[~missing]
    range_ = 255.0 if pixels.dtype == np.uint8 else 1.0 if kind == "f" else white
    if pixels.dtype == np.uint8:
        if white not in (255.0, 0.0):
            pixels = np.round(pixels * (255 / white)).astype(np.uint8)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = pixels.astype(np.float32) / np.float32(range_ if scale is None else scale)
    if absent is not None and missing is not None:
        pixels = _filled(pixels, absent if kind == "f" else missing[..., None], missing)
    if kind == "f" and not np.isfinite(pixels).all():
        raise SeguqError(f"{path} holds values beyond single precision: scale them before use")
    largest = _largest(known, absent, missing)
    pixels, alpha = _with_channels(path, pixels, raster.alpha, channels)
    return Picture(np.ascontiguousarray(pixels), alpha, missing, range_, largest)


def _filled(pixels: Array, absent: Array, missing: Array) -> Array:
    """Pixels with the mean of the others in place of those without data.

    A pixel has none where all its channels say so. In one channel alone 0 or 255 may well be a color, and stays; a
    float such as -9999 does not.
    """
    pixels = pixels.copy()
    for channel in range(pixels.shape[2]):
        lacking = absent[..., channel] if channel < absent.shape[2] else missing
        if lacking.any():
            others = pixels[..., channel][~lacking]
            mean = others.mean(dtype=np.float64) if len(others) else 0.0
            pixels[..., channel][lacking] = np.round(mean) if pixels.dtype == np.uint8 else mean
    return pixels


def _largest(known: Array, absent: Array | None, missing: Array | None) -> float:
    if absent is not None and missing is not None and known.dtype.kind == "f":
        known = known[..., : absent.shape[2]][~absent[~missing]]
    return float(known.max()) if known.size else 0.0


def fits(found: int, alpha: bool, wanted: int) -> bool:
    """Whether an image of so many channels (alpha among them) can be given as so many."""
    return found == wanted or found - alpha in (1, wanted)


def _with_channels(path: Path, pixels: Array, alpha: bool, wanted: int | None) -> tuple[Array, bool]:
    found = pixels.shape[2]
    if wanted is None or found == wanted:
        return pixels, alpha
    if not fits(found, alpha, wanted):
        raise SeguqError(f"{path} has {found} channels, but {wanted} are expected")
    pixels = pixels[..., : found - alpha]
    return (np.repeat(pixels, wanted, axis=2) if pixels.shape[2] == 1 else pixels), False


def read_mask(path: str | os.PathLike[str], classes: Classes) -> Array:
    """Read a mask file of class indices, or of the colors of ``classes``; see the table of `seguq.data.reading`.

    Args:
        path: png, tif, bmp or webp. One channel, or a palette: class indices. Three channels: RGB colors.
        classes: for the colors, and for what is ignored.

    Returns:
        ``(H, W)`` int64; index masks as stored, not checked against the classes (see `check_files`).

    Raises:
        SeguqError: naming the file, if it cannot be read, holds a color of no class, or was compressed in a way that
            changes indices.
    """
    with memory_for(f"the mask {os.fspath(path)}", _SMALLER):
        return read_indices(path, classes).astype(np.int64)


def read_indices(path: str | os.PathLike[str], classes: Classes) -> Array:
    """What `read_mask` reads, in the type that the file has."""
    with memory_for(f"the mask {os.fspath(path)}", _SMALLER):
        return indices_of(Path(path), decode_mask(Path(path)), classes)


def indices_of(path: Path, raster: Raster, classes: Classes) -> Array:
    """The class indices of a decoded mask, ``(H, W)``.

    Args:
        path: its file, for messages.
        raster: as `seguq.data.decoding.decode_mask` gives it.
        classes: as for `read_mask`.

    Raises:
        SeguqError: naming the file.
    """
    if raster.lossy:
        raise SeguqError(
            f"{path} is a mask stored as {raster.lossy}, which changes class indices: export masks as PNG, or as TIFF "
            "without loss"
        )
    values = raster.colors
    if raster.white_is_zero:
        if values.dtype != np.bool_:
            raise SeguqError(
                f"{path} is a mask whose file says that white is zero, by which programs disagree on its indices: "
                "save it as PNG"
            )
        values = ~values
    if values.shape[2] > 1 and (values == values[..., :1]).all() and (not raster.rgb or _gray_is_index(classes)):
        values = values[..., :1]
    if values.shape[2] == 1:
        return _indices(path, values[..., 0], raster, classes)
    if values.shape[2] != 3 or values.dtype != np.uint8:
        raise SeguqError(
            f"{path} is a mask of {values.shape[2]} channels or pages of type {values.dtype}: a mask is of one channel "
            "of class indices, or of three of 8-bit colors"
        )
    return _palette_indices(path, values, classes)


def _indices(path: Path, values: Array, raster: Raster, classes: Classes) -> Array:
    missing = raster.masked
    nodata = raster.nodata
    if nodata is not None and not (nodata.is_integer() and 0 <= nodata < len(classes)):
        absent = raster.without_data()
        missing = None if absent is None else absent[..., 0]
    if values.dtype.kind not in "biuf":
        raise SeguqError(f"{path} is a mask of type {values.dtype}: class indices are whole numbers")
    if values.dtype.kind == "f":
        known = values if missing is None else values[~missing]
        # beyond 2^53 the neighbors of a whole number are not told from it
        if not (np.isfinite(known).all() and (known == np.round(known)).all() and (np.abs(known) < 2**53).all()):
            raise SeguqError(f"{path} is a mask with values that are no whole numbers")
    elif values.dtype == np.uint64 and values.max(initial=0) > np.iinfo(np.int64).max:
        raise SeguqError(f"{path} is a mask with a value of {values.max()}, which is no class index")
    if missing is None or not missing.any():
        return values.astype(np.int64) if values.dtype.kind == "f" else values
    out = np.full(values.shape, classes.ignore_index, np.int64)
    out[~missing] = values[~missing].astype(np.int64)
    return out


def _color_table(classes: Classes) -> dict[int, int]:
    """The class index of each color, packed into one number."""
    index = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(classes.colors)}
    return index | {(r << 16) + (g << 8) + b: classes.ignore_index for r, g, b in classes.ignore_colors}


def _gray_is_index(classes: Classes) -> bool:
    """Whether no gray of the classes means another class than its own value."""
    table = _color_table(classes)
    return all(table.get(gray * 0x10101, gray) == gray for gray in range(256))


def _palette_indices(path: Path, rgb: Array, classes: Classes) -> Array:
    packed = (rgb.astype(np.int32) << np.array([16, 8, 0], np.int32)).sum(-1, dtype=np.int32)
    values, inverse = np.unique(packed, return_inverse=True)
    index = _color_table(classes)
    if len(index) < len(classes.colors) + len(classes.ignore_colors):
        raise SeguqError(f"{path} is a mask of colors, but classes.json gives two classes the same color")
    unknown = [int(value) for value in values if int(value) not in index]
    if unknown:
        color = [unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255]
        raise SeguqError(f"{path} holds the color {color}, which is no class in classes.json")
    indices: Array = np.array([index[int(value)] for value in values], np.int64)[inverse.reshape(packed.shape)]
    return indices
