"""Learning curves: what a metric is worth after so many labels. Arrays in, a figure out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.core.errors import UsageError, printable

Floats = npt.NDArray[np.float64]

# Okabe and Ito (2008), told apart by color-blind eyes; without black (the reference) and yellow (too light for a line)
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_OPACITY = 0.16  # of a band; less where many lie over each other
_DECADE = 10.0
_LONGEST = 40  # characters of a name


@dataclass(frozen=True)
class Curve:
    """One line of a picture of learning curves.

    Attributes:
        name: what stands in the legend.
        x: how much was labeled, ``(N,)``, rising.
        value: the metric there, ``(N,)``; NaN where it is not known.
        low: lower end of its interval, ``(N,)``; NaN where there is none.
        high: upper end.
    """

    name: str
    x: npt.ArrayLike
    value: npt.ArrayLike
    low: npt.ArrayLike
    high: npt.ArrayLike

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """x, value, low and high as arrays.

        Raises:
            UsageError: unless they are of one length, and x is finite and rises.
        """
        given = (self.x, self.value, self.low, self.high)
        x, value, low, high = (np.asarray(part, dtype=np.float64) for part in given)
        if x.ndim != 1 or {part.shape for part in (value, low, high)} != {x.shape}:
            shapes = ", ".join(str(part.shape) for part in (x, value, low, high))
            raise UsageError(f"a curve is of four arrays (N,) of one length, but {self.name!r} has {shapes}")
        if not np.isfinite(x).all() or (np.diff(x) < 0).any():
            raise UsageError(f"x of the curve {self.name!r} must be finite and must not fall")
        return x, value, low, high


def learning_curve(
    curves: Sequence[Curve],
    x_label: str,
    y_label: str,
    reference: tuple[float, float, float] | None = None,
    share: float = 0.95,
    title: str = "",
) -> Any:
    """A metric with its interval, against how much was labeled.

    The legend stands beside the plot, so that it hides nothing, in the order in which the curves end. The x axis is
    logarithmic where the curves together span more than a decade.

    Args:
        curves: one or several.
        x_label: what x counts, with its unit.
        y_label: the metric.
        reference: what all labels give, with the ends of its interval; a line across the picture.
        share: a second line stands at this share of the reference, 0 to 1.
        title: stands above it.

    Returns:
        A matplotlib figure; it is not shown, and no window is opened.

    Raises:
        UsageError: for no curve, or arrays that do not go together.

    Example:
        >>> curve = Curve("random", [74, 147], [0.31, 0.35], [0.29, 0.33], [0.33, 0.37])
        >>> figure = learning_curve([curve], "labeled regions", "mean IoU")
        >>> figure.axes[0].get_xlabel()
        'labeled regions'
    """
    from matplotlib.figure import Figure

    if not curves:
        raise UsageError("a picture of learning curves needs at least one curve")
    arrays = [curve.arrays() for curve in curves]
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    axes: Any = figure.add_subplot()
    entries: list[tuple[float, Any, str]] = []
    for i, (curve, (x, value, low, high)) in enumerate(zip(curves, arrays, strict=True)):
        line = _draw(axes, i, x, value, low, high, min(_OPACITY, 4 * _OPACITY / len(curves)))
        known = value[np.isfinite(value)]
        entries.append((known[-1] if len(known) else -np.inf, line, _short(curve.name)))
    if reference is not None:
        entries += _reference(axes, reference, share)
    entries.sort(key=lambda entry: -entry[0])
    _scale_x(axes, np.concatenate([x for x, _, _, _ in arrays]))
    axes.set_xlabel(x_label, parse_math=False)
    axes.set_ylabel(y_label, parse_math=False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(printable(title), fontsize=11, loc="left", parse_math=False)
    legend = axes.legend(
        [line for _, line, _ in entries],
        [name for _, _, name in entries],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        frameon=False,
        fontsize=8.5,
        title="bands: 95 %",
        title_fontsize=8,
        alignment="left",
    )
    for words in legend.get_texts():  # names are text: a dollar is no formula
        words.set_parse_math(False)
    return figure


def _draw(axes: Any, i: int, x: Floats, value: Floats, low: Floats, high: Floats, opacity: float) -> Any:
    """One curve; gives its line for the legend."""
    color = _COLORS[i % len(_COLORS)]
    style = _LINES[i // len(_COLORS) % len(_LINES)]
    marker = _MARKERS[i % len(_MARKERS)]
    known = np.isfinite(value)
    inside = np.isfinite(low) & np.isfinite(high)
    axes.fill_between(x, low, high, color=color, alpha=opacity, linewidth=0, zorder=1)
    beside = np.pad(inside, 1)
    alone = inside & ~beside[:-2] & ~beside[2:]  # a band has no width at one point
    axes.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.6, linewidth=2, zorder=1)
    kind = {"color": color, "linestyle": style, "marker": marker, "markersize": 5.5, "linewidth": 1.8}
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3}
    (line,) = axes.plot(x[known], value[known], **kind, **edge)
    return line


def _reference(axes: Any, reference: tuple[float, float, float], share: float) -> list[tuple[float, Any, str]]:
    """The lines of what all labels give."""
    value, low, high = reference
    if np.isfinite([low, high]).all():
        axes.axhspan(low, high, color="0.3", alpha=0.1, linewidth=0, zorder=0)
    whole = axes.axhline(value, color="0.15", linewidth=1.2, zorder=2)
    part = axes.axhline(share * value, color="0.15", linewidth=1, linestyle=(0, (5, 4)), zorder=2)
    return [(value, whole, f"all labels, {value:.3f}"), (share * value, part, f"{100 * share:g} % of that")]


def _scale_x(axes: Any, x: Floats) -> None:
    """A logarithmic axis where a decade is passed, with numbers that people read."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _thousands(at)))
    if len(x) and x.min() > 0 and x.max() > _DECADE * x.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _thousands(at)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda at, _: ""))


def _thousands(value: float) -> str:
    """A number for an axis.

    Example:
        >>> _thousands(37632), _thousands(2.5e6), _thousands(0.25), _thousands(500)
        ('37,632', '2.5 M', '0.25', '500')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _short(name: str) -> str:
    """A name without control codes, its middle left out where it is long."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2 - 1]}…{name[-_LONGEST // 2 :]}"
