"""Masks in which some pixels are labeled, and the rest is ignored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_bytes
from seguq.data.classes import Classes

Array = npt.NDArray[Any]


def unlabeled(size: tuple[int, int], ignore_index: int) -> Array:
    """A mask in which nothing is labeled.

    Args:
        size: (height, width).
        ignore_index: the value of all its pixels.

    Returns:
        ``(H, W)`` int64.
    """
    return np.full(size, ignore_index, np.int64)


def paste(mask: Array, answer: Array, where: Array) -> Array:
    """A copy of a mask with what somebody has answered for some of its pixels.

    Args:
        mask: ``(H, W)`` class indices so far.
        answer: ``(H, W)`` class indices, of which those count that lie ``where``.
        where: ``(H, W)`` bool.

    Returns:
        ``(H, W)`` int64.

    Raises:
        SeguqError: if the three differ in shape.

    Example:
        >>> paste(unlabeled((1, 3), 255), np.array([[0, 1, 2]]), np.array([[False, True, True]]))
        array([[255,   1,   2]])
    """
    if not (mask.ndim == 2 and mask.shape == answer.shape == where.shape and where.dtype == np.bool_):
        raise SeguqError(
            f"mask, answer and where must be (H, W) of one size, and where of bool, but are {mask.shape}, "
            f"{answer.shape} and {where.shape} of {where.dtype}"
        )
    return np.where(where, answer.astype(np.int64), mask.astype(np.int64))


def write_mask(path: str | os.PathLike[str], mask: Array, classes: Classes) -> None:
    """Write a mask as a whole: a gray PNG of class indices, of 16 bits where the classes need them.

    Args:
        path: it ends in ``.png``.
        mask: ``(H, W)`` class indices, and the ignored index.
        classes: of the mask. An index or ``ignore_index`` above 255 makes it 16 bits, whatever the mask holds.

    Raises:
        SeguqError: if the mask holds another value, or ``classes`` cannot be kept in a PNG: a negative ignored index,
            or one above 65535.
    """
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"{path} must end in .png: masks are written as PNG")
    ignored, most = classes.ignore_index, max(len(classes) - 1, classes.ignore_index)
    if ignored < 0 or most > np.iinfo(np.uint16).max:
        raise SeguqError(
            f"a mask file holds 0 to 65535, but the classes are 0..{len(classes) - 1} and {ignored} is ignored: set an "
            "ignore_index that no class has, such as 255 or 65535, in classes.json"
        )
    if mask.ndim != 2 or mask.dtype.kind not in "ui" or 0 in mask.shape:
        raise SeguqError(f"a mask must be (H, W) whole numbers, but is {mask.shape} of {mask.dtype}")
    wrong = mask[((mask < 0) | (mask >= len(classes))) & (mask != ignored)]
    if len(wrong):
        raise SeguqError(
            f"the mask for {path} holds {int(wrong[0])}, but the classes are 0..{len(classes) - 1}, "
            f"and {ignored} is ignored"
        )
    import cv2

    _, content = cv2.imencode(".png", mask.astype(np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16))
    write_bytes(path, content.tobytes())
