"""Outlines of regions, for labeling tools: polygons along the edges of pixels, with holes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.regions.rle import region_mask

Point = list[int]
Ring = list[Point]

_Ints = npt.NDArray[np.int64]


def polygons(mask: npt.NDArray[np.bool_], y0: int = 0, x0: int = 0) -> list[list[Ring]]:
    """The outlines of a mask, exact to the pixel: filled by even and odd they give the mask back.

    Args:
        mask: ``(height, width)``.
        y0: row of its upper border in the image.
        x0: column of its left border in the image.

    Returns:
        One polygon for each part whose pixels share sides, as GeoJSON has it but not closed: a list of rings of
        ``[x, y]`` corners, the first around the part (clockwise as seen in the image), the others around its holes.

    Example:
        >>> polygons(np.ones((2, 3), dtype=bool))
        [[[[0, 0], [3, 0], [3, 2], [0, 2]]]]
    """
    import cv2

    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    outer: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring in _rings(mask):
        # the pixel below an edge to the right is inside: it says to which part the ring belongs
        start = next(i for i in range(len(ring)) if ring[i][0] > ring[i - 1][0])
        x, y = ring[start - 1]
        part = int(parts[y, x])
        if _signed_area(ring) > 0:
            outer[part] = ring
        else:
            holes.setdefault(part, []).append(ring)
    moved = [[outer[part], *holes.get(part, [])] for part in sorted(outer)]
    return [[[[x + x0, y + y0] for x, y in ring] for ring in polygon] for polygon in moved]


BOX_CLICKS = 5
"""Clicks that outline and name a box: its corners, and one for its class."""

LEAST_CLICKS = 4
"""Clicks that no other region of several pixels takes fewer than: three corners, and one for its class."""

PIXEL_CLICKS = 1
"""Clicks of a region of one pixel: what names its class says where it is, too."""

_TOLERANCE = 1.0  # pixels; the stairs of a slanted border deviate by less


def outline_clicks(row: Mapping[str, Any]) -> int:
    """Clicks that outline and name a region.

    These are the corners that the algorithm of Douglas and Peucker keeps of its outline, holes included, where a
    deviation of a pixel is allowed, and one more for its class; at least 3 corners for each part and hole. A region of
    one pixel takes one: the click on it that names its class.

    Args:
        row: of a table of regions or a selection.

    Returns:
        5 for a box of several pixels.

    Example:
        >>> outline_clicks({"y0": 0, "x0": 0, "y1": 8, "x1": 9, "rle": None})
        5
    """
    import cv2

    inside = region_mask(row)
    if row.get("area", inside.sum()) == 1:
        return PIXEL_CLICKS
    if row.get("rle") is None:
        return BOX_CLICKS
    mask = np.pad(inside.astype(np.uint8), 1)
    rings, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return 1 + sum(max(3, len(cv2.approxPolyDP(ring, _TOLERANCE, True))) for ring in rings)


def _rings(mask: npt.NDArray[np.bool_]) -> list[Ring]:
    """Closed walks along the border, with the inside to the right, none of which passes a point twice."""
    x, y, following = _corners(mask)
    rings: list[Ring] = []
    seen = np.zeros(len(x), dtype=bool)
    for first in range(len(x)):
        walk: Ring = []
        passed: dict[tuple[int, int], int] = {}
        corner = first
        while not seen[corner]:
            seen[corner] = True
            point = (int(x[corner]), int(y[corner]))
            if point in passed:  # a hole touches a hole or the outside here: what lies between is a ring of its own
                begin = passed[point]
                rings.append(walk[begin:])
                for px, py in walk[begin + 1 :]:
                    del passed[px, py]
                del walk[begin + 1 :]
            else:
                passed[point] = len(walk)
                walk.append(list(point))
            corner = int(following[corner])
        if walk:
            rings.append(walk)
    return [_from_the_top(ring) for ring in rings]


def _corners(mask: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints, _Ints]:
    """Where the border turns: x, y, and the number of the corner that follows, with the inside to the right.

    Where two pixels of the inside meet at a point only, there are two corners, one of each pixel.
    """
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    crossing = (nw == se) & (ne == sw) & (nw != ne)
    turning = (nw ^ ne ^ sw ^ se) | crossing
    # each corner: whether its horizontal side goes to the right, its vertical side down, and which of them leaves it
    corners: list[tuple[Any, ...]] = []
    for quarter, to_right, to_down in ((nw, False, False), (se, True, True), (ne, True, False), (sw, False, True)):
        alone = turning & quarter & (crossing | (nw.astype(np.int8) + ne + sw + se == 1))
        full = turning & ~quarter & (nw.astype(np.int8) + ne + sw + se == 3)
        for found, inside in ((alone, True), (full, False)):
            y, x = np.nonzero(found)
            # around a pixel of the inside: its lower right corner is left to the left, and so on; around one of the
            # outside the other way
            leaves_sideways = (to_right == to_down) == inside
            sides = (np.full(len(y), side) for side in (to_right, to_down, leaves_sideways))
            corners.append((y, x, *sides))
    y, x, right, down, sideways = (np.concatenate(column) for column in zip(*corners, strict=True))
    # along a line, borders begin and end by turns
    beside, above = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
    for other, order in ((beside, np.lexsort((right, x, y))), (above, np.lexsort((down, y, x)))):
        other[order[0::2]], other[order[1::2]] = order[1::2], order[0::2]
    return x, y, np.where(sideways, beside, above)


def _from_the_top(ring: Ring) -> Ring:
    """The same ring, from its uppermost and there leftmost corner."""
    first = min(range(len(ring)), key=lambda i: (ring[i][1], ring[i][0]))
    return ring[first:] + ring[:first]


def _signed_area(ring: Ring) -> int:
    """Twice the area, positive where the ring goes clockwise as seen in the image."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True))


def border_clicks(classes: npt.NDArray[Any], labels: npt.NDArray[Any], num_regions: int) -> npt.NDArray[np.int64]:
    """The clicks that it takes to draw the borders between predicted classes in each region, and to name one class.

    They are the corners that Douglas and Peucker keep, to a pixel, of the outlines of all classes, without the corners
    of the image. Each border is the outline of a class on either side of it: half of them are counted.

    Args:
        classes: predicted class of each pixel, ``(H, W)``.
        labels: region of each pixel, ``(H, W)`` in ``-1 .. num_regions - 1``.
        num_regions: R.

    Returns:
        ``(R,)``, at least 1.

    References:
        Colling et al., MetaBox+: A New Region Based Active Learning Method for Semantic Segmentation using Priority
        Maps, 2021, for the clicks of a region by what is predicted in it.

    Example:
        >>> classes = np.zeros((16, 32), np.uint8)
        >>> classes[3:12, 3:13] = 1
        >>> labels = np.repeat([[0] * 16 + [1] * 16], 16, axis=0)
        >>> border_clicks(classes, labels, 2).tolist()      # a box has four corners; and one click for the class
        [5, 1]
    """
    import cv2

    corners = []
    for number in np.unique(classes):
        mask = (classes == number).astype(np.uint8)
        for contour in cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]:
            corners.append(cv2.approxPolyDP(contour, 1.0, True)[:, 0])
    if not corners:
        return np.ones(num_regions, np.int64)
    x, y = np.concatenate(corners).astype(np.int64).T
    height, width = classes.shape
    of_image = ((x == 0) | (x == width - 1)) & ((y == 0) | (y == height - 1))
    region = labels[y, x][~of_image]
    counts = np.bincount(region[region >= 0], minlength=num_regions)
    return (counts + 1) // 2 + 1
