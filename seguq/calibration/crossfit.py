"""Calibrated logits that are out of sample: each image by a calibrator that was fitted without its group."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator
from seguq.calibration.batches import (
    FittingBatch,
    FittingBatches,
    checked_pair,
    image_ids_of,
    require_reiterable,
    taken_apart,
)
from seguq.calibration.by_name import fit_calibrator
from seguq.calibration.folds import Buckets, assign
from seguq.core.checks import flat_images
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf


class CrossFitted(NamedTuple):
    """One batch: raw logits, out-of-sample calibrated logits, targets, and number and group of each image."""

    logits: Tensor
    calibrated: Tensor
    target: Tensor
    numbers: list[int]
    groups: list[str]


class _Place(NamedTuple):
    """An image in the data: its id, its running number, and what goes to a fold as a whole."""

    image_id: str
    number: int
    key: tuple[int, str]


class _Folded:
    """Batches, and the fold of every image in them."""

    def __init__(self, batches: FittingBatches, folds: int, group: GroupOf, settings: Calibrator) -> None:
        self.batches = batches
        self.buckets = Buckets(group)
        pixels: Counter[tuple[int, str]] = Counter()
        self.images = 0
        for number, (batch, places) in enumerate(self):
            logits, _, target = taken_apart(batch)
            try:  # here, as the numbers of batches are others where a fold is left out
                _, target = checked_pair(logits, target, settings.task, settings.ignore_index)
            except SeguqError as error:
                raise SeguqError(f"batch {number}: {error}") from error
            counts = flat_images(target != settings.ignore_index).flatten(1).sum(1).tolist()
            for place, count in zip(places, counts, strict=True):
                pixels[place.key] += count
            self.images += len(places)
        self._fold_of = assign(pixels, folds, contiguous=not self.buckets.groups.named)

    def __iter__(self) -> Iterator[tuple[Any, list[_Place]]]:
        seen = 0
        for batch in self.batches:
            images = len(taken_apart(batch)[0])
            numbers = range(seen, seen + images)
            ids = image_ids_of(batch, seen, images)
            named = self.buckets.groups.named
            self.buckets.groups.require_ids(not getattr(batch, "image_ids", None))
            yield (
                batch,
                [
                    _Place(i, n, (self.buckets(i, n), self.buckets.groups(i, n) if named else ""))
                    for i, n in zip(ids, numbers, strict=True)
                ],
            )
            seen += images

    def fold_of(self, place: _Place) -> int:
        """The fold of an image; one without a labeled pixel is in any."""
        return self._fold_of.get(place.key, 0)

    def group_of(self, place: _Place) -> str:
        """The group of an image, now that it is known how many images there are."""
        return self.buckets.groups(place.image_id, place.number, self.images)


class _Others:
    """The images that are not in one fold: what its calibrator is fitted on."""

    def __init__(self, folded: _Folded, leave_out: int) -> None:
        self.folded, self.leave_out = folded, leave_out

    def __iter__(self) -> Iterator[Any]:
        for batch, places in self.folded:
            rows = [row for row, place in enumerate(places) if self.folded.fold_of(place) != self.leave_out]
            if len(rows) == len(places):
                yield batch
            elif rows:
                part = tuple(tensor[rows] for tensor in batch)
                ids = getattr(batch, "image_ids", None)
                if ids is not None and len(part) == 3:
                    part = FittingBatch(*part)
                    part.image_ids = tuple(ids[row] for row in rows)
                yield part


def cross_fit(
    make: Callable[[], Calibrator], batches: FittingBatches, folds: int = 2, group: GroupOf = None
) -> Iterator[CrossFitted]:
    """Calibrate held-out data out of sample: whole groups of images go to a fold, never some frames of a video.

    Without ``group`` a fold is a stretch of contiguous blocks of images, the first half and the second half for two
    (see `seguq.calibration.folds.assign`).

    Args:
        make: gives a new, unfitted calibrator.
        batches: a re-iterable of ``(logits, target)`` or ``(logits, image, target)``, always in the same order. The ids
            of its images are those in an attribute ``image_ids`` of a batch, which an estimator's `pooled` has, and
            running numbers otherwise.
        folds: number of folds.
        group: from an image's id to its group: a function or a regular expression, as in `seguq.core.groups.Groups`.

    Yields:
        One `CrossFitted` a batch.

    Raises:
        SeguqError: if there are fewer groups than folds (`seguq.calibration.folds.TooFewGroups`).

    Example:
        >>> from seguq.calibration import TemperatureScaling, cross_fit
        >>> data = [(torch.randn(4, 2, 8, 8), torch.randint(2, (4, 8, 8)))]
        >>> [(out.calibrated.shape, out.groups[:2]) for out in cross_fit(TemperatureScaling, data)]
        [(torch.Size([4, 2, 8, 8]), ['block 0', 'block 1'])]
    """
    require_reiterable(batches)
    if folds < 2:
        raise SeguqError(f"folds must be at least 2, but is {folds}")
    calibrators = [make() for _ in range(folds)]
    folded = _Folded(batches, folds, group, settings=calibrators[0])
    for fold, calibrator in enumerate(calibrators):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what there is to say is said of the fit on all
            fitted = fit_calibrator(calibrator, _Others(folded, fold), group=group)
        if fitted is not calibrator:
            raise SeguqError(f"{type(calibrator).__name__}.fit must return the calibrator itself")
    for batch, places in folded:
        logits, image, target = taken_apart(batch)
        rows = [
            calibrators[folded.fold_of(place)](logits[i : i + 1], None if image is None else image[i : i + 1])
            for i, place in enumerate(places)
        ]
        numbers = [place.number for place in places]
        yield CrossFitted(logits, torch.cat(rows), target, numbers, [folded.group_of(place) for place in places])
