"""Crops of images in place of pixels: for calibrators that look at what lies around a pixel, or at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, Stream
from seguq.calibration.batches import FittingBatch
from seguq.calibration.sample import Sample, crops_of, draw
from seguq.calibration.sampled import SampledCalibrator, SampleStream, below_top
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf

_SIDE = {1: 1024, 2: 32, 3: 10}
_MOST_CROPS = 256


class CropStream(SampleStream):
    """Keeps at most 256 crops of 1024 pixels (32 x 32; 10 x 10 x 10 of volumes), drawn evenly from all images.

    Args:
        calibrator: an unfitted one, for its settings.
        group: from an image's id to its group; None for contiguous blocks of images.
    """

    def __init__(self, calibrator: SampledCalibrator, group: GroupOf = None) -> None:
        super().__init__(calibrator, group, _MOST_CROPS)

    def keep(
        self, logits: Tensor, target: Tensor, image: Tensor | None, buckets: Sequence[int], image_ids: Sequence[str]
    ) -> None:
        """Cut a batch into crops from a place that each image's id draws, and keep some."""
        self._sample = None
        below, dims = below_top(logits), target.ndim - 1 - (self.calibrator.task == "multilabel")
        self.calibrator.require_classes(logits)
        features = self.calibrator.read(below, image)
        if dims not in _SIDE:
            raise SeguqError(
                f"{self.calibrator.name} is fitted on crops of images of 1 to 3 dimensions, but the targets have shape "
                f"{tuple(target.shape)}"
            )
        side = _SIDE[dims]
        for row, image_id in enumerate(image_ids):
            labels = [slice(None)] if target.ndim == dims + 1 else list(range(target.shape[1]))
            spatial = target.shape[-dims:]
            drawn = draw([f"crop {image_id}"], dims, torch.device("cpu"))[0].tolist()
            # an image that is smaller than a crop lies in one, at its beginning
            offset = [1 + int(u * side) if size > side else side for u, size in zip(drawn, spatial, strict=True)]
            for label in labels:
                one = (slice(None), label) if isinstance(label, int) else (slice(None),)
                mine = target[row][label] if isinstance(label, int) else target[row]
                cut = [
                    crops_of(tensor, side, offset, fill)
                    for tensor, fill in (
                        (below[row][one], 0.0),
                        (features[row][one], 0.0),
                        (mine[None], self.calibrator.ignore_index),
                    )
                ]
                number = draw([f"{image_id} {label if isinstance(label, int) else ''}"], len(cut[0]), target.device)[0]
                labeled = (cut[2] != self.calibrator.ignore_index).flatten(1).any(1)
                kept = labeled & (number < self.reservoir.rate)
                bucket = torch.full((int(kept.sum()),), buckets[row], device=target.device)
                columns = dict(zip(("logits", "features"), (cut[0][kept], cut[1][kept]), strict=True))
                self.reservoir.add(number[kept], {**columns, "target": cut[2][kept][:, 0], "bucket": bucket})


class _OfAnyKind(SampledCalibrator):
    """A calibrator that knows `fit` and no `stream`, to be fitted on crops: 262,144 pixels at most.

    Args:
        own: the calibrator.
    """

    order_preserving: ClassVar[bool] = False  # nobody is given this one

    def __init__(self, own: Calibrator) -> None:
        super().__init__(own.task, own.ignore_index)
        self.own = own

    def features(self, logits: Tensor, image: Tensor | None) -> Tensor | None:
        """The image, where it goes with the logits."""
        fits = image is not None and image.shape[2:] == logits.shape[2:]
        return image if fits else None

    def learn(self, sample: Sample) -> None:
        """Be fitted on crops as on images."""
        image = sample.features if sample.features.shape[1] else sample.logits
        batch = FittingBatch(sample.logits, image, sample.target)
        batch.image_ids = tuple(f"{bucket}/{number}" for number, bucket in enumerate(sample.bucket.tolist()))
        self.own.fit([batch])

    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """As the calibrator does."""
        calibrated: Tensor = self.own(logits, features if features.shape[1] else None)
        return calibrated

    def stream(self, group: GroupOf = None) -> SampleStream:
        """Crops of images."""
        return _OwnStream(self, group)


class _OwnStream(CropStream):
    def fit(self) -> Calibrator | None:
        """The calibrator inside."""
        found = super().fit()
        if not isinstance(found, _OfAnyKind):
            return found
        found.own.measured = found.measured
        return found.own


def stream_of_crops(calibrator: Calibrator, group: GroupOf = None) -> Stream:
    """A stream for a calibrator that has none of its own: it is fitted on crops, as on small images.

    Args:
        calibrator: an unfitted one; it is left as it is.
        group: from an image's id to its group.
    """
    return _OfAnyKind(calibrator).stream(group)
