"""What of a pool is labeled already, by the shapes of the regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seguq.regions import RegionTable
from seguq.regions.rle import decode, region_mask

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_KEY = ("region_id", "y0", "x0", "y1", "x1")
_Y0, _X0, _Y1, _X1 = range(1, 5)


def is_labeled(pool: RegionTable, labeled: Sequence[Mapping[str, Any]]) -> Bools:
    """Which regions of a pool are labeled already: those of which each pixel lies in an earlier region.

    Of a region with neither run lengths nor the area of its box the shape is not known: as an earlier one it covers
    nothing but the region of its own number and box, as one of the pool it counts as its box.

    Args:
        pool: the regions to choose from.
        labeled: rows of earlier selections.

    Returns:
        ``(rows of the pool,)``
    """
    out = np.zeros(len(pool), dtype=bool)
    numbers, ids = pool.image_numbers()
    if not labeled or not len(pool):
        return out
    found = pc.index_in(pa.array([str(row["image_id"]) for row in labeled], ids.type), value_set=ids)
    known = [(row, image) for row, image in zip(labeled, found.to_pylist(), strict=True) if image is not None]
    if not known:
        return out
    rows, images = [row for row, _ in known], np.array([image for _, image in known], np.int64)
    keys = np.array([[int(row[name]) for name in _KEY] for row in rows], np.int64)
    opened = np.zeros(len(ids), dtype=bool)
    opened[images] = True
    places = np.flatnonzero(opened[numbers])  # nothing below looks at images without labels
    part = pool.take(places)
    numbers, boxes = numbers[places], part.boxes()
    part_keys = np.column_stack([part.column("region_id").astype(np.int64), boxes])
    shapes: Any = part.table["rle"] if "rle" in part.table.column_names else None
    has_shape = np.zeros(len(part), dtype=bool) if shapes is None else shapes.is_valid().to_numpy()

    # the same regions, without a look at their pixels
    plain = np.array([row.get("rle") is None for row in rows], dtype=bool)
    same = _in_both(np.column_stack([numbers, part_keys]), np.column_stack([images, keys])[plain])

    # within the box around all labels of the image, and no larger than these: the few whose pixels are looked at
    size = (keys[:, _Y1] - keys[:, _Y0]) * (keys[:, _X1] - keys[:, _X0])
    area = np.array([int(row["area"]) for row in rows], np.int64)
    sure = np.flatnonzero(~plain | (area == size))
    hull = np.tile(np.array([2**62, 2**62, -1, -1]), (len(ids), 1))
    total = np.zeros(len(ids), np.int64)
    for axis, reduce in ((0, np.minimum), (1, np.minimum), (2, np.maximum), (3, np.maximum)):
        reduce.at(hull[:, axis], images[sure], keys[sure, 1 + axis])
    np.add.at(total, images[sure], area[sure])
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pixels = np.where(has_shape, part.column("area").astype(np.int64), box_area)
    near = (boxes[:, :2] >= hull[numbers, :2]).all(1) & (boxes[:, 2:] <= hull[numbers, 2:]).all(1)
    candidates = np.flatnonzero(~same & near & (pixels <= total[numbers]))

    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for place in sure.tolist():
        by_image.setdefault(int(images[place]), []).append(rows[place])
    order = candidates[np.argsort(numbers[candidates], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if len(group):
            earlier = by_image[int(numbers[group[0]])]
            counts = [shapes[int(i)].values.to_numpy() if has_shape[i] else None for i in group]
            same[group] = _covered(boxes[group], pixels[group], counts, earlier)
    out[places] = same
    return out


def _in_both(rows: Ints, others: Ints) -> Bools:
    """Which rows of a table of integers are rows of another."""
    if not len(others):
        return np.zeros(len(rows), dtype=bool)
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 3, 5, 7], np.uint64)
    mixed, other_mixed = ((part.astype(np.uint64) * factors).sum(1, dtype=np.uint64) for part in (rows, others))
    out = np.isin(mixed, other_mixed)
    maybe = np.flatnonzero(out)  # all that are, and hardly any other
    existing = {tuple(row) for row in others.tolist()}
    out[maybe] = [tuple(row) in existing for row in rows[maybe].tolist()]
    return out


def _covered(boxes: Ints, pixels: Ints, shapes: Sequence[Any], earlier: Sequence[Mapping[str, Any]]) -> Bools:
    """Which regions of an image lie within earlier ones of it.

    The image is cut at the borders of all boxes, and at each pixel of a region that is no box: what lies between two
    cuts is labeled as a whole or not at all.
    """
    cuts: tuple[list[Any], list[Any]] = ([boxes[:, 0], boxes[:, 2]], [boxes[:, 1], boxes[:, 3]])
    for row in earlier:
        for lines, (low, high) in zip(cuts, (("y0", "y1"), ("x0", "x1")), strict=True):
            step = 1 if row.get("rle") is not None else max(1, int(row[high]) - int(row[low]))
            lines.append(np.arange(int(row[low]), int(row[high]) + 1, step))
    ys, xs = (np.unique(np.concatenate(lines)) for lines in cuts)
    done = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    for row in earlier:
        (top, bottom), (left, right) = (
            np.searchsorted(ys, (row["y0"], row["y1"])),
            np.searchsorted(xs, (row["x0"], row["x1"])),
        )
        done[top:bottom, left:right] |= True if row.get("rle") is None else region_mask(row)
    sums = np.zeros((len(ys), len(xs)), np.int64)
    sums[1:, 1:] = (done * (np.diff(ys)[:, None] * np.diff(xs))).cumsum(0).cumsum(1)
    y0, y1 = np.searchsorted(ys, boxes[:, 0]), np.searchsorted(ys, boxes[:, 2])
    x0, x1 = np.searchsorted(xs, boxes[:, 1]), np.searchsorted(xs, boxes[:, 3])
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    out: Bools = inside == height * width
    for i in np.flatnonzero(~out & (inside >= pixels)).tolist():
        if shapes[i] is not None:
            mask = decode(shapes[i], int(height[i]), int(width[i]))
            rows = np.searchsorted(ys, np.arange(boxes[i, 0], boxes[i, 2]), side="right") - 1
            columns = np.searchsorted(xs, np.arange(boxes[i, 1], boxes[i, 3]), side="right") - 1
            out[i] = done[np.ix_(rows, columns)][mask].all()
    return out
