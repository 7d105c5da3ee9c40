"""An estimator's pooled output over labeled batches, read several times without running the network each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from seguq.calibration.base import require_reiterable
from seguq.core.seeds import derive_seed, device_of, seeded

_MEMORY = 2**30


class PooledBatches:
    """A re-iterable of ``(class logits, class indices)``.

    What fits into ``memory`` bytes is kept in main memory after the first pass, the rest is computed again each time,
    with the random numbers of the first pass, so that every pass sees the same.

    Args:
        compute: from a batch to its pair.
        batches: a re-iterable of batches.
        model: the network, for where it draws random numbers.
        seed: what these are keyed by, together with the batch's number.
        memory: bytes to keep.
    """

    def __init__(
        self,
        compute: Callable[[Any, int], tuple[Tensor, Tensor]],
        batches: Iterable[Any],
        model: nn.Module,
        seed: int,
        memory: int = _MEMORY,
    ) -> None:
        require_reiterable(batches)
        self.compute, self.batches, self.seed, self.memory = compute, batches, seed, memory
        self.device = device_of(model)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._complete = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._complete:
            yield from self._kept
            return
        room = self.memory - sum(_size(pair) for pair in self._kept)
        number, seen = -1, 0
        for number, batch in enumerate(self.batches):
            if number < len(self._kept):
                seen += len(self._kept[number][1])
                yield self._kept[number]
                continue
            with seeded(derive_seed("pooled", self.seed, number), self.device):
                logits, target = self.compute(batch, seen)
            seen += len(target)
            pair = (logits.cpu(), target.cpu())
            if number == len(self._kept) and _size(pair) <= room:
                room -= _size(pair)
                self._kept.append(pair)
            yield pair
        self._complete = len(self._kept) == number + 1


def _size(pair: tuple[Tensor, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in pair)
