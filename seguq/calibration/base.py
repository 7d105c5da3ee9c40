"""What every calibrator is: a module from logits to calibrated logits that is fitted on held-out data."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from seguq.calibration.batches import FittingBatches, checked_pair, fitting_triples
from seguq.calibration.folds import BUCKETS, Buckets, TooFewGroups, assign
from seguq.core.checks import LabelWatch
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf
from seguq.core.named import Named
from seguq.functional.logits import Task

if TYPE_CHECKING:
    from typing_extensions import Self


_LOCAL = "entropy"


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


@dataclass(frozen=True)
class Candidate:
    """One that was compared.

    Attributes:
        name: of the calibrator.
        parameters: how many numbers it has learned.
        nll: negative log-likelihood on groups that it was not fitted on, in nats a pixel; as fitted where there is one
            group.
        change: from that of one temperature on the same pixels.
        interval: of the change, 95 %, bootstrapped over groups; NaN where there is one group.
        chosen: whether it is the one.
    """

    name: str
    parameters: int
    nll: float
    change: float
    interval: tuple[float, float]
    chosen: bool


class Calibrator(Named, nn.Module, ABC):
    """A map from logits to calibrated logits of the same shape.

    Every calibrator gives the same probabilities for logits z and z + c. What its constructor takes are plain values,
    kept in attributes of the same names: with the tensors of its ``state_dict`` they rebuild it from a checkpoint.
    One of your own needs no more than ``order_preserving``, `fit` and `forward`;
    `seguq.testing.check_calibrator` tells whether it keeps what all promise.

    Attributes:
        order_preserving: whether the predicted class of a pixel can never change.
        piecewise_constant: whether it makes a whole range of logits alike: then it loses likelihood even where a model
            is calibrated already, and what is within rounding of an edge may fall on either side.
        task: what logits are, as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.
        tag: the estimator whose pooled output it was fitted on, or None.
        weights_sha256: hash of the weights that it was fitted for (see `seguq.weights.weights_sha256`), or None.
        global_step: the training step of those weights, or None.
        measured: what `summary` gives, or None.
        compared: what it was chosen from, where ``"auto"`` did; not kept in a checkpoint.
    """

    order_preserving: ClassVar[bool]
    piecewise_constant: ClassVar[bool] = False
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
        self.compared: tuple[Candidate, ...] = ()

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """As `Named.named`; the word ``"local"`` stands for the best with one temperature a pixel, ``"entropy"``."""
        return super().named(_LOCAL if name == "local" else name)

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
    """What a calibrator can be fitted on and judged by, of images that come one batch after the other.

    Its size does not grow with the number of images and groups, and what several processes have seen goes together
    (`state` and `combine`). What is kept is kept apart for `seguq.calibration.folds.Buckets` of images, whole ones of
    which make the two folds that the calibrator is judged by.

    Args:
        calibrator: an unfitted one, for its settings; it is left as it is.
        group: from an image's id to its group; None for contiguous blocks of images.

    Attributes:
        counts: ``(BUCKETS, 2)`` float64: of each bucket images with a labeled pixel, and labeled pixels.
    """

    def __init__(self, calibrator: Calibrator, group: GroupOf = None) -> None:
        self.calibrator = calibrator
        self.buckets = Buckets(group)
        self.labels = LabelWatch(calibrator.ignore_index)
        self.counts = torch.zeros(BUCKETS, 2, dtype=torch.float64)

    @abstractmethod
    def keep(
        self, logits: Tensor, target: Tensor, image: Tensor | None, buckets: Sequence[int], image_ids: Sequence[str]
    ) -> None:
        """Keep what is needed of a batch: class logits and class indices that were checked, images or None.

        Args:
            logits: ``(B, C, *spatial)``.
            target: ``(B, *spatial)``.
            image: ``(B, channels, *spatial)`` or None.
            buckets: the bucket of each image.
            image_ids: the id of each image.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that was kept, as tensors by name."""

    @abstractmethod
    def combine(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Hold what several streams of the same settings have kept, in place of its own.

        Args:
            states: the `state` of each; its own is to be among them.
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
        self.take(logits, target, buckets, image_ids, image)

    def take_all(self, batches: FittingBatches) -> None:
        """Take in all batches to fit on, as `Calibrator.fit` does: ids are those that they tell, or running numbers."""
        seen = 0
        for batch in fitting_triples(batches, self.calibrator.task, self.calibrator.ignore_index):
            numbers = range(seen, seen + len(batch.logits))
            ids = batch.image_ids or tuple(map(str, numbers))
            self.buckets.groups.require_ids(not batch.image_ids)
            self.take(batch.logits, batch.target, self.buckets.of(ids, numbers), ids, batch.image)
            seen += len(ids)

    def take(
        self,
        logits: Tensor,
        target: Tensor,
        buckets: Sequence[int],
        image_ids: Sequence[str],
        image: Tensor | None = None,
    ) -> None:
        """Take in a batch that was checked, given the bucket of each image."""
        if not target.numel():
            return
        labeled = (target != self.calibrator.ignore_index).reshape(len(target), -1).sum(1)
        counts = torch.stack(((labeled > 0).double(), labeled.double()), 1)
        self.counts = self.counts.to(counts.device).index_add(0, counts.new_tensor(buckets).long(), counts)
        self.keep(logits, target, image, buckets, image_ids)

    @abstractmethod
    def fit(self) -> Calibrator | None:
        """The calibrator fitted on all that was taken in, with its `summary`; None where no pixel was labeled."""

    def filled(self) -> dict[int, float]:
        """Labeled pixels of each bucket that has any."""
        return {bucket: count for bucket, count in enumerate(self.counts[:, 1].tolist()) if count > 0}

    def folds(self) -> list[list[int]] | None:
        """The buckets of each of the two folds; None where only one bucket has labeled pixels."""
        filled = self.filled()
        try:
            fold_of = assign(filled, 2, contiguous=not self.buckets.groups.named)
        except TooFewGroups:
            return None
        return [[bucket for bucket in filled if fold_of[bucket] == fold] for fold in (0, 1)]


class FoldedStream(Stream):
    """A stream that can fit on, and judge by, the images of some buckets: half of them by the other half."""

    @abstractmethod
    def fitted(self, buckets: Sequence[int] | None = None) -> Calibrator:
        """A new calibrator with the settings of the given one, fitted on the images of some buckets; None: of all."""

    @abstractmethod
    def judged(self, buckets: Sequence[int], calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """How well a calibrator (None: none) does on the images of some buckets.

        Returns:
            The mean negative log-likelihood in nats, and confidence minus rightness summed in each bin of the
            confidence and divided by the number of pixels, ``(n_bins,)``.
        """

    def fit(self) -> Calibrator | None:
        """The calibrator fitted on all that was taken in, with its `summary`; None where no pixel was labeled."""
        self.labels.report("the masks that were fitted on")
        measured = self.summary()
        if measured is None:
            return None
        calibrator = self.fitted()
        calibrator.measured = measured
        return calibrator

    def summary(self) -> Summary | None:
        """What the calibrator is worth out of sample; None where no pixel was labeled."""
        images, pixels = (int(count) for count in self.counts.sum(0))
        if not pixels:
            return None
        filled = self.filled()
        nll_before, gaps = self.judged(list(filled), None)
        nll_after = ece_after = None
        folds = self.folds()
        if folds is not None:
            shares = [sum(filled[bucket] for bucket in fold) / pixels for fold in folds]
            # each fold by the calibrator of the other; the bins of both add up
            found = [self.judged(folds[i], self.fitted(folds[1 - i])) for i in (0, 1)]
            nll_after = sum(share * nll for share, (nll, _) in zip(shares, found, strict=True))
            both = sum(share * gap for share, (_, gap) in zip(shares, found, strict=True))
            ece_after = float(torch.as_tensor(both).abs().sum())
        return Summary(images, len(filled), pixels, nll_before, nll_after, float(gaps.abs().sum()), ece_after)

    def _unfitted(self) -> Any:
        return copy.deepcopy(self.calibrator)
