"""One representation for the three tasks: class logits with the classes in dimension 1."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seguq.core.checks import require_choice, require_dims
from seguq.core.errors import SeguqError

Task = Literal["multiclass", "binary", "multilabel"]
TASKS: tuple[str, ...] = ("multiclass", "binary", "multilabel")


def full_precision(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def class_logits(logits: Tensor, task: Task = "multiclass") -> Tensor:
    """Bring a model's logits into class logits, at least float32.

    A logit z of a sigmoid becomes the two logits (0, z), whose softmax is exactly that sigmoid.

    Args:
        logits: ``(B, C, *spatial)``: C classes (multiclass), C = 1 or 2 (binary), or C independent labels (multilabel).
        task: what the C channels are.

    Returns:
        ``(B, C, *spatial)`` for multiclass, ``(B, 2, *spatial)`` for binary, and ``(B, 2, L, *spatial)`` for
        multilabel: the labels come first among the spatial dimensions, so everything else holds as it stands.

    Raises:
        SeguqError: for an unknown task, too few dimensions, or a number of channels that does not go with the task.

    Example:
        >>> class_logits(torch.tensor([[2.0]]), "binary")
        tensor([[0., 2.]])
    """
    require_choice("task", task, TASKS)
    require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
    if not logits.is_floating_point():
        raise SeguqError(f"logits must be floating point, but have dtype {logits.dtype}")
    logits = full_precision(logits)
    channels = logits.shape[1]
    if task == "multilabel":
        return torch.stack((torch.zeros_like(logits), logits), dim=1)
    if task == "binary":
        if channels not in (1, 2):
            raise SeguqError(f"task='binary' needs 1 or 2 logits a pixel, but logits have shape {tuple(logits.shape)}")
        return torch.cat((torch.zeros_like(logits), logits), dim=1) if channels == 1 else logits
    if channels == 1:
        raise SeguqError(
            f"logits of shape {tuple(logits.shape)} have one channel: use task='binary' for a one-logit model"
        )
    return logits


def class_target(target: Tensor, logits: Tensor, task: Task = "multiclass") -> Tensor:
    """Bring a mask into the class indices that go with `class_logits`.

    Args:
        target: ``(B, *spatial)`` of class indices; a channel of size 1, ``(B, 1, *spatial)``, is dropped;
            for multilabel ``(B, L, *spatial)`` of 0, 1 and the ignored index.
        logits: the model's own logits, ``(B, C, *spatial)``.
        task: as in `class_logits`.

    Returns:
        int64, ``(B, *spatial)``, or ``(B, L, *spatial)`` for multilabel.
    """
    if task != "multilabel" and target.ndim == logits.ndim and target.shape[1] == 1:
        target = target.squeeze(1)
    if task != "multilabel" and target.ndim == logits.ndim > 2 and target.shape[1] > 1:
        raise SeguqError(
            f"target of shape {tuple(target.shape)} has a channel for each class: pass task='multilabel' for "
            "independent labels, or class indices by target.argmax(1) for classes of which each pixel has one"
        )
    # a mask that went through float arithmetic (a binary loss wants float) is fine as long as it holds whole numbers
    if target.is_floating_point():
        whole = target.round()
        if not (torch.equal(whole, target) and bool(whole.isfinite().all())):
            raise SeguqError("target must hold class indices, but holds values that are no whole numbers")
        target = whole
    return target.long()
