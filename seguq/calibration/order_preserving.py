"""Gaps between the classes of a pixel are stretched by the predicted class; their order is kept."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from seguq.calibration.few_parameters import LOG_BOUND, FewParameters, Prepared, one_log_temperature
from seguq.calibration.sample import Sample
from seguq.core.checks import require_count
from seguq.functional.likelihood import NLL, ranked_gaps, ranked_gaps_nll
from seguq.functional.logits import Task

_SENSIBLE_CLASSES = 30


class OrderPreservingScaling(FewParameters):
    r"""Stretch the gaps between the classes of a pixel, by a weight for each rank and predicted class.

    .. math::
        g_r = \log p_{(r)} - \log p_{(r+1)}, \quad z'_{(1)} = 0, \quad z'_{(r)} = - \sum_{j < r} e^{w_{kj}} g_j, \quad
        k = \arg\max p

    where (1), (2), ... are the classes of a pixel from the most probable on. All weights are positive, so the whole
    ranking of a pixel's classes is kept. They are held to one temperature (the best for the sample) by a ridge, chosen
    by folds of groups from 1e3 (one temperature) down to 1e-3.

    There are C (C - 1) weights: from 30 classes on (870) they are more than the pixels of rare classes can tell, and a
    warning says so.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        log_weights: w ``(C, C - 1)``, a buffer.
        log10_ridge: of the ridge that was chosen, a buffer.

    References:
        Rahimi et al., Intra Order-Preserving Functions for Calibration of Multi-Class Neural Networks, 2020;
        Kirscher et al., arXiv 2607.01902, 2026 (maps by the predicted class, there with a full matrix).

    Example:
        >>> cal = OrderPreservingScaling(num_classes=3)
        >>> cal(torch.tensor([[0.0, 1.0, 3.0]]))            # nothing was fitted yet
        tensor([[-3., -2., 0.]])
    """

    name: ClassVar[str] = "order_preserving"
    order_preserving: ClassVar[bool] = True
    ridges: ClassVar[tuple[float, ...]] = (1e3, 1e0, 1e-1, 1e-2, 1e-3)
    most: ClassVar[float] = LOG_BOUND
    log_weights: Tensor

    def __init__(self, num_classes: int, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__(task, ignore_index)
        require_count("num_classes", num_classes, least=2)
        if num_classes > _SENSIBLE_CLASSES:
            warnings.warn(
                f"OrderPreservingScaling of {num_classes} classes has {num_classes * (num_classes - 1)} weights, more "
                f"than the pixels of rare classes can tell: beyond {_SENSIBLE_CLASSES} classes take 'entropy'",
                stacklevel=2,
            )
        self.num_classes = num_classes
        with torch.inference_mode(False):
            self.register_buffer("log_weights", torch.zeros(num_classes, num_classes - 1))

    def fitted(self) -> dict[str, Any]:
        """The range of the weights, and how strongly they are held to one temperature."""
        weights = self.log_weights.exp()
        return {"weights": [float(weights.min()), float(weights.max())], "ridge": self.ridge}

    def require_valid(self) -> None:
        """Raise for weights that no fit gives."""
        super().require_valid()
        if float(self.log_weights.abs().max()) > self.most + 1e-4:
            raise ValueError(f"its log_weights reach {float(self.log_weights.abs().max()):g}, beyond {self.most:.4g}")

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """The logits that are left of the largest, 0, when all gaps are stretched."""
        flat = logits.movedim(1, 0).flatten(1) if logits.ndim > 2 else logits.T
        gaps, order = ranked_gaps(flat)
        scaled = gaps * self.log_weights.exp().to(gaps).T[:, order[0]]
        ranked = torch.cat((scaled.new_zeros(1, scaled.shape[1]), -scaled.cumsum(0)))
        out = torch.empty_like(ranked).scatter_(0, order, ranked)
        return out.view(logits.shape[1], len(logits), *logits.shape[2:]).movedim(0, 1)

    # ---- how it is fitted ----

    def prepare(self, logits: Tensor, features: Tensor, target: Tensor) -> Prepared:
        """Gaps, the predicted class, and the rank of the true one."""
        gaps, order = ranked_gaps(logits)
        return gaps, order[0], (order == target).int().argmax(0)

    def nll(self, prepared: Prepared, values: Tensor) -> NLL:
        """The loss of log-weights ``(C, C - 1)``."""
        gaps, predicted, rank = prepared
        return ranked_gaps_nll(gaps, predicted, rank, values)

    def start(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """One temperature."""
        shape, device = (self.num_classes, self.num_classes - 1), sample.logits.device
        center = torch.full(shape, -one_log_temperature(sample), dtype=torch.float64, device=device)
        return center, torch.ones_like(center)

    def found(self) -> Tensor:
        """The log-weights."""
        return self.log_weights

    def settle(self, values: Tensor) -> None:
        """Take over log-weights."""
        with torch.inference_mode(False):
            self.log_weights = values.float().to(self.log_weights.device).clone()
