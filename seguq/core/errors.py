"""The errors that seguq raises for a user's mistake: one sentence that says what, where, and what to do."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text for a terminal or a log: one line, in which names of files cannot write control codes.

    What is no printable character (line ends, terminal codes, bytes of a name that are no UTF-8) is shown escaped.

    Example:
        >>> printable("a\nb\x1b[31m.png")
        'a\\nb\\x1b[31m.png'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class SeguqError(ValueError):
    """A mistake in the data, files or arguments that seguq was given; its message is one sentence for a person."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(printable(_sentence(item)) if isinstance(item, str) else item for item in args))


def _sentence(text: str) -> str:
    """What an error said; torch makes one of a process that loads data anew here, of its traceback in words."""
    if not (text.startswith("Caught ") and " in DataLoader worker process " in text.partition("\n")[0]):
        return text
    return text.rstrip().rpartition("\n")[2].partition(": ")[2]


class UsageError(SeguqError):
    """A command or call was used wrongly (a missing file, a wrong option); the command line exits with 2."""
