"""How a loop stands: what it does or waits for, what is labeled, and what that was worth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from seguq.acquisition import Selection
from seguq.active.events import JOURNAL_FILE, STEPS, Event, answered_regions, read_events
from seguq.active.reports.records import MAIN_METRIC, METRIC_NAMES, Record, read_records, require_run, round_folder
from seguq.core.errors import SeguqError
from seguq.core.locks import is_held
from seguq.core.reading import mapping, read_json, reading, text, whole

SELECTION_FILE, LOOP_FILE = "selection.json", "loop.json"
_STOP, _WAITS = "stop", "collect"


@dataclass(frozen=True)
class Status:
    """How a loop stands.

    Attributes:
        run_dir: its folder.
        round: the round that is open, or the last one; None before the first.
        step: the step of it that has begun and not ended; None where there is none.
        since: when that has begun, in UTC.
        done: the last step that has ended; None where none has.
        running: whether a process is at it, as far as locks of files can tell.
        rounds: how many there are to be; None where the run does not say it.
        asked: regions that the round asks for; 0 before they are chosen.
        answered: how many of these came back.
        images_left: images in which others are.
        records: of all rounds that were judged.
        begun: when the loop has begun, in UTC; None before it.
        hours: what the steps took that have ended, without waiting for answers.
        forked_from: the run that this one began as a part of, and the last round of it that it has.
        ended: why the loop has ended; None where it has not.
    """

    run_dir: Path
    round: int | None
    step: str | None
    since: datetime | None
    done: str | None
    running: bool
    rounds: int | None
    asked: int
    answered: int
    images_left: int
    records: tuple[Record, ...]
    begun: datetime | None
    hours: float
    forked_from: tuple[str, int] | None
    ended: str | None

    @property
    def waits(self) -> bool:
        """Whether answers are what it needs to go on."""
        return self.ended is None and self.step == _WAITS and self.answered < self.asked

    @property
    def spent(self) -> dict[str, float]:
        """What the rounds have cost, by the unit of their budgets."""
        total = Counter[str]()
        for record in self.records:
            if record.unit is not None:
                total[record.unit] += record.spent  # type: ignore[assignment]  # a cost may be a fraction
        return dict(total)

    def lines(self) -> list[str]:
        """All of it in words, a sentence a line."""
        out = [f"{self.run_dir}: {self._now()}"]
        if self.forked_from is not None:
            out.append(f"forked from round {self.forked_from[1]} of {self.forked_from[0]}")
        if not self.records:
            out.append("no round was judged yet")
        else:
            last = self.records[-1]
            spent = ", ".join(f"{amount:,g} {unit}" for unit, amount in self.spent.items())
            out.append(f"labeled up to round {last.round}: {labeled_in_words(last)}")
            out += [f"cost, in the unit of the budget: {spent}"] if spent else []
            out += metric_in_words(last)
        if self.begun is not None:
            out.append(f"work since {_minute(self.begun)}: {took(3600 * self.hours)}, without waiting for answers")
        return out

    def _now(self) -> str:
        if self.ended is not None:
            return f"ended after round {self.records[-1].round if self.records else self.round}: {self.ended}"
        if self.round is None:
            return "has not begun its first round"
        here = f"round {self.round}"
        at_it = "a process is at it" if self.running else "no process is seen at it: run it again"
        if self.waits:
            left = f"{self.asked - self.answered:,} of {_count(self.asked, 'region')}"
            return f"{here} waits for {left} in {_count(self.images_left, 'image')} to come back: run it again then"
        if self.step == _WAITS and self.asked:
            return f"{here} has all of its {_count(self.asked, 'region')} back; {at_it}"
        if self.step is not None and self.since is not None:
            return f"{here}: {self.step} has begun at {_minute(self.since)} and not ended; {at_it}"
        if self.done != STEPS[-1]:
            return f"{here}: {self.done} is done; {at_it}"
        if self.rounds == self.round + 1:
            return f"{here} is closed, and was the last of {_count(self.rounds, 'round')}"
        return f"{here} is closed; {at_it}"

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """A table of the rounds: its columns, and a row for each round that was judged."""
        columns = ["round", "regions", "pixels", "clicks", "images", _name(MAIN_METRIC), "gain", "time"]
        return columns, [_row(record) for record in self.records]


def status(run_dir: str | os.PathLike[str]) -> Status:
    """How a loop stands, also while another process runs it, and before its first round.

    Args:
        run_dir: the folder of the loop; nothing in it is changed.

    Raises:
        UsageError: if it is no folder of a loop.
        SeguqError: for a file in it that is damaged.
    """
    folder = require_run(run_dir)
    running, (rounds, forked_from) = is_held(folder), _begun_with(folder / LOOP_FILE)
    events = read_events(folder)  # before the files: what it says that there is, is there by then
    records = read_records(folder)
    if records and not events:
        raise SeguqError(f"{folder / JOURNAL_FILE} is missing or empty, though rounds were judged: bring it back")
    numbers = [event.round for event in events if event.round is not None and event.step != _STOP]
    number = max(numbers, default=records[-1].round if records else None)
    stops = [event for event in events if (event.step, event.event) == (_STOP, "end")]
    # a loop that has ended goes on where it is allowed more
    went_on = bool(stops) and any(event.event == "begin" for event in events[events.index(stops[-1]) :])
    mine = [event for event in events if event.round == number and event.step != _STOP]
    begun, done = _open_steps(mine), [event.step for event in mine if event.event == "end"]
    step = next(reversed(begun), None)
    asked = _asked(folder, number)
    to_it = [event for event in events if event.content.get("asked", number) == number]
    left = asked - {key for event in to_it for key in answered_regions(event, folder)}
    return Status(
        run_dir=folder,
        round=number,
        step=step,
        since=None if step is None else begun[step],
        done=done[-1] if done else None,
        running=running,
        rounds=rounds,
        asked=len(asked),
        answered=len(asked) - len(left),
        images_left=len({key[0] for key in left}),
        records=tuple(records),
        begun=events[0].time if events else None,
        hours=_hours(events),
        forked_from=forked_from,
        ended=str(stops[-1].content.get("why", "")) if stops and not went_on else None,
    )


def labeled_in_words(record: Record) -> str:
    """How much is labeled, of how much."""
    labeled, pool = record.labeled, record.pool
    return (
        f"{percent(record.share)} of the pool's pixels ({labeled.pixels:,} of {pool.pixels:,}), {labeled.regions:,} of "
        f"{pool.regions:,} regions in {labeled.images:,} of {pool.images:,} images, by {labeled.clicks:,} clicks"
    )


def metric_in_words(record: Record) -> list[str]:
    """What the main metric is, and how it has grown; nothing where there is none."""
    found, gain = record.metrics.get(MAIN_METRIC), record.gain.get(MAIN_METRIC)
    if found is None:
        return ["there are no labeled images to judge it on"]
    out = [f"{_name(MAIN_METRIC)} {found} on {_count(record.images, f'{record.split} image')}"]
    if gain is not None and record.since is not None:
        out.append(f"gain since round {record.since}: {gain.in_words('+')}, paired")
    return out


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.0042), percent(0.25)
        ('0.42 %', '25 %')
    """
    return f"{100 * share:.3g} %"


def took(seconds: float) -> str:
    """How long something took, as people read it.

    Example:
        >>> took(41.3), took(754), took(9000)
        ('41 s', '13 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _row(record: Record) -> list[str]:
    found, gain = record.metrics.get(MAIN_METRIC), record.gain.get(MAIN_METRIC)
    return [
        str(record.round),
        f"{record.labeled.regions:,}",
        percent(record.share),
        f"{record.labeled.clicks:,}",
        f"{record.labeled.images:,}",
        "" if found is None else str(found),
        "" if gain is None else gain.in_words("+"),
        took(sum(seconds for step, seconds in record.seconds.items() if step != _WAITS)),
    ]


def _open_steps(events: Sequence[Event]) -> dict[str, datetime]:
    """The steps that have begun and not ended, and when."""
    found: dict[str, datetime] = {}
    for event in events:
        if event.event == "begin":
            found[event.step] = event.time
        elif event.event == "end":
            found.pop(event.step, None)
    return found


def _begun_with(path: Path) -> tuple[int | None, tuple[str, int] | None]:
    """How many rounds there are to be, and what the run was forked from; None where it does not say that."""
    with reading(path):
        content = mapping(read_json(path), "its content")
        whole(content["version"], "version")
        settings = {} if content["settings"] is None else mapping(content["settings"], "'settings'")
        budgets = settings.get("budget")  # one a round
        rounds = len(budgets) if isinstance(budgets, list) else None
        if content["forked_from"] is None:
            return rounds, None
        found = mapping(content["forked_from"], "'forked_from'")
        return rounds, (text(found["run_dir"], "'run_dir'"), whole(found["round"], "'round'", 0))


def _asked(folder: Path, number: int | None) -> set[tuple[Any, ...]]:
    """What identifies each region that a round has asked for."""
    path = round_folder(folder, number or 0) / SELECTION_FILE
    return Selection.load(path).keys() if number is not None and path.exists() else set()


def _hours(events: Sequence[Event]) -> float:
    """What the steps took, each from its last begin to its end: what was killed in between is not known."""
    begun: dict[tuple[Any, str], datetime] = {}
    seconds = 0.0
    for event in events:
        key = event.round, event.step
        if event.event == "begin":
            begun[key] = event.time
        elif event.event == "end" and key in begun and event.step != _WAITS:
            seconds += max(0.0, (event.time - begun.pop(key)).total_seconds())  # a clock may be set back
    return seconds / 3600


def _name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _minute(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
