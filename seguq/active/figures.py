"""The figures of a round: what was labeled, what it cost, and how good the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seguq.active.events import STEPS
from seguq.active.history import History
from seguq.active.journal import Journal
from seguq.active.judge import Judged
from seguq.active.reports.records import MAIN_METRIC, Interval
from seguq.active.run_folder import RunFolder


class Figures:
    """What ``metrics.json`` of a round holds.

    Args:
        folder: of the run.
        history: what was asked for, and answered.
        journal: of the run.
    """

    def __init__(self, folder: RunFolder, history: History, journal: Journal) -> None:
        self._folder, self._history, self._journal = folder, history, journal

    def of(self, number: int) -> dict[str, Any]:
        """What ``metrics.json`` holds."""
        keys = {key for found in self._history.answered(number).values() for key in found}
        sent = self._history.regions(number)
        told = [event for event in self._journal.events() if event.event == "answer"]
        clicks = sum(event.content["clicks"] for event in told if (event.round or 0) <= number)
        chosen = self._history.sent_in(number)
        judged = self._judged(number)
        pool = self._journal.ended(number, "score") or {}
        change = self.gain(number, number - 1) if number else None
        return {
            "version": 1,
            "round": number,
            "split": None if judged is None else judged.split,
            "images": 0 if judged is None else judged.images,
            "groups": 0 if judged is None else judged.groups,
            "metrics": {} if judged is None else _plain(judged.values()),
            "gain": None if change is None else {**_plain({MAIN_METRIC: change}), "since": number - 1},
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
                if (content := self._journal.ended(number, name)) is not None and "seconds" in content
            },
        }

    def _judged(self, number: int) -> Judged | None:
        told = self._journal.ended(number, "evaluate")
        return None if told is None or told["split"] is None else Judged(self._folder.states(number))

    def gain(self, number: int, since: int) -> Interval | None:
        """The main metric of a round minus that of an earlier one on the same images, and the interval of the pair.

        Returns:
            None where either round was not judged, or they were on other images.
        """
        now, before = self._judged(number), self._judged(since)
        return None if now is None or before is None else now.gain(before)


def _plain(values: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Values as JSON has them: what is no number is null."""
    return {
        name: {key: number if math.isfinite(number) else None for key, number in item._asdict().items()}
        for name, item in values.items()
    }
