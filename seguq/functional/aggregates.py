"""One number a region from the values of its pixels, by the names that people ask for them with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from seguq.core.errors import UsageError
from seguq.functional.borders import near_border
from seguq.functional.runs import Array, Floats, Runs

Classes = Array | None


@dataclass(frozen=True)
class Aggregate:
    """How the values of a region's pixels become its score.

    Attributes:
        name: ``mean``, ``sum``, ``max``; ``quantile(q)``, from 0 to 1, between two values linearly;
            ``top_k_mean(fraction)``, the mean of so large a share of the pixels, the largest (one pixel at least);
            ``threshold_mean(t)``, the mean of those above t, 0 where there is none; ``nonborder_mean(width)``, the mean
            of those farther than that from a border between predicted classes, 0 where there is none;
            ``foreground_mean(background)``, the sum divided by the number of pixels that are predicted to be of another
            class than that (one at least), so that large objects do not look more uncertain than small ones.
        argument: what stands in its brackets.
    """

    name: str
    argument: float | None = None

    def __str__(self) -> str:
        return self.name if self.argument is None else f"{self.name}({self.argument:g})"

    def __call__(self, values: Array, runs: Runs, classes: Classes = None) -> Floats:
        """The score of each region, ``(R,)``; anything for one without a pixel.

        Args:
            values: ``(H, W)``, without NaN.
            runs: the regions.
            classes: the predicted class of each pixel, ``(H, W)``; for those that read it.
        """
        return _KNOWN[self.name].compute(values, runs, self.argument or 0.0, classes)

    @property
    def reads_classes(self) -> bool:
        """Whether it needs the predicted classes."""
        return _KNOWN[self.name].reads_classes


def aggregate_named(text: str) -> Aggregate:
    """The aggregate of a name, such as ``"mean"`` or ``"quantile(0.9)"``.

    Raises:
        UsageError: for another one, or an argument out of range.

    Example:
        >>> str(aggregate_named("top_k_mean")), str(aggregate_named("quantile(.95)"))
        ('top_k_mean(0.1)', 'quantile(0.95)')
    """
    found = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", text) if isinstance(text, str) else None
    if found is None or found[1] not in _KNOWN:
        raise UsageError(f"aggregate must be one of {', '.join(map(_spelled, _KNOWN))}, but is {text!r}")
    kind, given = _KNOWN[found[1]], found[2]
    if kind.what is None:
        if given is not None:
            raise UsageError(f"the aggregate {found[1]!r} takes nothing in brackets, but is {text!r}")
        return Aggregate(found[1])
    if not given:
        if kind.default is None:
            raise UsageError(f"the aggregate {text!r} needs {kind.what}, as in {found[1]}(0.5)")
        return Aggregate(found[1], kind.default)
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and kind.allowed(value)):
        raise UsageError(f"the aggregate {found[1]!r} takes {kind.what}, but is {text!r}")
    return Aggregate(found[1], value)


def _spelled(name: str) -> str:
    kind = _KNOWN[name]
    return name if kind.what is None else f"{name}({kind.sign})"


# ---- how each is computed ----

Compute = Callable[[Array, Runs, float, Classes], Floats]


@dataclass(frozen=True)
class _Kind:
    compute: Compute
    sign: str = ""
    what: str | None = None
    default: float | None = None
    allowed: Callable[[float], bool] = lambda value: True
    reads_classes: bool = False


def _mean(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    return runs.sums(values) / np.maximum(runs.area, 1)


def _sum(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    return runs.sums(values)


def _max(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    return runs.maxima(values)


def _quantile(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    ordered, bounds = runs.ordered(values)
    out, there = np.zeros(runs.num_regions), runs.area > 0
    place = argument * (runs.area[there] - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, runs.area[there] - 1)
    first, share = bounds[:-1][there], place - low
    below, above = ordered[first + low], ordered[first + high]
    out[there] = below + (above - below) * share
    return out


def _top_k_mean(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    ordered, bounds = runs.ordered(values)
    out, there = np.zeros(runs.num_regions), runs.area > 0
    if not there.any():
        return out
    count = np.maximum(1, np.ceil(argument * runs.area[there] - 1e-9)).astype(np.int64)
    ends = bounds[1:][there]
    places = np.stack((ends - count, ends), 1).ravel()
    out[there] = np.add.reduceat(np.append(ordered, 0.0), places)[::2] / count
    return out


def _mean_of(chosen: npt.NDArray[np.bool_], values: Array, runs: Runs) -> Floats:
    return runs.sums(np.where(chosen, values, 0)) / np.maximum(runs.sums(chosen), 1)


def _threshold_mean(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    return _mean_of(values > argument, values, runs)


def _nonborder_mean(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    assert classes is not None
    near = near_border(torch.from_numpy(np.ascontiguousarray(classes))[None], int(argument))[0].numpy()
    return _mean_of(~near, values, runs)


def _foreground_mean(values: Array, runs: Runs, argument: float, classes: Classes) -> Floats:
    assert classes is not None
    return runs.sums(values) / np.maximum(runs.sums(np.not_equal(classes, int(argument))), 1)


_WHOLE = "a whole number from 0"
_KNOWN = {
    "mean": _Kind(_mean),
    "sum": _Kind(_sum),
    "max": _Kind(_max),
    "quantile": _Kind(_quantile, "q", "a share from 0 to 1", 0.9, lambda value: 0 <= value <= 1),
    "top_k_mean": _Kind(_top_k_mean, "fraction", "a share above 0, at most 1", 0.1, lambda value: 0 < value <= 1),
    "threshold_mean": _Kind(_threshold_mean, "t", "a number"),
    "nonborder_mean": _Kind(
        _nonborder_mean, "width", "a whole number from 1", 2, lambda value: value >= 1 and value % 1 == 0, True
    ),
    "foreground_mean": _Kind(
        _foreground_mean, "background", _WHOLE, 0, lambda value: value >= 0 and value % 1 == 0, True
    ),
}
AGGREGATES = tuple(_KNOWN)
