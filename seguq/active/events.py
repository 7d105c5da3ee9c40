"""The journal of a loop, read: what was begun and ended, and what came back."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from seguq.core.errors import SeguqError
from seguq.core.reading import listing, mapping, reading, text, whole

JOURNAL_FILE = "journal.sqlite"
STEPS = ("score", "select", "send", "collect", "train", "calibrate", "evaluate", "report")
"""The steps of a round, in order."""

_BOX = 5  # numbers of a row of an answer: region_id, y0, x0, y1, x1
_PATIENCE = 30.0  # seconds, while another process takes the journal for itself


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes:
        time: when, in UTC.
        round: of which round; None where it is of none.
        step: of which step, one of `STEPS` or ``stop``.
        event: ``begin``, ``end`` or ``answer``.
        content: what goes with it.
    """

    time: datetime
    round: int | None
    step: str
    event: str
    content: dict[str, Any]


def read_events(run_dir: str | os.PathLike[str]) -> list[Event]:
    """All that the journal of a loop holds, in order; nothing where it has none yet.

    It is opened to be read only, also while another process writes it, and where this one may not write.

    Raises:
        SeguqError: if it is damaged or cannot be read.
    """
    path = Path(run_dir) / JOURNAL_FILE
    with reading(path, "a journal"):
        if not path.exists():
            return []
        with path.open("rb"):  # what the system says of a file is clearer than what SQLite does
            pass
        return [_event(number, row) for number, row in enumerate(_rows(path), 1)]


def answered_regions(event: Event, run_dir: str | os.PathLike[str]) -> list[tuple[Any, ...]]:
    """What identifies each region that came back with an event, as `seguq.acquisition.selection.region_key` says it.

    Args:
        event: any; only an ``answer`` has some.
        run_dir: the folder of the loop, for the message.

    Raises:
        SeguqError: if the journal does not say it as it should.
    """
    if event.event != "answer":
        return []
    with reading(Path(run_dir) / JOURNAL_FILE):
        image_id = text(event.content["image_id"], "'image_id'")
        rows = [listing(row, "a row of an answer") for row in listing(event.content["rows"], "'rows'")]
        if any(len(row) != _BOX for row in rows):
            raise ValueError("a row of an answer must be region_id, y0, x0, y1, x1")
        return [(image_id, *(whole(value, "a number of a row") for value in row)) for row in rows]


def begun(events: Sequence[Event]) -> int:
    """How many rounds have begun."""
    return 1 + max((event.round for event in events if event.round is not None), default=-1)


def _rows(path: Path) -> list[tuple[Any, ...]]:
    """All lines, read without leaving or changing a file."""
    before = _untouched(path)
    if before is not None:
        with suppress(sqlite3.DatabaseError):
            rows = _select(path, "immutable=1")  # else SQLite would make a log, of which this user is the owner
            if _untouched(path) == before:
                return rows
    return _select(path, "mode=ro")


def _untouched(path: Path) -> tuple[int, int] | None:
    """When a journal was changed last, and its size; None while there is a log beside it, as while somebody writes."""
    if path.with_name(path.name + "-wal").exists():
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _select(path: Path, how: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=_PATIENCE)) as connection:
        try:
            if not connection.execute("SELECT name FROM sqlite_master").fetchall():
                return []  # it was made a moment ago
            return connection.execute("SELECT time, round, step, event, content FROM events ORDER BY id").fetchall()
        except sqlite3.OperationalError as error:
            if error.args and "locked" in str(error.args[0]):
                raise SeguqError(f"{path} is in use by another process: try again in a moment") from error
            raise


def _event(number: int, row: tuple[Any, ...]) -> Event:
    """A checked line.

    Raises:
        ValueError: with its number.
    """
    time, round_, step, event, content = row
    try:
        return Event(
            time=_utc(text(time, "time")),
            round=None if round_ is None else whole(round_, "round", 0),
            step=text(step, "step"),
            event=text(event, "event"),
            content=_content(content),
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error


def _content(written: Any) -> dict[str, Any]:
    found = None if written is None else json.loads(text(written, "content"))
    return {} if found is None else mapping(found, "content")


def _utc(written: str) -> datetime:
    # until Python 3.11 the letter was not understood
    found = datetime.fromisoformat(written[:-1] + "+00:00" if written.endswith("Z") else written)
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)
