"""A scale and a bias for each class, held to one temperature for all."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.few_parameters import FewParameters, Prepared, one_log_temperature
from seguq.calibration.sample import Sample
from seguq.core.checks import require_count
from seguq.functional.likelihood import NLL, class_affine_nll
from seguq.functional.logits import Task


class StructuredScaling(FewParameters):
    r"""Scale and shift the log-probabilities of each class, by little more than one temperature where data are few.

    .. math::
        z'_c = (\beta + \delta_c) \log p_c + b_c, \quad
        \min_{\beta, \delta, b} - \frac1n \sum_i \log \mathrm{softmax}(z'_i)_{y_i}
        + \frac{\lambda}{2} \sum_c (\delta_c^2 + b_c^2)

    The ridge lambda is chosen by folds of groups from 1e3 (one temperature) down to 1e-3. The predicted class of a
    pixel can change.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        scale: beta + delta, ``(C,)``, a buffer.
        bias: b, ``(C,)``, a buffer.
        inverse_temperature: beta, a buffer.
        log10_ridge: of the lambda that was chosen, a buffer.

    References:
        Kull et al., Beyond temperature scaling, 2019 (vector scaling, and the ridge of Dirichlet calibration);
        structured vector scaling as in CalArena, 2026.

    Example:
        >>> cal = StructuredScaling(num_classes=2)
        >>> cal(torch.tensor([[0.0, 1.0]])).softmax(1)      # nothing was fitted yet
        tensor([[0.2689, 0.7311]])
    """

    name: ClassVar[str] = "structured"
    order_preserving: ClassVar[bool] = False
    ridges: ClassVar[tuple[float, ...]] = (1e3, 1e0, 1e-1, 1e-2, 1e-3)
    most: ClassVar[float] = 1e3
    scale: Tensor
    bias: Tensor
    inverse_temperature: Tensor

    def __init__(self, num_classes: int, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        self.num_classes = num_classes
        with torch.inference_mode(False):
            self.register_buffer("scale", torch.ones(num_classes))
            self.register_buffer("bias", torch.zeros(num_classes))
            self.register_buffer("inverse_temperature", torch.ones(()))

    def fitted(self) -> dict[str, Any]:
        """The temperature that all are held to, how strongly, and the range of the scales and biases."""
        return {
            "temperature": 1 / float(self.inverse_temperature),
            "ridge": self.ridge,
            "scales": [float(self.scale.min()), float(self.scale.max())],
            "biases": [float(self.bias.min()), float(self.bias.max())],
        }

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Scaled and shifted log-probabilities."""
        log_probs = (logits - logits.logsumexp(1, keepdim=True)).clamp_min(-1e4)
        shape = (1, -1, *[1] * (logits.ndim - 2))
        return log_probs * self.scale.to(logits).view(shape) + self.bias.to(logits).view(shape)

    def require_valid(self) -> None:
        """Raise for a temperature that no fit gives."""
        super().require_valid()
        if float(self.inverse_temperature) == 0:
            raise ValueError("its 'inverse_temperature' is 0")

    # ---- how it is fitted ----

    def prepare(self, logits: Tensor, features: Tensor, target: Tensor) -> Prepared:
        """Log-probabilities and classes."""
        return logits - logits.logsumexp(0), target

    def nll(self, prepared: Prepared, values: Tensor) -> NLL:
        """The loss of beta, delta and b ``(1, 1 + 2 C)``."""
        beta, delta, bias = torch.split(values[0], [1, self.num_classes, self.num_classes])
        log_probs, target = prepared
        found = class_affine_nll(log_probs, target, beta + delta, bias)
        onto = torch.eye(2 * self.num_classes, dtype=torch.float64, device=values.device)
        onto = torch.cat((onto[: self.num_classes].sum(0)[None], onto))  # beta moves all scales
        hessian = onto @ found.hessian @ onto.T
        return NLL(found.loss, found.gradient @ onto.T, hessian, hessian)

    def start(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """One temperature, which nothing is held to."""
        center = torch.zeros(1, 1 + 2 * self.num_classes, dtype=torch.float64, device=sample.logits.device)
        center[0, 0] = math.exp(-one_log_temperature(sample))
        weights = torch.ones_like(center)
        weights[0, 0] = 0
        return center, weights

    def found(self) -> Tensor:
        """beta, delta and b, ``(1, 1 + 2 C)``."""
        beta = self.inverse_temperature[None]
        return torch.cat((beta, self.scale - beta, self.bias))[None]

    def settle(self, values: Tensor) -> None:
        """Take over beta, delta and b."""
        beta, delta, bias = torch.split(
            values[0].float().to(self.scale.device), [1, self.num_classes, self.num_classes]
        )
        with torch.inference_mode(False):
            self.inverse_temperature, self.scale, self.bias = beta[0].clone(), beta + delta, bias.clone()
