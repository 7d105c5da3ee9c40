"""Arrays to image files, written whole."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.errors import SeguqError
from seguq.core.files import write_bytes

Array = npt.NDArray[Any]
RGB = npt.NDArray[np.uint8]


def to_rgb(image: Array) -> RGB:
    """Turn an image as `seguq.data.read_image` gives it into what can be shown.

    Args:
        image: ``(H, W, channels)``, uint8 or float. Of one or two channels the first is shown in gray, of more than
            three the first three. Floats outside 0..1 are spread over what the image holds.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    low, high = float(shown.min()), float(shown.max())
    if low < 0 or high > 1:
        shown = (shown - low) / max(high - low, 1e-12)
    return np.round(shown * 255).astype(np.uint8)


def encode(image: Array, suffix: str = ".png", quality: int = 90) -> bytes:
    """The bytes of an image file.

    Args:
        image: ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 in RGB order.
        suffix: ``.png`` or ``.jpg``.
        quality: of JPEG, 0 to 100.
    """
    import cv2

    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    done, buffer = cv2.imencode(suffix, np.ascontiguousarray(stored), settings)
    if not done:
        raise SeguqError(f"an image of shape {image.shape} and type {image.dtype} cannot be written as {suffix}")
    return bytes(buffer.tobytes())


def write_png(path: str | os.PathLike[str], image: RGB) -> None:
    """Write an ``(H, W, 3)`` RGB image as PNG."""
    write_bytes(path, encode(image))


def write_index_png(path: str | os.PathLike[str], classes: Array) -> None:
    """Write class indices ``(H, W)`` as a gray PNG of the indices themselves (16 bit for more than 256 classes)."""
    small = np.uint8 if classes.max(initial=0) < 256 else np.uint16
    write_bytes(path, encode(classes.astype(small)))
