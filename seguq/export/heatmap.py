"""Maps into colors, and colors over images. Arrays in, arrays out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.errors import SeguqError
from seguq.export.images import RGB, Array
from seguq.export.scale import Scale

COLORMAP = "viridis"  # even steps look even, also in gray and to most color-blind eyes
_BAR_WIDTH = 78
_SMALLEST_SIDE = 256
_LONGEST_SIDE = 2048  # of what is enlarged

_matplotlib = threading.Lock()  # it must not draw on two threads at once


@lru_cache
def _colors() -> npt.NDArray[np.uint8]:
    import matplotlib

    table: npt.NDArray[np.uint8] = np.round(matplotlib.colormaps[COLORMAP](np.arange(256))[:, :3] * 255).astype(
        np.uint8
    )
    return table


def colorize(values: Array, scale: Scale) -> RGB:
    """Color a map by one fixed scale.

    Args:
        values: ``(H, W)`` float.
        scale: what the ends of the color map stand for; values outside take the color of the nearer end.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        SeguqError: for another shape, or a NaN, which has no color.

    Example:
        >>> colorize(np.array([[0.0, 1.0]]), Scale(0.0, 1.0)).tolist()
        [[[68, 1, 84], [253, 231, 37]]]
    """
    if values.ndim != 2:
        raise SeguqError(f"a heat map is drawn of (H, W), not of shape {values.shape}")
    if np.isnan(values).any():
        raise SeguqError("a map with NaN cannot be drawn")
    share = np.subtract(values, scale.low, dtype=np.float64)
    share /= max(scale.high - scale.low, 1e-300)
    np.clip(share, 0, 1, out=share)
    share *= 255
    colors: RGB = np.take(_colors(), np.rint(share, out=share).astype(np.uint8), axis=0)
    return colors


def color_bar(height: int, scale: Scale, label: str) -> RGB:
    """A color bar with its values and a label, ``(height, 78, 3)`` uint8, to stand at the right of a picture."""
    with _matplotlib:
        drawn: RGB = _color_bar(height, scale, label).copy()  # the original is kept for the next picture
        return drawn


@lru_cache(maxsize=64)
def _color_bar(height: int, scale: Scale, label: str) -> RGB:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi = 100
    # a little more, for versions of matplotlib that round what is just below a whole number down
    figure = Figure(figsize=(_BAR_WIDTH / dpi, (height + 1e-3) / dpi), dpi=dpi, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.12, 0.05, 0.16, 0.9))
    norm = matplotlib.colors.Normalize(scale.low, scale.high)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, COLORMAP), cax=axes)
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.locator = matplotlib.ticker.MaxNLocator(nbins=max(2, min(8, height // 48)))
    bar.update_ticks()
    bar.set_label(label, fontsize=7, labelpad=2)
    canvas.draw()
    bar_image: RGB = np.asarray(canvas.buffer_rgba(), np.uint8)[:height, :_BAR_WIDTH, :3].copy()
    return bar_image


def heatmap(values: Array, scale: Scale, label: str) -> RGB:
    """A map in colors with its color bar at the right; small maps are enlarged as `with_color_bar` says.

    Args:
        values: ``(H, W)`` float.
        scale: what the ends of the color map stand for.
        label: what is shown, with its unit.

    Returns:
        ``(H', W', 3)`` uint8.
    """
    return with_color_bar(colorize(values, scale), scale, label)


def with_color_bar(image: RGB, scale: Scale, label: str) -> RGB:
    """A picture with a color bar at its right.

    Small pictures are enlarged to a height of 256 pixels by repeating pixels; where they would get wider than 2048 by
    that, less so, and white is put below them.
    """
    times = max(1, min(-(-_SMALLEST_SIDE // image.shape[0]), _LONGEST_SIDE // image.shape[1]))
    if times > 1:
        image = image.repeat(times, axis=0).repeat(times, axis=1)
    missing = _SMALLEST_SIDE - image.shape[0]
    if missing > 0:
        image = np.pad(image, ((0, missing), (0, 0), (0, 0)), constant_values=255)
    return np.hstack([image, color_bar(image.shape[0], scale, label)])


def overlay(image: RGB, colors: RGB, opacity: float = 0.55) -> RGB:
    """Colors laid over an image that is turned gray, so that the colors mean what they do beside it.

    Args:
        image: ``(H, W, 3)`` uint8.
        colors: ``(H, W, 3)`` uint8.
        opacity: share of the colors, 0 to 1.
    """
    import cv2

    if image.shape != colors.shape:
        raise SeguqError(f"an image of shape {image.shape} does not go with colors of shape {colors.shape}")
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended: RGB = np.asarray(cv2.addWeighted(gray, 1 - opacity, colors, opacity, 0), np.uint8)
    return blended


def outline(
    image: RGB,
    boxes: Iterable[Sequence[int]],
    color: tuple[int, int, int] = (255, 221, 0),
    labels: Sequence[str] | None = None,
) -> RGB:
    """Boxes drawn on a copy of an image.

    Args:
        image: ``(H, W, 3)`` uint8.
        boxes: each y0, x0, y1, x1, half-open, in pixels.
        color: RGB.
        labels: a short text for each box.
    """
    import cv2

    out: RGB = np.array(image, np.uint8, order="C")
    width = max(2, round(min(image.shape[:2]) / 160))
    for i, (y0, x0, y1, x1) in enumerate(boxes):
        _frame(out, max(0, y0 - 1), max(0, x0 - 1), y1 + 1, x1 + 1, 1, (0, 0, 0))
        _frame(out, y0, x0, y1, x1, width, color)
        if labels is not None:
            size = max(0.35, min(image.shape[:2]) / 800)
            position = (int(x0) + 3, int(y0) + max(11, int(28 * size)))
            cv2.putText(out, labels[i], position, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3, cv2.LINE_AA)
            cv2.putText(out, labels[i], position, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def _frame(out: RGB, y0: int, x0: int, y1: int, x1: int, width: int, color: tuple[int, int, int]) -> None:
    """A frame inside a box; OpenCV's thick lines would lie half outside."""
    for rows, columns in (
        (slice(y0, y0 + width), slice(x0, x1)),
        (slice(max(y0, y1 - width), y1), slice(x0, x1)),
        (slice(y0, y1), slice(x0, x0 + width)),
        (slice(y0, y1), slice(max(x0, x1 - width), x1)),
    ):
        out[rows, columns] = color


def tint(image: RGB, mask: Array, color: tuple[int, int, int], opacity: float = 0.6) -> RGB:
    """Pixels of a mask tinted with one color, on a copy of an image."""
    out = image.astype(np.float32)
    picked = mask.astype(bool)
    out[picked] = (1 - opacity) * out[picked] + opacity * np.array(color, np.float32)
    return np.round(out).astype(np.uint8)


def picture(classes: Array, colors: Sequence[tuple[int, int, int]], ignore_index: int = 255) -> Any:
    """Class indices ``(H, W)`` in the colors of the classes, the ignored ones in gray; ``(H, W, 3)`` uint8."""
    table = np.full((max(int(classes.max(initial=0)), ignore_index, len(colors)) + 1, 3), 128, np.uint8)
    table[: len(colors)] = colors
    return table[classes]
