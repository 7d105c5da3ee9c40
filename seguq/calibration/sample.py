"""Pixels of many images, drawn evenly: a bounded number of them, the same whatever the order of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nn_functional

from seguq.calibration.folds import TooFewGroups, assign
from seguq.core.seeds import derive_seed

MOST_PIXELS = 1 << 18
"""So many pixels are kept at most, and half as many at least where there are."""


@dataclass(frozen=True)
class Sample:
    """Labeled pixels, or crops of images, and what a calibrator reads of them.

    Attributes:
        logits: how far each class logit lies above the largest of its pixel, so 0 and below, ``(N, C, *crop)``.
        features: what else was read of the whole image at that place, ``(N, K, *crop)``; K may be 0.
        target: class indices, ``(N, *crop)``; in crops some may be the ignored index.
        bucket: of the image that it is from, ``(N,)``.
        complete: whether it holds all labeled pixels that there were.
        named: whether buckets are of named groups, not of contiguous blocks.
    """

    logits: Tensor
    features: Tensor
    target: Tensor
    bucket: Tensor
    complete: bool
    named: bool

    @classmethod
    def of_items(cls, items: Mapping[str, Tensor], complete: bool, named: bool) -> Sample:
        """Of what a `Reservoir` holds; pixels with those of one class side by side in memory, where sums are fast."""
        with torch.inference_mode(False):  # what is learned from may not be of inference mode
            columns = {
                name: items[name].T.contiguous().T.clone() if items[name].ndim == 2 else items[name].clone()
                for name in ("logits", "features", "target", "bucket")
            }
        return cls(**columns, complete=complete, named=named)

    def of(self, buckets: Sequence[int] | None) -> Sample:
        """What is from the images of some buckets; None: all."""
        if buckets is None:
            return self
        rows = torch.isin(self.bucket, torch.tensor(list(buckets), device=self.bucket.device)).nonzero()[:, 0]
        logits, features = (
            t.T.index_select(1, rows).T if t.ndim == 2 else t[rows] for t in (self.logits, self.features)
        )
        return Sample(logits, features, self.target[rows], self.bucket[rows], self.complete, self.named)

    def pixels(self, ignore_index: int) -> Sample:
        """The labeled pixels of crops."""
        kept = self.target.flatten(1) != ignore_index
        logits, features = (pixels_of(tensor, kept).T.contiguous().T for tensor in (self.logits, self.features))
        bucket = self.bucket[:, None].expand_as(kept)[kept]
        return Sample(logits, features, self.target.flatten(1)[kept], bucket, self.complete, self.named)

    def halves(self) -> tuple[Sample, Sample] | None:
        """Its two folds of buckets; None where all is of one."""
        found, counts = torch.unique(self.bucket, return_counts=True)
        try:
            fold_of = assign(dict(zip(found.tolist(), counts.tolist(), strict=True)), 2, contiguous=not self.named)
        except TooFewGroups:
            return None
        one, other = (self.of([bucket for bucket in fold_of if fold_of[bucket] == fold]) for fold in (0, 1))
        return one, other


class Reservoir:
    """Keeps a bounded number of items, each of which has drawn a number from 0 to 1.

    Kept are those whose number lies below a rate that starts at 1, and halves whenever more than ``most`` are held. So
    every item has the same chance, and which are kept depends neither on their order nor on the processes that they
    come in.

    Args:
        most: items that are kept at most.

    Attributes:
        rate: items with a number below it are kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.rate = most, 1.0
        # in one place each: a piece for each batch would lie between what is freed around it, so that memory would grow
        # with the number of batches
        self._columns: dict[str, Tensor] = {}
        self._held = 0

    def add(self, drawn: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Take items in.

        Args:
            drawn: the number of each, ``(N,)`` from 0 to 1, all of them below the rate.
            columns: tensors by name, each ``(N, ...)``.
        """
        if not len(drawn):
            return
        added = {"drawn": drawn, **columns}
        with torch.inference_mode(False), torch.no_grad():  # what is made inside of it could not be filled outside
            while self._held + len(added["drawn"]) > self.most:
                self.rate /= 2
                added = self._below_rate(added)
                self._hold(self._below_rate(self.items()), 0)
            self._hold(added, self._held)

    def items(self) -> dict[str, Tensor]:
        """What is kept, by name, until more is added; empty where nothing is."""
        return {name: column[: self._held] for name, column in self._columns.items()}

    def _below_rate(self, items: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not items:
            return {}
        rows = items["drawn"] < self.rate
        return {name: column[rows] for name, column in items.items()}

    def _hold(self, items: Mapping[str, Tensor], start: int) -> None:
        """Put items behind the first ``start`` of those that are held."""
        for name, column in items.items():
            end = start + len(column)
            if name not in self._columns or len(self._columns[name]) < end:
                larger = column.new_empty(min(2 * end, max(end, self.most)), *column.shape[1:])
                if start:
                    larger[:start] = self._columns[name][:start]
                self._columns[name] = larger
            self._columns[name][start:end] = column
        self._held = start + len(items.get("drawn", ()))


def draw(image_ids: Sequence[str], count: int, device: torch.device) -> Tensor:
    """A number from 0 to 1 for each of so many items of each image, ``(B, count)``, by the id of the image alone."""
    rows = [
        torch.rand(count, generator=torch.Generator().manual_seed(derive_seed("sample", image_id)))
        for image_id in image_ids
    ]
    return torch.stack(rows).to(device) if rows else torch.zeros(0, count, device=device)


def pixels_of(tensor: Tensor, kept: Tensor) -> Tensor:
    """The pixels ``(N, channels)`` of ``(B, channels, *spatial)`` where ``kept (B, pixels)`` is True."""
    return tensor.unsqueeze(-1).flatten(2).movedim(1, 2)[kept]  # pixels alone have no spatial dimension


def crops_of(tensor: Tensor, side: int, offset: Sequence[int], fill: float) -> Tensor:
    """An image cut into crops.

    Args:
        tensor: ``(channels, *spatial)``.
        side: of a square (cubic) crop, in pixels.
        offset: where the first crop ends along each axis, from 1 to ``side``; what sticks out is filled up.
        fill: with what.

    Returns:
        ``(number, channels, side, ...)``.
    """
    padding: list[int] = []
    for size, first in zip(tensor.shape[1:], offset, strict=True):
        before = side - first
        padding = [before, -(before + size) % side, *padding]  # torch counts axes from the last
    tensor = nn_functional.pad(tensor, padding, value=fill)
    for axis in range(1, tensor.ndim):
        tensor = tensor.unfold(axis, side, side)
    dims = len(offset)
    return tensor.movedim(0, dims).flatten(0, dims - 1)
