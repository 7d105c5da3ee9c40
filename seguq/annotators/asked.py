"""What a selection asks for, image by image, and the classes that it may be answered with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of, by_image, region_key
from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource
from seguq.regions.rle import region_mask

Row = Mapping[str, Any]

CLASSES = "classes.json"
_ABOVE = 2  # folders above that of the masks: ROOT/masks/SPLIT lies two below that of a data set's classes.json


def classes_of(classes: Classes | str | os.PathLike[str] | None, masks: Path | None = None) -> Classes:
    """Classes, as they are given or as a file has them.

    Args:
        classes: the classes, or their ``classes.json``; None: the one in the folder of masks, or up to two above it.
        masks: that folder.

    Raises:
        SeguqError: if there is no such file, or nothing can be read from it.
    """
    if isinstance(classes, Classes):
        return classes
    if classes is not None:
        if not isinstance(classes, (str, os.PathLike)):
            raise UsageError(f"classes must be a Classes, or the path of a classes.json, but is {classes!r}")
        return Classes.read(classes)
    if masks is None:
        raise UsageError("classes must be given: a Classes, or the path of a classes.json")
    here = masks.resolve()
    for folder in (here, *here.parents)[: _ABOVE + 1]:
        if (folder / CLASSES).is_file():
            return Classes.read(folder / CLASSES)
    raise UsageError(
        f"there is no {CLASSES} in {masks}, nor in the {_ABOVE} folders above it: add it, or pass classes="
    )


def round_of(selection: Selection) -> int:
    """The number of the round that a selection belongs to.

    Raises:
        UsageError: if it does not say.
    """
    number: Any = selection.why.get("round")
    if not is_whole(number, 0):
        raise UsageError(
            f"a selection that is sent says in why['round'] the number of its round, from 0, but says {number!r}"
        )
    return int(number)


class Sent:
    """What was sent to an annotator: the rows of each round and image."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[int, str], list[Row]] = {}

    def require_same(self, selection: Selection) -> int:
        """Raise where other regions of the same round were sent; gives the number of the round.

        Raises:
            SeguqError: with that number.
        """
        number = round_of(selection)
        before = {region_key(row) for (of, _), rows in self.tasks.items() if of == number for row in rows}
        if before and before != selection.keys():
            raise SeguqError(
                f"other regions were sent for round {number} before: a round is sent once, and another choice takes "
                "another round"
            )
        return number

    def add(self, selection: Selection) -> None:
        """Take in a selection; one that was taken in already changes nothing.

        Raises:
            SeguqError: as `require_same` does.
        """
        number = self.require_same(selection)
        for image_id, rows in by_image(selection.rows).items():
            self.tasks[number, image_id] = list(rows)


def require_inside(selection: Selection, images: ImageSource) -> None:
    """Raise for an image that is not there, or a region that lies outside of its image.

    Raises:
        SeguqError: naming the first.
    """
    for row in selection.rows:
        height, width = images.size(row["image_id"])
        y0, x0, y1, x1 = box_of(row)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise SeguqError(
                f"region {row['region_id']} of image {row['image_id']!r} has the box (y0, x0, y1, x1) = "
                f"{(y0, x0, y1, x1)}, but {images.path(row['image_id'])} has {height} x {width} pixels (height x "
                "width): the selection was made for other images"
            )


def regions_of(rows: Iterable[Row], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """The number of the row that each pixel is asked for by, ``(H, W)``; -1 where none asks, the last where several do.

    Example:
        >>> row = {"y0": 0, "x0": 1, "y1": 1, "x1": 3, "rle": None}
        >>> regions_of([row], (2, 3)).tolist()
        [[-1, 0, 0], [-1, -1, -1]]
    """
    numbers = np.full(size, -1, np.int32)
    for number, row in enumerate(rows):
        y0, x0, y1, x1 = box_of(row)
        numbers[y0:y1, x0:x1][region_mask(row)] = number
    return numbers


def require_mask(mask: npt.NDArray[Any], size: tuple[int, int], classes: Classes, what: str, advice: str) -> None:
    """Raise for a mask of another size than its image, or one that holds no class.

    Args:
        mask: ``(H, W)`` integers.
        size: of the image.
        classes: what it may hold, beside their ``ignore_index``.
        what: the mask, for the message.
        advice: what to do about it.

    Raises:
        SeguqError: with the sizes (width x height), or the index.
    """
    if mask.shape != size:
        raise SeguqError(
            f"{what} is {mask.shape[1]} x {mask.shape[0]} pixels, but its image is {size[1]} x {size[0]}: {advice}"
        )
    wrong = mask[((mask < 0) | (mask >= len(classes))) & (mask != classes.ignore_index)]
    if len(wrong):
        raise SeguqError(
            f"{what} holds the class index {wrong[0]}, but there are the classes 0..{len(classes) - 1}, and "
            f"{classes.ignore_index} for what is not labeled: {advice}"
        )
