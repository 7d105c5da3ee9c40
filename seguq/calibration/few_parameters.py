"""Calibrators with few parameters: Newton's method on a sample, then on sums over all pixels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.batches import FittingBatches, fitting_triples
from seguq.calibration.newton import Ridge, newton
from seguq.calibration.sample import Sample
from seguq.calibration.sampled import SampledCalibrator, below_top
from seguq.core.errors import SeguqError
from seguq.functional.likelihood import NLL, temperature_field_nll
from seguq.functional.logits import Task

LOG_BOUND = math.log(20.0)
"""Temperatures lie from 1/20 to 20."""
_MOST_PASSES = 7
_ENOUGH = 2e-5  # nats a pixel that a last step may promise: it leaves a hundredth part of that, or less
_CPU_VALUES, _GPU_VALUES = 1 << 18, 1 << 26  # logits at once: more would leave the cache

Prepared = tuple[Tensor, ...]


class FewParameters(SampledCalibrator):
    """A calibrator that is fitted by Newton's method for the least negative log-likelihood.

    On a sample first, then on sums over all labeled pixels: in one further pass as a rule and never more than seven,
    until the next step promises less than 2e-5 nats a pixel. Where parameters are held to a center by a ridge, how
    strongly is chosen on the sample: what gives the least loss on the half of the groups that the other half was fitted
    on (the strongest, where there is one group).

    A subclass says what of a pixel can be computed once (`prepare`), the loss (`nll`), and where to begin (`start`).

    Args:
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        log10_ridge: of the weight of the ridge that was chosen, a buffer, where there are several to choose from.
    """

    ridges: ClassVar[tuple[float, ...]] = (0.0,)
    """Weights of the ridge to choose from, of a pixel's loss, the strongest first."""
    most: ClassVar[float]
    """The largest absolute value of a parameter."""
    log10_ridge: Tensor

    def __init__(self, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        if len(self.ridges) > 1:
            with torch.inference_mode(False):
                self.register_buffer("log10_ridge", torch.tensor(math.log10(self.ridges[0])))

    @abstractmethod
    def prepare(self, logits: Tensor, features: Tensor, target: Tensor) -> Prepared:
        """What of pixels is computed once: logits ``(C, N)``, the largest 0, features ``(K, N)``, classes ``(N,)``."""

    @abstractmethod
    def nll(self, prepared: Prepared, values: Tensor) -> NLL:
        """The loss of parameters ``(G, P)``."""

    @abstractmethod
    def start(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Parameters to begin with, which are the center of the ridge, and what the ridge weighs each: ``(G, P)``."""

    @abstractmethod
    def settle(self, values: Tensor) -> None:
        """Take over parameters ``(G, P)`` float64 that were found."""

    @abstractmethod
    def found(self) -> Tensor:
        """The parameters that were found, ``(G, P)``."""

    def learn(self, sample: Sample) -> None:
        """By Newton's method on the pixels of a sample, with the best of the ridges."""
        ridge = self.ridges[0]
        halves = sample.halves() if len(self.ridges) > 1 else None
        if halves is not None:
            losses = dict.fromkeys(self.ridges, 0.0)
            for one, other in (halves, halves[::-1]):
                prepared = self._prepared(other)
                for weight, values in self._path(one, self.ridges):
                    losses[weight] += float(self.nll(prepared, values).loss.sum())
            ridge = min(losses, key=losses.__getitem__)  # of equal ones the first, which is the strongest
        path = self.ridges[: self.ridges.index(ridge) + 1]
        *_, (_, values) = self._path(sample, path)
        self.settle(values)
        if len(self.ridges) > 1:
            self.log10_ridge = torch.full_like(self.log10_ridge, math.log10(ridge))

    def _path(self, sample: Sample, ridges: tuple[float, ...]) -> Iterator[tuple[float, Tensor]]:
        """The parameters for one ridge after the other, each from where the last has led."""
        prepared = self._prepared(sample)
        center, weights = self.start(sample)
        values, pixels = center, len(sample.target)
        for weight in ridges:
            enough = 1e-12 if sample.complete else 1e-6  # less than what the pixels that were not drawn would change
            values = newton(
                lambda values: self.nll(prepared, values),
                values,
                ridge=Ridge(weight * pixels * weights, center),
                bound=self.most,
                enough=enough * pixels,
            )
            yield weight, values

    def _prepared(self, sample: Sample) -> Prepared:
        logits = sample.logits.double() if sample.logits.numel() <= _CPU_VALUES else sample.logits
        return self.prepare(logits.T.contiguous(), sample.features.to(logits).T.contiguous(), sample.target)

    def refine(self, batches: FittingBatches, sample: Sample, pixels: int) -> None:
        """By Newton's method on sums over all pixels, with the ridge that was chosen on the sample."""
        center, weights = self.start(sample)
        values = newton(
            lambda values: NLL.total(self._of_batches(batches, values, pixels)),
            self.found().double().cpu(),
            ridge=Ridge(self.ridge * pixels * weights.cpu(), center.cpu()),
            bound=self.most,
            most=_MOST_PASSES,
            enough=_ENOUGH * pixels,
        )
        self.settle(values)

    def require_valid(self) -> None:
        """Raise for a ridge that is none of those to choose from."""
        super().require_valid()
        if len(self.ridges) > 1 and not any(math.isclose(self.ridge, ridge, rel_tol=1e-3) for ridge in self.ridges):
            raise ValueError(f"its ridge is {self.ridge:g}, not one of {self.ridges}")

    @property
    def ridge(self) -> float:
        """The weight of the ridge that was chosen."""
        return 10.0 ** min(float(self.log10_ridge), 300.0) if len(self.ridges) > 1 else self.ridges[0]

    def _of_batches(self, batches: FittingBatches, values: Tensor, pixels: int) -> Iterator[NLL]:
        again = 0
        for batch in fitting_triples(batches, self.task, self.ignore_index):
            below = below_top(batch.logits)
            features = self.read(below, batch.image)
            flat = [item.movedim(1, 0).flatten(1) for item in (below, features)]
            labels = batch.target.flatten()
            most = max(1, (_CPU_VALUES if below.device.type == "cpu" else _GPU_VALUES) // below.shape[1])
            for start in range(0, len(labels), most):
                rows = slice(start, start + most)
                z, f, y = flat[0][:, rows], flat[1][:, rows], labels[rows]
                labeled = y != self.ignore_index
                if not bool(labeled.all()):
                    z, f, y = z[:, labeled], f[:, labeled], y[labeled]
                again += len(y)
                yield NLL(*(item.cpu() for item in self.nll(self.prepare(z, f, y), values.to(z.device))))
        if again != pixels:
            raise SeguqError(f"batches gave {pixels} labeled pixels when first read, and {again} when read again")


def one_log_temperature(sample: Sample) -> float:
    """log T of the one temperature that is best for a sample."""
    logits = sample.logits.T.contiguous()
    ones = torch.ones_like(logits[:1])
    start = torch.zeros(1, 1, dtype=torch.float64, device=logits.device)
    found = newton(
        lambda values: temperature_field_nll(logits, sample.target, ones, values[0], LOG_BOUND),
        start,
        bound=LOG_BOUND,
        enough=1e-7 * len(sample.target),
    )
    return float(found)


def bound_reason(log_beta: float) -> str:
    """That the best temperature lies at its bound, and why."""
    reason = (
        "the labels hold almost no errors to learn from"
        if log_beta > 0
        else "on these images the model is worse than no information at all"
    )
    return f"the best temperature lies at its bound, T = {math.exp(-log_beta):.4g}: {reason}"
