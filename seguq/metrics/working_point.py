"""A threshold of uncertainty, and what it comes to."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsFloat

from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.functional.working_points import working_bin
from seguq.metrics.bootstrap import percentiles


class WorkingPoint(NamedTuple):
    """What is accepted where all that is at most as uncertain as a threshold is, and the rest is left to somebody else.

    A threshold that was chosen on some images is a little too good on these: judge it on others, by
    ``working_point(threshold=...)`` of a metric that has seen them.

    Attributes:
        threshold: the largest score that is accepted; minus infinity where nothing is. `RiskCoverage` takes scores as
            float32: compare those of float64 with it as such, ``uncertainty.float() <= threshold``.
        coverage: the accepted share.
        risk: the error rate (mean error) of what is accepted; NaN where nothing is.
        coverage_interval: (low, high) over images at this threshold, 95 %; None where images have no ids.
        risk_interval: the same of the risk.
    """

    threshold: float
    coverage: float
    risk: float
    coverage_interval: tuple[float, float] | None = None
    risk_interval: tuple[float, float] | None = None


def bin_of(
    right: Tensor,
    wrong: Tensor,
    highest: Tensor,
    coverage: float | None,
    risk: float | None,
    threshold: float | None,
) -> int | None:
    """The bin up to which scores are accepted, given the largest score in each; None where none is."""
    if threshold is None:
        return working_bin(right, wrong, coverage=coverage, risk=risk)
    if coverage is not None or risk is not None or not isinstance(threshold, SupportsFloat) or math.isnan(threshold):
        raise SeguqError(f"give one of coverage=, risk= and threshold=, a number, not several or {threshold!r}")
    found = ((highest <= threshold) & (right + wrong > 0)).nonzero().flatten()
    return int(found[-1]) if len(found) else None


def with_intervals(point: WorkingPoint, coverage: Tensor, risk: Tensor) -> WorkingPoint:
    """A point with the 95 % intervals of its coverage and risk, from their replicates at its threshold."""
    bounds = []
    for values, seen in ((coverage, point.coverage), (risk, point.risk)):
        low, high = (float(end) for end in percentiles(values, 0.95))
        bounds.append((min(low, seen), max(high, seen)))
    return point._replace(coverage_interval=bounds[0], risk_interval=bounds[1])


def draw_risk_coverage(
    ax: Any, coverage: Tensor, risk: Tensor, best: Tensor, interval: tuple[Any, Any], label: str, color: str | None
) -> None:
    """Draw a risk-coverage curve, the best one of the same errors (dashed), and the interval of the risk.

    Args:
        ax: matplotlib's axes.
        coverage: ``(n,)``.
        risk: ``(n,)``.
        best: ``(n,)``, where all errors come last.
        interval: bounds of the risk, ``(n,)`` each, or a pair of None.
        label: for the legend.
        color: of curves and band.
    """
    x = coverage.cpu().numpy()
    (line,) = ax.plot(x, risk.cpu().numpy(), label=label, color=color, zorder=3)
    ax.plot(x, best.cpu().numpy(), color=line.get_color(), linewidth=1, linestyle="--", zorder=1)
    low, high = interval
    if low is not None and high is not None:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    ax.autoscale(axis="y")  # over what was in the axes before, too; and room for the legend
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    ax.set(xlim=(0, 1), xlabel="coverage", ylabel="risk (error rate among the accepted)")
    ax.legend(loc="upper left", frameon=False)
