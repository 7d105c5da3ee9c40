"""An affine map of the log-probabilities of a pixel, with every class able to move every other."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.batches import FittingBatches
from seguq.calibration.few_parameters import FewParameters, Prepared, one_log_temperature
from seguq.calibration.sample import Sample
from seguq.core.checks import require_count
from seguq.functional.likelihood import NLL, affine_nll
from seguq.functional.logits import Task

_SENSIBLE_CLASSES = 20
_LOWEST = -20.0  # of a log-probability; lower ones would make the other weights of their class too small to be told
_DIAGONAL = 1e-6  # of a pixel's loss, for data of which the diagonal could be anything


class DirichletCalibration(FewParameters):
    r"""Map the log-probabilities of each pixel by a matrix and a bias.

    .. math::
        z' = W \log p + b, \quad
        \min_{W, b} - \frac1n \sum_i \log \mathrm{softmax}(z'_i)_{y_i}
        + \frac{\lambda}{2} \Big( \frac{1}{C (C - 1)} \sum_{j \ne k} W_{jk}^2 + \frac1C \sum_j b_j^2 \Big)

    The off-diagonal weights and the biases are held to 0 (ODIR) by a lambda that is chosen by folds of groups from 100
    down to 1e-4; the diagonal is free. Log-probabilities below -20 are taken for -20. The predicted class of a pixel
    can change.

    **For comparison only.** It was measured worse than one temperature on an unseen video.

    It is fitted on a sample of pixels alone (`SampledCalibrator`), in one reading: there are C (C + 1) parameters, and
    the time that a step of Newton's method takes grows with their square. Beyond 20 classes (420 parameters) a fit
    takes minutes, and the parameters are more than the pixels of rare classes can tell: a warning says so.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        weight: W ``(C, C)``, a buffer.
        bias: b ``(C,)``, a buffer.
        log10_ridge: of the lambda that was chosen, a buffer.

    References:
        Kull et al., Beyond temperature scaling: Obtaining well-calibrated multiclass probabilities with Dirichlet
        calibration, 2019 (there with a lambda for the matrix and one for the bias).

    Example:
        >>> cal = DirichletCalibration(num_classes=2)
        >>> cal(torch.tensor([[0.0, 1.0]])).softmax(1)      # nothing was fitted yet
        tensor([[0.2689, 0.7311]])
    """

    name: ClassVar[str] = "dirichlet"
    order_preserving: ClassVar[bool] = False
    ridges: ClassVar[tuple[float, ...]] = (1e2, 1e0, 1e-2, 1e-4)
    most: ClassVar[float] = 1e3
    weight: Tensor
    bias: Tensor

    def __init__(self, num_classes: int, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        if num_classes > _SENSIBLE_CLASSES:
            warnings.warn(
                f"DirichletCalibration of {num_classes} classes has {num_classes * (num_classes + 1)} parameters, more "
                f"than the pixels of rare classes can tell, and takes long to fit: beyond {_SENSIBLE_CLASSES} classes "
                "take 'structured'",
                stacklevel=2,
            )
        self.num_classes = num_classes
        with torch.inference_mode(False):
            self.register_buffer("weight", torch.eye(num_classes))
            self.register_buffer("bias", torch.zeros(num_classes))

    def fitted(self) -> dict[str, Any]:
        """The ranges of the diagonal, of what is beside it and of the biases, and how strongly they are held to 0."""
        beside = self.weight[~torch.eye(self.num_classes, dtype=torch.bool, device=self.weight.device)]
        parts = {"diagonal": self.weight.diagonal(), "beside": beside, "biases": self.bias}
        return {"ridge": self.ridge, **{k: [float(v.min()), float(v.max())] for k, v in parts.items()}}

    def require_valid(self) -> None:
        """Raise for weights that no fit gives."""
        super().require_valid()
        largest = max(float(self.weight.abs().max()), float(self.bias.abs().max()))
        if largest > self.most * (1 + 1e-6):
            raise ValueError(f"its weight or bias reaches {largest:g}, beyond {self.most:g}")

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Mapped log-probabilities."""
        mapped = torch.einsum("kc,bc...->bk...", self.weight.to(logits), _log_probs(logits, 1))
        return mapped + self.bias.to(logits).view(-1, *[1] * (logits.ndim - 2))

    # ---- how it is fitted ----

    def prepare(self, logits: Tensor, features: Tensor, target: Tensor) -> Prepared:
        """Log-probabilities with a row of ones below, and classes."""
        log_probs = _log_probs(logits, 0)
        return torch.cat((log_probs, torch.ones_like(log_probs[:1]))), target

    def nll(self, prepared: Prepared, values: Tensor) -> NLL:
        """The loss of each class's weights and bias ``(1, C (C + 1))``."""
        inputs, target = prepared
        return affine_nll(inputs, target, values.view(self.num_classes, -1))

    def start(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """One temperature."""
        c, device = self.num_classes, sample.logits.device
        eye = torch.eye(c, c + 1, dtype=torch.float64, device=device)
        weights = torch.full_like(eye, 1 / (c * (c - 1)))
        weights[:, c] = 1 / c
        weights[eye > 0] = _DIAGONAL
        return (eye * math.exp(-one_log_temperature(sample))).view(1, -1), weights.view(1, -1)

    def found(self) -> Tensor:
        """The weights and bias of each class, ``(1, C (C + 1))``."""
        return torch.cat((self.weight, self.bias[:, None]), 1).view(1, -1)

    def settle(self, values: Tensor) -> None:
        """Take over weights and biases."""
        rows = values.view(self.num_classes, -1).float().to(self.weight.device)
        with torch.inference_mode(False):
            self.weight, self.bias = rows[:, :-1].clone(), rows[:, -1].clone()

    def refine(self, batches: FittingBatches, sample: Sample, pixels: int) -> None:
        """Leave what the sample has led to: the sums over all pixels would take far longer than they are worth."""


def _log_probs(logits: Tensor, dim: int) -> Tensor:
    return (logits - logits.logsumexp(dim, keepdim=True)).clamp_min(_LOWEST)
