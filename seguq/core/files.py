"""Files written whole: to a temporary name in the same folder, flushed, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from seguq.core.errors import SeguqError, UsageError
from seguq.core.locks import Lock, is_held

TEMPORARY_PREFIX = ".seguq-tmp-"

# mkstemp makes files that only the owner can read; results are meant to be shared as far as the umask allows
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the name ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never half of it, also when the process is killed.
    The temporary name keeps the suffix of ``path``, as writers that look at it expect.

    A file that is replaced hands on its permissions, and its owner where that is allowed; where ``path`` is a symbolic
    link, the file that it leads to is replaced. An ``OSError`` in the block names ``path``, not the temporary file.

    Raises:
        SeguqError: for what `require_replaceable` does not let pass.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with whole_file(Path(folder) / "a.txt") as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> os.listdir(folder)
        ['a.txt']
    """
    require_replaceable(path)
    with naming(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        temporary, lock = _begin(target)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            _hand_on(target, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            lock.release()


def _begin(target: Path) -> tuple[Path, Lock]:
    """An empty file beside another, held by this process so that nobody takes it for a leftover."""
    while True:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=target.suffix, dir=target.parent)
        os.close(handle)
        lock = Lock(Path(name))
        with suppress(FileNotFoundError, UsageError):  # somebody has cleaned up in between
            lock.take()
            return Path(name), lock


def _hand_on(old: Path, new: Path) -> None:
    """Give a file the permissions of the one that it replaces, and its owner where that is allowed."""
    try:
        found = old.stat()
    except FileNotFoundError:
        new.chmod(0o666 & ~_UMASK)
        return
    if hasattr(os, "chown"):
        made = new.stat()
        for owner in ((found.st_uid, found.st_gid), (-1, found.st_gid)):
            if (made.st_uid, made.st_gid) != (found.st_uid, found.st_gid):
                with suppress(PermissionError):
                    os.chown(new, *owner)
                    break
    new.chmod(stat.S_IMODE(found.st_mode))


def require_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise for what is there and must not be replaced: a write-protected file, a device.

    Raises:
        SeguqError: with the path.
    """
    try:
        found = os.stat(path)
    except OSError:  # it is not there, or writing will say what is wrong
        return
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # what is wrong with a folder the system says
        raise SeguqError(f"{path} is a device or a pipe, which cannot be replaced by a file: choose another name")
    # the owner, and a superuser in any case, could replace it all the same; but somebody meant it to stay
    if not found.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(path, os.W_OK):
        raise SeguqError(f"{path} is write-protected: permit writing to it, or choose another name")


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give the name of a file to an ``OSError`` in the block that has none, or that of a temporary file."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None
        if error.errno is None or (named and not Path(os.fsdecode(error.filename)).name.startswith(TEMPORARY_PREFIX)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content`` to ``path`` as a whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` to ``path`` as indented JSON, as a whole."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def write_torch(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` to ``path`` as `torch.save` does, as a whole.

    Raises:
        OSError: if it cannot be written; torch's own word for it would be a line of its source.
    """
    with whole_file(path) as temporary, temporary.open("wb", buffering=0) as file:
        sink = _Sink(file)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]  # it takes whatever has these two methods
        except RuntimeError as error:
            raise (sink.error or error) from error


class _Sink:
    """A file that remembers why it could not be written."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def flush(self) -> None:
        """All of it is written already."""


def remove_leftovers(folder: str | os.PathLike[str], *, below: bool = False) -> None:
    """Remove the temporary files that killed processes have left in a folder; those of live ones stay.

    Args:
        folder: it may be missing.
        below: in the folders below it, too: only where these are nobody else's.
    """
    find = Path(folder).rglob if below else Path(folder).glob
    for leftover in list(find(TEMPORARY_PREFIX + "*")):
        if not is_held(leftover):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of what a file holds, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
