"""Folders that one process at a time writes into."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import TracebackType

from seguq.core.errors import UsageError

if sys.platform != "win32":
    import fcntl


class FolderLock:
    """Keeps other processes out of a folder until it is released, or the process ends, however it ends.

    Where the system or the file system has no such locks it does nothing.

    Args:
        folder: it is there.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with FolderLock(folder):
        ...     (folder / "a.txt").touch()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def take(self) -> None:
        """Take the folder.

        Raises:
            UsageError: if another process has it.
        """
        if sys.platform == "win32":
            return
        self.release()
        self._handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return
            raise UsageError(f"another run writes into {self.folder}: wait for it, or give another folder") from error

    def release(self) -> None:
        """Let others into the folder."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None

    def __enter__(self) -> FolderLock:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
