"""One temperature a pixel, the logarithm of which is linear in what is known of the pixel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.few_parameters import LOG_BOUND, FewParameters, Prepared, bound_reason
from seguq.calibration.sample import Sample
from seguq.core.checks import require_dims
from seguq.functional.likelihood import NLL, temperature_field_nll
from seguq.functional.logits import Task


class LogLinearTemperature(FewParameters):
    r"""Divide the logits of each pixel by a temperature T of its own, from 1/20 to 20.

    .. math:: \log T = w \cdot \phi, \quad w = \arg\min_w - \sum_i \log \mathrm{softmax}(z_i / T_i)_{y_i}

    A subclass says what ``phi`` is (`design`). All weights but the first are held to 0 by a slight ridge, for data of
    which they could be anything. The predicted class of a pixel never changes.

    Args:
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        weights: w ``(P,)``, a buffer.
    """

    order_preserving: ClassVar[bool] = True
    size: ClassVar[int]
    """P, the length of ``phi``, of which the first is 1."""
    most: ClassVar[float] = 2 * LOG_BOUND
    weights: Tensor

    def __init__(self, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        with torch.inference_mode(False):
            self.register_buffer("weights", torch.zeros(self.size))

    @abstractmethod
    def design(self, logits: Tensor, features: Tensor) -> Tensor:
        """What is known of pixels, ``(P, ...)``: of logits ``(C, ...)``, the largest 0, and features ``(K, ...)``."""

    def fitted(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": self.weights.tolist()}

    def require_valid(self) -> None:
        """Raise for weights that no fit gives."""
        super().require_valid()
        if float(self.weights.abs().max()) > self.most + 1e-4:
            raise ValueError(f"its weights are {self.weights.tolist()}, not within +-{self.most:.4g}")

    def temperature_map(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """T at every pixel, ``(B, 1, *spatial)`` from 1/20 to 20; logits as in `forward`."""
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        below, _ = self.taken_in(logits)
        return self._log_temperature(below, self.read(below, image)).exp().unsqueeze(1)

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Logits divided by T."""
        return logits * torch.exp(-self._log_temperature(logits, features)).unsqueeze(1)

    def _log_temperature(self, logits: Tensor, features: Tensor) -> Tensor:
        """``(B, *spatial)``."""
        design = self.design(logits.movedim(1, 0), features.movedim(1, 0))
        log_temperature: Tensor = torch.tensordot(self.weights.to(design), design, 1)
        return log_temperature.clamp(-LOG_BOUND, LOG_BOUND)

    # ---- how it is fitted ----

    def prepare(self, logits: Tensor, features: Tensor, target: Tensor) -> Prepared:
        """Logits, classes and the design."""
        return logits, target, self.design(logits, features)

    def nll(self, prepared: Prepared, values: Tensor) -> NLL:
        """The loss of weights ``(1, P)``."""
        logits, target, design = prepared
        return temperature_field_nll(logits, target, design, values[0], LOG_BOUND)

    def start(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """T = 1; all weights but the first are held to 0."""
        zero = torch.zeros(1, self.size, dtype=torch.float64, device=sample.logits.device)
        weights = torch.ones_like(zero)
        weights[0, 0] = 0
        return zero, weights

    def found(self) -> Tensor:
        """The weights, ``(1, P)``."""
        return self.weights[None]

    def learn(self, sample: Sample) -> None:
        """By Newton's method; with a doubt where T of most pixels lies at a bound."""
        super().learn(sample)
        log_temperature = self._log_temperature(sample.logits, sample.features)
        typical = float(log_temperature.median())
        self.doubt = None if abs(typical) < LOG_BOUND - 1e-3 else bound_reason(-typical)

    def settle(self, values: Tensor) -> None:
        """Take over weights ``(1, P)``."""
        with torch.inference_mode(False):
            self.weights = values[0].float().to(self.weights.device).clone()
