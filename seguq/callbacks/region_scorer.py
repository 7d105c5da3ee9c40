"""Scores of regions while a Trainer predicts, and the list of those to label next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from seguq.acquisition import Budget, Selection, Strategy, select
from seguq.acquisition.best_of_each_image import BestOfEachImage
from seguq.calibration import Calibrator
from seguq.callbacks.agreement import together
from seguq.callbacks.base import EstimatorCallback, require_own_folder
from seguq.callbacks.batches import BatchForward
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers
from seguq.core.log import logger
from seguq.functional.logits import Task
from seguq.functional.regions import AGGREGATES, Aggregate
from seguq.inference import Estimator
from seguq.inference.measures import named_measures, scored_by_default
from seguq.regions import Grid, Partition, score
from seguq.store.shards import ShardWriter, merge_shards
from seguq.store.writer import writing

_TABLE, _SELECTION = "regions.parquet", "selection.json"

# so that a YAML file of LightningCLI may give any of them by the name of its class alone
Partition.names(), Strategy.names()


class RegionScorer(EstimatorCallback):
    """Scores the regions of every image in ``predict``, and chooses those to label next.

    In ``DIR``: ``regions.parquet``, a table of one row a region (`seguq.regions.RegionTable`), sorted by image and the
    same however many processes there were; and where a budget is given ``selection.json``
    (`seguq.acquisition.Selection`). Rows are written as they come.

    Args:
        dir: the folder.
        partition: how images are cut; None: a grid of 32 pixels.
        by: the measure to score by; None: ``mutual_information`` where there are samples, else
            ``predictive_entropy``.
        aggregate: ``"mean"``, ``"sum"`` or ``"max"`` over the pixels of a region.
        budget: how much may be labeled, such as ``Budget(regions=50)``; None: nothing is selected.
        strategy: which regions are taken; None: the best of each image.
        labeled: earlier selections, or the JSON files of them: their regions are in the table, and are not selected
            again.
        seed: of the selection.
        estimator: as in `EstimatorCallback`.
        calibrator: as in `EstimatorCallback`.
        batch_forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        overwrite: replace a table or selection that is in ``DIR`` already, instead of refusing to.

    Raises:
        UsageError: if ``DIR`` holds a table or selection already.
        SeguqError: for wrong arguments, or two images of one id.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> scorer = RegionScorer("pool", partition=Grid(16), budget=Budget(regions=20))
        >>> trainer = Trainer(callbacks=[scorer], logger=False, enable_checkpointing=False)
    """

    stages: ClassVar[tuple[str, ...]] = ("predict",)

    def __init__(
        self,
        dir: str | os.PathLike[str],
        partition: Partition | None = None,
        by: str | None = None,
        aggregate: Aggregate = "mean",
        budget: Budget | None = None,
        strategy: Strategy | None = None,
        labeled: Sequence[Selection | str | os.PathLike[str]] = (),
        seed: int = 0,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(estimator, calibrator, batch_forward, task)
        self.dir = Path(dir)
        self.partition: Partition = Grid(32) if partition is None else partition
        if not isinstance(self.partition, Partition):
            raise SeguqError(f"partition must be one such as seguq.regions.Grid(32), but is {partition!r}")
        require_choice("aggregate", aggregate, AGGREGATES)
        if not (budget is None or isinstance(budget, Budget)):
            raise SeguqError(f"budget must be one such as seguq.acquisition.Budget(regions=50), but is {budget!r}")
        if not (strategy is None or isinstance(strategy, Strategy)):
            raise SeguqError(f"strategy must be one such as seguq.acquisition.TopK(), but is {strategy!r}")
        earlier = [labeled] if isinstance(labeled, (Selection, str, os.PathLike)) else list(labeled)
        if earlier and budget is None:
            raise SeguqError("labeled= says what is not to be selected again, but without budget= nothing is selected")
        self.labeled = [one if isinstance(one, Selection) else Selection.load(one) for one in earlier]
        self.by = by
        self.aggregate: Aggregate = aggregate
        self.budget = budget
        self.strategy: Strategy = BestOfEachImage() if strategy is None else strategy
        self.seed = seed
        self.overwrite = overwrite

    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """A prediction begins."""
        require_own_folder(self, trainer)
        self.hold(trainer, module, self.dir)
        return _Scoring(self, trainer, module, stage, passes)


class _Scoring(Run):
    """One prediction: rows of regions into a shard of this process, and all shards into the table."""

    callback: RegionScorer

    def __init__(self, *run: Any) -> None:
        super().__init__(*run)
        settings, measures = self.callback, self.passes.estimator.measures
        (self.by,) = named_measures(settings.by or scored_by_default(measures)) or ()
        self.passes.want((self.by, *(name for name in settings.partition.needs if name != self.by)))
        together(self.trainer, self.module, self._prepare, first_only=True)
        self.shard = ShardWriter(settings.dir, self.trainer.global_rank, settings.dir / _TABLE)

    def _prepare(self) -> None:
        folder = self.callback.dir
        for name in (_TABLE, *((_SELECTION,) if self.callback.budget is not None else ())):
            if (folder / name).exists() and not self.callback.overwrite:
                raise UsageError(f"{folder / name} exists already: give RegionScorer another folder, or overwrite=True")
        with writing("RegionScorer"):
            remove_leftovers(folder)

    def look(self, step: Step, dataloader: int) -> None:
        if not step.ids:
            return
        settings, maps = self.callback, step.maps_of(self.calibrator).cpu()
        images = None if step.image is None else step.image.detach().float().cpu()
        if images is not None and not step.fits:
            raise SeguqError(
                f"regions are boxes of pixels of the images {tuple(images.shape)}, but the logits have shape "
                f"{tuple(step.pooled.shape)}: let batch_forward= return logits of the images' size"
            )
        table = score(maps, settings.partition, images=images, by=self.by, aggregate=settings.aggregate)
        with writing("RegionScorer"):
            self.shard.add(table)

    def close(self) -> None:
        together(self.trainer, self.module, self._close_shard)
        together(self.trainer, self.module, self._finish_table, first_only=True)
        self.shard.abort()  # it is in the table

    def _close_shard(self) -> None:
        with writing("RegionScorer"):
            self.shard.close()

    def _finish_table(self) -> None:
        settings = self.callback
        with writing("RegionScorer"):
            table = merge_shards(settings.dir, settings.dir / _TABLE)
        logger.info("RegionScorer: %d regions in %s", len(table), settings.dir / _TABLE)
        if settings.budget is not None:
            selection = select(
                table,
                budget=settings.budget,
                strategy=settings.strategy,
                labeled=settings.labeled,
                seed=settings.seed,
            )
            with writing("RegionScorer"):
                selection.save(settings.dir / _SELECTION)
            logger.info("RegionScorer: %d of them to label next in %s", len(selection), settings.dir / _SELECTION)

    def abort(self) -> None:
        self.shard.abort()
