"""Calibrated logits that are out of sample: each image by a calibrator that was fitted without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, require_reiterable
from seguq.core.errors import SeguqError


class CrossFitted(NamedTuple):
    """One batch: raw logits, out-of-sample calibrated logits, targets, and the images' running numbers."""

    logits: Tensor
    calibrated: Tensor
    target: Tensor
    numbers: list[int]


class _Fold:
    """The images of a re-iterable of (logits, target) that are not in one fold."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], leave_out: int, folds: int) -> None:
        self.batches, self.leave_out, self.folds = batches, leave_out, folds

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        for logits, target in self.batches:
            numbers = torch.arange(seen, seen + len(logits))
            seen += len(logits)
            keep = (numbers % self.folds != self.leave_out).nonzero().flatten().to(logits.device)
            if len(keep):
                yield logits[keep], target[keep.to(target.device)]
        if seen < self.folds:
            raise SeguqError(
                f"figures out of sample need at least {self.folds} images, as many as folds, but there are {seen}"
            )


def cross_fit(
    make: Callable[[], Calibrator], batches: Iterable[tuple[Tensor, Tensor]], folds: int = 2
) -> Iterator[CrossFitted]:
    """Calibrate held-out data out of sample: image n belongs to fold ``n % folds``.

    Args:
        make: gives a new, unfitted calibrator.
        batches: a re-iterable of ``(logits, target)``, always in the same order.
        folds: number of folds.

    Yields:
        One `CrossFitted` a batch.

    Raises:
        SeguqError: if there are fewer images than folds.
    """
    require_reiterable(batches)
    if folds < 2:
        raise SeguqError(f"folds must be at least 2, but is {folds}")
    fitted = [make().fit(_Fold(batches, fold, folds)) for fold in range(folds)]
    seen = 0
    for logits, target in batches:
        numbers = list(range(seen, seen + len(logits)))
        seen += len(logits)
        rows = [fitted[n % folds](logits[i : i + 1]) for i, n in enumerate(numbers)]
        yield CrossFitted(logits, torch.cat(rows), target, numbers)
