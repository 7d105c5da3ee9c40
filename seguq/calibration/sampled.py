"""Calibrators that are fitted on a sample of pixels, in one reading of the data."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, FoldedStream
from seguq.calibration.batches import FittingBatches
from seguq.calibration.folds import BUCKETS
from seguq.calibration.sample import MOST_PIXELS, Reservoir, Sample, draw, pixels_of
from seguq.core.checks import require_choice, require_dims
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf
from seguq.functional.calibration import top1_calibration_bins
from seguq.functional.logits import TASKS, Task, class_logits, full_precision

Own = TypeVar("Own", bound="SampledCalibrator")
_N_BINS = 15
_LARGEST = 1e6
_VALUES = 1 << 22  # logits that are judged at once


class SampledCalibrator(Calibrator):
    """A calibrator that learns from a `Sample`: some 200,000 pixels, drawn evenly, whatever the number of images.

    A subclass says what it does with logits (`calibrate`), how it learns (`learn`), and, where it reads more than the
    logits of a pixel, what that is (`features`). Everything else follows: `fit`, the `stream`, `summary`.

    What a sample costs: with 11 classes 17 MB, and an error of one part in some 500 of what is fitted (of a
    temperature .005 as a rule), which is far less than what other images would change.

    Args:
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.

    Attributes:
        doubt: what a person is to be told of the last fit, or None.
    """

    def __init__(self, task: Task = "multiclass", ignore_index: int = 255) -> None:
        super().__init__()
        require_choice("task", task, TASKS)
        self.task: Task = task
        self.ignore_index = ignore_index
        self.doubt: str | None = None

    # ---- what a subclass says ----

    def features(self, logits: Tensor, image: Tensor | None) -> Tensor | None:
        """What is read of the whole image, ``(B, K, *spatial)``; None: nothing but the logits of each pixel.

        Args:
            logits: class logits ``(B, C, *spatial)``, the largest of each pixel at 0.
            image: ``(B, channels, *spatial)`` or None.
        """
        return None

    @abstractmethod
    def calibrate(self, logits: Tensor, features: Tensor) -> Tensor:
        """Calibrated logits ``(B, C, *spatial)`` of logits of which the largest is 0; without spatial: of pixels."""

    @abstractmethod
    def learn(self, sample: Sample) -> None:
        """Be fitted on a sample that has at least one pixel."""

    def refine(self, batches: FittingBatches, sample: Sample, pixels: int) -> None:
        """Be fitted on all pixels from where the sample has led to, where `learn` is not enough."""
        return

    # ---- what follows ----

    def forward(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Calibrated logits, at least float32, of the same shape.

        Args:
            logits: ``(B, C, *spatial)``; C = 1 is a sigmoid's logit. For ``task="multilabel"`` class logits
                ``(B, 2, L, *spatial)`` as estimators give them; other than 2 channels are taken for labels' own logits.
            image: ``(B, channels, *spatial)``, for those that read it.

        Raises:
            SeguqError: where the number of classes is not that of the fit.
        """
        require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
        with torch.autocast(logits.device.type, enabled=False):  # T in half precision would be off by a hundredth
            below, single = self.taken_in(logits)
            out: Tensor = self.calibrate(below, self.read(below, image))
        if not single:
            return out
        one = out[:, 1] - out[:, 0]
        return one if self.task == "multilabel" else one.unsqueeze(1)

    def taken_in(self, logits: Tensor) -> tuple[Tensor, bool]:
        """Class logits, the largest of each pixel 0, of logits as in `forward`; and whether each was a sigmoid's."""
        single = logits.shape[1] != 2 if self.task == "multilabel" else logits.shape[1] == 1
        if single:
            logits = class_logits(logits, "multilabel" if self.task == "multilabel" else "binary")
        self.require_classes(logits)
        return below_top(logits), single

    def require_classes(self, logits: Tensor) -> None:
        """Raise for class logits ``(B, C, *spatial)`` of another number of classes than it was made for."""
        made_for = getattr(self, "num_classes", logits.shape[1])
        if made_for != logits.shape[1]:
            raise SeguqError(
                f"{type(self).__name__}(num_classes={made_for}) does not go with logits of {logits.shape[1]} classes: "
                f"shape {tuple(logits.shape)}"
            )

    def require_valid(self) -> None:
        """Raise for values beyond all that a fit gives."""
        super().require_valid()
        for name, tensor in self.state_dict().items():
            if tensor.numel() and float(tensor.abs().max()) > _LARGEST:
                raise ValueError(f"its {name!r} holds {float(tensor.abs().max()):g}, which no fit gives")

    def read(self, below: Tensor, image: Tensor | None) -> Tensor:
        """The `features`; with no channel where there are none."""
        found = self.features(below, image)
        return below[:, :0] if found is None else found

    def fit(self: Own, batches: FittingBatches, group: GroupOf = None) -> Own:
        """Learn from held-out data.

        Args:
            batches: a re-iterable (a list or a DataLoader) of ``(logits, target)`` or ``(logits, image, target)``:
                logits ``(B, C, *spatial)``, targets ``(B, *spatial)`` of class indices or ``ignore_index``.
            group: from an image's id to its group, for what is chosen and judged by groups; ids are those in an
                attribute ``image_ids`` of a batch, which an estimator's `pooled` has, and running numbers otherwise.

        Returns:
            Itself, fitted.

        Raises:
            SeguqError: if the batches can be read only once, are empty or hold no labeled pixel, or for logits with
                NaN or infinity, targets out of range, or shapes that do not go together.
        """
        stream = self.stream(group)
        stream.take_all(batches)
        found = stream.fit()
        if found is None:
            raise SeguqError(
                f"there is no labeled pixel to fit on (all targets are ignore_index={self.ignore_index}, or no batches)"
            )
        assert isinstance(found, SampledCalibrator)
        if not stream.sample.complete:
            found.refine(batches, stream.sample, int(stream.counts[:, 1].sum()))
        # only now, as a fit that fails leaves the earlier one as it was
        kept = {name: vars(self)[name] for name in ("tag", "weights_sha256", "global_step", "training")}
        devices = {buffer.device for buffer in self.buffers()}
        vars(self).update(vars(found) | kept)
        with torch.inference_mode(False):  # tensors made inside of it could never be changed outside
            for device in devices:
                self.to(device)
        return self

    def stream(self, group: GroupOf = None) -> SampleStream:
        """A sample that it can be fitted on in one reading."""
        return SampleStream(self, group)


class SampleStream(FoldedStream):
    """Keeps a sample of pixels (`Reservoir`): the same whatever the order and the number of batches and processes.

    Args:
        calibrator: an unfitted one, for its settings.
        group: from an image's id to its group; None for contiguous blocks of images.
        most: items that are kept at most.
    """

    calibrator: SampledCalibrator

    def __init__(self, calibrator: SampledCalibrator, group: GroupOf = None, most: int = MOST_PIXELS) -> None:
        super().__init__(calibrator, group)
        self.most = most
        self.reservoir = Reservoir(most)
        self._sample: Sample | None = None

    def keep(
        self, logits: Tensor, target: Tensor, image: Tensor | None, buckets: Sequence[int], image_ids: Sequence[str]
    ) -> None:
        """Draw pixels of a batch."""
        self._sample = None
        self.calibrator.require_classes(logits)
        below = below_top(logits)
        features = self.calibrator.read(below, image)
        labels = target.reshape(len(target), -1)
        if target.ndim == 1:  # pixels without images
            drawn = draw(image_ids[:1], len(target), target.device).T
        else:
            drawn = draw(image_ids, labels.shape[1], target.device)
        kept = (labels != self.calibrator.ignore_index) & (drawn < self.reservoir.rate)
        bucket = torch.tensor(list(buckets), device=target.device)[:, None].expand_as(labels)
        columns = {
            "logits": pixels_of(below, kept),
            "features": pixels_of(features, kept),
            "target": labels[kept],
            "bucket": bucket[kept],
        }
        self.reservoir.add(drawn[kept], columns)

    @property
    def sample(self) -> Sample:
        """What was drawn so far."""
        if self._sample is None:
            self._sample = Sample.of_items(
                self.reservoir.items(), complete=self.reservoir.rate == 1.0, named=self.buckets.groups.named
            )
        return self._sample

    def fitted(self, buckets: Sequence[int] | None = None) -> SampledCalibrator:
        """A new calibrator, fitted on what is from some buckets."""
        made: SampledCalibrator = self._unfitted()
        device = self.sample.logits.device.type
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            made.learn(self.sample.of(buckets))
        return made

    def fit(self) -> Calibrator | None:
        """The calibrator fitted on all that was taken in; a warning says what there is to doubt."""
        found = super().fit()
        if isinstance(found, SampledCalibrator) and found.doubt is not None:
            warnings.warn(found.doubt, stacklevel=3)
        return found

    def judged(self, buckets: Sequence[int], calibrator: Calibrator | None) -> tuple[float, Tensor]:
        """How well a calibrator does on what is from some buckets."""
        found = judge(self.sample.of(buckets), calibrator, self.calibrator.ignore_index)
        pixels = found.pixels.sum().clamp_min(1)
        return float(found.nll.sum() / pixels), found.gaps / pixels

    def of(self, calibrator: SampledCalibrator) -> SampleStream:
        """What was drawn, for another calibrator that reads the same: nothing is copied."""
        made = copy.copy(self)
        made.calibrator = calibrator
        return made

    def state(self) -> dict[str, Tensor]:
        """What was drawn, below which number, and the counts."""
        rate = torch.tensor(self.reservoir.rate, dtype=torch.float64)
        return {"counts": self.counts, "rate": rate, **self.reservoir.items()}

    def combine(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Hold what several have drawn, below the lowest rate of them, and halved further where that is too much."""
        self.counts = torch.stack([state["counts"].cpu() for state in states]).sum(0)
        self.reservoir, self._sample = Reservoir(self.most), None
        self.reservoir.rate = min(float(state["rate"]) for state in states)
        for state in states:
            if "drawn" in state:
                rows = state["drawn"] < self.reservoir.rate
                columns = {name: state[name][rows] for name in state if name not in ("counts", "rate", "drawn")}
                self.reservoir.add(state["drawn"][rows], columns)


class Judged(NamedTuple):
    """Sums over the pixels of a sample (float64, in main memory).

    Attributes:
        nll: negative log-likelihood of each bucket, ``(BUCKETS,)`` in nats.
        pixels: labeled pixels of each bucket, ``(BUCKETS,)``.
        gaps: confidence minus rightness in each bin of the confidence, ``(n_bins,)``.
    """

    nll: Tensor
    pixels: Tensor
    gaps: Tensor


def judge(sample: Sample, calibrator: Calibrator | None, ignore_index: int) -> Judged:
    """How well a calibrator (None: none) does on a sample."""
    nll, pixels = torch.zeros(2, BUCKETS, dtype=torch.float64)
    gaps = torch.zeros(_N_BINS, dtype=torch.float64)
    most = max(1, _VALUES // max(1, sample.logits[:1].numel()))
    for start in range(0, len(sample.target), most):
        rows = slice(start, start + most)
        logits, target = sample.logits[rows], sample.target[rows]
        if calibrator is not None:
            assert isinstance(calibrator, SampledCalibrator)
            with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
                logits = calibrator.calibrate(logits, sample.features[rows])
        log_probs = logits - logits.logsumexp(1, keepdim=True)
        labeled = target != ignore_index
        losses = -log_probs.gather(1, target.where(labeled, 0).unsqueeze(1)).squeeze(1)
        losses, counts = (t.reshape(len(t), -1).double() for t in (losses.where(labeled, 0), labeled))
        bucket = sample.bucket[rows].cpu()
        nll.index_add_(0, bucket, losses.sum(1).cpu())
        pixels.index_add_(0, bucket, counts.sum(1).cpu())
        bins = top1_calibration_bins(log_probs.exp_(), target, _N_BINS, ignore_index).sum(0)
        gaps += (bins[1] - bins[2]).cpu()
    return Judged(nll, pixels, gaps)


def below_top(logits: Tensor) -> Tensor:
    """Class logits shifted so that the largest of each pixel is 0: exactly so, and no other is, but for ties.

    None is below -1e6, as far as losses are counted: a class that is ruled out by the smallest float is that far.
    """
    logits = full_precision(logits)
    return (logits - logits.amax(1, keepdim=True)).clamp_min_(-1e6)
