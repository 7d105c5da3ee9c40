"""What comes back from annotators: taken in region by region, kept, and merged into the masks that are trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition.selection import box_of, by_image, region_key
from seguq.active.events import Event
from seguq.annotators import Annotation
from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError
from seguq.data import Classes, ImageSource, read_mask
from seguq.data.partial_masks import paste, unlabeled, write_mask
from seguq.regions.polygons import PIXEL_CLICKS, border_clicks
from seguq.regions.rle import region_mask

Mask = npt.NDArray[np.int64]
Row = Mapping[str, Any]


def area_of(rows: Sequence[Row], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels ``(H, W)`` of some regions of an image."""
    out = np.zeros(size, dtype=bool)
    for row in rows:
        y0, x0, y1, x1 = box_of(row)
        if y1 > size[0] or x1 > size[1]:
            raise SeguqError(
                f"a region of image {row['image_id']!r} reaches to row {y1} and column {x1}, but the image has "
                f"{size[0]} x {size[1]} pixels now: put the image back that was there when the region was chosen"
            )
        out[y0:y1, x0:x1] |= region_mask(row)
    return out


def checked(answer: Annotation, images: ImageSource, classes: Classes, annotator: Any) -> Mask:
    """The mask of an answer, of the image's size and of known classes in the regions that it answers.

    Raises:
        SeguqError: naming the annotator and the image.
    """
    mask, size = np.asarray(answer.mask), images.size(answer.image_id)
    whose = f"{type(annotator).__name__}: the answer for image {answer.image_id!r}"
    if not (answer.clicks is None or is_whole(answer.clicks, 0)):
        raise SeguqError(f"{whose} took {answer.clicks!r} clicks: a whole number of at least 0, or None if not known")
    if mask.shape != size:
        raise SeguqError(f"{whose} has {mask.shape} pixels, but the image {size}")
    if mask.dtype.kind not in "iu":
        raise SeguqError(f"{whose} must hold whole numbers, but is of type {mask.dtype}")
    mask = mask.astype(np.int64)
    values = np.unique(mask[area_of(answer.rows, size)])
    wrong = values[((values < 0) | (values >= len(classes))) & (values != classes.ignore_index)]
    if len(wrong):
        raise SeguqError(
            f"{whose} holds the class {wrong[0]}, but there are the classes 0..{len(classes) - 1}, and "
            f"{classes.ignore_index} for what nobody can tell"
        )
    return mask


def clicks_for(mask: Mask, rows: Sequence[Row], ignore_index: int) -> int:
    """The clicks that it takes to draw what an answer says in some regions, and to name a class of each.

    See `seguq.regions.polygons.border_clicks`; what nobody can tell is not outlined by itself.
    """
    total = 0
    for row in rows:
        y0, x0, y1, x1 = box_of(row)
        inside = region_mask(row)
        if inside.sum() == 1:
            total += PIXEL_CLICKS
            continue
        labels = np.where(inside, 0, -1)
        part = np.where(mask[y0:y1, x0:x1] == ignore_index, -1, mask[y0:y1, x0:x1])
        total += int(border_clicks(part, labels, 1)[0])
    return total


def add_answer(
    folder: Path, answer: Annotation, mask: Mask, rows: Sequence[Row], images: ImageSource, classes: Classes
) -> None:
    """Write what an answer says of some regions beside what a folder knows of its image; doing it again is fine."""
    path, size = folder / f"{answer.image_id}.png", images.size(answer.image_id)
    before = _known(path, size, classes)
    after = paste(before, mask, area_of(rows, size))
    if not (path.exists() and np.array_equal(before, after)):
        write_mask(path, after, classes)


def merge(masks: Path, parts: Sequence[tuple[Path, Mapping[str, Sequence[Row]]]], classes: Classes) -> None:
    """Write the masks that are trained on anew, from all that has come back; doing it again changes nothing.

    Args:
        masks: folder of all labels so far.
        parts: of each round the folder of what came back, and the regions that were answered, by image.
        classes: of the masks.
    """
    for image_id in sorted({name for _, rows in parts for name in rows}):
        merged: Mask | None = None
        for answers, rows in parts:
            if image_id not in rows:
                continue
            new = read_mask(answers / f"{image_id}.png", classes)
            size = new.shape[0], new.shape[1]
            merged = unlabeled(size, classes.ignore_index) if merged is None else merged
            merged = paste(merged, new, area_of(rows[image_id], size))
        assert merged is not None
        write_mask(masks / f"{image_id}.png", merged, classes)


def _known(path: Path, size: tuple[int, int], classes: Classes) -> Mask:
    """What a file holds; nothing where there is none yet."""
    if not path.exists():
        return unlabeled(size, classes.ignore_index)
    mask = read_mask(path, classes)
    if mask.shape != size:
        raise SeguqError(
            f"{path} has {mask.shape[0]} x {mask.shape[1]} pixels, but its image {size[0]} x {size[1]} now: put the "
            "image back that was there when it was labeled"
        )
    return mask


Key = tuple[int, tuple[Any, ...]]
"""A region in a run: the round that asked for it, and what identifies it among those of that round."""


def answered(events: Iterable[Event]) -> dict[int, list[Key]]:
    """The regions that came back, by the round in which they did."""
    out: dict[int, list[Key]] = {}
    for event in events:
        if event.event == "answer":
            came = event.round or 0
            asked = event.content.get("asked", came)
            out.setdefault(came, []).extend((asked, (event.content["image_id"], *row)) for row in event.content["rows"])
    return out


class Unlabeled(ImageSource):
    """Images, in which the pixels that are labeled, or asked for, already are in no region.

    Args:
        images: the pool.
        rows: regions that were sent.
    """

    def __init__(self, images: ImageSource, rows: Iterable[Row]) -> None:
        super().__init__(images.paths)
        self._rows = by_image(rows)

    def missing(self, image_id: str) -> npt.NDArray[Any] | None:
        """Where an image has no data, or was asked for before, ``(H, W)``; None where neither."""
        found = super().missing(image_id)
        rows = self._rows.get(image_id)
        if rows is None:
            return found
        taken = area_of(rows, self.size(image_id))
        return taken if found is None else taken | found

    def any_left(self, *image_ids: str) -> bool:
        """Whether some pixel of these images, or of any, is in no region yet."""
        for image_id in image_ids or self:
            taken = self.missing(image_id)
            if taken is None or not taken.all():
                return True
        return False


def identity(row: Row) -> tuple[Any, ...]:
    """What tells a region from those of earlier rounds, too, which may have its number and its box."""
    shape = row.get("rle")
    return (*region_key(row), None if shape is None else tuple(shape))
