"""Scores of regions while a Trainer predicts, and the list of those to label next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from seguq.acquisition import Budget, Strategy, TopK, select
from seguq.calibration import Calibrator
from seguq.callbacks.agreement import together
from seguq.callbacks.base import EstimatorCallback
from seguq.callbacks.batches import BatchForward
from seguq.callbacks.passes import Passes, Step
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
        strategy: which regions are taken; None: the highest scores.
        seed: of the selection.
        estimator: as in `EstimatorCallback`.
        calibrator: as in `EstimatorCallback`.
        forward: as in `EstimatorCallback`.
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
        seed: int = 0,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        forward: BatchForward | None = None,
        task: Task | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(estimator, calibrator, forward, task)
        self.dir = Path(dir)
        self.partition: Partition = Grid(32) if partition is None else partition
        if not isinstance(self.partition, Partition):
            raise SeguqError(f"partition must be one such as seguq.regions.Grid(32), but is {partition!r}")
        require_choice("aggregate", aggregate, AGGREGATES)
        if not (budget is None or isinstance(budget, Budget)):
            raise SeguqError(f"budget must be one such as seguq.acquisition.Budget(regions=50), but is {budget!r}")
        if not (strategy is None or isinstance(strategy, Strategy)):
            raise SeguqError(f"strategy must be one such as seguq.acquisition.TopK(), but is {strategy!r}")
        self.by = by
        self.aggregate: Aggregate = aggregate
        self.budget = budget
        self.strategy: Strategy = TopK() if strategy is None else strategy
        self.seed = seed
        self.overwrite = overwrite
        self._by = ""
        self._shard: ShardWriter | None = None

    def _opened(self, trainer: Any, module: Any, stage: str, passes: Passes) -> None:
        for other in trainer.callbacks:
            if isinstance(other, RegionScorer) and other is not self and other.dir.resolve() == self.dir.resolve():
                raise SeguqError(f"two RegionScorers write into {self.dir}: give each a folder of its own")
        (self._by,) = named_measures(self.by or scored_by_default(passes.estimator.measures)) or ()
        passes.want((self._by, *(name for name in self.partition.needs if name != self._by)))
        together(trainer, module, self._prepare, first_only=True)
        self._shard = ShardWriter(self.dir, trainer.global_rank)

    def _prepare(self) -> None:
        if self.dir.exists() and not self.dir.is_dir():
            raise UsageError(f"{self.dir} is a file, not a folder")
        for name in (_TABLE, *((_SELECTION,) if self.budget is not None else ())):
            if (self.dir / name).exists() and not self.overwrite:
                raise UsageError(
                    f"{self.dir / name} exists already: give RegionScorer another folder, or overwrite=True"
                )
        with writing("RegionScorer"):
            self.dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.dir)

    def _batch(self, trainer: Any, module: Any, stage: str, step: Step, dataloader: int) -> None:
        if not step.ids:
            return
        assert self._shard is not None
        maps = step.maps_of(self._calibrator_for(trainer, module)).cpu()
        images = None if step.image is None else step.image.detach().float().cpu()
        table = score(maps, self.partition, images=images, by=self._by, aggregate=self.aggregate)
        with writing("RegionScorer"):
            self._shard.add(table)

    def _closed(self, trainer: Any, module: Any, stage: str) -> None:
        together(trainer, module, self._close_shard)
        together(trainer, module, self._finish_table, first_only=True)
        self._shard = None  # it was merged; after an error it goes with the run

    def _close_shard(self) -> None:
        assert self._shard is not None
        with writing("RegionScorer"):
            self._shard.close()

    def _finish_table(self) -> None:
        with writing("RegionScorer"):
            table = merge_shards(self.dir, self.dir / _TABLE)
        logger.info("RegionScorer: %d regions in %s", len(table), self.dir / _TABLE)
        if self.budget is not None:
            selection = select(table, budget=self.budget, strategy=self.strategy, seed=self.seed)
            with writing("RegionScorer"):
                selection.save(self.dir / _SELECTION)
            logger.info("RegionScorer: %d of them to label next in %s", len(selection), self.dir / _SELECTION)

    def _abandoned(self) -> None:
        if self._shard is not None:
            self._shard.abort()

    def _at_rest(self) -> dict[str, Any]:
        return {**super()._at_rest(), "_shard": None}
