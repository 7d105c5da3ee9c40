"""Image and mask files, decoded into arrays. Everything that is wrong with a file is one sentence with its name."""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.errors import SeguqError
from seguq.data.classes import Classes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")

# a marker between the segments of a JPEG: not a stuffed 0, a restart marker or a fill byte
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)

Array = npt.NDArray[Any]


def _jpeg_is_whole(content: bytes) -> bool:
    """Whether a JPEG reaches its end marker; those of a thumbnail in it, or of what follows it, do not count."""
    at = 2
    while (marker := _JPEG_MARKER.search(content, at)) is not None:
        if marker[1] == b"\xd9":
            return True
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return False


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SeguqError(f"{path} cannot be read: {error.strerror}") from error
    if not content:
        raise SeguqError(f"{path} is an empty file")
    if content.startswith(b"\xff\xd8\xff") and not _jpeg_is_whole(content):
        # decoders fill the rest of a JPEG that was cut off with gray, and say nothing
        raise SeguqError(f"{path} is cut off: the JPEG ends before its last scan does")
    return content


class _Offsets(logging.Handler):
    """Collects what tifffile logs, and does not raise, of offsets behind the end of a file that this thread reads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.thread == self.thread and "offset" in message:
            self.messages.append(message)


def _pixels(path: Path, series: Any) -> Array:
    """The pixels; OpenCV decodes what tifffile alone cannot (LZW, JPEG), where it loses no channel."""
    try:
        array: Array = series.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error) or series.keyframe.photometric.name not in ("MINISBLACK", "RGB", "YCBCR"):
            raise
        array = _decode(path)
        if (array.shape, array.dtype) != (series.shape, series.dtype) or array.shape[2:] not in ((), (3,)):
            raise
    return array


def _read_tiff(path: Path) -> Array:
    import tifffile

    offsets = _Offsets()
    logging.getLogger("tifffile").addHandler(offsets)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            alike = [other for other in file.series if (other.shape, other.dtype) == (series.shape, series.dtype)]
            array = _pixels(path, series)
            axes = series.axes
            if len(alike) > 1 and array.ndim == 2:  # bands written page by page
                array, axes = np.stack([other.asarray() for other in alike]), "I" + axes
    except Exception as error:  # tifffile raises a wide range of errors on broken files
        raise SeguqError(f"{path} cannot be read as TIFF ({type(error).__name__}: {error})") from error
    finally:
        logging.getLogger("tifffile").removeHandler(offsets)
    if offsets.messages:
        raise SeguqError(f"{path} is cut off or damaged: {offsets.messages[0]}")
    # bands stored one after the other; tifffile calls axes Q that the file does not name
    if axes in ("SYX", "CYX", "IYX") or (axes == "QYX" and array.shape[0] < min(array.shape[1:])):
        array = np.moveaxis(array, 0, -1)
    elif axes not in ("YX", "YXS", "YXC", "YXQ", "QYX"):
        raise SeguqError(f"{path} has axes {axes} of shape {array.shape}: an image is (height, width[, channels])")
    return array


def _decode(path: Path) -> Array:
    import cv2

    content = np.frombuffer(_bytes(path), np.uint8)
    # JPEG: turned as the camera says, which is how every viewer and labeling tool shows it
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if path.suffix.lower() in _JPEG else cv2.IMREAD_UNCHANGED
    try:
        array = cv2.imdecode(content, flags)
    except cv2.error as error:
        raise SeguqError(f"{path} cannot be read as an image ({error.err})") from error
    if array is None:
        raise SeguqError(f"{path} cannot be read as an image: it is damaged or of another format")
    if array.ndim == 3 and array.shape[2] >= 3:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    return np.asarray(array)


def read_image(path: str | os.PathLike[str], channels: int | None = None) -> Array:
    """Read an image file.

    Args:
        path: jpg, png, tif, bmp or webp; 8 or 16 bit, TIFF also float; 1, 3 or more channels.
        channels: the number of channels wanted. A gray image is repeated, and an alpha channel is dropped, to reach
            it; anything else that differs is an error. None: as the file has them.

    Returns:
        ``(H, W, channels)``: uint8 as stored, or float32 (16 bit scaled to 0..1; float as stored). RGB order.

    Raises:
        SeguqError: naming the file, if it cannot be read, holds NaN or infinity, or has other channels.
    """
    path = Path(path)
    array = _read_tiff(path) if path.suffix.lower() in _TIFF else _decode(path)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype == np.uint16:
        array = array.astype(np.float32) / 65535
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise SeguqError(f"{path} holds NaN or infinite values: fill them before use")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise SeguqError(f"{path} holds values beyond single precision: scale them before use")
    elif array.dtype != np.uint8:
        raise SeguqError(f"{path} has pixels of type {array.dtype}: 8 bit, 16 bit unsigned and float are understood")
    if channels is not None and array.shape[2] != channels:
        if array.shape[2] == 1:
            array = np.repeat(array, channels, axis=2)
        elif array.shape[2] == channels + 1 and path.suffix.lower() in (".png", ".webp"):
            array = array[..., :channels]
        else:
            raise SeguqError(f"{path} has {array.shape[2]} channels, but {channels} are expected")
    return np.ascontiguousarray(array)


def read_mask(path: str | os.PathLike[str], classes: Classes) -> Array:
    """Read a mask file of class indices, or of the colors of ``classes``.

    Args:
        path: png, tif, bmp or webp. One channel, or a PNG with a palette: class indices. Three channels: RGB colors.
        classes: for the colors.

    Returns:
        ``(H, W)`` int64; index masks as stored, not checked against the classes (see `check_files`).

    Raises:
        SeguqError: naming the file, if it cannot be read or holds a color of no class.
    """
    path = Path(path)
    if path.suffix.lower() in _TIFF:
        array = _read_tiff(path)
    else:
        from PIL import Image

        try:
            # OpenCV would turn the indices of a palette PNG, the usual form of masks, into its colors
            with Image.open(path) as image:
                if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                    image = image.convert("RGB")
                array = np.asarray(image)
        except Exception as error:  # Pillow raises a wide range of errors on broken files
            raise SeguqError(f"{path} cannot be read as a mask ({type(error).__name__}: {error})") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3:
        return _palette_indices(path, array[..., :3], classes)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise SeguqError(f"{path} is a mask with values that are no whole numbers")
    return array.astype(np.int64)


def _palette_indices(path: Path, rgb: Array, classes: Classes) -> Array:
    packed = (rgb.astype(np.int64) << np.array([16, 8, 0])).sum(-1)
    values, inverse = np.unique(packed, return_inverse=True)
    index = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(classes.colors)}
    index |= {(r << 16) + (g << 8) + b: classes.ignore_index for r, g, b in classes.ignore_colors}
    if len(index) < len(classes.colors) + len(classes.ignore_colors):
        raise SeguqError(f"{path} is a mask of colors, but classes.json gives two classes the same color")
    unknown = [int(value) for value in values if int(value) not in index]
    if unknown:
        color = [unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255]
        raise SeguqError(f"{path} holds the color {color}, which is no class in classes.json")
    indices: Array = np.array([index[int(value)] for value in values], np.int64)[inverse.reshape(packed.shape)]
    return indices
