"""Calibration and ranking of a module's uncertainty, in its own logger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from seguq.calibration import Calibrator
from seguq.callbacks.base import PREFIX, EstimatorCallback, log_values
from seguq.callbacks.batches import BatchForward, loaders_of
from seguq.callbacks.loggers import log_figure, log_table
from seguq.callbacks.passes import Passes, Step
from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.export.metrics_figure import Row, uncertainty_figure
from seguq.functional.logits import Task
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.measures import Measure, named_measures
from seguq.metrics import BrierScore, CalibrationError, ErrorRanking, NegativeLogLikelihood
from seguq.metrics.bootstrap import BootstrapMetric

_OF_PROBS = {"ece": CalibrationError, "brier": BrierScore, "nll": NegativeLogLikelihood}
_OF_RANKING = {"auroc_error": "auroc", "aurc": "aurc"}


class UncertaintyMetrics(EstimatorCallback):
    """How well the probabilities hold, and whether the uncertain pixels are the wrong ones.

    Logged in validation (``test/...`` in test): ``val/ece``, ``val/brier``, ``val/nll``, and for each measure
    ``val/auroc_error/MEASURE`` and ``val/aurc/MEASURE``; with several loaders, the loader's number is added as
    Lightning does. Where several of these callbacks stand side by side, the kind of an estimator that is not one
    deterministic pass is added before it: ``val/ece/mc_dropout``. Loggers that can take a figure get
    ``val/uncertainty`` with the reliability diagram, and a table of all values, both with intervals (95 %,
    bootstrapped over images, meaningful from about ten images on).

    In validation the figures are those of the raw softmax, as a calibrator is fitted on this very data (`Calibrate`
    logs what it is worth out of sample); in test the calibrator that fits the weights is applied.

    Args:
        estimator: as in `EstimatorCallback`.
        every_n_epochs: in a training, look at the first validation epoch, at every n-th after it, and at the last.
        max_images: look at the first so many images of each loader only; None: at all.
        measures: names of the measures; None: all that the estimator has.
        calibrator: as in `EstimatorCallback`.
        forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        ignore_index: value of masks that is left out.

    Raises:
        SeguqError: for wrong arguments, batches without masks, or two of these callbacks with estimators of one kind.

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
        forward: BatchForward | None = None,
        task: Task | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(estimator, calibrator, forward, task, every_n_epochs)
        if max_images is not None:
            require_count("max_images", max_images)
        self.max_images = max_images
        self.measures = named_measures(measures)
        self.ignore_index = ignore_index
        self._names: tuple[str, ...] = ()
        self._sums: dict[int, dict[str, BootstrapMetric]] = {}
        self._classes = 0
        self._calibrated = False
        self._ending = ""

    def _opened(self, trainer: Any, module: Any, stage: str, passes: Passes) -> None:
        self._names = passes.want(self.measures)
        self._sums, self._classes, self._calibrated = {}, 0, False
        kinds = [each._kind for each in trainer.callbacks if isinstance(each, UncertaintyMetrics)]
        if kinds.count(self._kind) > 1:
            raise SeguqError(
                f"two UncertaintyMetrics of one kind of estimator ({self._kind}) would log under the same names: "
                "leave one out"
            )
        self._ending = "" if len(kinds) == 1 or self._kind == "deterministic" else f"/{self._kind}"

    def _wants(self, batch: Any, batch_idx: int, dataloader: int) -> bool:
        assert self._passes is not None
        places = self._passes.positions
        return self.max_images is None or not places or any(place < self.max_images for place in places)

    def _batch(self, trainer: Any, module: Any, stage: str, step: Step, dataloader: int) -> None:
        if step.mask is None:
            raise SeguqError(
                "UncertaintyMetrics needs labels, but a batch has no mask that it understands: make the loader give "
                "(image, mask), or let forward= return (logits, mask)"
            )
        # a calibrator is fitted on validation data: figures of it there would not be out of sample
        fixed = isinstance(self.calibrator, Calibrator)
        calibrator = self._calibrator_for(trainer, module) if stage == "test" or fixed else None
        self._calibrated = calibrator is not None
        maps = step.maps_of(calibrator)
        rows = [i for i, place in enumerate(step.positions) if self.max_images is None or place < self.max_images]
        probs, mask, error = self._judged(maps, step.mask)
        self._classes = probs.shape[1]
        metrics = self._metrics(dataloader, probs.device)
        # the number tells images of one id apart; the same whatever process has them
        ids = [f"{step.ids[i]}/{step.numbers[i]}" for i in rows]
        if not rows:
            return
        whole = len(rows) == len(step.ids)
        for name in _OF_PROBS:
            metrics[name].update(probs if whole else probs[rows], mask if whole else mask[rows], group=ids)
        for name in self._names:
            values = maps[name]
            metrics[name].update(values if whole else values[rows], error if whole else error[rows], group=ids)

    def _judged(self, maps: UncertaintyMaps, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class probabilities, class indices, and for each pixel 0 (right), 1 (wrong) or the ignored index."""
        labeled = mask != self.ignore_index
        wrong = ((maps.prediction != mask) & labeled).long()
        if not maps.multilabel:
            return maps.probs, mask, wrong.masked_fill(~labeled, 255)
        # a pixel is wrong where one of its labels is
        error = wrong.amax(1).masked_fill(~labeled.any(1), 255)
        return torch.stack((1 - maps.probs, maps.probs), 1), mask, error

    def _metrics(self, dataloader: int, device: Any) -> dict[str, BootstrapMetric]:
        if dataloader not in self._sums:
            made: dict[str, BootstrapMetric] = {
                name: kind(self._classes, ignore_index=self.ignore_index) for name, kind in _OF_PROBS.items()
            }
            made |= {name: ErrorRanking() for name in self._names}
            self._sums[dataloader] = {name: metric.to(device) for name, metric in made.items()}
        return self._sums[dataloader]

    def _closed(self, trainer: Any, module: Any, stage: str) -> None:
        if trainer.world_size > 1:  # a process may have seen no image of a loader, and has to take part all the same
            told = torch.tensor([self._classes, 1 + max(self._sums, default=-1)], device=module.device)
            everywhere = torch.stack(list(module.all_gather(told).reshape(-1, 2))).amax(0)
            self._classes, loaders = (int(value) for value in everywhere)
            for dataloader in range(loaders if self._classes else 0):
                self._metrics(dataloader, module.device)
        # one that had no batch counts, too: names are those that Lightning gives
        loaders = len(loaders_of(trainer, stage))
        several = loaders > 1
        if not self._sums:
            warnings.warn("UncertaintyMetrics saw no image in this run: nothing was measured", stacklevel=2)
            # a ModelCheckpoint that misses its figure ends the training
            names = (*_OF_PROBS, *(f"{figure}/{measure}" for measure in self._names for figure in _OF_RANKING))
            endings = [f"/dataloader_idx_{number}" for number in range(loaders)] if several else [""]
            labels = [f"{PREFIX[stage]}/{name}{self._ending}{ending}" for name in names for ending in endings]
            log_values(trainer, module, dict.fromkeys(labels, math.nan))
            return
        for dataloader in sorted(self._sums):
            ending = f"/dataloader_idx_{dataloader}" if several else ""
            self._report(trainer, module, stage, self._sums[dataloader], self._ending + ending)
        self._sums = {}

    def _report(self, trainer: Any, module: Any, stage: str, metrics: dict[str, BootstrapMetric], ending: str) -> None:
        prefix = PREFIX[stage]
        rows: list[Row] = []
        for name in _OF_PROBS:
            value: Any = metrics[name].compute()
            low, high = metrics[name].compute_interval()
            rows.append(Row(name, None, float(value), float(low), float(high)))
        for measure in self._names:
            values: Any = metrics[measure].compute()
            intervals: Any = metrics[measure].compute_interval()
            for name, figure in _OF_RANKING.items():
                low, high = intervals[figure]
                rows.append(Row(name, measure, float(values[figure]), float(low), float(high)))
        found = {f"{prefix}/{row.label}{ending}": row.value for row in rows}
        log_values(trainer, module, found)
        if not trainer.loggers:
            return
        assert self._passes is not None
        calibration: Any = metrics["ece"]
        with calibration.sync_context(dist_sync_fn=calibration.dist_sync_fn, should_sync=trainer.world_size > 1):
            if trainer.is_global_zero:
                title = f"{self._passes.tag}, {'calibrated' if self._calibrated else 'not calibrated'}"
                figure = uncertainty_figure(calibration, rows, title)
                log_figure(trainer.loggers, f"{prefix}/uncertainty{ending}", figure, trainer.global_step)
                log_table(
                    trainer.loggers,
                    f"{prefix}/uncertainty{ending}",
                    ("figure", "value", "low", "high"),
                    [(row.label, row.value, row.low, row.high) for row in rows],
                    trainer.global_step,
                )

    def _at_rest(self) -> dict[str, Any]:
        return {**super()._at_rest(), "_sums": {}}
