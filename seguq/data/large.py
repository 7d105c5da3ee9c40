"""Readers of images that are larger than memory: one window at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.errors import SeguqError, UsageError
from seguq.data.decoding import TIFF
from seguq.data.normalization import Normalization

_OF_PRINT = {"cyan", "magenta", "yellow", "black"}
_WHITE_IS_ZERO, _PALETTE, _SEPARATED = 0, 3, 5  # photometric interpretations of TIFF
_CACHE = 256 * 2**20  # bytes of pixels that GDAL keeps


class ArrayReader:
    """Windows of an array, in memory or mapped from a file.

    Args:
        array: ``(H, W)`` or ``(H, W, channels)``; ``np.load("image.npy", mmap_mode="r")`` reads from the disk what is
            asked for.
        normalization: mean and deviation of each channel, as in training; None: pixels are scaled to 0..1 alone (8 and
            16 bit; float as it is).
        name: what a run that is resumed knows the image by; None: for a mapped file, its path and time of change, for
            an array in memory a hash of all of it.

    Example:
        >>> reader = ArrayReader(np.full((20, 30, 3), 255, np.uint8))
        >>> reader.size, reader.read(0, 10, 8, 8).shape, float(reader.read(0, 0, 1, 1).max())
        ((20, 30), torch.Size([3, 8, 8]), 1.0)
    """

    def __init__(
        self, array: npt.NDArray[Any], normalization: Normalization | None = None, name: str | None = None
    ) -> None:
        if not isinstance(array, np.ndarray):
            raise UsageError(f"an image must be a numpy array, but is a {type(array).__name__}")
        if array.ndim not in (2, 3):
            raise UsageError(f"an image must be (H, W) or (H, W, channels), but the array has shape {array.shape}")
        require_scale(array.dtype, "the array")
        self._array = array if array.ndim == 3 else array[:, :, None]
        self._normalization = checked(normalization, self._array.shape[2], "the array")
        file = getattr(array, "filename", None)
        self._name = name if name is not None or file is None else file_name(Path(file))
        self.size = (int(array.shape[0]), int(array.shape[1]))

    @property
    def name(self) -> str:
        """What a run that is resumed knows the image by."""
        if self._name is None:
            found = sha256(repr((self._array.shape, self._array.dtype.str)).encode())
            for row in self._array:
                found.update(np.ascontiguousarray(row).data)
            self._name = f"array {found.hexdigest()}"
        return self._name

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A window, ``(channels, height, width)`` float32, normalized."""
        pixels = np.asarray(self._array[top : top + height, left : left + width])
        return normalized(pixels.transpose(2, 0, 1), self._normalization)


class RasterReader:
    """Windows of a raster file, read by rasterio: GeoTIFF, JPEG 2000, and what else GDAL knows.

    Args:
        path: the file. Tiled ones are read fastest.
        normalization: as in `ArrayReader`.
        bands: numbers of the bands that are the channels, from 1; None: all of them.

    Values are those of `seguq.data.read_image`: whole numbers by their bits to 0..1, inverted where white is zero.
    Pixels without data (the file's nodata value, of unsigned numbers in all bands; GDAL's mask; NaN) are given the mean
    of the normalization, which is 0 for the network, where `read_image`, which sees all of the image, gives them the
    mean of the other pixels.

    Raises:
        UsageError: if rasterio is not installed, or the file is missing, cannot be read, has no such band, has to be
            turned to be upright, or has bands that are no channels (palette indices, CMYK, of different types, whole
            numbers of more than 16 bits).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        normalization: Normalization | None = None,
        bands: int | Sequence[int] | None = None,
    ) -> None:
        try:
            import rasterio
        except ImportError as error:
            raise UsageError("RasterReader needs rasterio: pip install 'seguq[gis]'") from error
        inside = str(path).startswith("/vsi") or "://" in str(path)  # GDAL's own way to archives and servers
        if not inside and not Path(path).is_file():
            raise UsageError(f"raster {path} does not exist")
        try:
            # GDAL would keep a twentieth of the machine's memory; windows of a strip are read once or twice
            with rasterio.Env(**({} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": _CACHE})):
                self._file = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise UsageError(f"{path} cannot be read as a raster: it is damaged or of an unknown format") from error
        self._window = rasterio.windows.Window
        bands = [bands] if isinstance(bands, int) else bands
        self._bands = list(range(1, self._file.count + 1) if bands is None else bands)
        if not self._bands or not set(self._bands) <= set(range(1, self._file.count + 1)):
            raise UsageError(f"bands={bands} must be among the bands of {path}, 1 to {self._file.count}")
        kinds = {self._file.dtypes[band - 1] for band in self._bands}
        if len(kinds) > 1:
            raise UsageError(f"the bands of {path} differ in type ({', '.join(sorted(kinds))}): choose some by bands=")
        require_scale(np.dtype(kinds.pop()), str(path))
        turned, photometric = (1, None) if inside else _tags(Path(path))
        told = self._file.tags().get("EXIF_Orientation", "")
        turned = int(told) if told in set("12345678") else turned
        colors = {self._file.colorinterp[band - 1].name for band in self._bands}
        # GDAL also calls palette what is of one bit, and what is white where it is zero
        if photometric == _PALETTE or (photometric is None and "palette" in colors):
            raise UsageError(
                f"{path} holds palette indices, no colors: gdal_translate -expand rgb makes colors of them"
            )
        if photometric == _SEPARATED or colors & _OF_PRINT:
            raise UsageError(f"{path} holds colors for print (CMYK): convert it to RGB")
        if turned != 1:
            raise UsageError(
                f"{path} is stored turned or flipped (orientation {turned}), which windows are not: save it upright"
            )
        self._white_is_zero = photometric == _WHITE_IS_ZERO
        dtype = np.dtype(self._file.dtypes[self._bands[0] - 1])
        if self._white_is_zero and dtype.kind != "u":
            raise UsageError(
                f"{path} is of {dtype} and white is zero, which does not say where black is: invert it first"
            )
        bits = {self._file.tags(band, ns="IMAGE_STRUCTURE").get("NBITS") for band in self._bands} - {None}
        self._white = 2 ** int(bits.pop()) - 1 if len(bits) == 1 and dtype.kind == "u" else None
        flags = self._file.mask_flag_enums[self._bands[0] - 1]
        self._masked = [flag.name for flag in flags] == ["per_dataset"]  # a mask of its own, no alpha
        self._nodata = [self._file.nodatavals[band - 1] for band in self._bands]
        self._normalization = checked(normalization, len(self._bands), str(path))
        self._error: type[Exception] = rasterio.errors.RasterioError
        self.name = str(path) if inside else file_name(Path(path))
        self.size = (int(self._file.height), int(self._file.width))

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A window, ``(channels, height, width)`` float32, normalized."""
        try:
            window = self._window(left, top, width, height)
            pixels = self._file.read(self._bands, window=window)
            masked = self._file.read_masks(self._bands[0], window=window) == 0 if self._masked else None
        except self._error as error:
            raise SeguqError(
                f"{self._file.name} cannot be read at row {top}, column {left}: the file is damaged"
            ) from error
        white = self._white or (np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1)
        shown = (white - pixels).astype(pixels.dtype) if self._white_is_zero else pixels
        values = normalized(shown, self._normalization, self._white)
        absent = np.stack(
            [
                np.zeros(band.shape, np.bool_) if nodata is None else band == nodata
                for band, nodata in zip(pixels, self._nodata, strict=True)
            ]
        )
        if pixels.dtype.kind == "u":  # in one band alone 0 or 255 may well be a color
            absent[:] = absent.all(0)
        if masked is not None:
            absent |= masked
        values[torch.from_numpy(absent)] = 0
        return values.nan_to_num_(nan=0.0)


def require_scale(dtype: np.dtype[Any], whose: str) -> None:
    """Raise for pixels of a type whose range says nothing of their scale."""
    if dtype.kind not in "uif" or (dtype.kind != "f" and dtype.itemsize > 2):
        raise UsageError(f"{whose} has pixels of type {dtype}: make them 8 or 16 bit, or float from 0 to 1")


def file_name(path: Path) -> str:
    """What a file is known by: its path and when it was changed."""
    return f"{path.resolve()} of {path.stat().st_mtime_ns}"


def checked(normalization: Normalization | None, channels: int, whose: str) -> Normalization | None:
    """The normalization, which must be one of so many channels."""
    if normalization is not None and len(normalization.mean) != channels:
        raise UsageError(f"the normalization is of {len(normalization.mean)} channels, but {whose} has {channels}")
    return normalization


def _tags(path: Path) -> tuple[int, int | None]:
    """Orientation and photometric interpretation of a local TIFF, which GDAL does not tell; 1 and None of others."""
    import tifffile

    with path.open("rb") as file:
        if file.read(4) not in TIFF:
            return 1, None
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return int(page.tags.valueof(274, default=1)), int(page.photometric)
    except Exception:  # as viewers do: a damaged tag turns nothing, and GDAL says what else is wrong
        return 1, None


def normalized(pixels: npt.NDArray[Any], normalization: Normalization | None, white: float | None = None) -> Tensor:
    """Pixels ``(channels, H, W)`` of any type as float32, scaled to 0..1, and normalized.

    Args:
        pixels: of any type.
        normalization: mean and deviation of each channel, or None.
        white: what stands for 1 in whole numbers; None: the largest of their type.
    """
    values = torch.from_numpy(pixels.astype(np.float32))
    if np.issubdtype(pixels.dtype, np.integer):
        values /= float(np.iinfo(pixels.dtype).max if white is None else white)
    if normalization is not None:
        mean, std = (torch.tensor(part)[:, None, None] for part in normalization)
        values = values.sub_(mean).div_(std)
    return values
