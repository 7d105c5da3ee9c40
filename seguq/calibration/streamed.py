"""One temperature and its out-of-sample figures from a single reading of the data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seguq.calibration.base import fitting_pairs
from seguq.calibration.temperature import TemperatureScaling, best_log_beta
from seguq.functional.temperature_curve import (
    LOG_BETAS,
    TemperatureSums,
    curve_calibration_error,
    curve_gaps,
    curve_nll,
    temperature_curve,
)

_FOLDS = 2
_LARGE = 1 << 13  # pixels of an image


@dataclass(frozen=True)
class StreamedFit:
    """A temperature, and what it is worth on images that it was not fitted on.

    Attributes:
        calibrator: fitted on all images.
        images: number of images with a labeled pixel.
        nll_before: mean negative log-likelihood at T = 1, in nats.
        ece_before: expected calibration error at T = 1.
        nll_after: the same, each image at the temperature of the other fold; None with fewer than two images.
        ece_after: the same.
    """

    calibrator: TemperatureScaling
    images: int
    nll_before: float
    ece_before: float
    nll_after: float | None
    ece_after: float | None


class StreamedTemperature:
    """Sums from which one temperature can be fitted, kept apart for two folds of images.

    No logits are kept: the sums have a fixed size, and add up over batches and processes.

    Args:
        calibrator: an unfitted one, for its settings.
        n_bins: bins of the calibration error.
    """

    def __init__(self, calibrator: TemperatureScaling, n_bins: int = 15) -> None:
        self.calibrator = calibrator
        self.n_bins = n_bins
        points = len(LOG_BETAS)
        self._shapes = ((), (points,), ((points + 1) // 2,), (points, n_bins))
        self.sums = torch.zeros(_FOLDS, 1 + sum(_size(shape) for shape in self._shapes), dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor, numbers: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            logits: class logits or a model's own, as `TemperatureScaling.fit` takes them.
            target: the masks that go with them.
            numbers: number of each image; even and odd ones are the two folds.

        Raises:
            SeguqError: as `TemperatureScaling.fit` does.
        """
        settings = self.calibrator
        ((logits, target),) = fitting_pairs([(logits, target)], settings.task, settings.ignore_index)
        added = torch.zeros_like(self.sums, device=logits.device)
        for fold, part, labels in _by_fold(logits, target, numbers):
            images = (labels != settings.ignore_index).flatten(1).any(1).sum(dtype=torch.float64)
            curve = temperature_curve(part, labels, self.n_bins, settings.ignore_index)
            added[fold] += torch.cat([images[None], *(item.flatten() for item in curve)])
        self.sums = self.sums.to(logits.device) + added

    def _curve(self, sums: Tensor) -> TemperatureSums:
        parts = torch.split(sums[1:], [_size(shape) for shape in self._shapes])
        return TemperatureSums(*(part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)))

    def fit(self) -> StreamedFit | None:
        """The temperature of all that was taken in; None where no pixel was labeled."""
        sums = self.sums.cpu()
        total = self._curve(sums.sum(0))
        if not float(total.pixels):
            return None
        calibrator = copy.deepcopy(self.calibrator).fit_curve(total)
        nll_after = ece_after = None
        folds = [self._curve(part) for part in sums]
        if all(float(fold.pixels) for fold in folds):
            # each fold at the temperature of the other; the bins of both add up
            log_betas = [best_log_beta(fold) for fold in reversed(folds)]
            pairs = list(zip(folds, log_betas, strict=True))
            pixels = float(total.pixels)
            nll_after = sum(curve_nll(fold, log_beta) * float(fold.pixels) for fold, log_beta in pairs) / pixels
            gaps = torch.stack([curve_gaps(fold, log_beta) for fold, log_beta in pairs]).sum(0)
            ece_after = float(gaps.abs().sum()) / pixels
        return StreamedFit(
            calibrator,
            int(sums[:, 0].sum()),
            curve_nll(total, 0.0),
            curve_calibration_error(total, 0.0),
            nll_after,
            ece_after,
        )


def _by_fold(logits: Tensor, target: Tensor, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The images of each fold with their labels: large ones one by one, as then nothing has to be copied."""
    folds = [number % _FOLDS for number in numbers]
    if logits.device.type == "cpu" and logits[:1, :1].numel() >= _LARGE:
        for i, fold in enumerate(folds):
            yield fold, logits[i : i + 1], target[i : i + 1]
        return
    for fold in range(_FOLDS):
        images = [i for i, of in enumerate(folds) if of == fold]
        if images:
            yield fold, logits[images], target[images]


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
