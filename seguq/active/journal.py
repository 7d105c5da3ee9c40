"""What a loop has done: an SQLite file to which events are added, and from which none is ever removed.

Write-ahead logging with full synchronization: an event that was added is there after a kill or a loss of power, and
others may read (`seguq.active.events`) while the loop writes. SQLite's write-ahead log needs a local disk
(https://sqlite.org/wal.html).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from json import dumps
from pathlib import Path
from typing import Any

from seguq.active.events import JOURNAL_FILE, Event, read_events
from seguq.core.errors import SeguqError
from seguq.core.reading import how

_TABLE = (
    "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, time TEXT NOT NULL, round INTEGER NOT NULL, "
    "step TEXT NOT NULL, event TEXT NOT NULL, content TEXT NOT NULL)"
)
_BUSY = 30.0  # seconds that somebody who looks at it may take


class Journal:
    """The journal of a run folder, to be written: only the process that holds the folder's lock may.

    Args:
        folder: of the run; the journal is made where it is missing.

    Raises:
        SeguqError: if it is damaged, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / JOURNAL_FILE
        with self._open() as connection:
            connection.execute(_TABLE)
        self._events = read_events(folder)

    def add(self, round: int, step: str, event: str, **content: Any) -> None:
        """Add an event; it is on the disk when this returns.

        Raises:
            SeguqError: if it cannot be written; nothing is changed then.
        """
        self.copy(Event(datetime.now(timezone.utc), round, step, event, content))

    def copy(self, event: Event) -> None:
        """Add an event as it is, with its time."""
        line = (event.time.isoformat(timespec="milliseconds"), event.round, event.step, event.event)
        with self._open() as connection, connection:  # the second commits
            connection.execute(
                "INSERT INTO events (time, round, step, event, content) VALUES (?, ?, ?, ?, ?)",
                (*line, dumps(event.content)),
            )
        self._events.append(event)

    def events(self) -> list[Event]:
        """All events, the oldest first."""
        return list(self._events)

    def ended(self, round: int, step: str) -> dict[str, Any] | None:
        """What was written down when a step ended; None where it has not."""
        return ended(self._events, round, step)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            # a connection for each event: none is inherited by a process that is forked meanwhile
            with closing(sqlite3.connect(self.path, timeout=_BUSY, isolation_level="IMMEDIATE")) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                yield connection
        except sqlite3.OperationalError as error:
            raise SeguqError(
                f"{self.path} cannot be written ({error}); what it holds is not lost: give the disk room and the "
                "folder permissions, and start again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise SeguqError(
                f"{self.path} is damaged ({how(error)}): without it nobody knows what was done in this folder; put a "
                "copy of it back"
            ) from error


def ended(events: list[Event], round: int, step: str) -> dict[str, Any] | None:
    """What was written down when a step ended; None where it has not."""
    found = [item.content for item in events if (item.round, item.step, item.event) == (round, step, "end")]
    return found[-1] if found else None
