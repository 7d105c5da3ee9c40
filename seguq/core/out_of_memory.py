"""Memory that ran out, told as a sentence: what it was wanted for, how much, and which setting takes less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from seguq.core.errors import SeguqError

# NumPy, Pillow and Python raise MemoryError; torch (on the CPU) and OpenCV say it in words alone
_IN_WORDS = re.compile(r"out of memory|(?:can't|cannot) allocate memory|not enough memory|insufficient memory", re.I)
_AMOUNT = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.I)
_WORKER_ENDED = re.compile(r"DataLoader worker \(pid.*(?:killed by signal|exited unexpectedly)")


class NotEnoughMemoryError(SeguqError):
    """There was not enough memory for something that was asked for."""


class Need:
    """What memory is wanted for, as far as is known at the moment.

    Attributes:
        what: in words, such as ``"image 'a' (9000 x 9000)"``.
    """

    def __init__(self, what: str) -> None:
        self.what = what


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whichever library, says that there is not enough memory.

    Example:
        >>> ran_out_of_memory(RuntimeError("CUDA out of memory.")), ran_out_of_memory(OSError())
        (True, False)
    """
    if isinstance(error, SeguqError):
        return isinstance(error, NotEnoughMemoryError)
    if isinstance(error, MemoryError):
        return True
    told = str(error)
    of_a_library = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return of_a_library and bool(_IN_WORDS.search(told) or _WORKER_ENDED.search(told))


def not_enough_memory(error: BaseException, what: str, advice: str) -> NotEnoughMemoryError:
    """The sentence for an error of `ran_out_of_memory`."""
    if _WORKER_ENDED.search(str(error)):
        return NotEnoughMemoryError(
            f"the system ended a process that loads data, most often for lack of memory, at {what}: {advice}"
        )
    amount = _AMOUNT.search(str(error))
    return NotEnoughMemoryError(f"not enough memory for {what}{_in_words(amount)}: {advice}")


def _in_words(amount: re.Match[str] | None) -> str:
    if amount is None:
        return ""
    if amount[2] != "bytes":
        return f" ({amount[1].rstrip('.')} {amount[2]} more were asked for)"
    return f" ({float(amount[1]) / 2**30:.2g} GiB more were asked for)"


@contextmanager
def memory_for(what: str, advice: str) -> Iterator[Need]:
    """Say in one sentence what memory was wanted for, where it runs out in the block.

    Args:
        what: for the beginning; what the block is given can be told better as it goes on.
        advice: what would take less.

    Raises:
        NotEnoughMemoryError: in place of what NumPy, torch or OpenCV raise.

    Example:
        >>> with memory_for("image 'a'", "make it smaller") as need:
        ...     need.what = "image 'b'"
        ...     raise MemoryError
        Traceback (most recent call last):
        ...
        seguq.core.out_of_memory.NotEnoughMemoryError: not enough memory for image 'b': make it smaller
    """
    need = Need(what)
    try:
        yield need
    except Exception as error:
        if isinstance(error, SeguqError) or not ran_out_of_memory(error):
            raise
        raise not_enough_memory(error, need.what, advice) from error
