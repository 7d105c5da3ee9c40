"""What calibrators are fitted on: batches of logits and targets, with or without the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seguq.core.checks import LabelWatch, require_target_range, require_target_shape
from seguq.core.errors import SeguqError
from seguq.data.batches import plain
from seguq.functional.logits import Task, class_logits, class_target

FittingBatches = Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]]


class _Triple(NamedTuple):
    logits: Tensor
    image: Tensor
    target: Tensor


class FittingBatch(_Triple):
    """``(logits, image, target)`` that knows the ids of its images.

    Attributes:
        image_ids: one id an image.
    """

    image_ids: tuple[str, ...] = ()


def taken_apart(batch: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits, image (None where there is none) and target of a batch.

    Raises:
        SeguqError: for what is neither a pair nor a triple of tensors.
    """
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3) and all(isinstance(item, Tensor) for item in batch):
        return plain(batch[0]), plain(batch[1]) if len(batch) == 3 else None, plain(batch[-1])
    raise SeguqError("batches must yield (logits, target) or (logits, image, target) tensors")


def image_ids_of(batch: Any, seen: int, images: int) -> tuple[str, ...]:
    """The ids of the images of a batch; running numbers, after so many seen before, where it tells none."""
    return getattr(batch, "image_ids", None) or tuple(str(number) for number in range(seen, seen + images))


def fitting_pairs(batches: FittingBatches, task: Task, ignore_index: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over what a user fits on: checked class logits and class indices.

    Raises:
        SeguqError: for a wrong shape, logits with NaN or infinity, or a target out of range, with the batch's number;
            for batches that can be read only once.
    """
    for batch in fitting_triples(batches, task, ignore_index):
        yield batch.logits, batch.target


class Checked(NamedTuple):
    """A batch to fit on: class logits, class indices, image (None where there is none), and ids where it tells them."""

    logits: Tensor
    target: Tensor
    image: Tensor | None
    image_ids: tuple[str, ...]


def fitting_triples(batches: FittingBatches, task: Task, ignore_index: int) -> Iterator[Checked]:
    """As `fitting_pairs`, with the images and their ids.

    Raises:
        SeguqError: as `fitting_pairs` does.
    """
    require_reiterable(batches)
    watch = LabelWatch(ignore_index)
    for number, batch in enumerate(batches):
        logits, image, target = taken_apart(batch)
        try:
            pair = checked_pair(logits, target, task, ignore_index)
            watch.look(pair[1])
        except SeguqError as error:
            raise SeguqError(f"batch {number}: {error}") from error
        yield Checked(*pair, image, tuple(getattr(batch, "image_ids", ())))
    watch.report("the targets of all batches")


def checked_pair(logits: Tensor, target: Tensor, task: Task, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Class logits ``(B, C, *spatial)`` and class indices ``(B, *spatial)`` of logits as a model gives them.

    Raises:
        SeguqError: for a wrong shape, a labeled pixel's logits with NaN or infinity, or a target out of range.
    """
    logits, target = logits.detach(), target.detach().to(logits.device)
    kind: Task = task
    if task == "multiclass" and logits.ndim >= 2 and logits.shape[1] == 1:
        kind = "binary"  # one logit a pixel can only be a sigmoid's
    elif task == "multilabel" and logits.ndim == target.ndim + 1 and logits.shape[1] == 2:
        kind = "multiclass"  # an estimator's pooled output: class logits (B, 2, L, *spatial) already
    given, logits = logits, class_logits(logits, kind)
    target = class_target(target, given, task)
    require_target_shape(logits, target)
    require_target_range(target, logits.shape[1], ignore_index)
    if not _all_finite(logits):
        # a raster has no value where there are no data, and such pixels are ignored
        logits = logits.masked_fill((target == ignore_index).unsqueeze(1), 0)
        if not _all_finite(logits):
            raise SeguqError("logits hold NaN or infinite values: the model has diverged or its input is damaged")
    return logits, target


def _all_finite(logits: Tensor) -> bool:
    return not logits.numel() or bool(torch.isfinite(torch.stack(logits.aminmax())).all())


def require_reiterable(batches: Any) -> None:
    """Raise for a generator or iterator, which can be read only once."""
    if isinstance(batches, Iterator):
        raise SeguqError(
            "batches can be read only once (a generator or iterator), but fitting reads them several times: "
            "pass a list or a DataLoader"
        )
