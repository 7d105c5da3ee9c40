"""The one logger of the project: what a person should know, said once."""

from __future__ import annotations

import logging

logger = logging.getLogger("seguq")
logger.setLevel(logging.INFO)
if not logger.handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("seguq: %(message)s"))
    logger.addHandler(_handler)
    logger.propagate = False

_said: set[str] = set()


def say_once(message: str) -> None:
    """Log ``message`` at level INFO the first time it comes up in this process."""
    if message not in _said:
        _said.add(message)
        logger.info(message)
