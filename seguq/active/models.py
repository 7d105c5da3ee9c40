"""What of a round a model takes part in: the pool is scored, a new one trained, calibrated and judged."""

from __future__ import annotations

import weakref
from typing import Any

from seguq.acquisition import Strategy
from seguq.active.history import History
from seguq.active.judge import Judge, Judged
from seguq.active.labels import Unlabeled
from seguq.active.plan import Plan
from seguq.active.run_folder import RunFolder
from seguq.active.training import (
    calibrate,
    can_calibrate,
    checked_trainer,
    default_trainer,
    judge,
    judged_splits,
    predict,
    train,
)
from seguq.calibration import load
from seguq.callbacks import RegionScorer
from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.core.lightning import seed_everything
from seguq.core.log import logger
from seguq.core.seeds import derive_seed
from seguq.data import Labeled
from seguq.regions import RegionTable, cached
from seguq.regions.columns import COLUMNS
from seguq.regions.table import SCHEMA


class Models:
    """The models of a run, one a round, each by Trainers of its own and under the seeds of its round.

    Args:
        plan: how.
        folder: of the run.
        history: what is labeled.
    """

    def __init__(self, plan: Plan, folder: RunFolder, history: History) -> None:
        self._plan, self._folder, self._history = plan, folder, history
        self._last_trainer: weakref.ref[Any] | None = None

    def score(self, number: int, strategy: Strategy, pixels: int) -> dict[str, Any]:
        """Score the pool by the model of the round before, in the first by the untrained one.

        Args:
            number: of the round.
            strategy: what is needed beside scores.
            pixels: of the pool, to be written down.
        """
        columns = [name for name in strategy.needs if name in COLUMNS]
        estimator = self._plan.estimator
        if "features" in columns and not estimator.features:
            estimator = type(estimator)(**{**estimator.arguments(), "features": True})
        earlier = [row for selection in self._history.earlier(number) for row in selection.rows]
        source = Unlabeled(self._plan.pool, earlier)
        counts = {"regions": len(earlier), "pixels": pixels, "images": len(self._plan.pool)}
        if not source.any_left():
            RegionTable(SCHEMA.empty_table()).save(self._folder.table(number))
            return counts
        self._seeded(number, "score")
        task = self._made(number) if number == 0 else self._trained(number - 1)
        scorer = RegionScorer(
            self._folder.round(number),
            partition=cached(self._plan.partition, self._folder.partitions),
            by=self._plan.by,
            aggregate=self._plan.aggregate,
            estimator=estimator,
            calibrator=None if number == 0 else "auto",
            images=source,
            columns=columns,
            batch_forward=self._plan.batch_forward,
            overwrite=True,
        )
        predict(self._trainer(number, task), task, self._made_data(number - 1), [scorer])
        table = RegionTable.load(self._folder.table(number))
        self._require_all(table, {row["image_id"] for row in earlier})
        return {**counts, "regions": len(table) + len(earlier)}

    def _require_all(self, table: RegionTable, taken: set[str]) -> None:
        """Raise where images of the pool were not predicted."""
        there = taken.union(table.image_numbers()[1].to_pylist())
        lost = [image_id for image_id in self._plan.pool if image_id not in there]
        whole = Unlabeled(self._plan.pool, [])
        lost = [image_id for image_id in lost if whole.any_left(image_id)]
        if not lost:
            return
        said = f"{len(lost)} of the {len(self._plan.pool)} images of the pool have no scores, such as {lost[0]!r}"
        if self._plan.partition.needs:  # it may find no region in an image
            logger.info("%s: %r has found no region there", said, self._plan.partition)
            return
        raise SeguqError(
            f"{said}: the prediction loader of data(labeled) has to give all images of labeled.pool, with their ids"
        )

    def train(self, number: int) -> None:
        """Train on all labels, and write the checkpoint."""
        self._seeded(number, "train")
        task = self._made(number)
        if self._plan.fine_tune and number:
            task = load(self._folder.model(number - 1), task)
        train(self._trainer(number, task), task, self._made_data(number), self._folder.model(number))

    def calibrate(self, number: int) -> dict[str, Any]:
        """Fit a calibrator on the validation images, where there are any, into the checkpoint."""
        task, data = self._trained(number), self._made_data(number)
        if self._plan.calibrator is None or not can_calibrate(task, data):
            return {"method": None}
        self._seeded(number, "calibrate")
        calibrate(
            self._trainer(number, task),
            task,
            data,
            self._folder.model(number),
            self._plan.calibrator,
            estimator=self._plan.estimator,
            batch_forward=self._plan.batch_forward,
            ignore_index=self._plan.classes.ignore_index,
            group=self._plan.group,
        )
        return {"method": str(self._plan.calibrator)}

    def evaluate(self, number: int) -> dict[str, Any]:
        """Judge on the test images, or else on those of the validation."""
        task, data = self._trained(number), self._made_data(number)
        for split in judged_splits(task, data):
            self._seeded(number, "evaluate")
            callback = Judge(
                self._folder.states(number),
                self._plan.estimator,
                # not on the images that it was fitted on
                calibrator=None if split == "val" else "auto",
                batch_forward=self._plan.batch_forward,
                ignore_index=self._plan.classes.ignore_index,
                group=self._plan.group,
            )
            judge(self._trainer(number, task), task, data, split, callback)
            if self._folder.states(number).exists() and Judged(self._folder.states(number)).images:
                return {"split": split}
            task, data = self._trained(number), self._made_data(number)
        if self._plan.stop is not None:
            self._plan.stop.require_reachable(self._plan.budgets[number], judged=False)
        return {"split": None}

    def _labeled(self, number: int) -> Labeled:
        """All labels up to and with a round."""
        images = {key[0] for keys in self._history.answered(number).values() for _, key in keys}
        return Labeled(
            images={name: self._plan.pool.path(name) for name in sorted(images)},
            masks={name: self._folder.masks / f"{name}.png" for name in sorted(images)},
            classes=self._plan.classes,
            pool=self._plan.pool,
            round=max(number, 0),
            seed=derive_seed("data", self._plan.seed, max(number, 0)),
        )

    def _seeded(self, number: int, what: str) -> None:
        seed_everything(derive_seed(what, self._plan.seed, number) % 2**32, workers=True, verbose=False)

    def _made(self, number: int) -> Any:
        task = self._plan.make_task()
        if not hasattr(task, "state_dict") or not hasattr(task, "training_step"):
            raise UsageError(f"make_task() must return a LightningModule, but returned {task!r}")
        told, names = getattr(task, "num_classes", None), self._plan.classes.names
        wanted = {len(names), 1} if self._plan.estimator.task == "binary" else {len(names)}
        if is_whole(told) and told not in wanted:  # said before people have labeled anything
            raise UsageError(
                f"the module has {told} classes, but what is labeled has {len(names)} ({', '.join(names)}): make both "
                "the same"
            )
        return task

    def _trained(self, number: int) -> Any:
        """The model of a round."""
        return load(self._folder.model(number), self._made(number))

    def _trainer(self, number: int, task: Any) -> Any:
        make = self._plan.make_trainer
        found = checked_trainer(default_trainer(self._folder.round(number)) if make is None else make(), task)
        if self._last_trainer is not None and self._last_trainer() is found:
            raise UsageError(
                "trainer() has returned the same Trainer twice, which would count its epochs on: let it make a new "
                "Trainer each time it is called, with callbacks and loggers of its own"
            )
        self._last_trainer = weakref.ref(found)
        return found

    def _made_data(self, number: int) -> Any:
        found = self._plan.data(self._labeled(number))
        if not hasattr(found, "train_dataloader"):
            raise UsageError(f"data(labeled) must return a LightningDataModule, but returned {found!r}")
        return found
