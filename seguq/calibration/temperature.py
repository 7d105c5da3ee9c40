"""One temperature for all pixels."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, FittingBatches, fitting_pairs, require_reiterable
from seguq.core.checks import require_choice, require_dims
from seguq.core.errors import SeguqError
from seguq.functional.calibration import temperature_nll
from seguq.functional.logits import TASKS, Task, full_precision
from seguq.functional.temperature_curve import LOG_BETAS, TemperatureSums, curve_nll, curve_slope

_BOUND = math.log(20.0)  # log T lies within -log 20 .. log 20: T from 0.05 to 20
_GRID_POINTS = 9
_MOST_PASSES = 8
_TOLERANCE = 1e-5  # of log T; the last step then leaves an error far below it


class _Point:
    """The mean negative log-likelihood and its derivatives at one inverse temperature."""

    def __init__(self, log_beta: float, nll: float, first: float, second: float) -> None:
        self.log_beta, self.nll, self.first, self.second = log_beta, nll, first, second
        self.beta = math.exp(log_beta)


class TemperatureScaling(Calibrator):
    r"""Divide the logits by one temperature T, the one with the least negative log-likelihood on held-out data.

    .. math:: T = \arg\min_T - \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}, \quad 0.05 \le T \le 20

    The loss is convex in 1/T. Fitting streams: the sums of the loss and its derivatives (float64) over all labeled
    pixels are all that is kept between batches. A first pass brackets the minimum on a grid of 9 temperatures, the
    following ones (2 or 3 as a rule, 8 passes at most in all) are Newton-like steps inside the bracket. T stays 1
    where nothing improves.

    Args:
        task: ``"multiclass"`` (logits with one channel are taken as a sigmoid's), ``"binary"`` or ``"multilabel"``.
        ignore_index: value of the target that is left out.

    Attributes:
        log_temperature: log T, a buffer.
        nll_before: mean negative log-likelihood of the fitting data at T = 1, in nats (after `fit`).
        nll_after: the same at the fitted T.
        pixels: number of labeled pixels that were fitted on.
        at_bound: whether the optimum lies at the bound of T (a warning says so, too).

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(4, 1)       # always 98 % sure of class 0 ...
        >>> cal = TemperatureScaling().fit([(logits, torch.tensor([0, 0, 0, 1]))])     # ... and right 3 times in 4
        >>> cal(logits).softmax(1)[0]
        tensor([0.7500, 0.2500])
    """

    name: ClassVar[str] = "global"
    order_preserving: ClassVar[bool] = True
    log_temperature: Tensor

    def __init__(self, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__()
        require_choice("task", task, TASKS)
        self.task: Task = task
        self.ignore_index = ignore_index
        with torch.inference_mode(False):  # made inside inference mode, it could never be filled outside
            self.register_buffer("log_temperature", torch.zeros(()))
        self.nll_before: float | None = None
        self.nll_after: float | None = None
        self.pixels: int | None = None
        self.at_bound = False

    @property
    def temperature(self) -> float:
        """T."""
        return math.exp(float(self.log_temperature))

    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits divided by T, ``(B, C, *spatial)``, at least float32; ``image`` is not looked at."""
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        logits = full_precision(logits)
        return logits * torch.exp(-self.log_temperature).to(logits)

    def temperature_map(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """T at every pixel, ``(B, 1, *spatial)``."""
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        return self.log_temperature.exp().expand(logits.shape[0], 1, *logits.shape[2:]).to(logits.device)

    def fit(self, batches: FittingBatches) -> TemperatureScaling:
        """Find T on held-out data.

        Args:
            batches: a re-iterable (a list or a DataLoader) of ``(logits, target)`` or ``(logits, image, target)``:
                logits ``(B, C, *spatial)``, targets ``(B, *spatial)`` of class indices or ``ignore_index``. Batches
                may differ in size. It is read at most 8 times and must give the same each time.

        Returns:
            Itself, fitted.

        Raises:
            SeguqError: if the batches can be read only once, are empty or hold no labeled pixel, or for logits with
                NaN or infinity, targets out of range, or shapes that do not go together.
        """
        require_reiterable(batches)
        grid = [_BOUND * (2 * i / (_GRID_POINTS - 1) - 1) for i in range(_GRID_POINTS)]
        points = self._evaluate(batches, grid)
        start = points[_GRID_POINTS // 2]  # T = 1
        low, high = points[0], points[-1]
        best = start
        self.at_bound = False
        if low.first >= 0:
            best = low
            self.at_bound = low.nll < start.nll
        elif high.first <= 0:
            best = high
            self.at_bound = high.nll < start.nll
        else:
            for point in points:
                if point.first < 0:
                    low = point
                else:
                    high = point
                    break
            best = self._refine(batches, low, high)
        if self.at_bound:
            warn_of_bound(best.log_beta)
        if not best.nll < start.nll:
            best = start
        self._settle(best.log_beta, start.nll, best.nll)
        return self

    def _settle(self, log_beta: float, nll_before: float, nll_after: float) -> None:
        self.nll_before, self.nll_after = nll_before, nll_after
        with torch.inference_mode(False):  # a new one: the old may have been moved inside inference mode
            self.log_temperature = torch.full_like(self.log_temperature, -log_beta)

    def fit_curve(self, sums: TemperatureSums) -> TemperatureScaling:
        """Find T from the sums of `seguq.functional.temperature_curve`: in one reading, to 1e-3 of what `fit` finds.

        Args:
            sums: of all labeled pixels.

        Returns:
            Itself, fitted.

        Raises:
            SeguqError: if there is no labeled pixel.
        """
        if not float(sums.pixels):
            raise SeguqError(f"there is no labeled pixel to fit on (all targets are ignore_index={self.ignore_index})")
        self.pixels = int(sums.pixels)
        log_beta = best_log_beta(sums)
        self.at_bound = abs(log_beta) == _BOUND
        if self.at_bound:
            warn_of_bound(log_beta)
        self._settle(log_beta, curve_nll(sums, 0.0), curve_nll(sums, log_beta))
        return self

    def _evaluate(self, batches: FittingBatches, log_betas: list[float]) -> list[_Point]:
        """One pass: the loss and its derivatives at each inverse temperature."""
        totals: list[list[Tensor]] = [[] for _ in log_betas]
        for logits, target in fitting_pairs(batches, self.task, self.ignore_index):
            for log_beta, total in zip(log_betas, totals, strict=True):
                sums = temperature_nll(logits, target, math.exp(log_beta), self.ignore_index)
                total[:] = [a + b for a, b in zip(total, sums, strict=True)] if total else list(sums)
        pixels = int(totals[0][0]) if totals[0] else 0
        if len(log_betas) == 1 and pixels != self.pixels:
            raise SeguqError(f"batches gave {self.pixels} labeled pixels when first read, and {pixels} when read again")
        if pixels == 0:
            raise SeguqError(
                f"there is no labeled pixel to fit on (all targets are ignore_index={self.ignore_index}, or no batches)"
            )
        self.pixels = pixels
        points = []
        for log_beta, total in zip(log_betas, totals, strict=True):
            _, nll, first, second = (float(value) / pixels for value in total)
            points.append(_Point(log_beta, nll, first, second))
        return points

    def _refine(self, batches: FittingBatches, low: _Point, high: _Point) -> _Point:
        """Narrow a bracket of the minimum (first < 0 at ``low``, >= 0 at ``high``)."""
        log_beta = _root(low, high)
        for _ in range(_MOST_PASSES - 1):
            (point,) = self._evaluate(batches, [log_beta])
            low, high = (point, high) if point.first < 0 else (low, point)
            refined = _root(low, high)
            step, log_beta = abs(refined - log_beta), refined
            if step < _TOLERANCE:
                break
        # the loss at the last root differs from the last point's by the square of a step below the tolerance
        point.log_beta = log_beta
        return point


def best_log_beta(sums: TemperatureSums) -> float:
    """log of the inverse temperature (T within its bounds) of the least negative log-likelihood; 0 if T = 1 is best."""
    found = _lowest(sums)
    return found if curve_nll(sums, found) < curve_nll(sums, 0.0) else 0.0


def _lowest(sums: TemperatureSums) -> float:
    if curve_slope(sums, -_BOUND) >= 0:
        return -_BOUND
    if curve_slope(sums, _BOUND) <= 0:
        return _BOUND
    nodes = [-_BOUND, *(node for node in LOG_BETAS if abs(node) < _BOUND), _BOUND]
    high = next(node for node in nodes[1:] if curve_slope(sums, node) > 0 or node == _BOUND)
    low = nodes[nodes.index(high) - 1]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if curve_slope(sums, middle) < 0 else (low, middle)
    return (low + high) / 2


def warn_of_bound(log_beta: float) -> None:
    """Say that the best temperature lies at its bound, and why."""
    reason = (
        "the labels hold almost no errors to learn from"
        if log_beta > 0
        else "on these images the model is worse than no information at all"
    )
    warnings.warn(f"the best temperature lies at its bound, T = {math.exp(-log_beta):.4g}: {reason}", stacklevel=3)


def _root(low: _Point, high: _Point) -> float:
    """Where the cubic through the derivative's values and slopes at both ends of a bracket crosses zero (log beta)."""
    width = high.beta - low.beta
    if width <= 0:
        return low.log_beta

    def slope(t: float) -> float:
        return (
            (1 + 2 * t) * (1 - t) ** 2 * low.first
            + t * (1 - t) ** 2 * width * low.second
            + t**2 * (3 - 2 * t) * high.first
            + t**2 * (t - 1) * width * high.second
        )

    left, right = 0.0, 1.0
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if slope(middle) < 0 else (left, middle)
    return math.log(low.beta + (left + right) / 2 * width)
