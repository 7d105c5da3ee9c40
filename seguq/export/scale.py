"""One color scale for a whole run, so that pictures can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.core.reading import read_json, reading
from seguq.functional.ranking import order_bins
from seguq.inference.measures import measure

_BITS = 16


def label_of(name: str) -> str:
    """A measure's name for people, with its unit."""
    found = measure(name)
    return name.replace("_", " ") + (f" ({found.unit})" if found is not None and found.unit else "")


@dataclass(frozen=True)
class Scale:
    """The values that the ends of the color map stand for.

    Attributes:
        low: value of the darkest color.
        high: value of the brightest color; what lies above is shown like it.
    """

    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The two values, by name."""
        return {"low": self.low, "high": self.high}


class ScaleFinder:
    """Finds the scale of a measure over all images of a run, from a histogram of fixed size.

    The upper end is the value that one pixel in 1000 exceeds, rounded up to two digits; the lower end is 0, or for
    measures that can be negative (energy) the value that all but one in 1000 exceed.

    Example:
        >>> finder = ScaleFinder()
        >>> finder.add(torch.linspace(0, 1, 5000))
        >>> finder.scale()
        Scale(low=0.0, high=1.0)
    """

    def __init__(self) -> None:
        self._counts = np.zeros(1 << _BITS, np.int64)

    def add(self, values: Tensor) -> None:
        """Take in a map of any shape."""
        bins = order_bins(values.detach().cpu().flatten(), _BITS)
        self._counts += torch.bincount(bins, minlength=1 << _BITS).numpy()

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up the histograms of several processes: ``total`` gives the sum of a float64 tensor over all of them."""
        counts = total(torch.from_numpy(self._counts).double())
        self._counts = counts.long().numpy()

    def scale(self) -> Scale:
        """The scale over all maps taken in."""
        total = int(self._counts.sum())
        if total == 0:
            return Scale(0.0, 1.0)
        below = self._counts.cumsum()
        high = _upper_edge(int(np.searchsorted(below, 0.999 * total)))
        first = int(np.searchsorted(below, 0.001 * total, side="right"))
        low = 0.0 if _upper_edge(first) >= 0 else -_two_digits(-_upper_edge(first - 1), math.ceil)
        high = _two_digits(high, math.ceil) if high > 0 else -_two_digits(-high, math.floor)
        return Scale(low, high if high > low + 1e-12 else low + max(1e-6, 1e-6 * abs(low)))


def _upper_edge(bin_number: int) -> float:
    """The largest value of a bin of `order_bins`, for finite values."""
    ordered = ((bin_number + 1 - (1 << (_BITS - 1))) << (32 - _BITS)) - 1
    pattern = np.array([ordered], np.int64).astype(np.int32)
    pattern = np.where(pattern < 0, pattern ^ 0x7FFFFFFF, pattern).astype(np.int32)
    return float(pattern.view(np.float32)[0])


def _two_digits(value: float, rounded: Callable[[float], int]) -> float:
    """A positive value to two digits, up or down (one part in 100 beyond a rounder one is let go)."""
    if value <= 0 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    slack = -0.1 if rounded is math.ceil else 0.1
    return float(f"{rounded(value / step + slack) * step:.6g}")


def scales_from_dict(content: Any) -> dict[str, Scale]:
    """Scales by measure, from the JSON that a run keeps."""
    scales = {name: Scale(float(item["low"]), float(item["high"])) for name, item in content.items()}
    for name, scale in scales.items():
        if not -math.inf < scale.low < scale.high < math.inf:
            raise SeguqError(f"the scale of {name!r} goes from {scale.low} to {scale.high}")
    return scales


def read_scales(file: Path) -> dict[str, Scale] | None:
    """The scales that a run keeps in a file; None where there is none, or a damaged one: they are found anew."""
    try:
        with reading(file):
            return scales_from_dict(read_json(file))
    except SeguqError:
        return None
