"""A batch for a metric, and what a metric holds and says that was filled with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MetricBatch:
    """Images with their labels and ids."""

    scores: Tensor
    target: Tensor
    ids: list[str]
    ignore_index: int

    @classmethod
    def of(cls, scores: Tensor, target: Tensor, ignore_index: int) -> MetricBatch:
        return cls(scores.clone(), target.clone(), [f"image {number}" for number in range(len(target))], ignore_index)

    def __getitem__(self, images: Sequence[int]) -> MetricBatch:
        rows = list(images)
        return replace(self, scores=self.scores[rows], target=self.target[rows], ids=[self.ids[row] for row in rows])

    def __len__(self) -> int:
        return len(self.target)

    @property
    def floating(self) -> bool:
        return self.scores.is_floating_point()

    @property
    def ignored(self) -> Tensor:
        """Which scores are of ignored pixels, of their shape."""
        ignored = self.target == self.ignore_index
        return (ignored if self.scores.ndim == ignored.ndim else ignored.unsqueeze(1)).expand_as(self.scores)

    def shaped(self, *spatial: int) -> MetricBatch:
        lead = self.scores.shape[: self.scores.ndim - self.target.ndim + 1]
        target = self.target.reshape(len(self), *spatial)
        return replace(self, scores=self.scores.reshape(*lead, *spatial), target=target)

    def tiles(self) -> tuple[MetricBatch, MetricBatch]:
        """The images cut in two, of different sizes."""
        left = replace(self, scores=self.scores[..., :1], target=self.target[..., :1])
        return left, replace(self, scores=self.scores[..., 1:], target=self.target[..., 1:])


def filled(metric: Any, *batches: MetricBatch, ids: bool = True) -> Any:
    for batch in batches:
        metric.update(batch.scores, batch.target, group=batch.ids if ids else None)
    return metric


def numbers(found: Any) -> Tensor:
    """A value or an interval, or several by name, as one tensor."""
    if isinstance(found, dict):
        return torch.cat([numbers(found[name]) for name in sorted(found)])
    return torch.stack([part.double() for part in (found if isinstance(found, tuple) else (found,))])


def value_and_bounds(metric: Any) -> Tensor:
    """Value and interval."""
    return torch.cat((numbers(metric.compute()), numbers(metric.compute_interval())))


def states_of(metric: Any) -> dict[str, Tensor]:
    return {name: state.clone() for name, state in metric.metric_state.items()}


def agree(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=1e-6, equal_nan=True)
