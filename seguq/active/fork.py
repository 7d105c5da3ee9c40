"""A loop that goes on from a round of another, in another way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seguq.acquisition import Selection
from seguq.acquisition.selection import by_image, region_key
from seguq.active.events import read_events
from seguq.active.journal import Journal, ended
from seguq.active.labels import Key, answered, merge
from seguq.active.run_folder import RunFolder
from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.core.files import TEMPORARY_PREFIX
from seguq.store.writer import writing


def fork(
    run_dir: str | os.PathLike[str],
    round: int,
    out: str | os.PathLike[str],
) -> None:
    """Copy a run up to and with a round; a loop with that folder and any settings goes on from there.

    Files that are never changed are linked where the file system can, so that a fork takes no room of its own.

    Args:
        run_dir: folder of the run; it may be running.
        round: the last round to keep, which has to be complete.
        out: a new folder.

    Raises:
        UsageError: if the round is not complete, or ``out`` is there already.
    """
    source, target = RunFolder(run_dir), Path(out)
    content = source.content()
    if content is None:
        raise UsageError(f"{run_dir} holds no active-learning loop")
    history = read_events(run_dir)
    if not is_whole(round, 0) or ended(history, round, "report") is None:
        done = sum((event.step, event.event) == ("report", "end") for event in history)
        complete = f"the rounds 0 to {done - 1} are" if done else "none is yet"
        raise UsageError(f"a fork begins after a complete round of {run_dir}, but round {round!r} is none ({complete})")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already: give a fork another folder")
    classes = source.classes()
    with writing("fork"):
        target.parent.mkdir(parents=True, exist_ok=True)
        # a folder of a temporary name, so that half a fork is never taken for one
        made = RunFolder(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=target.parent))
        try:
            events = [event for event in history if event.round is not None and event.round <= round]
            rows: dict[Key, Mapping[str, Any]] = {}
            for number in range(round + 1):
                _copy(source.round(number), made.round(number))
                rows |= {(number, region_key(row)): row for row in Selection.load(source.selection(number)).rows}
            if source.partitions.is_dir():
                _copy(source.partitions, made.partitions)
            parts = [(made.answers(n), by_image(rows[key] for key in keys)) for n, keys in answered(events).items()]
            merge(made.masks, parts, classes)
            written = Journal(made.path)
            for event in events:
                if not (event.step == "stop" and event.round == round):
                    written.copy(event)
            origin = {"run_dir": str(Path(run_dir).resolve()), "round": round}
            made.begin(None, {**origin, "classes": list(classes.names), "ignore_index": classes.ignore_index})
            made.path.chmod(source.path.stat().st_mode)
            made.path.rename(target)
        finally:
            shutil.rmtree(made.path, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """A folder as it is, without what somebody is writing in it."""
    shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns(TEMPORARY_PREFIX + "*"))


def _link(source: str, target: str) -> str:
    """A second name of a file: all files of a run are replaced as a whole, and never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
