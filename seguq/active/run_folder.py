"""The folder of a loop: where what lies, and whose settings it was begun with."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from seguq.active.events import JOURNAL_FILE, Event
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_json
from seguq.core.reading import listing, mapping, read_json, reading, text, whole
from seguq.data import Classes
from seguq.store.writer import writing

SETTINGS = "loop.json"
WRITTEN_BY = "seguq.ActiveLearningLoop"
_VERSION = 1
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class RunFolder:
    """Paths within the folder of a loop.

    Args:
        folder: it need not be there yet.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.path / f"round-{number:02d}"

    @property
    def masks(self) -> Path:
        """All labels so far: a mask an image, ignored where there is no label."""
        return self.path / "masks"

    @property
    def partitions(self) -> Path:
        """Regions of images, where they follow from the image alone."""
        return self.path / "partitions"

    @property
    def journal(self) -> Path:
        """What was done."""
        return self.path / JOURNAL_FILE

    def pool(self, number: int) -> Path:
        """The images that a round has chosen from, with their sizes."""
        return self.round(number) / "pool.json"

    def table(self, number: int) -> Path:
        """The scores that the choice of a round was made from."""
        return self.round(number) / "regions.parquet"

    def selection(self, number: int) -> Path:
        """What was chosen in a round."""
        return self.round(number) / "selection.json"

    def answers(self, number: int) -> Path:
        """What came back in a round: a mask an image, ignored outside of the regions that were answered."""
        return self.round(number) / "answers"

    def model(self, number: int) -> Path:
        """The checkpoint of a round, trained on all labels up to and with this round."""
        return self.round(number) / "model.ckpt"

    def states(self, number: int) -> Path:
        """The states of the metrics of a round."""
        return self.round(number) / "evaluation.pt"

    def metrics(self, number: int) -> Path:
        """The figures of a round."""
        return self.round(number) / "metrics.json"

    def page(self, number: int) -> Path:
        """The page of a round."""
        return self.round(number) / "page.html"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in one sentence what cannot be written; other errors of the system, as of a server, stay as they are.

        Raises:
            SeguqError: for a full disk, and for a file in the folder.
        """
        try:
            yield
        except OSError as error:
            name = error.filename
            ours = isinstance(name, str) and Path(name).absolute().is_relative_to(self.path.absolute())
            if not ours and error.errno not in _DISK:
                raise
            with writing("the active-learning loop"):
                raise

    # ---- settings ----

    @property
    def settings_file(self) -> Path:
        """What the loop was begun with."""
        return self.path / SETTINGS

    def content(self) -> dict[str, Any] | None:
        """What `SETTINGS` holds; None where there is none.

        Raises:
            SeguqError: if it is damaged, or somebody else's.
        """
        if not os.path.lexists(self.settings_file):
            return None
        with reading(self.settings_file):
            content = mapping(read_json(self.settings_file), "its content")
            if content["written_by"] != WRITTEN_BY:
                raise UsageError(f"{self.settings_file} was not written by {WRITTEN_BY}: pass another run_dir")
            version = whole(content["version"], "version")
            if version != _VERSION:
                raise UsageError(f"{self.settings_file} was written by another version of seguq (schema {version})")
            if content["settings"] is not None:
                mapping(content["settings"], "'settings'")
            if content["forked_from"] is not None:
                mapping(content["forked_from"], "'forked_from'")
            return content

    def classes(self) -> Classes:
        """The classes of the masks, in the colors that the settings do not know."""
        content = self.content()
        if content is None:
            raise UsageError(f"{self.path} holds no active-learning loop")
        with reading(self.settings_file):
            said = content["settings"] or content["forked_from"]  # a fork that was not run has no settings yet
            names = [text(name, "a class") for name in listing(said["classes"], "'classes'")]
            unnamed = Classes.unnamed(len(names), whole(said["ignore_index"], "'ignore_index'"))
            return replace(unnamed, names=tuple(names))

    def begin(self, settings: Mapping[str, Any] | None, forked_from: Mapping[str, Any] | None = None) -> None:
        """Write down what a loop is begun with; of a fork that was not run yet there are no settings."""
        write_json(
            self.settings_file,
            {
                "version": _VERSION,
                "written_by": WRITTEN_BY,
                "settings": None if settings is None else dict(settings),
                "forked_from": None if forked_from is None else dict(forked_from),
            },
        )

    def require_free(self) -> None:
        """Raise where a loop would be begun in a folder that holds other things.

        Raises:
            UsageError: naming one of them.
        """
        there = sorted(item.name for item in self.path.iterdir() if not item.name.startswith(".seguq-tmp-"))
        if there:
            raise UsageError(
                f"{self.path} holds {there[0]}, but no loop ({SETTINGS}): a loop is begun in a new or empty folder"
            )

    def require_known(self, events: Sequence[Event]) -> None:
        """Raise where there are rounds that the journal does not know: it is lost, or an old one.

        Raises:
            SeguqError: naming the first of them.
        """
        known = {self.round(event.round) for event in events if event.round is not None}
        for path in sorted(self.path.glob("round-*")):
            if path not in known and any(path.iterdir()):
                raise SeguqError(
                    f"{self.journal} knows nothing of {path.name}, and without it nobody knows what was "
                    "done in this folder: put it back as it was, or begin another run_dir"
                )

    def require_same_classes(self, classes: Classes) -> None:
        """Raise where the labels of a fork would be taken for those of other classes.

        Raises:
            UsageError: saying what differs.
        """
        then, now = ((*found.names, f"ignored: {found.ignore_index}") for found in (self.classes(), classes))
        if then != now:
            raise UsageError(
                f"the labels in {self.path} are of the classes {', '.join(then)}, and not {', '.join(now)}: pass the "
                "annotator those that they were labeled with, or begin another run_dir"
            )

    def require_same(self, kept: Mapping[str, Any], settings: Mapping[str, Any], rounds_done: int) -> None:
        """Raise where a loop would go on with other settings than it was begun with.

        Args:
            kept: those in the folder.
            settings: those that it is asked to go on with.
            rounds_done: how many rounds were completed, for the advice.

        Raises:
            UsageError: saying what differs, and how to go on from here with the new settings.
        """
        names = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
        if not names:
            return
        said = "; ".join(
            f"{name} was {_short(kept.get(name))}, and is {_short(settings.get(name))} now" for name in names
        )
        advice = (
            f"to go on otherwise, fork it (seguq loop fork --run_dir {self.path} --round {rounds_done - 1} --out NEW) "
            "and run the new folder"
            if rounds_done
            else "no round of it is complete yet: begin another run_dir"
        )
        raise UsageError(f"{self.path} was begun with other settings: {said}. Pass them as they were; {advice}")


def _short(value: Any) -> str:
    found = repr(value)
    return found if len(found) <= 200 else found[:200] + "..."
