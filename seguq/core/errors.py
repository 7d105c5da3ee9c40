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
        super().__init__(*(printable(item) if isinstance(item, str) else item for item in args))


class UsageError(SeguqError):
    """A command or call was used wrongly (a missing file, a wrong option); the command line exits with 2."""
