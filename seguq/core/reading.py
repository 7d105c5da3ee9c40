"""Files read, and what is said of one that cannot be: damaged, unreadable and missing are three things."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seguq.core.errors import SeguqError, UsageError
from seguq.core.out_of_memory import NotEnoughMemoryError, ran_out_of_memory

# what the system says where a file is there and whole, for all that is known, but cannot be read
_NOT_READ = {errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ESTALE}


@contextmanager
def reading(what: str | os.PathLike[str], kind: str | None = None, *, advice: str = "") -> Iterator[None]:
    """Say in one sentence what is wrong with a file, whatever error its content ends in.

    Put it around everything that looks at the content: opening, parsing, taking out of it, checking. An error of ours
    that is raised within gets the name of the file, if it lacks it.

    Args:
        what: the file; or a part of one, in words.
        kind: what it should be, with its article, where it may well be a whole file of another kind.
        advice: what to do about it, for the end of the sentence.

    Raises:
        UsageError: for a file that is missing, or whose name no file can have.
        SeguqError: for one that is damaged, saying how, or that cannot be read.

    Example:
        >>> with reading("selection.json"):
        ...     {}["version"]
        Traceback (most recent call last):
        ...
        seguq.core.errors.SeguqError: selection.json is damaged: it has no 'version'
    """
    name = os.fspath(what)
    if "\0" in name:
        raise UsageError(f"{printable(name)} is no name of a file: it holds a NUL character")
    advice = f": {advice}" if advice else ""
    try:
        yield
    except SeguqError as error:
        said = str(error)
        if name in said and "\n" not in said:
            raise
        said = " ".join(said.split()) if "\n" in said else said  # a value that was quoted may have lines
        raise type(error)(said if name in said else f"{name}: {said}") from error
    except FileNotFoundError as error:
        raise UsageError(f"{name} does not exist") from error
    except OSError as error:
        if error.errno in _NOT_READ:
            raise SeguqError(f"{name} cannot be read: {os.strerror(error.errno or 0)}") from error
        raise _damaged(name, kind, error, advice) from error
    except Exception as error:
        if ran_out_of_memory(error):
            raise NotEnoughMemoryError(f"{name} does not fit into memory ({how(error)})") from error
        raise _damaged(name, kind, error, advice) from error


def _damaged(name: str, kind: str | None, error: BaseException, advice: str) -> SeguqError:
    if kind is None:
        return SeguqError(f"{name} is damaged: {how(error)}{advice}")
    return SeguqError(f"{name} cannot be read as {kind}: it is damaged or another kind of file ({how(error)}){advice}")


def how(error: BaseException) -> str:
    """What an error says of the content that it was met in, in a few words on one line.

    Example:
        >>> how(KeyError("score"))
        "it has no 'score'"
    """
    if isinstance(error, KeyError) and error.args:
        return f"it has no {error.args[0]!r}"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, EOFError):
        return "it is cut off"
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to read without care
        return "it is no plain pickle"
    text = printable(" ".join(str(error).split()))
    return (text if len(text) <= _LONGEST else text[:_LONGEST] + " ...") or type(error).__name__


_LONGEST = 160


def printable(text: str) -> str:
    """Text as it can be shown on one line: what does not print as Python writes it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; to be called within `reading`, which says what is wrong with it."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def whole(value: Any, name: str, least: int | None = None) -> int:
    """A whole number that a file holds.

    Args:
        value: what is there; a bool or a float is none, also where it is one in value.
        name: what it is, for the message.
        least: the smallest that it may be.

    Raises:
        ValueError: for anything else; within `reading` that is one sentence with the file.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, but is {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, but is {value}")
    return value


def number(value: Any, name: str, least: float | None = None) -> float:
    """A number that a file holds, NaN too.

    Raises:
        ValueError: for anything else, and for one below ``least``.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, but is {value!r}")
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least}, but is {value}")
    return float(value)


def text(value: Any, name: str) -> str:
    """Text that a file holds.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, but is {value!r}")
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A mapping that a file holds.

    Raises:
        ValueError: for anything else, or one with keys that are no text.
    """
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping, but is {_kind(value)}")
    return value


def listing(value: Any, name: str) -> list[Any]:
    """A list that a file holds.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, but is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
