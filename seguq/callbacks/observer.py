"""Seeing what a network returned in a step that somebody else wrote, so that it need not run again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from seguq.core.errors import SeguqError
from seguq.core.lightning import has_own
from seguq.data.batches import is_same, output_logits, plain


@dataclass(frozen=True)
class Seen:
    """One call of the network: the tensor that went in, and what came out.

    Attributes:
        image: what was given.
        output: what was returned, or None where it is of no use: the network was in training mode, or the step has
            changed it in place.
    """

    image: Tensor
    output: Any


class ForwardObserver:
    """Notes the calls of a module's forward while it is open.

    Args:
        module: the module.
        batch: the batch as the loader gave it; a call with all of it is a step, handed on by a strategy that calls
            steps through forward, and no pass through the network.
        image: the images of the batch, ``(B, channels, *spatial)``. A step may feed something made of them (a
            normalized copy): that counts, too, where it is the only call.
    """

    def __init__(self, module: nn.Module, batch: Any, image: Tensor) -> None:
        self._batch: Any = batch
        self._image: Tensor | None = image
        self._calls = 0
        self._begun: list[int] = []
        # of the calls that fit, with the batch's own images or others: how many, and the first, for its output
        self._fitting = {True: 0, False: 0}
        self._first: dict[bool, tuple[Seen, Tensor]] = {}
        self._handles = [
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, with_kwargs=True),
        ]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._begun.append(self._calls)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        inner = self._calls - self._begun.pop()
        whole = bool(args) and args[0] is self._batch and (len(args) > 1 or not isinstance(args[0], Tensor))
        tensors = [plain(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if inner or whole or not tensors:
            return
        self._calls += 1
        image = max(tensors, key=self._likeness)  # a mask may be among them, even before the images
        assert self._image is not None
        if not _gives_logits(output, image, self._image):
            return
        own = is_same(image, self._image)
        self._fitting[own] += 1
        if self._fitting[own] > 1:  # a step that goes over many crops must not fill the memory
            self._first.pop(own, None)
            return
        trains = any(part.training for part in module.modules())
        self._first[own] = (Seen(image, None if trains else output), _mark(output))

    def _likeness(self, tensor: Tensor) -> tuple[bool, bool, bool]:
        image = self._image
        assert image is not None
        return is_same(tensor, image), tensor.shape == image.shape, tensor.shape[:2] == image.shape[:2]

    def stop(self) -> None:
        """Take the hooks away; what was noted stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def close(self) -> None:
        """Take the hooks away, and forget the calls."""
        self.stop()
        self._batch = self._image = None
        self._first.clear()

    def seen(self) -> Seen | None:
        """The one call that gave logits of the batch's images, if there was just one.

        A warning says so where there were several, and none of them was given the images as they are in the batch.
        """
        found = self._first.get(True) if self._fitting[True] else self._first.get(False)
        if found is not None:
            call, mark = found
            if call.output is not None and not torch.equal(mark, _mark(call.output)):
                return Seen(call.image, None)
            return call
        if self._fitting[False] > 1 and not self._fitting[True]:
            warnings.warn(
                f"the step called forward {self._fitting[False]} times, never with the images as the loader gave "
                "them, so it is called once more with these: if they have to be normalized first, pass the callback "
                "batch_forward=lambda module, batch: module(normalize(batch[0]))",
                stacklevel=2,
            )
        return None


def _mark(output: Any) -> Tensor:
    """Some of the logits, by which it is seen that a step has changed in place what its forward returned."""
    values = output_logits(output).detach().reshape(-1)
    return values[:: max(1, len(values) // 4096)].clone()


def _gives_logits(output: Any, given: Tensor, image: Tensor) -> bool:
    try:
        logits = output_logits(output)
    except SeguqError:
        return False
    fits = logits.ndim == image.ndim and len(logits) == len(image) == len(given)
    return fits and logits.is_floating_point()


def is_turned(given: Tensor, image: Tensor) -> bool:
    """Whether an image of a batch ``(B, channels, H, W)`` was flipped or turned before it was given to a network."""
    if given.ndim != 4 or image.ndim != 4 or len(given) != len(image):
        return False
    small = [functional.adaptive_avg_pool2d(batch.float().mean(1), 16) for batch in (given, image)]
    small = [functional.normalize((batch - batch.mean((1, 2), keepdim=True)).flatten(1)) for batch in small]
    as_given, as_it_came = small[0], small[1].reshape(-1, 16, 16)
    views = [torch.rot90(side, turns, (1, 2)) for side in (as_it_came, as_it_came.mT) for turns in range(4)]
    likeness = torch.stack([(as_given * view.flatten(1)).sum(1).abs() for view in views])
    # a symmetric image fits in several ways, and one that was changed beyond recognition in none
    best = likeness[1:].amax(0)
    return bool(((best > 0.7) & (likeness[0] < best - 0.1)).any())


def network_of(module: Any) -> nn.Module:
    """What is called with a batch of images: the module, or where it has no forward the one network in it.

    Raises:
        SeguqError: if it has no forward, and none or several parts that could be meant.
    """
    if has_own(module, "forward"):
        return cast(nn.Module, module)
    parts: dict[str, nn.Module] = {
        name: part for name, part in module.named_children() if any(True for _ in part.parameters())
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    found = f"{len(parts)} parts with weights ({', '.join(parts)})" if parts else "no part with weights"
    raise SeguqError(
        f"{type(module).__name__} defines no forward, and has {found}: define forward(self, images), or pass "
        "batch_forward=lambda module, batch: module.net(batch[0])"
    )
