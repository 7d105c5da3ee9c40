"""What a Trainer's loaders give: which there are, and how a batch and the answer of ``batch_forward=`` are taken in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from seguq.core.errors import SeguqError
from seguq.core.trees import leaves
from seguq.data.batches import output_logits, plain, unpack_batch

BatchForward = Callable[[nn.Module, Any], Any]
"""From a module and a batch as the loader gave it to logits, or to ``(logits, mask)``."""

EXAMPLE = "batch_forward=lambda module, batch: (module(batch['my_image']), batch['my_mask'])"


def taken_in(
    batch: Any, batch_forward: BatchForward | None
) -> tuple[Tensor | None, Tensor | None, tuple[str, ...] | None]:
    """Images, masks and ids of a batch; None where only ``batch_forward=`` understands it.

    Raises:
        SeguqError: where nobody does, with an example.
    """
    try:
        taken = unpack_batch(batch)
    except SeguqError as error:
        if batch_forward is not None:
            return None, None, None
        raise SeguqError(f"{error}; or pass the callback {EXAMPLE}") from error
    return taken.image, taken.mask, taken.image_id


def logits_and_mask(output: Any) -> tuple[Tensor, Tensor | None]:
    """What ``batch_forward=`` gave: logits alone, or with the mask.

    The second of two tensors is the mask where it has no channels, or holds whole numbers alone, of whatever type (a
    binary loss wants float); otherwise it is a further output of the network.
    """
    if isinstance(output, (tuple, list)) and len(output) == 2 and isinstance(output[1], Tensor):
        logits, mask = output_logits(output[0]), plain(output[1])
        if mask.ndim == logits.ndim - 1 or not mask.is_floating_point() or bool((mask == mask.round()).all()):
            return logits, mask
    return output_logits(output), None


def loaders_of(trainer: Any, stage: str) -> list[Any]:
    """The loaders of a stage in the order of their numbers, whatever nest they were given in."""
    names = {"validate": "val_dataloaders", "test": "test_dataloaders", "predict": "predict_dataloaders"}
    return leaves(getattr(trainer, names[stage]))


def images_in(trainer: Any, stage: str, dataloader: int) -> int | None:
    """How many images a loader of a stage gives to all processes in one run; None where that is not known."""
    loader = dict(enumerate(loaders_of(trainer, stage))).get(dataloader)
    batches = {"validate": "num_val_batches", "test": "num_test_batches", "predict": "num_predict_batches"}
    known: list[float] = []
    with contextlib.suppress(AttributeError, TypeError):  # a data set that can only be gone through
        known.append(len(loader.dataset))  # type: ignore[union-attr]
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if size is not None:
        known.append(getattr(trainer, batches[stage])[dataloader] * size * trainer.world_size)
    total = min(known, default=float("inf"))
    return int(total) if total < 1e9 else None
