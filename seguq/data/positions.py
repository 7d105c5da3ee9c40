"""Which images of a data set a loader's batches hold, told from its sampler alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from seguq.core.errors import SeguqError


@dataclass(frozen=True)
class Positions:
    """Where the images of one batch stand.

    Attributes:
        numbers: a running number for each, unique over processes.
        indices: the index of each in the data set, or None where the loader draws them at random.
        real: False for an image that a distributed sampler only repeats, so that all processes get equally many.
    """

    numbers: tuple[int, ...]
    indices: tuple[int, ...] | None
    real: tuple[bool, ...]


class PositionCounter:
    """Counts along with one run through a loader.

    The loader is not read, and no random number is drawn: indices are known of loaders that go through their data set
    in order, of torch's distributed samplers (whose order is a function of their seed and epoch), and of lists of
    batches. Of others there are running numbers only.

    Args:
        loader: any iterable of batches.
        rank: number of this process.
        processes: number of processes.

    Example:
        >>> counter = PositionCounter(DataLoader(range(3), batch_size=2))
        >>> counter.take(2).indices, counter.take(1).indices
        ((0, 1), (2,))
    """

    def __init__(self, loader: Any, rank: int = 0, processes: int = 1) -> None:
        self.rank, self.processes = rank, processes
        self._seen = 0
        self._indices: Iterator[int] | None = None
        self._distributed: DistributedSampler[Any] | None = None
        wrapped_in_order = False
        self._numbered = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        if self._numbered and loader.batch_sampler is None:  # the items of its data set are batches
            self._numbered = not isinstance(loader.sampler, SequentialSampler)
        batches = getattr(loader, "batch_sampler", None) if isinstance(loader, DataLoader) else None
        batches = getattr(batches, "_batch_sampler", batches)  # Lightning wraps it to note indices when predicting
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            self._distributed = sampler
        if type(batches) is BatchSampler:
            # a sampler that Lightning wrapped into a distributed one stands in the place of the data set
            ordered = isinstance(sampler, DistributedSampler) and sampler.dataset is loader.dataset
            inner = getattr(getattr(sampler, "dataset", None), "_sampler", None)
            wrapped_in_order = isinstance(inner, SequentialSampler) and not getattr(sampler, "shuffle", True)
            if sampler is not None and (isinstance(sampler, SequentialSampler) or ordered):
                self._indices = iter(sampler)
        elif isinstance(batches, (list, tuple)):
            self._indices = (int(index) for batch in batches for index in batch)
        self._in_order = wrapped_in_order or self._indices is not None

    @property
    def shuffles(self) -> bool:
        """Whether the images have numbers, and come in another order, or one that is not known."""
        return self._numbered and not self._in_order

    def take(self, size: int) -> Positions:
        """The positions of the next ``size`` images."""
        first, self._seen = self._seen, self._seen + size
        spread = self.processes > 1
        numbers = tuple(k * self.processes + self.rank if spread else k for k in range(first, self._seen))
        real = (True,) * size
        if self._distributed is not None:
            length = len(self._distributed.dataset)  # type: ignore[arg-type]
            replicas, rank = self._distributed.num_replicas, self._distributed.rank
            real = tuple(k * replicas + rank < length for k in range(first, self._seen))
        indices = None
        if self._indices is not None:
            known = [index for _, index in zip(range(size), self._indices, strict=False)]
            indices = tuple(known) if len(known) == size else None
        return Positions(numbers, indices, real)


def require_order(counter: PositionCounter) -> None:
    """Raise where images without ids come in an order that is not known: their numbers would be those of others.

    Raises:
        SeguqError: saying so.
    """
    if counter.shuffles:
        raise SeguqError(
            "the loader shuffles its images, or picks them by a sampler whose order is not known, and they have no "
            "ids, so that results would go by the numbers of other images: make the loader give an image_id, or pass "
            "shuffle=False"
        )
