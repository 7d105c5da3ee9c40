"""An estimator's pooled output over labeled batches, read several times without running the network each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from seguq.calibration.batches import FittingBatch, require_reiterable
from seguq.core.seeds import derive_seed, device_of, seeded

_MEMORY = 2**30


class PooledBatches:
    """A re-iterable of ``(class logits, image, class indices)``, each of which knows its images' ids.

    What fits into ``memory`` bytes is kept in main memory after the first pass, the rest is computed again each time,
    with the random numbers of the first pass, so that every pass sees the same.

    Args:
        compute: from a batch, and the number of images before it, to its triple.
        batches: a re-iterable of batches.
        model: the network, for where it draws random numbers.
        seed: what these are keyed by, together with the batch's number.
        memory: bytes to keep.
    """

    def __init__(
        self,
        compute: Callable[[Any, int], FittingBatch],
        batches: Iterable[Any],
        model: nn.Module,
        seed: int,
        memory: int = _MEMORY,
    ) -> None:
        require_reiterable(batches)
        self.compute, self.batches, self.seed, self.memory = compute, batches, seed, memory
        self.device = device_of(model)
        self._kept: list[FittingBatch] = []
        self._complete = False

    def __iter__(self) -> Iterator[FittingBatch]:
        if self._complete:
            yield from self._kept
            return
        room = self.memory - sum(_size(triple) for triple in self._kept)
        number, seen = -1, 0
        for number, batch in enumerate(self.batches):
            if number < len(self._kept):
                seen += len(self._kept[number].target)
                yield self._kept[number]
                continue
            with seeded(derive_seed("pooled", self.seed, number), self.device):
                computed = self.compute(batch, seen)
            seen += len(computed.target)
            triple = FittingBatch(*(tensor.cpu() for tensor in computed))
            triple.image_ids = computed.image_ids
            if number == len(self._kept) and _size(triple) <= room:
                room -= _size(triple)
                self._kept.append(triple)
            yield triple
        self._complete = len(self._kept) == number + 1


def _size(triple: FittingBatch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in triple)
