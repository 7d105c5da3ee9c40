"""An annotator for people with a paint program: a folder of tasks, and a page of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from seguq.acquisition import Selection
from seguq.acquisition.selection import by_image
from seguq.annotators.annotator import Annotation, Annotator
from seguq.annotators.answers import STEM, answer_file, read_answer
from seguq.annotators.asked import Row, Sent, classes_of, regions_of, require_inside, require_mask
from seguq.annotators.task_page import State, task_page
from seguq.annotators.tasks import TEMPLATE, Task, painted_classes, place_of, tasks_below
from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, write_bytes, write_json
from seguq.core.locks import Lock
from seguq.core.log import logger, say_once
from seguq.core.progress import progress
from seguq.core.reading import mapping, read_json, reading
from seguq.data import Classes, ImageSource

_MARKER, PAGE = "tasks.json", "index.html"
_WRITTEN_BY = "seguq.annotators.Folder"
_SHOW_PROGRESS_FROM = 50


class Folder(Annotator):
    """Asks people through a folder: one task an image and round, and ``index.html``, which says what to do.

    The folder of a task, ``DIR/round-03/IMAGE_ID/``, holds the image (``image.png`` or ``image.jpg``), a picture of it
    with the regions outlined (``regions.jpg``), a layer that darkens what is not asked (``asked.png``), and a palette
    PNG in the colors of the classes in which nothing is labeled (``template.png``). A task is answered when a painted
    mask lies beside them: ``mask.png``, or ``.tif``, ``.bmp``, ``.webp``; of class indices, or in the colors of the
    classes. What it says outside of the regions is left out. What a person puts there is never changed or removed.

    Args:
        dir: the folder; it is made where it is missing, and must hold nothing else.
        classes: the classes, or their ``classes.json``; each needs a color of its own.

    Raises:
        SeguqError: if the folder holds other things, or tasks of other classes; from `send`, if other regions were
            asked for in the same round.

    Example:
        >>> from seguq.data import Classes
        >>> people = Folder(getfixture("tmp_path") / "to label", Classes.unnamed(2))
        >>> list(people.collect())
        []
    """

    stored_as: ClassVar[Mapping[str, str]] = MappingProxyType({"classes": "given_classes"})

    def __init__(self, dir: str | os.PathLike[str], classes: Classes | str | os.PathLike[str]) -> None:
        if not isinstance(dir, (str, os.PathLike)):
            raise UsageError(f"dir must be a folder, but is {dir!r}")
        self.dir, self.given_classes = dir, classes
        self.classes = classes_of(classes)
        self._painted = painted_classes(self.classes)
        self._folder = Path(dir)
        self._require_own()
        self._sent = Sent()
        self._tasks: dict[Path, Task] = {}
        self._states: dict[Path, State] = {}

    def _require_own(self) -> None:
        """Raise where the folder holds other things, or tasks of other classes."""
        marker = self._folder / _MARKER
        if not marker.is_file():
            if self._folder.exists() and not self._folder.is_dir():
                raise UsageError(f"{self._folder} is a file: give Folder a folder of its own")
            if self._folder.is_dir() and any(not item.name.startswith(".") for item in self._folder.iterdir()):
                raise UsageError(f"{self._folder} holds other files: give Folder a folder of its own")
            return
        with reading(marker, advice="give Folder another folder"):
            content = mapping(read_json(marker), "its content")
            if content.get("written_by") != _WRITTEN_BY:
                raise UsageError(f"{self._folder} holds other files: give Folder a folder of its own")
        if content != self._marker():
            raise UsageError(
                f"the tasks in {self._folder} were made for other classes ({', '.join(content.get('names', []))}), or "
                "other colors of them: give Folder another folder"
            )

    def _marker(self) -> dict[str, Any]:
        colors = {"colors": self._painted.colors, "ignore_colors": self._painted.ignore_colors}
        plain = {name: [list(color) for color in found] for name, found in colors.items()}
        names = {"names": list(self.classes.names), "ignore_index": self.classes.ignore_index}
        return {"version": 1, "written_by": _WRITTEN_BY, **names, **plain}

    def send(self, selection: Selection, images: ImageSource) -> None:
        """Write the tasks that are not there yet, and the page."""
        images = ImageSource.of(images)
        number = self._sent.require_same(selection)
        require_inside(selection, images)
        rows = by_image(selection.rows)
        for image_id in rows:
            require_plain_name("the image id", image_id)
        tasks = [Task.of(self._folder, number, image_id, found, images) for image_id, found in rows.items()]
        self._require_own()
        with self._written():
            known = self._there_already(number, tasks)
            new = [task for task in tasks if not task.is_complete()]
            remove_leftovers(self._folder, below=True)
            if not (self._folder / _MARKER).is_file():
                write_json(self._folder / _MARKER, self._marker())
            for task in progress(new, f"tasks of round {number}") if len(new) >= _SHOW_PROGRESS_FROM else new:
                known[task.folder] = task.write(rows[task.image_id], images, self._painted)
            self._tasks.update(known)
            self._sent.add(selection)
            self._write_page()
        if new:
            logger.info("%d tasks of round %d to label: open %s", len(new), number, self._folder / PAGE)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Alone in the folder; what cannot be written is one sentence."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with Lock(self._folder, wait=True):
                yield
        except OSError as error:
            raise SeguqError(
                f"{error.filename or self._folder} cannot be written: {error.strerror or error}; mend that and send "
                "again, what is there stays"
            ) from error

    def _there_already(self, number: int, tasks: Sequence[Task]) -> dict[Path, Task]:
        """The tasks of a round that are there, by folder; none may ask for anything else than now.

        Raises:
            SeguqError: naming the first that does.
        """
        asked = {task.folder: task for task in tasks}
        known = {task.folder: task for task in tasks_below(self._folder, number)}
        # what lies behind a link is not found by a look below
        known |= {
            task.folder: Task.read(task.file) for task in tasks if task.folder not in known and task.file.exists()
        }
        for folder, task in known.items():
            if folder not in asked or not task.is_asked_alike(asked[folder]):
                raise SeguqError(
                    f"{folder} asks for other regions, or another image, than this selection of round {number}: "
                    "give another loop, or a fork of one, a folder of its own"
                )
        return known

    def collect(self) -> Iterator[Annotation]:
        """The masks that people have put beside the tasks; what is wrong with some is said after all others."""
        wrong: list[SeguqError] = []
        notes = _Notes()
        self._states = {}
        try:
            for (number, image_id), rows in list(self._sent.tasks.items()):
                task = self._tasks[place_of(self._folder, number, image_id)]
                try:
                    answer = self._answer(task, rows, notes)
                except SeguqError as error:
                    wrong.append(error)
                    self._states[task.folder] = _mend(task, error)
                    continue
                if answer is not None:
                    yield answer
        finally:
            if self._tasks:
                self._renew_page()
        notes.say()
        if wrong:
            more = f" (and {len(wrong) - 1} more, see {self._folder / PAGE})" if len(wrong) > 1 else ""
            raise type(wrong[0])(f"{wrong[0]}{more}")

    def _answer(self, task: Task, rows: Sequence[Row], notes: _Notes) -> Annotation | None:
        path = answer_file(task.folder)
        mask = None if path is None else read_answer(path, self._painted)
        if path is None or mask is None:
            return None
        require_mask(mask, task.size, self.classes, str(path), "save it anew from the template")
        asked, labeled = regions_of(rows, task.size) >= 0, mask != self.classes.ignore_index
        words = notes.add(path, outside=int((labeled & ~asked).sum()), unpainted=int((asked & ~labeled).sum()))
        self._states[task.folder] = State("answered", words)
        return Annotation(task.image_id, tuple(rows), np.where(asked, mask, self.classes.ignore_index))

    def _renew_page(self) -> None:
        """Write the page, where that is possible: answers can be read all the same."""
        try:
            with Lock(self._folder, wait=True):
                self._write_page()
        except OSError as error:
            say_once(f"{self._folder / PAGE} is not up to date: it cannot be written ({error.strerror or error})")

    def _write_page(self) -> None:
        tasks = {task.folder: task for task in tasks_below(self._folder)} | self._tasks
        states = [(tasks[place], self._states.get(place) or _at_first_sight(tasks[place])) for place in sorted(tasks)]
        content = task_page(states, self._painted, self._folder).encode(errors="replace")
        path = self._folder / PAGE
        if not path.is_file() or path.read_bytes() != content:
            write_bytes(path, content)


def _at_first_sight(task: Task) -> State:
    """How far a task is, without a look into its mask."""
    try:
        if answer_file(task.folder) is not None:
            return State("answered")
    except SeguqError as error:
        return _mend(task, error)
    if task.is_painted_over:
        return State("open", f"{TEMPLATE} was painted on: save that as {STEM}.png, which is what counts as the answer")
    others = task.other_files()
    return State("open", f"not read: {', '.join(others)}; the answer is called {STEM}.png" if others else "")


def _mend(task: Task, error: SeguqError) -> State:
    """What is wrong, without the way to the folder of the task."""
    return State("mend", str(error).replace(f"{task.folder}{os.sep}", ""))


class _Notes:
    """What answers say beyond what was asked, and what they leave open: said once for all."""

    def __init__(self) -> None:
        self.outside: dict[Path, int] = {}
        self.unpainted: dict[Path, int] = {}

    def add(self, path: Path, outside: int, unpainted: int) -> str:
        """Take in one answer; gives what there is to be said of it."""
        words = []
        if outside:
            self.outside[path] = outside
            words.append(f"{outside:,} pixels painted outside of the outlines are left out")
        if unpainted:
            self.unpainted[path] = unpainted
            words.append(f"{unpainted:,} pixels inside of them are not painted")
        return "; ".join(words)

    def say(self) -> None:
        """Say it, where it was not said before."""
        for found, words in (
            (self.outside, "pixels were painted outside of what was asked, and are left out"),
            (self.unpainted, "asked pixels were not painted, and stay unlabeled"),
        ):
            if found:
                first, others = next(iter(found)), len(found) - 1
                say_once(f"{sum(found.values()):,} {words}: {first}{f' and {others} more' if others else ''}")
