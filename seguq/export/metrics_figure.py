"""One picture of how well a module's uncertainty holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from seguq.metrics import CalibrationError

_TITLES = {
    "auroc_error": ("AUROC for wrong pixels", "higher is better; .5 is chance"),
    "aurc": ("AURC", "lower is better"),
}


class Row(NamedTuple):
    """One value with its interval.

    Attributes:
        name: what it is: ``ece``, ``auroc_error``, ...
        measure: the measure of uncertainty, for values of one.
        value: the value.
        low: lower end of the interval of 95 %.
        high: upper end.
    """

    name: str
    measure: str | None
    value: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """Its name in a logger."""
        return self.name if self.measure is None else f"{self.name}/{self.measure}"


def uncertainty_figure(calibration: CalibrationError, rows: Sequence[Row], title: str) -> Any:
    """The reliability diagram, and beside it the ranking of each measure with its interval.

    Args:
        calibration: filled.
        rows: of all values.
        title: what was measured.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    reliability, *ranking = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
    calibration.plot(ax=reliability)
    ece, brier, nll = (next(row for row in rows if row.name == name) for name in ("ece", "brier", "nll"))
    reliability.set_title(
        f"ECE {_with_interval(ece)}\nBrier {_with_interval(brier)}\nNLL {_with_interval(nll)}", fontsize=8
    )
    for axes, (name, (heading, hint)) in zip(ranking, _TITLES.items(), strict=True):
        shown = [row for row in rows if row.name == name]
        places = range(len(shown))
        for place, row in zip(places, shown, strict=True):
            axes.plot([row.low, row.high], [place, place], color="0.6", linewidth=3, solid_capstyle="round", zorder=1)
            axes.plot([row.value], [place], marker="o", color="C0", zorder=2)
        axes.set_yticks(list(places), [(row.measure or "").replace("_", " ") for row in shown])
        axes.invert_yaxis()
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel(f"{hint}; bars: 95 % over images", fontsize=8)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    return figure


def _with_interval(row: Row) -> str:
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
