"""The active-learning loop: it runs for weeks, is killed at any moment, and never loses or repeats a label."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seguq.acquisition import Budget, Selection, Strategy, select
from seguq.acquisition.best_of_each_image import BestOfEachImage
from seguq.acquisition.random_ import Random
from seguq.acquisition.selection import region_key
from seguq.active.events import STEPS, read_events
from seguq.active.journal import Journal
from seguq.active.judge import Judge, Judged
from seguq.active.labels import Key, Row, Unlabeled, add_answer, answered, by_image, checked, clicks_for, merge
from seguq.active.run_folder import RunFolder
from seguq.active.start import _EveryClassTwice
from seguq.active.stopping import Stop
from seguq.active.training import (
    MakeTrainer,
    calibrate,
    can_calibrate,
    checked_trainer,
    default_trainer,
    judge,
    judged_splits,
    predict,
    train,
)
from seguq.annotators import Annotation, Annotator
from seguq.calibration import Calibrator, load
from seguq.calibration.by_name import require_known
from seguq.callbacks import RegionScorer
from seguq.core.checks import is_number, is_whole, require_count
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, write_bytes, write_json
from seguq.core.groups import GroupOf, Groups
from seguq.core.lightning import quiet, seed_everything
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.core.reading import mapping, read_json, reading
from seguq.core.seeds import derive_seed
from seguq.data import ImageSource, Labeled
from seguq.functional.aggregates import aggregate_named
from seguq.inference import Estimator
from seguq.inference.deterministic import Deterministic
from seguq.regions import Grid, Partition, RegionTable, cached
from seguq.regions.columns import COLUMNS
from seguq.regions.scored_by import By, scores_named
from seguq.regions.table import SCHEMA
from seguq.store.writer import writing

if TYPE_CHECKING:
    from seguq.active.status import Status


class _Waiting(Exception):
    """Answers are missing: the loop ends here, and is run again."""


class ActiveLearningLoop:
    """Trains, scores the pool, chooses within a budget, has it labeled, and trains again.

    A round is: the pool is scored by the model of the round before (in the first by the untrained network), regions are
    chosen and sent to the annotator, the answers taken back, and a new model trained on all labels, calibrated and
    judged on the validation and test images of the data. All of it lies in ``run_dir``, a folder a round; a journal
    tells what was done. `run` goes on from there, whatever has ended it: what a step had not finished is done again,
    with the same seeds.

    It stands outside of Trainers: each step makes its own by ``trainer()``, with whatever callbacks and loggers that
    gives it. A training that was killed is begun anew. In several processes by a strategy that lets one process start
    the others (``ddp_spawn``, ``ddp_fork``).

    Args:
        make_task: makes the LightningModule; called anew in each round, under the seed of that round. What differs
            between rounds, or calls, it must not depend on.
        data: from a `seguq.data.Labeled` to a LightningDataModule: its training loader gives what is labeled, its
            prediction loader all images of the pool with their ids, its validation and test loaders labeled images of
            their own, where there are any. `seguq.LabeledData` is one.
        pool: the images: a folder, files by id, or a `seguq.data.ImageSource`.
        annotator: who labels (`seguq.annotators`).
        estimator: asked for the uncertainty by which is chosen, without a model; None: one deterministic pass.
        partition: how images are cut; None: a grid of 32 pixels.
        strategy: which regions are taken; None: the best of each image. One that has arguments ``round`` and ``rounds``
            (`ClaSP`) is made anew in each round with them.
        budget: how much may be labeled in a round; or a list, one a round.
        rounds: how many rounds there are, the first labels one of them.
        run_dir: the folder.
        calibrator: fitted in each round on the validation images: a name, ``"auto"`` for the best of several, or a
            calibrator; None: none.
        trainer: makes a Trainer; None: one epoch, as long as the data say.
        group: from an image's id to its group, of which intervals draw whole ones (see `seguq.core.groups.Groups`).
        seed: of everything that is drawn.
        by: what regions are scored by, as in `seguq.regions.score`; None: the margin, or what the partition takes.
        aggregate: how a region's pixels become its score, as there.
        start: takes the first labels, after two regions of each class where the annotator knows the labels beforehand;
            None: by chance. `KMeansPlusPlus` takes those whose features of the (pretrained) encoder differ.
        fine_tune: begin each training with the weights of the round before.
        stop: when to end before the last round.
        settings: further plain settings, which a run is only gone on with where they are the same.

    Raises:
        UsageError: for wrong arguments; when it runs, if the folder holds other things, or was begun with other
            settings, or another process runs it.
        SeguqError: for what is wrong with files, answers or the disk; what was done until then is kept.
    """

    def __init__(
        self,
        make_task: Callable[[], Any],
        data: Callable[[Labeled], Any],
        *,
        pool: ImageSource | str | os.PathLike[str] | Mapping[str, Any],
        annotator: Annotator,
        estimator: Estimator | None = None,
        partition: Partition | None = None,
        strategy: Strategy | None = None,
        budget: Budget | Sequence[Budget],
        rounds: int,
        run_dir: str | os.PathLike[str],
        calibrator: str | Calibrator | None = "auto",
        trainer: MakeTrainer | None = None,
        group: GroupOf = None,
        seed: int = 0,
        by: By | Sequence[By] | None = None,
        aggregate: str = "mean",
        start: Strategy | None = None,
        fine_tune: bool = False,
        stop: Stop | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("make_task", make_task), ("data", data), *([("trainer", trainer)] if trainer else [])):
            if not callable(value):
                raise UsageError(f"{name} must be a function, but is {value!r}")
        require_count("rounds", rounds)
        budgets: list[Any] = list(budget) if isinstance(budget, (list, tuple)) else [budget] * rounds
        if len(budgets) != rounds or not all(isinstance(item, Budget) for item in budgets):
            raise UsageError(
                f"budget must be a seguq.acquisition.Budget, or a list of one for each of the {rounds} rounds, but is "
                f"{budget!r}"
            )
        if not is_whole(seed):
            raise UsageError(f"seed must be a whole number, but is {seed!r}")
        aggregate_named(aggregate)
        if by is not None:
            scores_named(by)
        kinds: tuple[tuple[str, Any, type[Any]], ...] = (
            ("annotator", annotator, Annotator),
            ("estimator", estimator, Estimator),
            ("partition", partition, Partition),
            ("strategy", strategy, Strategy),
            ("start", start, Strategy),
            ("stop", stop, Stop),
        )
        for name, item, kind in kinds:
            if not (isinstance(item, kind) or (item is None and name != "annotator")):
                raise UsageError(f"{name} must be {_article(kind.__name__)} (seguq.{_HOMES[name]}), but is {item!r}")
        if estimator is not None and not estimator.unbound:
            raise UsageError(f"{estimator!r} has a model, but each round trains its own: make it without one")
        if calibrator is not None:
            require_known(calibrator)
        Groups(group)
        self.make_task, self.data, self.make_trainer = make_task, data, trainer
        self.pool, self.annotator = ImageSource.of(pool), annotator
        self.estimator: Estimator = Deterministic() if estimator is None else estimator
        self.partition: Partition = Grid(32) if partition is None else partition
        self.strategy: Strategy = BestOfEachImage() if strategy is None else strategy
        self.start: Strategy = Random() if start is None else start
        self.budgets, self.rounds = budgets, rounds
        self.by, self.aggregate = by, aggregate
        self.calibrator, self.group, self.seed, self.fine_tune = calibrator, group, seed, fine_tune
        self.stop = stop
        if stop is not None:
            for one in budgets:
                stop.require_reachable(one, judged=True)
        self.classes = annotator.classes
        self.folder = RunFolder(run_dir)
        self._last_trainer: weakref.ref[Any] | None = None
        self.settings = self._settings(settings or {})

    # ---- the whole ----

    def run(self, until: int | None = None, *, enough: float = 1.0) -> Status:
        """Go through the rounds that are left; again after whatever has ended it.

        Args:
            until: pause when so many rounds are complete; None: go through all.
            enough: the share of a round's regions that has to be answered before it goes on; those that are answered
                later are taken in by the rounds after it.

        Returns:
            Where it stands: complete, paused, or what it waits for.
        """
        if until is not None:
            require_count("until", until, 0)
        if not (is_number(enough) and 0 < enough <= 1):
            raise UsageError(f"enough must be a share above 0, up to 1, but is {enough!r}")
        quiet()
        with writing("the active-learning loop"):
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with Lock(self.folder.path, alone=True):
                self._open()
                try:
                    for number in range(self.rounds if until is None else min(until, self.rounds)):
                        if self._ends(number) or not self._round(number, enough):
                            break
                except _Waiting as waiting:
                    logger.info("%s", waiting)
        from seguq.active.status import status

        return status(self.folder.path)

    def _open(self) -> None:
        content, settings = self.folder.content(), self.settings
        if content is None:
            self.folder.require_free()
            self.folder.begin(settings)
        remove_leftovers(self.folder.path, below=True)
        self.folder.require_known(read_events(self.folder.path))
        self.journal = Journal(self.folder.path)
        self._sent: dict[int, Selection] = {}
        begun = self._begun()
        done = sum(self.journal.ended(number, "report") is not None for number in range(begun))
        if content is not None and content["settings"] is None:  # a fork
            self.folder.begin(settings, content["forked_from"])
        elif content is not None:
            kept = dict(content["settings"])
            same = {**settings, "budget": settings["budget"][:begun]}
            self.folder.require_same({**kept, "budget": kept["budget"][:begun]}, same, done)
            if kept != settings:  # rounds that have not begun
                self.folder.begin(settings, content["forked_from"])
        for number in range(begun):
            if self.journal.ended(number, "select") is not None:
                self._require_images(number)

    def _begun(self) -> int:
        """How many rounds have begun."""
        return 1 + max((event.round for event in self.journal.events() if event.round is not None), default=-1)

    def _settings(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """What a run is only gone on with where it is the same, as JSON gives it back."""
        found: dict[str, Any] = {
            "budget": [item.as_dict() for item in self.budgets],
            "classes": list(self.classes.names),
            "ignore_index": self.classes.ignore_index,
            "group": self.group if self.group is None or isinstance(self.group, str) else _name_of(self.group),
            "by": None if self.by is None else _words(self.by),
        }
        for name in ("partition", "strategy", "start", "estimator", "calibrator", "annotator"):
            found[name] = _words(getattr(self, name))
        for name in ("aggregate", "seed", "fine_tune"):
            found[name] = getattr(self, name)
        taken = sorted(found.keys() & more)
        if taken:
            raise UsageError(f"settings has {taken[0]!r}, which the loop has of its own: call it otherwise")
        try:
            plain: dict[str, Any] = json.loads(json.dumps({**found, **more}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings must be numbers, texts, lists and mappings of them: {error}") from error
        return plain

    def _ends(self, number: int) -> bool:
        """Whether the loop has ended before a round, or ends now."""
        if number == 0 or self.journal.ended(number, "score") is not None:
            return False
        last = number - 1
        if self.journal.ended(last, "report") is None:
            return False
        reason = None if self.stop is None else self._reason(last)
        if reason is None:
            return False
        if self.journal.ended(last, "stop") == {"why": reason}:
            return True
        self.journal.add(last, "stop", "end", why=reason)
        logger.info("the loop ends after round %d: %s", last, reason)
        return True

    def _reason(self, number: int) -> str | None:
        from seguq.active.records import read_records

        assert self.stop is not None
        records = [record for record in read_records(self.folder.path) if record.round <= number]
        return self.stop.reason(records, self._gain)

    def _round(self, number: int, enough: float) -> bool:
        """One round, from where it stands; False where nothing is left to choose."""
        if self.journal.ended(number, "report") is not None:
            return True
        logger.info("round %d of %d", number, self.rounds)
        self.folder.round(number).mkdir(exist_ok=True)
        self._step(number, "score", self._score)
        self._step(number, "select", self._select)
        if not self._sent_in(number).rows:
            return False
        self._step(number, "send", self._send)
        self._step(number, "collect", lambda number: self._collect(number, enough))
        self._step(number, "train", self._train)
        self._step(number, "calibrate", self._calibrate)
        self._step(number, "evaluate", self._evaluate)
        self._step(number, "report", self._report)
        return True

    def _step(self, number: int, name: str, action: Callable[[int], dict[str, Any] | None]) -> None:
        if self.journal.ended(number, name) is not None:
            return
        self.journal.add(number, name, "begin")
        begin = time.monotonic()
        content = action(number) or {}
        self.journal.add(number, name, "end", seconds=round(time.monotonic() - begin, 3), **content)

    # ---- what there is ----

    def _sent_in(self, number: int) -> Selection:
        """What was chosen in a round."""
        if number not in self._sent:
            self._sent[number] = Selection.load(self.folder.selection(number))
        return self._sent[number]

    def _earlier(self, number: int) -> list[Selection]:
        return [self._sent_in(earlier) for earlier in range(number)]

    def _regions(self, most: int) -> dict[Key, Row]:
        """All regions that were asked for up to and with a round."""
        return {(n, region_key(row)): row for n in range(most + 1) for row in self._sent_in(n).rows}

    def _answered(self, most: int) -> dict[int, list[Key]]:
        """The regions that were answered up to and with a round, by the round in which they were."""
        return answered(event for event in self.journal.events() if (event.round or 0) <= most)

    def _require_images(self, number: int) -> None:
        """Raise where an image of a round is gone that labels are for, or another one."""
        wanted = self._sent_in(number).image_ids
        gone = [image_id for image_id in wanted if image_id not in self.pool]
        if gone:
            raise SeguqError(
                f"{len(gone)} images that regions were chosen of in round {number} are not in the pool any more, such "
                f"as {gone[0]!r}: put them back (images without labels may come and go between rounds)"
            )
        sizes = self._pool_of(number)
        for image_id in wanted:
            then, now = sizes.get(image_id), list(self.pool.size(image_id))
            if then is not None and then != now:
                raise SeguqError(
                    f"{self.pool.path(image_id)} has {now[0]} x {now[1]} pixels (height x width), but had {then[0]} x "
                    f"{then[1]} when regions of it were chosen in round {number}: put the image back that was there"
                )

    def _labeled(self, number: int) -> Labeled:
        """All labels up to and with a round."""
        images = {key[0] for keys in self._answered(number).values() for _, key in keys}
        return Labeled(
            images={name: self.pool.path(name) for name in sorted(images)},
            masks={name: self.folder.masks / f"{name}.png" for name in sorted(images)},
            classes=self.classes,
            pool=self.pool,
            round=max(number, 0),
            seed=derive_seed("data", self.seed, max(number, 0)),
        )

    def _seeded(self, number: int, what: str) -> None:
        seed_everything(derive_seed(what, self.seed, number) % 2**32, workers=True, verbose=False)

    def _made(self, number: int) -> Any:
        task = self.make_task()
        if not hasattr(task, "state_dict") or not hasattr(task, "training_step"):
            raise UsageError(f"make_task() must return a LightningModule, but returned {task!r}")
        return task

    def _trained(self, number: int) -> Any:
        """The model of a round."""
        return load(self.folder.model(number), self._made(number))

    def _trainer(self, number: int, task: Any) -> Any:
        make = self.make_trainer
        found = checked_trainer(default_trainer(self.folder.round(number)) if make is None else make(), task)
        if self._last_trainer is not None and self._last_trainer() is found:
            raise UsageError(
                "trainer() has returned the same Trainer twice, which would count its epochs on: let it make a new "
                "Trainer each time it is called, with callbacks and loggers of its own"
            )
        self._last_trainer = weakref.ref(found)
        return found

    def _data(self, number: int) -> Any:
        found = self.data(self._labeled(number))
        if not hasattr(found, "train_dataloader"):
            raise UsageError(f"data(labeled) must return a LightningDataModule, but returned {found!r}")
        return found

    # ---- the steps ----

    def _score(self, number: int) -> dict[str, Any]:
        strategy = self._strategy(number)
        columns = [name for name in strategy.needs if name in COLUMNS]
        estimator = self.estimator
        if "features" in columns and not estimator.features:
            estimator = type(estimator)(**{**estimator.arguments(), "features": True})
        earlier = [row for selection in self._earlier(number) for row in selection.rows]
        source = Unlabeled(self.pool, earlier)
        counts = {"regions": len(earlier), "pixels": self._note_pool(number), "images": len(self.pool)}
        if not source.any_left():
            RegionTable(SCHEMA.empty_table()).save(self.folder.table(number))
            return counts
        self._seeded(number, "score")
        task = self._made(number) if number == 0 else self._trained(number - 1)
        scorer = RegionScorer(
            self.folder.round(number),
            partition=cached(self.partition, self.folder.partitions),
            by=self.by,
            aggregate=self.aggregate,
            estimator=estimator,
            calibrator=None if number == 0 else "auto",
            images=source,
            columns=columns,
            overwrite=True,
        )
        predict(self._trainer(number, task), task, self._data(number - 1), [scorer])
        table = RegionTable.load(self.folder.table(number))
        self._require_all(table, {row["image_id"] for row in earlier})
        return {**counts, "regions": len(table) + len(earlier)}

    def _require_all(self, table: RegionTable, taken: set[str]) -> None:
        """Raise where images of the pool were not predicted."""
        there = taken.union(table.image_numbers()[1].to_pylist())
        lost = [image_id for image_id in self.pool if image_id not in there]
        lost = [image_id for image_id in lost if Unlabeled(self.pool, []).any_left(image_id)]
        if not lost:
            return
        said = f"{len(lost)} of the {len(self.pool)} images of the pool have no scores, such as {lost[0]!r}"
        if self.partition.needs:  # it may find no region in an image
            logger.info("%s: %r has found no region there", said, self.partition)
            return
        raise SeguqError(
            f"{said}: the prediction loader of data(labeled) has to give all images of labeled.pool, with their ids"
        )

    def _note_pool(self, number: int) -> int:
        """Write down the images of the pool and their sizes, and say which have come and gone; the number of pixels."""
        sizes = {image_id: list(self.pool.size(image_id)) for image_id in self.pool}
        if number:
            known = self._pool_of(number - 1)
            new, gone = len(sizes.keys() - known.keys()), len(known.keys() - sizes.keys())
            if new or gone:
                logger.info("since the last round %d images were added to the pool, and %d removed", new, gone)
        write_json(self.folder.pool(number), sizes)
        return sum(height * width for height, width in sizes.values())

    def _pool_of(self, number: int) -> dict[str, list[int] | None]:
        """The images that a round has chosen from, with their sizes where these are known."""
        with reading(self.folder.pool(number)):
            content = read_json(self.folder.pool(number))
            return dict.fromkeys(content) if isinstance(content, list) else mapping(content, "its content")

    def _strategy(self, number: int) -> Strategy:
        if number == 0:
            first = next(iter(self.pool))
            if self.annotator.truth(first) is None:
                return self.start
            return _EveryClassTwice(self.start, self._truth, len(self.classes))
        arguments = self.strategy.arguments()
        if {"round", "rounds"} <= set(arguments):  # the first round is the start set
            arguments |= {"round": number - 1, "rounds": max(1, self.rounds - 1)}
            return type(self.strategy)(**arguments)
        return self.strategy

    def _truth(self, image_id: str) -> Any:
        return self.annotator.truth(image_id)

    def _select(self, number: int) -> dict[str, Any]:
        table = self.folder.table(number)
        left = RegionTable.load(table)
        chosen = Selection([])
        if len(left):
            chosen = select(
                left,
                budget=self.budgets[number],
                strategy=self._strategy(number),
                labeled=self._earlier(number),
                seed=derive_seed("select", self.seed, number),
                classes=self.classes.names,
            )
        if not chosen.rows and number == 0:
            raise UsageError(
                f"the first round asks for nothing: none of the {len(left)} regions fits into {self.budgets[0]!r}; "
                "give a larger budget, and another run_dir"
            )
        chosen.why["round"] = number
        chosen.save(self.folder.selection(number))
        if not chosen.rows:
            self.journal.add(number - 1, "stop", "end", why="nothing is left to label within the budget")
        return {"regions": len(chosen), "images": len(chosen.image_ids), "spent": chosen.why.get("spent", 0)}

    def _send(self, number: int) -> None:
        self._require_images(number)
        self.annotator.send(self._sent_in(number), self.pool)

    def _collect(self, number: int, enough: float) -> dict[str, Any]:
        """Take in what has come back; raises where that is not enough yet."""
        came = self._answered(number)
        done, here = {key for keys in came.values() for key in keys}, set(came.get(number, []))
        sent, opened = self._regions(number), dict[Any, Key]()
        for earlier in range(number + 1):
            keys = [key for key in sent if key[0] == earlier and (key not in done or key in here)]
            if any(key not in done for key in keys):
                self.annotator.send(self._sent_in(earlier), self.pool)  # which this process may not have
                opened |= {_identity(sent[key]): key for key in keys}
        if opened:
            for answer in self.annotator.collect():
                keys = list(dict.fromkeys(opened[i] for i in map(_identity, answer.rows) if i in opened))
                if keys:
                    self._take(number, answer, keys, sent, done)
        back, asked = sum(key in done for key in sent if key[0] == number), len(self._sent_in(number))
        if back < math.ceil(enough * asked - 1e-9) or not done:
            raise _Waiting(
                f"round {number} waits for answers: {back} of {asked} regions are back; run it again when more are"
            )
        came = self._answered(number)
        images = {key[0] for _, key in came.get(number, [])}
        parts = [
            (self.folder.answers(n), by_image(sent[key] for key in keys if key[1][0] in images))
            for n, keys in came.items()
        ]
        merge(self.folder.masks, parts, self.classes)
        return {"regions": back}

    def _take(
        self, number: int, answer: Annotation, keys: Sequence[Key], sent: Mapping[Key, Row], done: set[Key]
    ) -> None:
        """Take in an answer to some regions; of those that it answers anew in this round the mask alone."""
        if any(key[0] != answer.image_id for _, key in keys):
            raise SeguqError(
                f"{type(self.annotator).__name__}: an answer for image {answer.image_id!r} has rows of another image"
            )
        mask = checked(answer, self.pool, self.classes, self.annotator)
        rows = [sent[key] for key in keys]
        add_answer(self.folder.answers(number), answer, mask, rows, self.pool, self.classes)
        for asked in sorted({key[0] for key in keys}):
            new = [key for key in keys if key[0] == asked and key not in done]
            if not new:
                continue
            clicks = answer.clicks
            if clicks is None or len(new) < len(set(map(_identity, answer.rows))):  # of these alone nobody knows
                clicks = clicks_for(mask, [sent[key] for key in new], self.classes.ignore_index)
            boxes = [list(key[1][1:]) for key in new]
            self.journal.add(
                number, "collect", "answer", image_id=answer.image_id, rows=boxes, clicks=int(clicks), asked=asked
            )
            done.update(new)

    def _train(self, number: int) -> None:
        self._seeded(number, "train")
        task = self._made(number)
        if self.fine_tune and number:
            task = load(self.folder.model(number - 1), task)
        train(self._trainer(number, task), task, self._data(number), self.folder.model(number))

    def _calibrate(self, number: int) -> dict[str, Any]:
        task, data = self._trained(number), self._data(number)
        if self.calibrator is None or not can_calibrate(task, data):
            return {"method": None}
        self._seeded(number, "calibrate")
        calibrate(
            self._trainer(number, task),
            task,
            data,
            self.folder.model(number),
            self.calibrator,
            estimator=self.estimator,
            ignore_index=self.classes.ignore_index,
            group=self.group,
        )
        return {"method": str(self.calibrator)}

    def _evaluate(self, number: int) -> dict[str, Any]:
        task, data = self._trained(number), self._data(number)
        for split in judged_splits(task, data):
            self._seeded(number, "evaluate")
            callback = Judge(
                self.folder.states(number),
                self.estimator,
                # not on the images that it was fitted on
                calibrator=None if split == "val" else "auto",
                ignore_index=self.classes.ignore_index,
                group=self.group,
            )
            judge(self._trainer(number, task), task, data, split, callback)
            if self.folder.states(number).exists() and Judged(self.folder.states(number)).images:
                return {"split": split}
            task, data = self._trained(number), self._data(number)
        if self.stop is not None:
            self.stop.require_reachable(self.budgets[number], judged=False)
        return {"split": None}

    def _report(self, number: int) -> None:
        write_json(self.folder.metrics(number), self._figures(number))
        from seguq.active.page import round_page

        content = round_page(self.folder.path, number, self.pool, self.classes)
        write_bytes(self.folder.page(number), content.encode(errors="xmlcharrefreplace"))

    def _figures(self, number: int) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        keys = {key for found in self._answered(number).values() for key in found}
        sent, told = self._regions(number), [event for event in self.journal.events() if event.event == "answer"]
        clicks = sum(event.content["clicks"] for event in told if (event.round or 0) <= number)
        chosen = self._sent_in(number)
        judged = self._judged(number)
        pool = self.journal.ended(number, "score") or {}
        change = self._gain(number, number - 1) if number else None
        return {
            "version": 1,
            "round": number,
            "split": None if judged is None else judged.split,
            "images": 0 if judged is None else judged.images,
            "groups": 0 if judged is None else judged.groups,
            "metrics": {} if judged is None else _finite(judged.values()),
            "gain": None if change is None else {**_finite({"miou": _as_dict(change)}), "since": number - 1},
            "labeled": {
                "regions": len(keys),
                "pixels": sum(int(sent[key]["area"]) for key in keys),
                "clicks": clicks,
                "images": len({key[0] for _, key in keys}),
            },
            "pool": {name: pool[name] for name in ("regions", "pixels", "images")},
            "selected": {
                "regions": len(chosen),
                "answered": sum(key[0] == number for key in keys),
                "spent": chosen.why["spent"],
                "budget": chosen.why["budget"],
            },
            "seconds": {
                name: content["seconds"]
                for name in STEPS
                if (content := self.journal.ended(number, name)) is not None and "seconds" in content
            },
        }

    def _judged(self, number: int) -> Judged | None:
        told = self.journal.ended(number, "evaluate")
        return None if told is None or told["split"] is None else Judged(self.folder.states(number))

    def _gain(self, number: int, since: int) -> tuple[float, float, float] | None:
        """The main metric of a round minus that of an earlier one on the same images, and the interval of the pair.

        Returns:
            Value, low and high; None where either round was not judged, or they were on other images.
        """
        now, before = self._judged(number), self._judged(since)
        found = None if now is None or before is None else now.gain(before)
        return None if found is None else (found["value"], found["low"], found["high"])


def _as_dict(change: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), change, strict=True))


def _finite(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Values as JSON has them: what is no number is null."""
    return {
        name: {key: number if math.isfinite(number) else None for key, number in item.items()}
        for name, item in values.items()
    }


_HOMES = {
    "annotator": "annotators",
    "estimator": "inference",
    "partition": "regions",
    "strategy": "acquisition",
    "start": "acquisition",
    "stop": "active",
}


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


def _name_of(function: Any) -> str:
    return f"a function {getattr(inspect.unwrap(function), '__qualname__', type(function).__name__)}"


def _words(value: Any) -> str:
    """What settings are told apart by: without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _identity(row: Row) -> tuple[Any, ...]:
    """What tells a region from those of earlier rounds, too, which may have its number and its box."""
    shape = row.get("rle")
    return (*region_key(row), None if shape is None else tuple(shape))
