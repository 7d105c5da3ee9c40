"""Strategies side by side on a data set whose labels are known: each with several seeds, all of it resumable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seguq.acquisition import Budget, Strategy
from seguq.active.events import read_events
from seguq.active.fork import fork
from seguq.active.journal import ended
from seguq.active.loop import ActiveLearningLoop
from seguq.active.reports.records import MAIN_METRIC
from seguq.active.run_folder import RunFolder
from seguq.annotators import Annotator
from seguq.core.errors import SeguqError, UsageError
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.core.reading import mapping, read_json, reading
from seguq.data import ImageSource
from seguq.inference import Estimator
from seguq.regions import Partition

_START, FULL = "start", "all"
_PAUSE = 5.0  # seconds between two looks at what other processes do


@dataclass(frozen=True)
class Arm:
    """One way of choosing.

    Attributes:
        name: in tables, and of its folder.
        strategy: which regions are taken, after the first labels.
        budgets: of each round after these.
        partition: how images are cut then; None: as for the first labels.
        by: what regions are scored by; None: the margin.
        estimator: asked for it; None: one deterministic pass.
    """

    name: str
    strategy: Strategy
    budgets: Sequence[Budget]
    partition: Partition | None = None
    by: str | None = None
    estimator: Estimator | None = None


@dataclass(frozen=True)
class Point:
    """What one run has reached with some labels.

    Attributes:
        arm: name of the way of choosing.
        seed: of the run.
        round: number of the round.
        labeled: regions, pixels, clicks and images that were labeled until then, the first labels among them.
        pool: regions, pixels and images in all.
        value: the main metric; None where it is not defined.
    """

    arm: str
    seed: int
    round: int
    labeled: dict[str, int]
    pool: dict[str, int]
    value: float | None


@dataclass
class Experiment:
    """Cells of a way of choosing and a seed, each an `ActiveLearningLoop`.

    Of each seed the first labels, and the model trained on them, are made once, and every way of choosing goes on from
    there by a fork. A cell ``all`` trains on the labels of the whole pool, in the same way. The budget counts the first
    labels, and each training has the steps that ``data`` says.

    Started again, cells go on where they stopped; started several times at once, each process takes cells that no other
    works at.

    Args:
        make_task: as for the loop.
        data: as for the loop.
        pool: the images.
        annotator: makes the one who knows all labels, such as ``lambda: Oracle(masks)``.
        arms: the ways of choosing.
        seeds: one run of each way for each.
        folder: of the experiment.
        first: the budget of the first labels.
        partition: how images are cut.
        trainer: as for the loop.
        full: also train on all labels.
        settings: as for the loop.
    """

    make_task: Callable[[], Any]
    data: Callable[[Any], Any]
    pool: ImageSource
    annotator: Callable[[], Annotator]
    arms: Sequence[Arm]
    seeds: Sequence[int]
    folder: str | os.PathLike[str]
    first: Budget
    partition: Partition
    trainer: Callable[[], Any] | None = None
    full: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        for name in names:
            if not name or name in (_START, FULL) or not name.replace("_", "").replace("-", "").isalnum():
                raise UsageError(
                    f"the name of a way of choosing is that of a folder, of letters, digits, - and _, and neither "
                    f"{_START!r} nor {FULL!r}, but is {name!r}"
                )
        if len(set(names)) < len(names):
            raise UsageError(f"two ways of choosing have the same name: {', '.join(names)}")
        if not names or not len(self.seeds):
            raise UsageError("an experiment takes at least one way of choosing and one seed")
        self.path = Path(self.folder)

    def run(self) -> None:
        """Go through all cells, those of the first seed first.

        Raises:
            UsageError: where a cell was begun with other settings, also one that is complete.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for cell in self._cells():
            if self._done(*cell):
                self._loop(*cell).check()
        while True:
            left = [cell for cell in self._cells() if not self._done(*cell)]
            if not left:
                return
            if not any(self._try(*cell) for cell in left):
                time.sleep(_PAUSE)  # the others are in work elsewhere, or wait for what is

    def points(self, complete: bool = False) -> list[Point]:
        """What was measured so far, by way of choosing, seed and round.

        Args:
            complete: only of runs that have gone through all of their rounds, as for a `Comparison`.
        """
        found = []
        for name in (*(arm.name for arm in self.arms), FULL):
            for seed in self.seeds:
                if complete and not self._done(name, seed):
                    continue
                folder = RunFolder(self._folder(name, seed))
                number = 0
                while folder.metrics(number).exists():
                    found.append(_point(name, seed, folder.metrics(number)))
                    number += 1
        return found

    # ---- cells ----

    def _cells(self) -> Iterator[tuple[str, int]]:
        for seed in self.seeds:
            yield _START, seed
            for arm in self.arms:
                yield arm.name, seed
            if self.full:
                yield FULL, seed

    def _folder(self, name: str, seed: int) -> Path:
        return self.path / f"seed-{seed:02d}" / name

    def _rounds(self, name: str) -> int:
        return 1 if name in (_START, FULL) else 1 + len(self._arm(name).budgets)

    def _arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def _done(self, name: str, seed: int) -> bool:
        return ended(read_events(self._folder(name, seed)), self._rounds(name) - 1, "report") is not None

    def _try(self, name: str, seed: int) -> bool:
        """Work at a cell, unless another process does, or it cannot begin yet; whether something was done."""
        if self._done(name, seed):
            return False
        if name not in (_START, FULL) and not self._done(_START, seed):
            return False
        mark = self.path / f"seed-{seed:02d}" / f".{name}.lock"
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        lock = Lock(mark, alone=True)
        try:
            lock.take()
        except UsageError:
            return False
        try:
            if self._done(name, seed):
                return True
            logger.info("%s, seed %d", name, seed)
            self._work(name, seed)
        finally:
            lock.release()
        return True

    def _work(self, name: str, seed: int) -> None:
        folder = self._folder(name, seed)
        if name not in (_START, FULL) and not folder.exists():
            fork(self._folder(_START, seed), 0, folder)
        loop = self._loop(name, seed)
        loop.run()
        if not self._done(name, seed):
            raise SeguqError(
                f"{folder} has ended before its last round: {name!r} asks for more than the pool holds; give it "
                "smaller budgets, and remove that folder"
            )
        if name != _START:  # further rounds begin with the last model alone
            for number in range(self._rounds(name) - 1):
                loop.folder.model(number).unlink(missing_ok=True)

    def _loop(self, name: str, seed: int) -> ActiveLearningLoop:
        arm = None if name in (_START, FULL) else self._arm(name)
        first = Budget(images=len(self.pool)) if name == FULL else self.first
        return ActiveLearningLoop(
            self.make_task,
            self.data,
            pool=self.pool,
            annotator=self.annotator(),
            estimator=None if arm is None else arm.estimator,
            partition=self.partition if arm is None or arm.partition is None else arm.partition,
            strategy=None if arm is None else arm.strategy,
            budget=[first, *(() if arm is None else arm.budgets)],
            rounds=self._rounds(name),
            run_dir=self._folder(name, seed),
            calibrator=None,
            trainer=self.trainer,
            seed=seed,
            by=None if arm is None else arm.by,
            settings=self.settings,
        )


def _point(name: str, seed: int, path: Path) -> Point:
    with reading(path):
        content = mapping(read_json(path), "its content")
        main = mapping(content["metrics"], "'metrics'").get(MAIN_METRIC) or {}
        return Point(name, seed, content["round"], content["labeled"], content["pool"], main.get("value"))
