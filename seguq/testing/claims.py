"""How a check says which promise is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def claim(kept: bool, promise: str) -> None:
    """Raise an AssertionError that says what was promised, where it was not kept."""
    if not kept:
        raise AssertionError(promise)


@contextmanager
def named(checked: object, check: str) -> Iterator[None]:
    """Whose promise it is, in front of the sentence; what fails in another way has broken one, too."""
    name = type(checked).__name__
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{name} fails where it is checked that it{check.replace('_', ' ')} ({what})") from error
