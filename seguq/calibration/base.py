"""What every calibrator is: a module from logits to calibrated logits that is fitted on held-out data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.calibration.batches import FittingBatches, checked_pair
from seguq.calibration.folds import BUCKETS, Buckets, TooFewGroups, assign
from seguq.core.checks import LabelWatch, flat_images
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf
from seguq.core.named import Named
from seguq.functional.logits import Task


@dataclass(frozen=True)
class Summary:
    """What a calibrator is worth on images of groups that it was not fitted on.

    Attributes:
        images: number of images with a labeled pixel.
        groups: number of blocks of images with one, or of groups; of these one pair in 240 counts as one (see
            `seguq.calibration.folds.Buckets`), as sums of a fixed size are kept.
        pixels: number of labeled pixels.
        nll_before: mean negative log-likelihood of the raw logits, in nats.
        nll_after: the same, each of two folds of groups by a calibrator fitted on the other; None with one group.
        ece_before: expected calibration error of the raw logits, in 15 bins.
        ece_after: the same as of ``nll_after``.
    """

    images: int
    groups: int
    pixels: int
    nll_before: float
    nll_after: float | None
    ece_before: float
    ece_after: float | None


class Calibrator(Named, nn.Module, ABC):
    """A map from logits to calibrated logits of the same shape.

    Every calibrator gives the same probabilities for logits z and z + c. What its constructor takes are plain values,
    kept in attributes of the same names: with the tensors of its ``state_dict`` they rebuild it from a checkpoint.
    One of your own needs no more than ``order_preserving``, `fit` and `forward`;
    `seguq.testing.check_calibrator` tells whether it keeps what all promise.

    Attributes:
        order_preserving: whether the predicted class of a pixel can never change.
        task: what logits are, as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.
        tag: the estimator whose pooled output it was fitted on, or None.
        weights_sha256: hash of the weights that it was fitted for (see `seguq.weights.weights_sha256`), or None.
        global_step: the training step of those weights, or None.
        measured: what `summary` gives, or None.
    """

    order_preserving: ClassVar[bool]
    task: Task = "multiclass"
    ignore_index: int = 255

    def __init__(self) -> None:
        super().__init__()
        if not isinstance(getattr(self, "order_preserving", None), bool):
            raise UsageError(f"{type(self).__name__} must say order_preserving = True or False")
        self.tag: str | None = None
        self.weights_sha256: str | None = None
        self.global_step: int | None = None
        self.measured: Summary | None = None

    @abstractmethod
    def fit(self, batches: FittingBatches) -> Calibrator:
        """Learn from a re-iterable of ``(logits, target)`` or ``(logits, image, target)``; returns itself."""

    def stream(self, group: GroupOf = None) -> Stream | None:
        """Sums that it can be fitted from in one reading, empty; None for a calibrator that needs several.

        Args:
            group: from an image's id to its group, as in `seguq.core.groups.Groups`.
        """
        return None

    def summary(self) -> Summary:
        """Images, groups and pixels of the last fit; NLL and ECE before and after, cross-fitted over groups.

        Raises:
            SeguqError: where that was not measured: it needs a fit, of a calibrator that has a `stream`.
        """
        if self.measured is None:
            raise SeguqError(
                f"this {type(self).__name__} knows no values out of sample: a fit measures them where the calibrator "
                "has a stream(), and a checkpoint does not carry them; seguq.calibration.cross_fit(make, batches) "
                "gives the output of any calibrator out of sample"
            )
        return self.measured

    def fitted(self) -> dict[str, Any]:
        """Its tensors, those of a few values."""
        small = {name: tensor for name, tensor in self.state_dict().items() if tensor.numel() <= 4}
        return {name: tensor.tolist() for name, tensor in small.items()}

    def require_valid(self) -> None:
        """Raise for a state that no `fit` leads to, such as a damaged file has.

        It is asked when a calibrator is read from a checkpoint. One of your own adds what it knows of its tensors: the
        bounds that they are fitted within, say.

        Raises:
            ValueError: saying which of its tensors, and why; here for one that holds NaN or infinity.
        """
        for name, tensor in self.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"its {name!r} holds NaN or infinite values")

    @abstractmethod
    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Calibrated logits, of the same shape as ``logits``."""


class Stream(ABC):
    """Sums over images from which a calibrator can be fitted and judged, in one reading of the data.

    No logits are kept: the sums have a fixed size, whatever the number of images and groups, and add up over batches
    and processes. They are kept apart for `seguq.calibration.folds.Buckets` of images, whole ones of which make the
    two folds that the calibrator is judged by. A calibrator's own stream says what its sums are, and how it is fitted
    and judged by them.

    Args:
        calibrator: an unfitted one, for its settings; it is left as it is.
        width: how many sums `measure` gives.
        group: from an image's id to its group; None for contiguous blocks of images.

    Attributes:
        sums: ``(BUCKETS, 2 + width)`` float64: of each bucket images, labeled pixels, and what `measure` gives.
    """

    def __init__(self, calibrator: Calibrator, width: int, group: GroupOf = None) -> None:
        self.calibrator = calibrator
        self.buckets = Buckets(group)
        self.sums = torch.zeros(BUCKETS, 2 + width, dtype=torch.float64)
        self.labels = LabelWatch(calibrator.ignore_index)

    @abstractmethod
    def measure(self, logits: Tensor, target: Tensor, image: Tensor | None) -> Tensor:
        """The sums ``(width,)`` over images of one bucket: checked class logits, class indices, images or None."""

    @abstractmethod
    def fitted(self, sums: Tensor) -> Calibrator:
        """A new calibrator with the settings of the given one, fitted on sums ``(width,)``."""

    @abstractmethod
    def judged(self, sums: Tensor, calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """How well a calibrator (None: none) does on the images of sums ``(width,)``.

        Returns:
            The sum of the negative log-likelihood in nats, and confidence minus rightness summed in each bin of the
            confidence, ``(n_bins,)``.
        """

    def add(
        self,
        logits: Tensor,
        target: Tensor,
        image_ids: Sequence[str],
        numbers: Sequence[int],
        image: Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            logits: class logits or a model's own, as `Calibrator.fit` takes them.
            target: the masks that go with them.
            image_ids: one id an image, for its group.
            numbers: place of each image in the data, from 0, for its block.
            image: the images that go with them, where they are at hand.

        Raises:
            SeguqError: as `Calibrator.fit` does.
        """
        settings = self.calibrator
        buckets = self.buckets.of(image_ids, numbers)
        logits, target = checked_pair(logits, target, settings.task, settings.ignore_index)
        self.labels.look(target)
        self.take(logits, target, buckets, image)

    def take(self, logits: Tensor, target: Tensor, buckets: Sequence[int], image: Tensor | None = None) -> None:
        """Take in a batch that was checked, given the bucket of each image."""
        added = torch.zeros_like(self.sums, device=logits.device)
        for bucket, rows in _by_bucket(buckets):
            labels = target[rows]
            labeled = labels != self.calibrator.ignore_index
            counts = torch.stack((flat_images(labeled).any(1).sum(), labeled.sum()))
            found = self.measure(logits[rows], labels, None if image is None else image[rows])
            added[bucket] += torch.cat((counts.to(added), found.to(added)))
        self.sums = self.sums.to(logits.device) + added

    def fit(self) -> Calibrator | None:
        """The calibrator fitted on all that was taken in, with its `summary`; None where no pixel was labeled."""
        self.labels.report("the masks that were fitted on")
        measured = self.summary()
        if measured is None:
            return None
        calibrator = self.fitted(self.sums.sum(0).cpu()[2:])
        calibrator.measured = measured
        return calibrator

    def summary(self) -> Summary | None:
        """What the calibrator is worth out of sample; None where no pixel was labeled."""
        sums = self.sums.cpu()
        images, pixels = (int(count) for count in sums[:, :2].sum(0))
        if not pixels:
            return None
        filled = {bucket: float(sums[bucket, 1]) for bucket in range(len(sums)) if sums[bucket, 1] > 0}
        nll, gaps = self.judged(sums.sum(0)[2:], None)
        nll_before, ece_before = nll / pixels, float(gaps.abs().sum()) / pixels
        nll_after = ece_after = None
        try:
            fold_of = assign(filled, 2, contiguous=not self.buckets.groups.named)
        except TooFewGroups:
            pass
        else:
            folds = [sums[[bucket for bucket in filled if fold_of[bucket] == fold], 2:].sum(0) for fold in (0, 1)]
            # each fold by the calibrator of the other; the bins of both add up
            one, two = (self.judged(folds[fold], self.fitted(folds[1 - fold])) for fold in (0, 1))
            nll_after, ece_after = (one[0] + two[0]) / pixels, float((one[1] + two[1]).abs().sum()) / pixels
        return Summary(images, len(filled), pixels, nll_before, nll_after, ece_before, ece_after)

    def _unfitted(self) -> Any:
        return copy.deepcopy(self.calibrator)


def _by_bucket(buckets: Sequence[int]) -> Iterator[tuple[int, slice | list[int]]]:
    """The rows of each bucket, as a slice where they follow each other, as then nothing has to be copied."""
    for bucket in dict.fromkeys(buckets):
        rows = [row for row, of in enumerate(buckets) if of == bucket]
        together = rows[-1] - rows[0] == len(rows) - 1
        yield bucket, slice(rows[0], rows[-1] + 1) if together else rows
