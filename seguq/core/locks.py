"""Locks on folders and files, which a process holds until it lets go of them or ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from seguq.core.errors import UsageError

if sys.platform != "win32":
    import fcntl

_Key = tuple[int, int]  # device and inode
_PAUSE = 0.05  # seconds between two looks at what another process holds

_guard = threading.RLock()  # whoever opens or closes a locked descriptor holds it for that moment, and so does a fork
_held: dict[_Key, list[int]] = {}  # descriptor, and how often this process has taken it


def _forget() -> None:
    """A forked process (one that loads data) holds nothing: it may outlive the one that does by seconds."""
    for handle, _ in _held.values():
        os.close(handle)
    _held.clear()
    _guard.release()


if sys.platform != "win32":
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget)


class Lock:
    """Keeps other processes away from a folder or a file until it is released, or the process ends, however it ends.

    One process may take the same lock many times, as for two callbacks that write into one folder. Neither forked nor
    started processes inherit it. Where the system or the file system has no such locks it does nothing.

    Args:
        path: a folder or file that is there.
        shared: let others in that come to share it, too.
        wait: wait for another process, instead of refusing.
        alone: refuse also where this process has it already.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with Lock(folder):
        ...     (folder / "a.txt").touch()
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = False, alone: bool = False) -> None:
        self.path, self.shared, self.wait, self.alone = path, shared, wait, alone
        self._key: _Key | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            UsageError: if another process has it, and is not to be waited for.
        """
        if sys.platform == "win32":
            return
        self.release()
        while not self._take():
            if not self.wait:
                raise UsageError(f"another run writes into {self.path}: wait for it, or give another folder")
            time.sleep(_PAUSE)

    def _take(self) -> bool:
        """Whether it could be taken, or cannot be taken here by anybody."""
        with _guard:
            handle = os.open(self.path, os.O_RDONLY)
            key = _key(os.fstat(handle))
            if key in _held:
                os.close(handle)
                if self.alone:
                    return False
                _held[key][1] += 1
            elif not _lock(handle, self.shared):
                os.close(handle)
                return False
            elif not self.path.exists() or _key(self.path.stat()) != key:  # it was replaced in the meantime
                os.close(handle)
                return self._take()
            else:
                _held[key] = [handle, 1]
            self._key = key
        return True

    def release(self) -> None:
        """Let others in."""
        with _guard:
            if self._key is not None:
                _let_go(self._key)
            self._key = None

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Whether some process, this one included, has a lock on a file, or the file is not ours to ask about.

    Where there are no locks the answer is no.
    """
    if sys.platform == "win32":
        return False
    with _guard:
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        free = _lock(handle, shared=False)
        os.close(handle)  # which lets go of it
    return not free


def _lock(handle: int, shared: bool) -> bool:
    """Whether a lock could be had, or there are none here."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _let_go(key: _Key) -> None:
    if key in _held:  # not in a process that was forked
        _held[key][1] -= 1
        if not _held[key][1]:
            os.close(_held.pop(key)[0])


def _key(stat: os.stat_result) -> _Key:
    return stat.st_dev, stat.st_ino
