"""Scores of regions while a Trainer predicts, and the list of those to label next."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers
from seguq.core.log import logger
from seguq.data.image_source import ImageSource
from seguq.functional.aggregates import aggregate_named
from seguq.functional.logits import Task
from seguq.inference import Estimator, UncertaintyMaps
from seguq.inference.measures import scored_by_default
from seguq.regions import Grid, Partition, WholeImage, cached, score
from seguq.regions.columns import require_columns
from seguq.regions.scored_by import By, scores_named
from seguq.store.shards import ShardWriter, merge_shards
from seguq.store.writer import writing

_TABLE, _SELECTION, _PARTITIONS = "regions.parquet", "selection.json", "partitions"

# so that a YAML file of LightningCLI may give any of them by the name of its class alone
Partition.names(), Strategy.names()


class RegionScorer(EstimatorCallback):
    """Scores the regions of every image in ``predict``, and chooses those to label next.

    In ``DIR``: ``regions.parquet``, a table of one row a region (`seguq.regions.RegionTable`), sorted by image and the
    same however many processes there were; and where a budget is given ``selection.json``
    (`seguq.acquisition.Selection`). Rows are written as they come. ``partitions`` keeps the regions of partitions that
    look at the image alone (`seguq.regions.cached`).

    Args:
        dir: the folder.
        partition: how images are cut; None: a grid of 32 pixels.
        by: the measure to score by, or several, as `seguq.regions.score` takes them; None: ``smallest_margin``, of
            whole images ``pairwise_dice`` where the estimator has it.
        aggregate: how a region's pixels become its score, as in `seguq.regions.score`.
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
        images: the images as stored, for partitions that look at them, as batches hold normalized ones: their folder,
            their files by id, or a `seguq.data.ImageSource`. The ids are those of the batches.
        columns: what strategies need beside scores, as in `seguq.regions.score`; ``"features"`` of an estimator with
            ``features=True``.

    Raises:
        UsageError: if ``DIR`` holds a table or selection already.
        SeguqError: for wrong arguments, two images of one id, or one whose file is missing or of another size than its
            maps.

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
        by: By | Sequence[By] | None = None,
        aggregate: str = "mean",
        budget: Budget | None = None,
        strategy: Strategy | None = None,
        labeled: Sequence[Selection | str | os.PathLike[str]] = (),
        seed: int = 0,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        overwrite: bool = False,
        images: str | os.PathLike[str] | Mapping[str, str] | ImageSource | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        super().__init__(estimator, calibrator, batch_forward, task)
        self.dir = Path(dir)
        self.partition: Partition = Grid(32) if partition is None else partition
        if not isinstance(self.partition, Partition):
            raise SeguqError(f"partition must be one such as seguq.regions.Grid(32), but is {partition!r}")
        if self.partition.needs_image and images is None:
            raise SeguqError(
                f"{self.partition!r} looks at images as they are stored, but batches hold normalized ones: pass "
                "RegionScorer(images=) their folder, or a seguq.data.ImageSource"
            )
        self.images = None if images is None else ImageSource.of(images)
        aggregate_named(aggregate)
        require_columns(columns)
        self.columns = tuple(columns)
        if by is not None:
            scores_named(by)
        if not (budget is None or isinstance(budget, Budget)):
            raise SeguqError(f"budget must be one such as seguq.acquisition.Budget(regions=50), but is {budget!r}")
        if not (strategy is None or isinstance(strategy, Strategy)):
            raise SeguqError(f"strategy must be one such as seguq.acquisition.TopK(), but is {strategy!r}")
        earlier = [labeled] if isinstance(labeled, (Selection, str, os.PathLike)) else list(labeled)
        if earlier and budget is None:
            raise SeguqError("labeled= says what is not to be selected again, but without budget= nothing is selected")
        self.labeled = [one if isinstance(one, Selection) else Selection.load(one) for one in earlier]
        self.by = by
        self.aggregate = aggregate
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
        whole = isinstance(settings.partition, WholeImage)
        self.by = settings.by or scored_by_default(measures, of_images=whole)
        needs = [name for item in scores_named(self.by) for name in item.needs]
        self.passes.want(tuple(dict.fromkeys((*needs, *settings.partition.needs))))
        self.partition = cached(settings.partition, settings.dir / _PARTITIONS)
        together(self.trainer, self.module, self._prepare, first_only=True)
        self.shard = ShardWriter(settings.dir, self.trainer.global_rank, settings.dir / _TABLE)

    def _prepare(self) -> None:
        folder = self.callback.dir
        for name in (_TABLE, *((_SELECTION,) if self.callback.budget is not None else ())):
            if (folder / name).exists() and not self.callback.overwrite:
                raise UsageError(f"{folder / name} exists already: give RegionScorer another folder, or overwrite=True")
        with writing("RegionScorer"):
            remove_leftovers(folder)
            remove_leftovers(folder / _PARTITIONS)

    def look(self, step: Step, dataloader: int) -> None:
        if not step.ids:
            return
        settings, maps = self.callback, step.maps_of(self.calibrator).cpu()
        if step.image is not None and not step.fits:
            raise SeguqError(
                f"regions are boxes of pixels of the images {tuple(step.image.shape)}, but the logits have shape "
                f"{tuple(step.pooled.shape)}: let batch_forward= return logits of the images' size"
            )
        source = settings.images
        table = score(
            self._with_images(maps),
            self.partition,
            by=self.by,
            aggregate=settings.aggregate,
            columns=settings.columns,
            paths=None if source is None else source.paths,
            missing=None if source is None else source.missing,
        )
        with writing("RegionScorer"):
            self.shard.add(table)

    def _with_images(self, maps: UncertaintyMaps) -> Iterator[tuple[UncertaintyMaps, Any]]:
        """The maps of one image after the other, with the image as stored where the partition looks at it."""
        source = self.callback.images
        for one in maps.split():
            image = None
            if source is not None:
                (image_id,) = one.image_ids
                source.require_size(image_id, one.spatial)
                image = source[image_id] if self.partition.needs_image else None
            yield one, image

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
