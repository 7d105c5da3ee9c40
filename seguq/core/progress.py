"""Progress bars for anything that a person waits for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

from seguq.core.errors import printable

T = TypeVar("T")
_LONGEST = 36  # characters of 80


def progress(
    items: Iterable[T], description: str, *, total: int | None = None, done: int = 0, transient: bool = False
) -> Iterator[T]:
    """Iterate over ``items`` with a bar on the terminal (standard error); plain lines of text are not disturbed.

    Args:
        items: what to iterate over.
        description: what is being done, in a few words.
        total: how many there are in all; by default the length of ``items`` where it has one.
        done: how many of ``total`` were done before (a resumed run).
        transient: the bar goes when it is done: for what is done several times over.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if total is None and isinstance(items, Sized):
        total = len(items) + done
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, emoji=False), transient=transient) as bar:
        task = bar.add_task(_shortened(printable(description)), total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


def _shortened(description: str) -> str:
    """So that bar and times have room beside it."""
    return description if len(description) <= _LONGEST else f"{description[: _LONGEST - 1]}…"


class ProgressLoader(Generic[T]):
    """A re-iterable whose first pass shows a bar; later passes, over what was kept, are quick.

    Args:
        loader: a loader of batches.
        description: what is being done, in a few words.
    """

    def __init__(self, loader: Iterable[T], description: str) -> None:
        self.loader, self.description = loader, description
        self._shown = False

    def __iter__(self) -> Iterator[T]:
        if self._shown:
            return iter(self.loader)
        self._shown = True
        return progress(self.loader, self.description)
