"""Sums over images, from which a calibrator is fitted and judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, FoldedStream
from seguq.calibration.folds import BUCKETS
from seguq.core.groups import GroupOf


class SumStream(FoldedStream):
    """A stream that keeps sums over images. A calibrator's own says what they are, and how they fit and judge it.

    Args:
        calibrator: as in `Stream`.
        width: how many sums `measure` gives.
        group: as in `Stream`.

    Attributes:
        sums: ``(BUCKETS, width)`` float64: of each bucket what `measure` gives.
    """

    def __init__(self, calibrator: Calibrator, width: int, group: GroupOf = None) -> None:
        super().__init__(calibrator, group)
        self.sums = torch.zeros(BUCKETS, width, dtype=torch.float64)

    @abstractmethod
    def measure(self, logits: Tensor, target: Tensor, image: Tensor | None) -> Tensor:
        """The sums ``(width,)`` over images of one bucket: checked class logits, class indices, images or None."""

    @abstractmethod
    def fitted_on(self, sums: Tensor) -> Calibrator:
        """A new calibrator with the settings of the given one, fitted on sums ``(width,)``."""

    @abstractmethod
    def judged_on(self, sums: Tensor, calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """As `judged`, on the images of sums ``(width,)``."""

    def keep(
        self, logits: Tensor, target: Tensor, image: Tensor | None, buckets: Sequence[int], image_ids: Sequence[str]
    ) -> None:
        """Add up the sums of each bucket."""
        added = torch.zeros_like(self.sums, device=logits.device)
        for bucket, rows in _by_bucket(buckets):
            found = self.measure(logits[rows], target[rows], None if image is None else image[rows])
            added[bucket] += found.to(added)
        self.sums = self.sums.to(logits.device) + added

    def fitted(self, buckets: Sequence[int] | None = None) -> Calibrator:
        """A new calibrator, fitted on the sums of some buckets."""
        return self.fitted_on(self._of(buckets))

    def judged(self, buckets: Sequence[int], calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """How well a calibrator does by the sums of some buckets."""
        return self.judged_on(self._of(buckets), calibrator)

    def _of(self, buckets: Sequence[int] | None) -> Tensor:
        sums = self.sums.cpu()
        return (sums if buckets is None else sums[list(buckets)]).sum(0)

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return {"counts": self.counts, "sums": self.sums}

    def combine(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Add up the sums of several."""
        self.counts, self.sums = (torch.stack([state[name].cpu() for state in states]).sum(0) for name in self.state())


def _by_bucket(buckets: Sequence[int]) -> Iterator[tuple[int, slice | list[int]]]:
    """The rows of each bucket, as a slice where they follow each other, as then nothing has to be copied."""
    for bucket in dict.fromkeys(buckets):
        rows = [row for row, of in enumerate(buckets) if of == bucket]
        together = rows[-1] - rows[0] == len(rows) - 1
        yield bucket, slice(rows[0], rows[-1] + 1) if together else rows
