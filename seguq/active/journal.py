"""What a loop has done: an SQLite file to which events are added, and from which none is ever removed.

Write-ahead logging with full synchronization: an event that was added is there after a kill or a loss of power, and
others may read while the loop writes. SQLite's write-ahead log needs a local disk (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from seguq.core.errors import SeguqError, UsageError
from seguq.core.reading import how, mapping, reading, text, whole

FILE = "journal.sqlite"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, time TEXT NOT NULL, round INTEGER NOT NULL, "
    "step TEXT NOT NULL, event TEXT NOT NULL, content TEXT NOT NULL)"
)
_BUSY = 30.0  # seconds that another process may take to write


class Event(NamedTuple):
    """One line of the journal.

    Attributes:
        time: when, UTC, ISO 8601.
        round: number of the round, from 0.
        step: the step of it.
        event: ``begin``, ``end`` or ``answer``.
        content: plain values.
    """

    time: str
    round: int
    step: str
    event: str
    content: dict[str, Any]


class Journal:
    """The journal of a run folder.

    Args:
        folder: of the run.
        write: make it where it is missing, and allow `add`; only the process that holds the folder's lock may.

    Raises:
        UsageError: if it is missing and is only to be read.
        SeguqError: if it is damaged, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, write: bool = False) -> None:
        self.path = Path(folder) / FILE
        self._write = write
        if not write and not self.path.is_file():
            raise UsageError(f"{folder} holds no active-learning loop: there is no {FILE}")
        if write:
            with self._open() as connection:
                connection.execute(_TABLE)
        self._events = self._read()

    @classmethod
    def open_to_read(cls, folder: str | os.PathLike[str]) -> Journal:
        """The journal as it is now."""
        return cls(folder)

    def add(self, round: int, step: str, event: str, **content: Any) -> None:
        """Add an event; it is on the disk when this returns.

        Raises:
            SeguqError: if it cannot be written; nothing is changed then.
        """
        time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        self.copy(Event(time, round, step, event, content))

    def copy(self, event: Event) -> None:
        """Add an event as it is, with its time."""
        line = (*event[:4], json.dumps(event.content))
        with self._open() as connection, connection:  # the second commits
            connection.execute("INSERT INTO events (time, round, step, event, content) VALUES (?, ?, ?, ?, ?)", line)
        self._events.append(event)

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        return list(self._events)

    def ended(self, round: int, step: str) -> dict[str, Any] | None:
        """What was written down when a step ended; None where it has not."""
        found = [item.content for item in self._events if item[1:4] == (round, step, "end")]
        return found[-1] if found else None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # a connection for each event: none is inherited by a process that is forked meanwhile
            mode = "rwc" if self._write else "rw"  # a reader of a write-ahead log has to write its index
            connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=_BUSY, isolation_level="IMMEDIATE"
            )
            with closing(connection):
                if self._write:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=FULL")
                yield connection
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                verb = "written" if self._write else "read"
                raise SeguqError(
                    f"{self.path} cannot be {verb}: {error}; nothing of what it holds is lost: give the disk room and "
                    "the folder permissions, and start again"
                ) from error
            raise SeguqError(
                f"{self.path} is damaged ({how(error)}): without it nobody knows what was done in this folder; put a "
                "copy of it back"
            ) from error

    def _read(self) -> list[Event]:
        with self._open() as connection:
            rows = connection.execute("SELECT time, round, step, event, content FROM events ORDER BY id").fetchall()
        with reading(self.path):
            return [
                Event(
                    text(time, "a time"),
                    whole(number, "a round", 0),
                    text(step, "a step"),
                    text(event, "an event"),
                    mapping(json.loads(content), "an event"),
                )
                for time, number, step, event, content in rows
            ]
