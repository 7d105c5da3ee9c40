"""Files written whole: to a temporary name in the same folder, flushed, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".seguq-tmp-"

# mkstemp makes files that only the owner can read; results are meant to be shared as far as the umask allows
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never half of it, also when the process is killed.
    The temporary name keeps the suffix of ``path``, as writers that look at it expect.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with whole_file(Path(folder) / "a.txt") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> os.listdir(folder)
        ['a.txt']
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` as a whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, as a whole."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that a killed process left below ``folder``."""
    for leftover in Path(folder).rglob(TEMPORARY_PREFIX + "*"):
        leftover.unlink(missing_ok=True)
