"""A contact sheet: images with regions outlined and numbered, side by side on pages. Arrays in, arrays out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from seguq.core.errors import printable
from seguq.export.images import RGB

Polygons = Sequence[Sequence[Sequence[Sequence[float]]]]
"""Of one region: for each part its rings of ``[x, y]`` corners, in pixels, the first around it, others around holes."""

_DPI = 100
_TILE, _GAP, _CAPTION, _HEAD = 320, 16, 58, 46  # pixels
_COLUMNS = 4
PER_PAGE = 4 * _COLUMNS
"""Images on a page."""

_LONGEST = 46  # characters of a line below a tile
_COLOR = (255, 221, 0)
_TINY, _RING = 6, 8  # pixels: what is shown smaller is ringed, at this radius
_FINE = 4  # bits of a pixel's fraction


class Tile(NamedTuple):
    """An image of a contact sheet.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        title: its name.
        note: a line or two below that.
        regions: the polygons of each region that is outlined.
        labels: a short text for each, such as its rank.
    """

    image: RGB
    title: str
    note: str
    regions: Sequence[Polygons]
    labels: Sequence[str]


def contact_sheet(tiles: Iterable[Tile], title: str) -> list[RGB]:
    """Pages of up to four by four images.

    Args:
        tiles: the images, in order, and one at a time in memory; each is shown as large as its place allows.
        title: stands above each page, with the page's number where there are several.

    Returns:
        A picture ``(height, width, 3)`` uint8 for each page.
    """
    shown = [(_fitted(tile), tile.title, tile.note) for tile in tiles]  # small, however large the images are
    parts = [shown[begin : begin + PER_PAGE] for begin in range(0, len(shown), PER_PAGE)]
    titles = [f"{title}, page {number} of {len(parts)}" for number in range(1, len(parts) + 1)]
    titles = titles if len(parts) > 1 else [title]
    return [_page(part, head, min(_COLUMNS, len(shown))) for part, head in zip(parts, titles, strict=False)]


def outline_regions(image: RGB, regions: Sequence[Polygons], labels: Sequence[str], times: float = 1.0) -> RGB:
    """Regions drawn on an image that is enlarged, or made smaller, so that lines and numbers can be read.

    A region that its own outline and number would hide, such as a single pixel, has a ring around it, and the number
    beside that.

    Args:
        image: ``(H, W, 3)`` uint8.
        regions: the polygons of each region, in pixels of the image.
        labels: a short text for each; an empty one is not shown.
        times: how many times as large the picture is.

    Returns:
        ``(round(times * H), round(times * W), 3)`` uint8.
    """
    import cv2

    height, width = (max(1, round(times * side)) for side in image.shape[:2])
    method = cv2.INTER_AREA if times < 1 else cv2.INTER_NEAREST
    out: Any = np.ascontiguousarray(cv2.resize(image, (width, height), interpolation=method))
    rings = [[_fine(ring, times) for polygon in region for ring in polygon] for region in regions]
    middles = [_middle(region) for region in rings]
    for thick, color in ((4, (0, 0, 0)), (2, _COLOR)):
        for region, middle in zip(rings, middles, strict=True):
            if middle is None:
                cv2.polylines(out, region, True, color, thick, cv2.LINE_AA, _FINE)
            else:
                cv2.circle(out, middle, _RING << _FINE, color, thick, cv2.LINE_AA, _FINE)
    shown = [None if middle is None else (middle[0] >> _FINE, middle[1] >> _FINE) for middle in middles]
    side = 2 * _RING + 4
    badges = [(place[0] - side // 2, place[1] - side // 2, side, side) for place in shown if place is not None]
    for region, place, label in zip(rings, shown, labels, strict=True):
        if not label:
            continue
        if place is not None:
            _badge(out, place, label, badges, beside=side // 2 + 1)
        elif region:
            corners = np.concatenate(region) / 2**_FINE
            x, y = corners[np.argmin(corners.sum(1))]
            _badge(out, (int(x), int(y)), label, badges)
    return np.asarray(out, np.uint8)


def _middle(region: Sequence[Any]) -> tuple[int, int] | None:
    """Of a region that is too small to be outlined, in fractions of a pixel; None for any other."""
    if not region:
        return None
    corners = np.concatenate(region)
    low, high = corners.min(0), corners.max(0)
    if (high - low).max() >= _TINY << _FINE:
        return None
    x, y = ((low + high) // 2).tolist()
    return x, y


def _fine(ring: Sequence[Sequence[float]], times: float) -> Any:
    """Corners in fractions of a pixel; OpenCV counts from the middle of the first."""
    return np.round((np.array(ring, np.float64) * times - 0.5) * 2**_FINE).astype(np.int32)


def _badge(
    out: Any, place: tuple[int, int], label: str, taken: list[tuple[int, int, int, int]], beside: int = 0
) -> None:
    """A label with its upper left corner at a place, or beside it; where another one is there, further down."""
    import cv2

    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (width, height), _ = cv2.getTextSize(label, font, scale, 1)
    width, height = width + 5, height + 6
    x, y = place
    if beside:
        x, y = x + beside if x + beside + width <= out.shape[1] else x - beside - width, y - height // 2
    left = int(np.clip(x, 0, max(0, out.shape[1] - width)))
    top = int(np.clip(y, 0, max(0, out.shape[0] - height)))
    while top + height < out.shape[0] and any(
        left < x + w and x < left + width and top < y + h and y < top + height for x, y, w, h in taken
    ):
        top += 2
    taken.append((left, top, width, height))
    cv2.rectangle(out, (left, top), (left + width, top + height), (0, 0, 0), -1)
    cv2.putText(out, label, (left + 3, top + height - 3), font, scale, _COLOR, 1, cv2.LINE_AA)


def _page(tiles: Sequence[tuple[RGB, str, str]], title: str, columns: int) -> RGB:
    """One page of pictures, each with its title and note."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(picture.shape[0] for picture, _, _ in row) + _CAPTION + _GAP for row in rows]
    width, height = columns * (_TILE + _GAP) + _GAP, sum(heights) + _HEAD
    page = np.full((height, width, 3), 255, np.uint8)
    words: list[tuple[float, float, str, dict[str, Any]]] = [
        (_GAP, 14, _short(title, columns * _LONGEST), {"fontsize": 12, "fontweight": "bold"})
    ]
    for i, (picture, name, note) in enumerate(tiles):
        row, column = divmod(i, columns)
        top, left = _HEAD + sum(heights[:row]), _GAP + column * (_TILE + _GAP)
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        below = top + picture.shape[0] + 4
        words.append((left, below, _short(name, _LONGEST - 6), {"fontsize": 8.5, "fontweight": "bold"}))
        for line, content in enumerate(note.split("\n")[:2]):
            place = below + 17 + 15 * line
            words.append((left, place, _short(content, _LONGEST + 6), {"fontsize": 8, "color": "#444444"}))
    figure = Figure(figsize=((width + 1e-3) / _DPI, (height + 1e-3) / _DPI), dpi=_DPI)
    canvas: Any = FigureCanvasAgg(figure)
    figure.figimage(page, 0, 0, origin="upper")
    for x, y, content, style in words:
        # names are text: a dollar is no formula
        figure.text(x / width, 1 - y / height, content, va="top", parse_math=False, **style)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks, which are shown as boxes
        canvas.draw()
    drawn: RGB = np.asarray(canvas.buffer_rgba(), np.uint8)[:height, :width, :3].copy()
    return drawn


def _fitted(tile: Tile) -> RGB:
    """The picture of a tile, as large as it may be."""
    times = min(_TILE / tile.image.shape[1], _TILE / tile.image.shape[0])
    return outline_regions(tile.image, tile.regions, tile.labels, times)


def _short(text: str, most: int) -> str:
    """Text without control codes, its middle left out where it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"
