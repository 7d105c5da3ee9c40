"""Pictures of an image that a round has asked about: the regions, what was predicted there, what came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition.selection import box_of, outlines
from seguq.active.reports.outcomes import Mask, Outcome
from seguq.core.errors import SeguqError
from seguq.data import Classes
from seguq.export import outline_regions, picture, to_rgb
from seguq.export.images import RGB
from seguq.regions.rle import region_mask

SIDE = 420
"""Pixels of the longer side of a picture."""

_CONTEXT = 0.5  # around the regions, of the longer side of what they span
_LEAST = 8  # pixels around them
_NEARLY_ALL = 0.5  # of the image's pixels: then it is shown as it is, and not a second time closer
_OPACITY = 0.6  # of classes over the image
_FADED = 0.5  # of what is around, towards white
_NOBODY_KNOWS = (255, 255, 255)


class View:
    """An image, and the part of it that its regions lie in, with some of what is around.

    Args:
        image: as `seguq.data.read_image` gives it.
        rows: the regions.

    Raises:
        SeguqError: for a region that reaches beyond the image.
    """

    def __init__(self, image: npt.NDArray[Any], rows: Sequence[dict[str, Any]]) -> None:
        height, width = image.shape[:2]
        boxes = np.array([box_of(row) for row in rows])
        (top, left), (bottom, right) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        if bottom > height or right > width:
            raise SeguqError(
                f"it has {height} x {width} pixels now, but a region that was asked for reaches to row {bottom} and "
                f"column {right}"
            )
        around = max(_LEAST, round(_CONTEXT * max(bottom - top, right - left)))
        top, left = max(0, top - around), max(0, left - around)
        bottom, right = min(height, bottom + around), min(width, right + around)
        self.closer = (bottom - top) * (right - left) < _NEARLY_ALL * height * width
        if not self.closer:
            top, left, bottom, right = 0, 0, height, width
        self.rows = rows
        self._all = _shown(image)
        self._part = slice(int(top), int(bottom)), slice(int(left), int(right))
        self._image = self._all[self._part]

    def asked(self) -> RGB:
        """The whole image, and the regions with their ranks."""
        return _outlined(self._all, self.rows, (0, 0), ranks=True)

    def asked_closer(self) -> RGB | None:
        """The part that the regions lie in; None where that is about the whole."""
        return _outlined(self._image, self.rows, self._origin, ranks=True) if self.closer else None

    def predicted(self, classes: Classes) -> RGB | None:
        """The predicted class of each region over it; None where a region has none."""
        if any(row["predicted_class"] is None for row in self.rows):
            return None
        mask = np.full(self._image.shape[:2], -1, np.int64)
        for row in self.rows:
            # a class that has no name has no color either
            number = row["predicted_class"] if 0 <= row["predicted_class"] < len(classes) else len(classes)
            mask[self._box(row)][region_mask(row)] = number
        return _outlined(_colored(self._image, mask, classes), self.rows, self._origin)

    def answered(self, mask: Mask | None, outcomes: Sequence[Outcome], classes: Classes) -> RGB | None:
        """The classes of the answers over it; None where nothing came back."""
        back = [outcome.row for outcome in outcomes if outcome.answered]
        if mask is None or not back:
            return None
        shown = np.full(self._image.shape[:2], -1, np.int64)
        part = mask[self._part]
        for row in back:
            inside = region_mask(row)
            values = part[self._box(row)][inside]
            shown[self._box(row)][inside] = np.where((values >= 0) & (values < len(classes)), values, len(classes))
        return _outlined(_colored(self._image, shown, classes), self.rows, self._origin)

    @property
    def _origin(self) -> tuple[int, int]:
        """The first row and column of the part."""
        return self._part[0].start, self._part[1].start

    def _box(self, row: dict[str, Any]) -> tuple[slice, slice]:
        (y0, x0, y1, x1), (top, left) = box_of(row), self._origin
        return slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def _outlined(image: RGB, rows: Sequence[dict[str, Any]], origin: tuple[int, int], ranks: bool = False) -> RGB:
    """A picture of `SIDE` with regions on it; numbers would hide what is in small ones."""
    top, left = origin
    moved = [
        [[[[x - left, y - top] for x, y in ring] for ring in polygon] for polygon in outlines(row)] for row in rows
    ]
    labels = [str(row["rank"]) if ranks else "" for row in rows]
    return outline_regions(image, moved, labels, SIDE / max(image.shape[:2]))


def _shown(image: npt.NDArray[Any]) -> RGB:
    """Pixels as people can see them; more than 8 bits are spread over what there is."""
    if image.dtype != np.uint8:
        image = image[..., :3].astype(np.float32)
        low, high = float(image.min()), float(image.max())
        image = (image - low) / max(high - low, 1e-12)
    return to_rgb(image)


def _colored(image: RGB, mask: Mask, classes: Classes) -> RGB:
    """Classes over an image; where -1 it fades, or a dark class would not be seen; ``len(classes)`` is white."""
    colors = picture(np.maximum(mask, 0), [*classes.colors, _NOBODY_KNOWS], len(classes))
    mixed = np.round((1 - _OPACITY) * image + _OPACITY * colors)
    around = np.round(255 * _FADED + (1 - _FADED) * image)
    out: RGB = np.where(mask[..., None] >= 0, mixed, around).astype(np.uint8)
    return out
