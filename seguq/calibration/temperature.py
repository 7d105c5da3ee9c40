"""One temperature for all pixels."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator
from seguq.calibration.batches import FittingBatches, fitting_pairs
from seguq.calibration.few_parameters import LOG_BOUND, bound_reason
from seguq.calibration.sums import SumStream
from seguq.core.checks import require_choice, require_dims
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf
from seguq.functional.calibration import temperature_nll
from seguq.functional.logits import TASKS, Task, full_precision
from seguq.functional.temperature_curve import (
    BINNED_LOG_BETAS,
    LOG_BETAS,
    TemperatureSums,
    curve_gaps,
    curve_nll,
    curve_slope,
    temperature_curve,
)

_MOST_STEPS = 7
_TOLERANCE = 2e-4  # of log T; what a Newton step leaves goes with its square
_N_BINS = 15


class TemperatureScaling(Calibrator):
    r"""Divide the logits by one temperature T, the one with the least negative log-likelihood on held-out data.

    .. math:: T = \arg\min_T - \sum_i \log \mathrm{softmax}(z_i / T)_{y_i}, \quad 0.05 \le T \le 20

    The loss is convex in 1/T. Fitting streams: the sums of the loss and its derivatives (float64) over all labeled
    pixels are all that is kept between batches. A first pass takes the loss along a whole grid of temperatures (see
    `seguq.functional.temperature_curve`), of which the minimum is within 1e-3 as a rule; a second takes its exact
    derivatives there for one Newton step of log T. Further steps follow only where that one was larger than 2e-4 (8
    passes at most in all). T stays 1 where nothing improves. A `stream` needs the first pass only.

    Args:
        task: ``"multiclass"`` (logits with one channel are taken as a sigmoid's), ``"binary"`` or ``"multilabel"``.
        ignore_index: value of the target that is left out.

    Attributes:
        log_temperature: log T, a buffer.
        nll_before: mean negative log-likelihood of the fitting data at T = 1, in nats (after `fit`).
        nll_after: the same at the fitted T (of the same data: `summary` has it out of sample).
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

    def require_valid(self) -> None:
        """Raise for a T beyond 0.05 .. 20, which no fit gives."""
        super().require_valid()
        if abs(float(self.log_temperature)) > LOG_BOUND + 1e-4:  # float32 rounds the bound itself
            raise ValueError(f"its log_temperature is {float(self.log_temperature):g}, not within +-{LOG_BOUND:.4g}")

    def fitted(self) -> dict[str, Any]:
        """T."""
        return {"temperature": self.temperature}

    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits divided by T, ``(B, C, *spatial)``, at least float32; ``image`` is not looked at."""
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        logits = full_precision(logits)
        return logits * torch.exp(-self.log_temperature).to(logits)

    def temperature_map(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """T at every pixel, ``(B, 1, *spatial)``."""
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        return self.log_temperature.exp().expand(logits.shape[0], 1, *logits.shape[2:]).to(logits.device)

    def fit(self, batches: FittingBatches, group: GroupOf = None) -> TemperatureScaling:
        """Find T on held-out data.

        Args:
            batches: a re-iterable (a list or a DataLoader) of ``(logits, target)`` or ``(logits, image, target)``:
                logits ``(B, C, *spatial)``, targets ``(B, *spatial)`` of class indices or ``ignore_index``. Batches
                may differ in size. It is read at most 8 times and must give the same each time.
            group: from an image's id to its group, for the `summary`, as in `SampledCalibrator.fit`.

        Returns:
            Itself, fitted.

        Raises:
            SeguqError: if the batches can be read only once, give another number of pixels when read again, are empty
                or hold no labeled pixel, or for logits with NaN or infinity, targets out of range, or shapes that do
                not go together.
        """
        stream = TemperatureStream(self, group)
        stream.take_all(batches)
        measured = stream.summary()
        if measured is None:
            raise SeguqError(
                f"there is no labeled pixel to fit on (all targets are ignore_index={self.ignore_index}, or no batches)"
            )
        sums = stream.curve(stream.sums.sum(0).cpu())
        log_beta, nll_after = self._refined(batches, lowest(sums), measured.pixels)
        # of a mean over float32 logits the last digits are left to chance; the loss is convex
        self.settle(log_beta, measured.pixels, measured.nll_before, min(nll_after, measured.nll_before))
        self.measured = measured
        if self.at_bound:
            warn_of_bound(log_beta)
        return self

    def stream(self, group: GroupOf = None) -> TemperatureStream:
        """Sums that T is fitted from in one reading, to 1e-3 of what `fit` finds as a rule.

        Args:
            group: from an image's id to its group, as in `seguq.core.groups.Groups`.
        """
        return TemperatureStream(self, group)

    def settle(self, log_beta: float, pixels: int, nll_before: float, nll_after: float) -> None:
        """Take over what was found: the log of the inverse temperature, and on how many pixels it does what."""
        self.pixels, self.nll_before, self.nll_after = pixels, nll_before, nll_after
        self.at_bound = abs(log_beta) == LOG_BOUND
        with torch.inference_mode(False):  # a new one: the old may have been moved inside inference mode
            self.log_temperature = torch.full_like(self.log_temperature, -log_beta)

    def _refined(self, batches: FittingBatches, log_beta: float, pixels: int) -> tuple[float, float]:
        """From near the minimum to it, by Newton's steps along ``log_beta``; with the loss there."""
        for _ in range(_MOST_STEPS):
            at_bound = abs(log_beta) == LOG_BOUND
            # at a bound rounding decides whether it is better than T = 1, so both are asked of one formula
            here, *at_one = self._exact(batches, [log_beta] + [0.0] * at_bound, pixels)
            stepped = min(max(log_beta + here.step, -LOG_BOUND), LOG_BOUND)
            moved, log_beta = stepped - log_beta, stepped
            if at_bound and not moved:
                return (log_beta, here.nll) if here.nll < at_one[0].nll else (0.0, at_one[0].nll)
            if abs(moved) < _TOLERANCE:
                break
        return log_beta, here.nll + moved * here.first + moved**2 / 2 * here.second

    def _exact(self, batches: FittingBatches, log_betas: list[float], pixels: int) -> list[_Loss]:
        """One pass: the mean loss and its derivatives at some inverse temperatures."""
        totals = torch.zeros(len(log_betas), 4, dtype=torch.float64)
        for logits, target in fitting_pairs(batches, self.task, self.ignore_index):
            found = [temperature_nll(logits, target, math.exp(x), self.ignore_index) for x in log_betas]
            totals += torch.stack([torch.stack(sums) for sums in found]).cpu()
        again = int(totals[0, 0])
        if again != pixels:
            raise SeguqError(f"batches gave {pixels} labeled pixels when first read, and {again} when read again")
        return [
            _Loss.along_log_beta(math.exp(x), *(float(value) / pixels for value in row[1:]))
            for x, row in zip(log_betas, totals, strict=True)
        ]


class _Loss(NamedTuple):
    """The mean negative log-likelihood at an inverse temperature, and its derivatives along the log of that."""

    nll: float
    first: float
    second: float

    @classmethod
    def along_log_beta(cls, beta: float, nll: float, first: float, second: float) -> _Loss:
        """From the derivatives along the inverse temperature itself."""
        return cls(nll, beta * first, beta * first + beta**2 * second)

    @property
    def step(self) -> float:
        """Newton's step. Far from the minimum the loss may bend down along the log, though not along beta itself."""
        bend = self.second if self.second > 0 else self.second - self.first
        return max(-1.0, min(1.0, -self.first / bend)) if bend > 0 else 0.0


class TemperatureStream(SumStream):
    """Sums of `seguq.functional.temperature_curve`: what one temperature does, whichever it will be.

    Args:
        calibrator: an unfitted one, for its settings.
        group: from an image's id to its group; None for contiguous blocks of images.
    """

    def __init__(self, calibrator: TemperatureScaling, group: GroupOf = None) -> None:
        points = len(LOG_BETAS)
        self._shapes = ((), (points,), ((points + 1) // 2,), (len(BINNED_LOG_BETAS), _N_BINS))
        super().__init__(calibrator, sum(_size(shape) for shape in self._shapes), group)

    def measure(self, logits: Tensor, target: Tensor, image: Tensor | None) -> Tensor:
        """The curve of some images, flat."""
        curve = temperature_curve(logits, target, _N_BINS, self.calibrator.ignore_index)
        return torch.cat([item.flatten() for item in curve])

    def curve(self, sums: Tensor) -> TemperatureSums:
        """The curve that flat sums are of."""
        parts = torch.split(sums, [_size(shape) for shape in self._shapes])
        return TemperatureSums(*(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def fitted_on(self, sums: Tensor) -> TemperatureScaling:
        """The temperature at the minimum of the curve; 1 where that is no better."""
        curve, made = self.curve(sums), self._unfitted()
        assert isinstance(made, TemperatureScaling)
        found, nll_before = lowest(curve), curve_nll(curve, 0.0)
        log_beta = found if curve_nll(curve, found) < nll_before else 0.0
        made.settle(log_beta, int(curve.pixels), nll_before, curve_nll(curve, log_beta))
        return made

    def judged_on(self, sums: Tensor, calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """The likelihood and the bins' gaps at a temperature."""
        curve = self.curve(sums)
        log_beta = 0.0 if calibrator is None else -float(calibrator.state_dict()["log_temperature"])
        return curve_nll(curve, log_beta), curve_gaps(curve, log_beta) / float(curve.pixels)

    def fit(self) -> Calibrator | None:
        """The temperature of all that was taken in; None where no pixel was labeled."""
        found = super().fit()
        if isinstance(found, TemperatureScaling) and found.at_bound:
            warn_of_bound(-float(found.log_temperature))
        return found


def lowest(sums: TemperatureSums) -> float:
    """log of the inverse temperature, within the bounds, where a curve has the least negative log-likelihood."""
    if curve_slope(sums, -LOG_BOUND) >= 0:
        return -LOG_BOUND
    if curve_slope(sums, LOG_BOUND) <= 0:
        return LOG_BOUND
    nodes = [-LOG_BOUND, *(node for node in LOG_BETAS if abs(node) < LOG_BOUND), LOG_BOUND]
    high = next(node for node in nodes[1:] if curve_slope(sums, node) > 0 or node == LOG_BOUND)
    low = nodes[nodes.index(high) - 1]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if curve_slope(sums, middle) < 0 else (low, middle)
    return (low + high) / 2


def warn_of_bound(log_beta: float) -> None:
    """Say that the best temperature lies at its bound, and why."""
    warnings.warn(bound_reason(log_beta), stacklevel=3)


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
