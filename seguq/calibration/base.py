"""What every calibrator is: a module from logits to calibrated logits that is fitted on held-out data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.core.checks import require_target_range, require_target_shape
from seguq.core.errors import SeguqError
from seguq.core.named import Named
from seguq.functional.logits import Task, class_logits, class_target

FittingBatches = Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]]


class Calibrator(Named, nn.Module, ABC):
    """A map from logits to calibrated logits of the same shape.

    Every calibrator gives the same probabilities for logits z and z + c. What its constructor takes are plain values,
    kept in attributes of the same names: with the tensors of its ``state_dict`` they rebuild it from a checkpoint.

    Attributes:
        order_preserving: whether the predicted class of a pixel can never change.
        tag: the estimator whose pooled output it was fitted on, or None.
        weights_sha256: hash of the weights that it was fitted for (see `seguq.weights.weights_sha256`), or None.
        global_step: the training step of those weights, or None.
    """

    order_preserving: ClassVar[bool]

    def __init__(self) -> None:
        super().__init__()
        self.tag: str | None = None
        self.weights_sha256: str | None = None
        self.global_step: int | None = None

    @abstractmethod
    def fit(self, batches: FittingBatches) -> Calibrator:
        """Learn from a re-iterable of ``(logits, target)`` or ``(logits, image, target)``; returns itself."""

    def fitted(self) -> dict[str, Any]:
        """Its tensors, those of a few values."""
        small = {name: tensor for name, tensor in self.state_dict().items() if tensor.numel() <= 4}
        return {name: tensor.tolist() for name, tensor in small.items()}

    @abstractmethod
    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Calibrated logits, of the same shape as ``logits``."""


def fitting_pairs(batches: FittingBatches, task: Task, ignore_index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over what a user fits on: checked class logits and class indices.

    Raises:
        SeguqError: for a wrong shape, logits with NaN or infinity, or a target out of range, with the batch's number.
    """
    for number, batch in enumerate(batches):
        try:
            logits, *_, target = batch
            logits, target = logits.detach(), target.detach().to(logits.device)
        except (TypeError, ValueError, AttributeError) as error:
            raise SeguqError("batches must yield (logits, target) or (logits, image, target) tensors") from error
        try:
            kind: Task = task
            if task == "multiclass" and logits.ndim >= 2 and logits.shape[1] == 1:
                kind = "binary"  # one logit a pixel can only be a sigmoid's
            elif task == "multilabel" and logits.ndim == target.ndim + 1 and logits.shape[1] == 2:
                kind = "multiclass"  # an estimator's pooled output: class logits (B, 2, L, *spatial) already
            given, logits = logits, class_logits(logits, kind)
            target = class_target(target, given, task)
            require_target_shape(logits, target)
            require_target_range(target, logits.shape[1], ignore_index)
            if logits.numel() and not bool(torch.isfinite(torch.stack(logits.aminmax())).all()):
                raise SeguqError("logits hold NaN or infinite values: the model has diverged or its input is damaged")
        except SeguqError as error:
            raise SeguqError(f"batch {number}: {error}") from error
        yield logits, target


def require_reiterable(batches: Any) -> None:
    """Raise for a generator or iterator, which can be read only once."""
    if isinstance(batches, Iterator):
        raise SeguqError(
            "batches can be read only once (a generator or iterator), but fitting reads them several times: "
            "pass a list or a DataLoader"
        )
