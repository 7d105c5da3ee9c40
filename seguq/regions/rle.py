"""Shapes of regions as run lengths, as COCO has them, within the bounding box of each region.

The pixels of the box are read column by column; the counts are those of pixels outside and inside the region by turns,
beginning outside (with 0 where the first pixel is inside), and add up to the pixels of the box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seguq.core.errors import SeguqError
from seguq.functional.runs import Runs

RLE = pa.list_(pa.int32())
"""The type of the column ``rle``; null where a region is all of its box."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def encode(mask: npt.ArrayLike) -> list[int]:
    """Run lengths of one mask.

    Args:
        mask: ``(height, width)``, of which true pixels are inside.

    Returns:
        The counts, column by column.

    Example:
        >>> encode([[True, True], [True, False]])
        [0, 3, 1]
    """
    inside = np.asarray(mask, dtype=bool)
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)) if flat.size else np.zeros(0, np.int64)
    return [int(count) for count in np.diff(edges, prepend=0, append=flat.size)]


def decode(counts: Sequence[int] | npt.NDArray[Any], height: int, width: int) -> Bools:
    """The mask of run lengths, ``(height, width)``.

    Raises:
        SeguqError: if the counts are no whole numbers of at least 0 that add up to the pixels.

    Example:
        >>> decode([0, 3, 1], 2, 2).tolist()
        [[True, True], [True, False]]
    """
    runs = _checked(counts, height, width)
    inside: Bools = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    return inside


def inside_area(counts: Sequence[int] | npt.NDArray[Any], height: int, width: int) -> int:
    """How many pixels run lengths have inside; nothing of the size of the box is made.

    Raises:
        SeguqError: as `decode` does.

    Example:
        >>> inside_area([0, 3, 1], 2, 2)
        3
    """
    return int(_checked(counts, height, width)[1::2].sum())


def _checked(counts: Sequence[int] | npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    runs = np.asarray(counts)
    size = height * width
    # each by itself first: a sum of what may be anything could come round to the right number
    fits = runs.ndim == 1 and runs.dtype.kind in "iu" and bool(((runs >= 0) & (runs <= size)).all())
    if not fits or sum(map(int, runs)) != size:
        raise SeguqError(f"run lengths of a box of {height} x {width} pixels add up to {size}, not {counts}")
    return runs


def region_mask(row: Mapping[str, Any]) -> Bools:
    """The pixels of a region within its box, ``(y1 - y0, x1 - x0)``; all of them where it has no run lengths.

    Args:
        row: of a table of regions or a selection.
    """
    height, width = int(row["y1"]) - int(row["y0"]), int(row["x1"]) - int(row["x0"])
    counts = row.get("rle")
    return np.ones((height, width), dtype=bool) if counts is None else decode(counts, height, width)


def encode_regions(labels: npt.NDArray[Any], boxes: Ints, area: Ints) -> Any:
    """Run lengths of all regions of an image at once.

    Args:
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. R - 1``; -1 is in no region.
        boxes: the bounding box of each region, ``(R, 4)``: y0, x0, y1, x1, half-open.
        area: the pixels of each region, ``(R,)``.

    Returns:
        A pyarrow array of R lists of counts, null for a region that is all of its box.
    """
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ragged = area < height * width
    if not ragged.any():
        return pa.nulls(len(area), RLE)
    # stretches of columns, region by region; those that end where the box does may go on at the next column's top
    columns = Runs(labels.T, len(area))
    order = np.argsort(columns.region, kind="stable")
    order = order[np.append(ragged, False)[columns.region[order]]]
    region = columns.region[order]
    x, y = np.divmod(columns.start[order], labels.shape[0])
    place = (x - boxes[region, 1]) * height[region] + y - boxes[region, 0]
    after = place + columns.length[order]
    new_region = np.diff(region, prepend=-1) != 0
    begins = new_region | (place != np.append(-1, after[:-1]))
    ends = np.append(begins[1:], True)
    start, stop, owner = place[begins], after[ends], region[begins]
    before = np.where(new_region[begins], 0, np.append(0, stop[:-1]))

    # of each region: two counts a run, and one more where it ends before its box does
    runs = np.bincount(owner, minlength=len(area))
    last = np.cumsum(runs) - 1
    rest = np.where(ragged, height * width - stop[last], 0)
    offsets = np.append(0, np.cumsum(2 * runs + (rest > 0)))
    counts = np.zeros(offsets[-1], np.int32)
    at = offsets[owner] + 2 * (np.arange(len(owner)) - (last - runs + 1)[owner])
    counts[at], counts[at + 1] = start - before, stop - start
    counts[offsets[1:][rest > 0] - 1] = rest[rest > 0]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(counts), mask=pa.array(~ragged))
