"""The one logger of the project: what a person should know, said once."""

from __future__ import annotations

import logging

from seguq.core.errors import printable


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message, in which names of files write no control codes."""
        return printable(super().formatMessage(record))


logger = logging.getLogger("seguq")
logger.setLevel(logging.INFO)
if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(_OneLine("seguq: %(message)s"))
    logger.addHandler(_handler)
    logger.propagate = False

_said: set[str] = set()


def say_once(message: str) -> None:
    """Log ``message`` at level INFO the first time it comes up in this process."""
    if message not in _said:
        _said.add(message)
        logger.info(message)
