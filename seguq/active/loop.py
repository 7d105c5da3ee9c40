"""The active-learning loop: it runs for weeks, is killed at any moment, and never loses or repeats a label."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seguq.acquisition import Budget, Strategy
from seguq.active.choosing import Choosing
from seguq.active.collecting import Collecting, Waiting
from seguq.active.events import begun, read_events
from seguq.active.figures import Figures
from seguq.active.history import History
from seguq.active.journal import Journal
from seguq.active.models import Models
from seguq.active.plan import Plan
from seguq.active.reports.page import round_page
from seguq.active.reports.records import read_records
from seguq.active.reports.status import Status, status
from seguq.active.run_folder import RunFolder
from seguq.active.stopping import Stop
from seguq.active.training import MakeTrainer
from seguq.annotators import Annotator
from seguq.calibration import Calibrator
from seguq.callbacks.batches import BatchForward
from seguq.core.checks import is_number, require_count
from seguq.core.errors import UsageError
from seguq.core.files import remove_leftovers, write_bytes, write_json
from seguq.core.groups import GroupOf
from seguq.core.lightning import quiet
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.data import ImageSource, Labeled
from seguq.inference import Estimator
from seguq.regions import Partition
from seguq.regions.scored_by import By


class ActiveLearningLoop:
    """Trains, scores the pool, chooses within a budget, has it labeled, and trains again.

    A round is: the pool is scored by the model of the round before (in the first by the untrained network), regions are
    chosen and sent to the annotator, the answers taken back, and a new model trained on all labels, calibrated and
    judged on the validation and test images of the data. All of it lies in ``run_dir``, a folder a round; a journal
    tells what was done. `run` goes on from there, whatever has ended it: what a step had not finished is done again,
    with the same seeds.

    It stands outside of Trainers: each step makes its own by ``trainer()``, with whatever callbacks and loggers that
    gives it. A training that was killed is begun anew. In several processes by a strategy that lets one process start
    the others: ``ddp_fork`` on the CPU, ``ddp_spawn`` anywhere, for which the classes of the module and of the data
    have to stand at the top of a file that can be imported, as processes that are spawned look for them there.

    Args:
        make_task: makes the LightningModule; called anew in each round, under the seed of that round. What differs
            between rounds, or calls, it must not depend on.
        data: from a `seguq.data.Labeled` to a LightningDataModule: its training loader gives what is labeled, its
            prediction loader all images of the pool with their ids, its validation and test loaders labeled images of
            their own, where there are any. `seguq.LabeledData` is one. It is called before anything is labeled, too, to
            score the pool for the first time.
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
        batch_forward: for batches and outputs that are not understood by themselves, as in
            `seguq.callbacks.base.EstimatorCallback`: a function of the module and a batch that gives the logits, or
            logits and mask. The ids of the pool it has no say in: predict batches are dicts with ``image_id``.
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
        batch_forward: BatchForward | None = None,
        by: By | Sequence[By] | None = None,
        aggregate: str = "mean",
        start: Strategy | None = None,
        fine_tune: bool = False,
        stop: Stop | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan = Plan(
            make_task,
            data,
            pool=pool,
            annotator=annotator,
            estimator=estimator,
            partition=partition,
            strategy=strategy,
            budget=budget,
            rounds=rounds,
            calibrator=calibrator,
            trainer=trainer,
            group=group,
            seed=seed,
            batch_forward=batch_forward,
            by=by,
            aggregate=aggregate,
            start=start,
            fine_tune=fine_tune,
            stop=stop,
        )
        self.pool, self.annotator = self._plan.pool, self._plan.annotator
        self.folder = RunFolder(run_dir)
        self.settings = self._plan.settings(settings or {})

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
        with self.folder.writing():
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with Lock(self.folder.path, alone=True):
                self._open()
                try:
                    for number in range(self._plan.rounds if until is None else min(until, self._plan.rounds)):
                        if self._ends(number) or not self._round(number, enough):
                            break
                except Waiting as waiting:
                    logger.info("%s", waiting)
        return status(self.folder.path)

    def _open(self) -> None:
        content, settings = self.folder.content(), self.settings
        if content is None:
            self.folder.require_free()
            self.folder.begin(settings)
        remove_leftovers(self.folder.path, below=True)
        if not self.folder.journal.exists() or not self.folder.journal.stat().st_size:
            self.folder.require_known([])  # before one without events is made
        self._wire(Journal(self.folder.path))
        self.folder.require_known(self._journal.events())
        if content is not None:
            self._require_same(content)
        if content is not None and content["settings"] != settings:  # a fork, or rounds that have not begun
            self.folder.begin(settings, content["forked_from"])
        for number in range(begun(self._journal.events())):
            if self._journal.ended(number, "select") is not None:
                self._choosing.require_images(number)

    def _wire(self, journal: Journal) -> None:
        """Make what does the steps, for one run."""
        self._journal, history = journal, History(self.folder, journal)
        self._history = history
        self._models = Models(self._plan, self.folder, history)
        self._choosing = Choosing(self._plan, self.folder, history, journal)
        self._collecting = Collecting(self._plan, self.folder, history, journal)
        self._figures = Figures(self.folder, history, journal)

    def check(self) -> None:
        """Raise where `run` would, for a folder that was begun with other settings; nothing is changed or waited for.

        Raises:
            UsageError: saying what differs.
        """
        content = self.folder.content()
        if content is not None:
            self._require_same(content)

    def _require_same(self, content: Mapping[str, Any]) -> None:
        kept = content["settings"]
        if kept is None:
            self.folder.require_same_classes(self._plan.classes)
            return
        events = read_events(self.folder.path)
        rounds = begun(events)
        done = sum((event.step, event.event) == ("report", "end") for event in events)
        if self._plan.rounds < rounds:
            raise UsageError(
                f"rounds={self._plan.rounds}, but round {rounds - 1} of {self.folder.path} has begun already (the "
                f"first is 0): give at least {rounds}; until= pauses earlier"
            )
        same = {**self.settings, "budget": self.settings["budget"][:rounds]}
        self.folder.require_same({**kept, "budget": kept["budget"][:rounds]}, same, done)

    def _ends(self, number: int) -> bool:
        """Whether the loop has ended before a round, or ends now."""
        if number == 0 or self._journal.ended(number, "score") is not None:
            return False
        last = number - 1
        if self._journal.ended(last, "report") is None:
            return False
        reason = None if self._plan.stop is None else self._reason(last)
        if reason is None:
            return False
        if self._journal.ended(last, "stop") == {"why": reason}:
            return True
        self._journal.add(last, "stop", "end", why=reason)
        logger.info("the loop ends after round %d: %s", last, reason)
        return True

    def _reason(self, number: int) -> str | None:
        assert self._plan.stop is not None
        records = [record for record in read_records(self.folder.path) if record.round <= number]
        return self._plan.stop.reason(records, self._figures.gain)

    def _round(self, number: int, enough: float) -> bool:
        """One round, from where it stands; False where nothing is left to choose."""
        if self._journal.ended(number, "report") is not None:
            return True
        logger.info("round %d of %d", number, self._plan.rounds)
        self.folder.round(number).mkdir(exist_ok=True)
        had_nothing = (self._journal.ended(number, "select") or {}).get("regions") == 0  # images may have come since
        self._step(number, "score", self._score, again=had_nothing)
        self._step(number, "select", self._choosing.select, again=had_nothing)
        if not self._history.sent_in(number).rows:
            return False
        self._step(number, "send", self._send)
        self._step(number, "collect", lambda number: self._collecting.collect(number, enough))
        self._step(number, "train", self._models.train)
        self._step(number, "calibrate", self._models.calibrate)
        self._step(number, "evaluate", self._models.evaluate)
        self._step(number, "report", self._report)
        return True

    def _score(self, number: int) -> dict[str, Any]:
        pixels = self._choosing.note_pool(number)
        return self._models.score(number, self._choosing.strategy(number), pixels)

    def _send(self, number: int) -> None:
        self._choosing.require_images(number)
        self._collecting.send(number)

    def _step(
        self, number: int, name: str, action: Callable[[int], dict[str, Any] | None], again: bool = False
    ) -> None:
        if self._journal.ended(number, name) is not None and not again:
            return
        self._journal.add(number, name, "begin")
        begin = time.monotonic()
        content = action(number) or {}
        self._journal.add(number, name, "end", seconds=round(time.monotonic() - begin, 3), **content)

    def _report(self, number: int) -> None:
        write_json(self.folder.metrics(number), self._figures.of(number))
        content = round_page(self.folder.path, number, self._plan.pool, self._plan.classes)
        write_bytes(self.folder.page(number), content.encode(errors="xmlcharrefreplace"))
