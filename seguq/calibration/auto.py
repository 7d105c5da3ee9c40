"""The calibrator that is best on groups that it was not fitted on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seguq.calibration.base import Calibrator, Candidate, Stream
from seguq.calibration.batches import FittingBatches
from seguq.calibration.few_parameters import FewParameters, one_log_temperature
from seguq.calibration.sample import Sample
from seguq.calibration.sampled import SampledCalibrator, SampleStream, judge
from seguq.calibration.temperature import TemperatureScaling
from seguq.core.groups import GroupOf
from seguq.functional.logits import Task

_Fit = Callable[[Sequence[int] | None], Calibrator]
_DRAWS = 1000
_ENOUGH_GROUPS = 5


class AutoStream(Stream):
    """Fits several calibrators, and gives the one with the lowest likelihood loss on groups that it was not fitted on.

    Compared are one temperature, the entropy form, `StructuredScaling`, `SelectiveScaling` on the entropy form, and
    `LocalTemperatureScaling`. With fewer than five groups only the first two, since what some hundred numbers have
    learned of one video, and what is good for a second one, tells little of a third; with one group by the likelihood
    that they are fitted for. Each is fitted on one half of the groups and judged on the other, beside one temperature
    and all on the same pixels. The best is the one with the lowest loss; of those whose difference
    to it has an interval that holds 0, the one with the fewest parameters is taken.

    Args:
        num_classes: C.
        task: as in `seguq.functional.class_logits`.
        ignore_index: value of the target that is left out.
        group: as in `Stream`.
        spatial_dims: of the images.

    Attributes:
        compared: what was found, after `fit`.
    """

    def __init__(
        self,
        num_classes: int,
        task: Task = "multiclass",
        ignore_index: int = 255,
        group: GroupOf = None,
        spatial_dims: int = 2,
    ) -> None:
        known: dict[str, Any] = {"task": task, "ignore_index": ignore_index}
        candidates: dict[str, Calibrator] = {
            "entropy": Calibrator.make("entropy", **known),
            "structured": Calibrator.make("structured", num_classes=num_classes, **known),
            "selective on entropy": Calibrator.make("selective", num_classes=num_classes, base="entropy", **known),
            "local_network": Calibrator.make(
                "local_network", num_classes=num_classes, spatial_dims=spatial_dims, **known
            ),
        }
        super().__init__(candidates["entropy"], group)
        self.one = TemperatureScaling(task, ignore_index).stream(group)
        self.pixels = SampleStream(_sampled(candidates["entropy"]), group)
        self.crops = _sampled(candidates["local_network"]).stream(group)
        self.candidates = {name: _sampled(candidate) for name, candidate in candidates.items()}
        self.compared: list[Candidate] = []

    @property
    def _streams(self) -> dict[str, Stream]:
        return {"one": self.one, "pixels": self.pixels, "crops": self.crops}

    def keep(
        self, logits: Tensor, target: Tensor, image: Tensor | None, buckets: Sequence[int], image_ids: Sequence[str]
    ) -> None:
        """Keep what each candidate needs."""
        for stream in self._streams.values():
            stream.take(logits, target, buckets, image_ids, image)

    def state(self) -> dict[str, Tensor]:
        """What all have kept."""
        parts = {
            f"{name}/{key}": tensor for name, stream in self._streams.items() for key, tensor in stream.state().items()
        }
        return {"counts": self.counts, **parts}

    def combine(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Bring together what several have kept."""
        self.counts = torch.stack([state["counts"].cpu() for state in states]).sum(0)
        for name, stream in self._streams.items():
            start = f"{name}/"
            stream.combine(
                [{key[len(start) :]: t for key, t in state.items() if key.startswith(start)} for state in states]
            )

    def fit(self) -> Calibrator | None:
        """The best of all, with its `summary`; None where no pixel was labeled."""
        self.labels.report("the masks that were fitted on")
        if not self.filled():
            return None
        folds = self.folds()
        if folds is None:
            warnings.warn(
                "of one group nothing is known out of sample: one temperature and the entropy form are compared by the "
                "likelihood that they were fitted for",
                stacklevel=2,
            )
        names = list(self.candidates) if len(self.filled()) >= _ENOUGH_GROUPS else ["entropy"]
        one = self._out_of_sample(
            lambda others: _one_temperature(self.pixels.sample.of(others), self.calibrator), folds
        )
        changes = {name: self._out_of_sample(self._fitted(name), folds) - one for name in names}
        pixels = judge(self.crops.sample, None, self.calibrator.ignore_index).pixels
        weights = _drawn(pixels)

        def mean(losses: Tensor) -> float:
            return float((losses * pixels).sum() / pixels.sum())

        def interval(losses: Tensor) -> tuple[float, float]:
            if folds is None:
                return math.nan, math.nan
            means = (weights * pixels * losses).sum(1) / (weights * pixels).sum(1)
            low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            return low, high

        changes = {"global": torch.zeros_like(pixels), **changes}
        sizes = {"global": 1, **{name: _size(self.candidates[name]) for name in names}}
        order = sorted(changes, key=sizes.__getitem__)
        best = min(order, key=lambda name: mean(changes[name]))

        def as_good(name: str) -> bool:
            low, high = interval(changes[name] - changes[best])
            return low <= 0 <= high

        chosen = best if folds is None else next(name for name in order if name == best or as_good(name))
        level = mean(one)
        self.compared = [
            Candidate(
                name,
                sizes[name],
                level + mean(changes[name]),
                mean(changes[name]),
                interval(changes[name]),
                name == chosen,
            )
            for name in order
        ]
        calibrator = self._stream_of(chosen).fit()
        if calibrator is not None:
            calibrator.compared = tuple(self.compared)
        return calibrator

    def refine(self, calibrator: Calibrator, batches: FittingBatches) -> None:
        """Fit the one that `fit` gave on all pixels of the batches that were taken in, where a sample has begun it."""
        sample = self.pixels.sample
        if isinstance(calibrator, FewParameters) and not sample.complete:
            calibrator.refine(batches, sample, int(self.counts[:, 1].sum()))

    def _stream_of(self, name: str) -> Stream:
        """A stream that has kept what a candidate is fitted on."""
        if name == "global":
            return self.one
        if name == "local_network":
            return self.crops
        return self.pixels.of(self.candidates[name])

    def _fitted(self, name: str) -> _Fit:
        """What fits a candidate on some buckets."""
        stream = self._stream_of(name)
        assert isinstance(stream, SampleStream)
        return stream.fitted

    def _out_of_sample(self, fit: _Fit, folds: list[list[int]] | None) -> Tensor:
        """Mean loss of each bucket ``(BUCKETS,)`` by what was fitted on the others, all on the same crops."""
        losses = torch.zeros(len(self.counts), dtype=torch.float64)
        for others, own in [(None, None)] if folds is None else zip(folds[::-1], folds, strict=True):
            found = judge(self.crops.sample.of(own), fit(others), self.calibrator.ignore_index)
            losses += found.nll / found.pixels.clamp_min(1)
        return losses


def _one_temperature(sample: Sample, settings: Calibrator) -> SampledCalibrator:
    """The one temperature that is best for a sample, as an entropy form that does not look at the entropy."""
    made = _sampled(Calibrator.make("entropy", task=settings.task, ignore_index=settings.ignore_index))
    made.load_state_dict({"weights": torch.tensor([one_log_temperature(sample), 0.0])})
    return made


def _sampled(calibrator: Calibrator) -> SampledCalibrator:
    assert isinstance(calibrator, SampledCalibrator)
    return calibrator


def _size(calibrator: Calibrator) -> int:
    """How many numbers it learns."""
    return sum(tensor.numel() for tensor in calibrator.state_dict().values() if tensor.is_floating_point())


def _drawn(pixels: Tensor) -> Tensor:
    """How often each group is drawn, ``(draws, BUCKETS)``."""
    filled = (pixels > 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(filled), (_DRAWS, len(filled)), generator=generator)
    counts = torch.zeros(_DRAWS, len(pixels), dtype=torch.float64)
    return counts.scatter_add_(1, filled[rows], torch.ones(rows.shape, dtype=torch.float64))
