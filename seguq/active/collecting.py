"""What of a round is sent to the annotator, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seguq.acquisition.selection import by_image
from seguq.active.history import History
from seguq.active.journal import Journal
from seguq.active.labels import Key, Row, add_answer, checked, clicks_for, identity, merge
from seguq.active.plan import Plan
from seguq.active.run_folder import RunFolder
from seguq.annotators import Annotation
from seguq.core.errors import SeguqError
from seguq.data import read_mask


class Waiting(Exception):
    """Answers are missing: the loop ends here, and is run again."""


class Collecting:
    """Asks the annotator, and takes in the answers.

    Args:
        plan: who is asked.
        folder: of the run.
        history: what was asked for, and answered.
        journal: of the run.
    """

    def __init__(self, plan: Plan, folder: RunFolder, history: History, journal: Journal) -> None:
        self._plan, self._folder, self._history, self._journal = plan, folder, history, journal

    def send(self, number: int) -> None:
        """Ask for what a round has chosen."""
        self._plan.annotator.send(self._history.sent_in(number), self._plan.pool)

    def collect(self, number: int, enough: float) -> dict[str, Any]:
        """Take in what has come back; raises where that is not enough yet."""
        came = self._history.answered(number)
        done, here = {key for keys in came.values() for key in keys}, set(came.get(number, []))
        sent, opened = self._history.regions(number), dict[Any, Key]()
        for earlier in range(number + 1):
            keys = [key for key in sent if key[0] == earlier and (key not in done or key in here)]
            if keys:  # this process may not have sent them
                self._plan.annotator.send(self._history.sent_in(earlier), self._plan.pool)
                opened |= {identity(sent[key]): key for key in keys}
        if opened:
            for answer in self._plan.annotator.collect():
                keys = list(dict.fromkeys(opened[i] for i in map(identity, answer.rows) if i in opened))
                if keys:
                    self._take(number, answer, keys, sent, done)
        back, asked = sum(key in done for key in sent if key[0] == number), len(self._history.sent_in(number))
        if back < math.ceil(enough * asked - 1e-9) or not done:
            raise Waiting(
                f"round {number} waits for answers: {back} of {asked} regions are back; run it again when more are"
            )
        came = self._history.answered(number)
        images = {key[0] for _, key in came.get(number, [])}
        parts = [
            (self._folder.answers(n), by_image(sent[key] for key in keys if key[1][0] in images))
            for n, keys in came.items()
        ]
        merge(self._folder.masks, parts, self._plan.classes)
        if number == 0 and not self._any_labeled(images):
            raise SeguqError(
                f"{self._plan.annotator.name}: all {back} regions of round 0 came back with no pixel labeled "
                f"({self._plan.classes.ignore_index}, nobody could tell), and nothing can be trained on that: mend the "
                "answers, and run it again"
            )
        return {"regions": back}

    def _any_labeled(self, images: Iterable[str]) -> bool:
        classes = self._plan.classes
        masks = (read_mask(self._folder.masks / f"{image_id}.png", classes) for image_id in images)
        return any((mask != classes.ignore_index).any() for mask in masks)

    def _take(
        self, number: int, answer: Annotation, keys: Sequence[Key], sent: Mapping[Key, Row], done: set[Key]
    ) -> None:
        """Take in an answer to some regions; of those that it answers anew in this round the mask alone."""
        if any(key[0] != answer.image_id for _, key in keys):
            raise SeguqError(
                f"{self._plan.annotator.name}: an answer for image {answer.image_id!r} has rows of another image"
            )
        mask = checked(answer, self._plan.pool, self._plan.classes, self._plan.annotator)
        rows = [sent[key] for key in keys]
        add_answer(self._folder.answers(number), answer, mask, rows, self._plan.pool, self._plan.classes)
        for asked in sorted({key[0] for key in keys}):
            new = [key for key in keys if key[0] == asked and key not in done]
            if not new:
                continue
            clicks = answer.clicks
            if clicks is None or len(new) < len(set(map(identity, answer.rows))):  # of these alone nobody knows
                clicks = clicks_for(mask, [sent[key] for key in new], self._plan.classes.ignore_index)
            boxes = [list(key[1][1:]) for key in new]
            self._journal.add(
                number, "collect", "answer", image_id=answer.image_id, rows=boxes, clicks=int(clicks), asked=asked
            )
            done.update(new)
