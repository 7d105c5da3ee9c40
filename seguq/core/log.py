"""The one logger of the project: what a person should know, said once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from seguq.core.errors import printable


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message, in which names of files write no control codes."""
        return printable(super().formatMessage(record))


class _ToTerminal(logging.StreamHandler[TextIO]):
    """Writes to the terminal, but where records propagate to a program's own handlers, which then decide."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or leave it to those."""
        if not (logger.propagate and logging.getLogger().handlers):
            super().emit(record)


logger = logging.getLogger("seguq")
if logger.level == logging.NOTSET:  # or as the program has set it
    logger.setLevel(logging.INFO)
_terminal = _ToTerminal()
_terminal.setFormatter(_OneLine("seguq: %(message)s"))
if not logger.handlers:
    logger.addHandler(_terminal)


@contextmanager
def to_terminal() -> Iterator[None]:
    """For a command: what is logged goes to the terminal, whatever handlers libraries have set up."""
    before, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.propagate = before


_said: set[str] = set()


def say_once(message: str) -> None:
    """Log ``message`` at level INFO the first time it comes up in this process."""
    if message not in _said:
        _said.add(message)
        logger.info(message)
