"""Calibration and ranking of a module's uncertainty, in its own logger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from seguq.calibration import Calibrator
from seguq.callbacks.base import PREFIX, EstimatorCallback, log_values, require_own_names
from seguq.callbacks.batches import BatchForward, images_in, loaders_of
from seguq.callbacks.loggers import log_figure, log_table
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf, Groups
from seguq.export.metrics_figure import Row, uncertainty_figure
from seguq.functional.logits import Task
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.measures import Measure, is_map, named_measures, require_maps
from seguq.metrics import BrierScore, CalibrationError, ErrorRanking, NegativeLogLikelihood
from seguq.metrics.bootstrap import BootstrapMetric

_OF_PROBS = ("ece", "brier", "nll")
_OF_RANKING = {"auroc_error": "auroc", "aurc": "aurc"}


class UncertaintyMetrics(EstimatorCallback):
    """How well the probabilities hold, and whether the uncertain pixels are the wrong ones.

    Logged in validation (``test/...`` in test): ``val/ece``, ``val/brier``, ``val/nll``, and for each measure
    ``val/auroc_error/MEASURE`` and ``val/aurc/MEASURE``; with several loaders, the loader's number is added as
    Lightning does. Where several of these callbacks stand side by side, the kind of an estimator that is not one
    deterministic pass is added before it: ``val/ece/mc_dropout``. Loggers that can take a figure get
    ``val/uncertainty`` with the reliability diagram, and a table of all values, both with intervals (95 %).

    An interval is bootstrapped over groups of images, never over pixels: neighboring frames, tiles and slices are not
    independent. It is meaningful from about ten groups on.

    In validation the values are those of the raw softmax, as a calibrator is fitted on this very data (`Calibrate`
    logs what it is worth out of sample); in test the calibrator that fits the weights is applied.

    Args:
        estimator: as in `EstimatorCallback`.
        every_n_epochs: in a training, look at the first validation epoch, at every n-th after it, and at the last.
        max_images: look at the first so many images of each loader only; None: at all.
        measures: names of the measures; None: all maps that the estimator has.
        calibrator: as in `EstimatorCallback`.
        batch_forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        ignore_index: value of masks that is left out.
        group: from an image's id to its group (video, patient, slide), of which the bootstrap draws whole ones: a
            function, or a regular expression whose first bracket (or whole match) is the group; None: contiguous
            blocks, 64 of a loader's images in their order. Where there are fewer images, or it is not known how many,
            each is a group. See `seguq.core.groups.Groups`.
        prefix: put before the names of all that is logged, as ``"seguq/"``, where the module logs one of these itself.

    Raises:
        SeguqError: for wrong arguments, batches without masks, image ids that ``group`` finds nothing in, two of
            these callbacks with estimators of one kind, or a name that the module logs itself.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017 (ECE); Brier, 1950; Geifman, Uziel and El-Yaniv,
        2019 (AURC).

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[UncertaintyMetrics()], logger=False, enable_checkpointing=False)
    """

    stages: ClassVar[tuple[str, ...]] = ("validate", "test")

    def __init__(
        self,
        estimator: Estimator | str | None = None,
        every_n_epochs: int = 1,
        max_images: int | None = None,
        measures: Sequence[str | Measure] | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        ignore_index: int = 255,
        group: GroupOf = None,
        prefix: str = "",
    ) -> None:
        super().__init__(estimator, calibrator, batch_forward, task, every_n_epochs)
        if max_images is not None:
            require_count("max_images", max_images)
        self.group = Groups(group)
        self.max_images = max_images
        self.measures = named_measures(measures)
        require_maps(self.measures or (), "UncertaintyMetrics")
        self.ignore_index = ignore_index
        self.prefix = prefix

    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """An epoch begins."""
        return _Measuring(self, trainer, module, stage, passes)


class _Measuring(Run):
    """One epoch: metrics of each loader, and their report."""

    callback: UncertaintyMetrics

    def __init__(self, *run: Any) -> None:
        super().__init__(*run)
        kind = self.callback.kind
        kinds = [each.kind for each in self.trainer.callbacks if isinstance(each, UncertaintyMetrics)]
        require_own_names(self.callback, self.trainer)
        self.ending = "" if len(kinds) == 1 or kind == "deterministic" else f"/{kind}"
        self.prefix = self.callback.prefix + PREFIX[self.stage]
        names = self.callback.measures
        self.names = self.passes.want(tuple(filter(is_map, self.passes.estimator.measures)) if names is None else names)
        self.sums: dict[int, dict[str, BootstrapMetric]] = {}  # by loader
        self.classes = 0
        # a calibrator is fitted on validation data: values of it there would not be out of sample
        fixed = isinstance(self.callback.calibrator, Calibrator)
        self.applied = self.calibrator if self.stage == "test" or fixed else None

    def wants(self, dataloader: int) -> bool:
        most, places = self.callback.max_images, self.passes.watch.positions
        return most is None or not places or any(place < most for place in places)

    def look(self, step: Step, dataloader: int) -> None:
        if step.mask is None:
            raise SeguqError(
                "UncertaintyMetrics needs labels, but a batch has no mask that it understands: make the loader give "
                "(image, mask), or let batch_forward= return (logits, mask)"
            )
        most = self.callback.max_images
        maps = step.maps_of(self.applied)
        rows = [i for i, place in enumerate(step.positions) if most is None or place < most]
        probs, mask, error = self._judged(maps, step.mask)
        self.classes = probs.shape[1]
        metrics = self._metrics(dataloader, probs.device)
        if not rows:
            return
        self.callback.group.require_ids(self.passes.watch.numbered)
        total = self._total(dataloader)
        groups = [self.callback.group(step.ids[i], step.numbers[i], total) for i in rows]

        def of(values: Tensor) -> Tensor:
            return values if len(rows) == len(values) else values[rows]

        for name in ("ece", "brier"):
            metrics[name].update(of(probs), of(mask), group=groups)
        # of logits: in probabilities, what the model is most wrong about is rounded to 0
        metrics["nll"].update(of(step.logits_of(self.applied)), of(mask), group=groups)
        for name in self.names:
            metrics[name].update(of(maps[name]), of(error), group=groups)

    def _total(self, dataloader: int) -> int | None:
        """How many images of a loader are looked at, where that is known."""
        total, most = images_in(self.trainer, self.stage, dataloader), self.callback.max_images
        return total if most is None or total is None else min(most, total)

    def _judged(self, maps: UncertaintyMaps, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class probabilities, class indices, and for each pixel 0 (right), 1 (wrong) or the ignored index."""
        labeled = mask != self.callback.ignore_index
        wrong = ((maps.prediction != mask) & labeled).long()
        if not maps.multilabel:
            return maps.probs, mask, wrong.masked_fill(~labeled, 255)
        # a pixel is wrong where one of its labels is
        error = wrong.amax(1).masked_fill(~labeled.any(1), 255)
        return torch.stack((1 - maps.probs, maps.probs), 1), mask, error

    def _metrics(self, dataloader: int, device: Any) -> dict[str, BootstrapMetric]:
        if dataloader not in self.sums:
            ignored = self.callback.ignore_index
            made: dict[str, BootstrapMetric] = {
                "ece": CalibrationError(self.classes, ignore_index=ignored),
                "brier": BrierScore(self.classes, ignore_index=ignored),
                "nll": NegativeLogLikelihood(self.classes, ignore_index=ignored, from_logits=True),
            }
            made |= {name: ErrorRanking() for name in self.names}
            self.sums[dataloader] = {name: metric.to(device) for name, metric in made.items()}
        return self.sums[dataloader]

    def close(self) -> None:
        trainer, device = self.trainer, self.module.device
        if trainer.world_size > 1:  # a process may have seen no image of a loader, and has to take part all the same
            told = torch.tensor([self.classes, 1 + max(self.sums, default=-1)], device=device)
            everywhere = torch.stack(list(self.module.all_gather(told).reshape(-1, 2))).amax(0)
            self.classes, loaders = (int(value) for value in everywhere)
            for dataloader in range(loaders if self.classes else 0):
                self._metrics(dataloader, device)
        # one that had no batch counts, too: names are those that Lightning gives
        loaders = len(loaders_of(trainer, self.stage))
        several = loaders > 1
        if not self.sums:
            warnings.warn("UncertaintyMetrics saw no image in this run: nothing was measured", stacklevel=2)
            # a ModelCheckpoint that misses its value ends the training
            names = (*_OF_PROBS, *(f"{name}/{measure}" for measure in self.names for name in _OF_RANKING))
            endings = [f"/dataloader_idx_{number}" for number in range(loaders)] if several else [""]
            labels = [f"{self.prefix}/{name}{self.ending}{ending}" for name in names for ending in endings]
            log_values(self.callback, trainer, self.module, dict.fromkeys(labels, math.nan))
            return
        for dataloader in sorted(self.sums):
            ending = f"/dataloader_idx_{dataloader}" if several else ""
            self._report(self.sums[dataloader], self.ending + ending)

    def _report(self, metrics: dict[str, BootstrapMetric], ending: str) -> None:
        trainer, prefix = self.trainer, self.prefix
        rows: list[Row] = []
        for name in _OF_PROBS:
            value: Any = metrics[name].compute()
            low, high = metrics[name].compute_interval()
            rows.append(Row(name, None, float(value), float(low), float(high)))
        for measure in self.names:
            values: Any = metrics[measure].compute()
            intervals: Any = metrics[measure].compute_interval()
            for name, statistic in _OF_RANKING.items():
                low, high = intervals[statistic]
                rows.append(Row(name, measure, float(values[statistic]), float(low), float(high)))
        found = {f"{prefix}/{row.label}{ending}": row.value for row in rows}
        log_values(self.callback, trainer, self.module, found)
        if not trainer.loggers:
            return
        calibration: Any = metrics["ece"]
        with calibration.sync_context(dist_sync_fn=calibration.dist_sync_fn, should_sync=trainer.world_size > 1):
            if trainer.is_global_zero:
                title = f"{self.passes.tag}, {'not calibrated' if self.applied is None else 'calibrated'}"
                figure = uncertainty_figure(calibration, rows, title)
                log_figure(trainer.loggers, f"{prefix}/uncertainty{ending}", figure, trainer.global_step)
                log_table(
                    trainer.loggers,
                    f"{prefix}/uncertainty{ending}",
                    ("name", "value", "low", "high"),
                    [(row.label, row.value, row.low, row.high) for row in rows],
                    trainer.global_step,
                )
