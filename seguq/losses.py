"""Losses by name, thin over torch's and segmentation-models-pytorch's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError
from seguq.functional.logits import Task, class_logits, class_target

LossName = Literal["ce", "dice", "ce+dice"]
LOSSES: tuple[str, ...] = ("ce", "dice", "ce+dice")


class SegmentationLoss(nn.Module):
    """Cross-entropy, Dice, or their sum.

    Cross-entropy is a proper scoring rule: its minimum is reached by true probabilities. Dice is not, and models
    trained with it are overconfident; where confidence matters, choose ``"ce"`` and calibrate in any case.

    Args:
        name: ``"ce"``, ``"dice"`` or ``"ce+dice"``.
        task: ``"multiclass"``, ``"binary"`` (one or two logits) or ``"multilabel"``.
        ignore_index: value of the target that is left out.
        class_weights: one weight a class for the cross-entropy (two, for off and on, in binary and multilabel tasks).

    Example:
        >>> loss = SegmentationLoss("ce")
        >>> loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
        tensor(0.6931)
    """

    weights: Tensor | None

    def __init__(
        self,
        name: LossName = "ce",
        task: Task = "multiclass",
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        require_choice("loss", name, LOSSES)
        self.name, self.task, self.ignore_index = name, task, ignore_index
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        if weights is not None and not (weights >= 0).all():
            raise SeguqError(f"class_weights must not be negative, but are {class_weights}")
        # not persistent: weights of the loss are settings, and do not belong to the weights of the model
        self.register_buffer("weights", weights, persistent=False)
        self.dice: nn.Module | None = None
        # by the parts of the name: "dice" holds the letters "ce"
        self.parts = tuple(name.split("+"))
        if "dice" in self.parts:
            from segmentation_models_pytorch.losses import DiceLoss

            self.dice = DiceLoss(mode=task, ignore_index=ignore_index)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean loss over labeled pixels; 0 where none is labeled.

        Args:
            logits: the model's own, ``(B, C, *spatial)``.
            target: class indices ``(B, *spatial)``; for multilabel ``(B, L, *spatial)``.
        """
        index = class_target(target, logits, self.task)
        expected = tuple(logits.shape) if self.task == "multilabel" else (logits.shape[0], *logits.shape[2:])
        if tuple(index.shape) != expected:
            labels = ", one channel of 0 and 1 a label," if self.task == "multilabel" else ""
            raise SeguqError(
                f"masks must have the shape {expected}{labels} to go with logits of shape {tuple(logits.shape)} and "
                f"task={self.task!r}, but have shape {tuple(target.shape)}"
            )
        loss = logits.new_zeros((), dtype=torch.float32)
        if "ce" in self.parts:
            loss = loss + self._cross_entropy(class_logits(logits, self.task), index)
        if self.dice is not None:
            two = self.task == "binary" and logits.shape[1] == 2
            single = logits[:, 1:] - logits[:, :1] if two else logits  # smp's binary mode takes one logit
            dice = index.unsqueeze(1) if self.task == "binary" else index
            loss = loss + self.dice(single.float(), dice)
        return loss

    def _cross_entropy(self, logits: Tensor, index: Tensor) -> Tensor:
        classes = logits.shape[1]
        if self.weights is not None and len(self.weights) != classes:
            raise SeguqError(f"class_weights has {len(self.weights)} weights, but there are {classes} classes")
        # Trainer(precision="bf16-true") casts the weights along with the module, and class logits are float32
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        total = nn.functional.cross_entropy(
            logits, index, weight=weights, ignore_index=self.ignore_index, reduction="sum"
        )
        labeled = index != self.ignore_index
        mass = labeled.sum() if weights is None else weights[index.where(labeled, 0)].masked_fill(~labeled, 0).sum()
        # torch's own mean is NaN where a crop holds no labeled pixel, and one such step ends the training
        return total / mass.clamp_min(torch.finfo(torch.float32).tiny)
