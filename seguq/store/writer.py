"""Files written on a thread of their own, beside a running network."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from seguq.core.errors import SeguqError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class BackgroundWriter:
    """Runs jobs in order on one thread, so that a network need not wait for files.

    The thread is a daemon: it starts at the first `submit` and ends with `close` or `cancel`, after which the writer
    can be used anew. A process that exits without `close` loses the jobs that still wait; a job that writes through
    `seguq.core.files.whole_file` never leaves half a file. As a context manager the writer is closed at the end of
    the block, or canceled if the block raises. A copy (also a pickled one) starts without jobs, error or thread.

    Args:
        name: who writes, the first words of an error: "NAME cannot write FILE: the disk is full".
        limit: bytes that the jobs may hold together, those that wait and the one that runs; `submit` blocks rather
            than exceed it. A job larger than this runs alone.

    Example:
        >>> written = []
        >>> with BackgroundWriter("Heat maps") as writer:
        ...     writer.submit(lambda: written.append("a.png"), size=100)
        ...     writer.submit(lambda: written.append("b.png"), size=100)
        >>> written
        ['a.png', 'b.png']
    """

    def __init__(self, name: str, limit: int = 256 * 2**20) -> None:
        self.name = name
        self.limit = limit
        self._changed = threading.Condition()  # guards all that follows, and tells of its changes
        self._jobs: deque[tuple[Callable[[], object], int]] = deque()
        self._held = 0  # bytes of the jobs that wait and of the one that runs
        self._thread: threading.Thread | None = None
        self._ending = False
        self._error: SeguqError | None = None
        self._raised = False

    def submit(self, job: Callable[[], object], size: int) -> None:
        """Hand in a job; it runs after all that were handed in before.

        Args:
            job: is called once, without arguments, on the writer's thread. It must not hand in jobs itself.
            size: bytes that the job holds in memory until it is done.

        Raises:
            SeguqError: if a job has failed. The jobs that waited behind it are dropped, and so is this one.
        """
        if size < 0:
            raise SeguqError(f"size: {size} bytes, but a job cannot hold fewer than 0")
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self.limit)
            if self._error is not None:
                self._raised = True
                raise self._error
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                thread.start()
                self._thread = thread
            self._jobs.append((job, size))
            self._held += size
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all jobs are done and the thread has ended.

        Raises:
            SeguqError: if a job has failed and no `submit` has said so.
        """
        self._end()
        error = None if self._raised else self._error
        self._error, self._raised = None, False
        if error is not None:
            raise error

    def cancel(self) -> None:
        """Drop the jobs that wait and wait for the one that runs; what has failed, or fails now, is not raised."""
        with self._changed:
            self._drop()
        self._end()
        self._error, self._raised = None, False

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._ending)
                if not self._jobs:
                    self._thread, self._ending = None, False
                    self._changed.notify_all()
                    return
                job, size = self._jobs.popleft()
            failure = None
            try:
                job()
            except BaseException as error:  # whatever it is, those who wait must hear of it
                failure = error
            del job  # and with it the memory that it holds, before the next one is let in
            with self._changed:
                self._held -= size
                if failure is not None:
                    self._drop()
                    self._error = self._explain(failure)
                self._changed.notify_all()

    def _drop(self) -> None:
        self._held -= sum(size for _, size in self._jobs)
        self._jobs.clear()
        self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            thread = self._thread
            if thread is None:
                return
            self._ending = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._thread is not thread)
        thread.join()

    def _explain(self, failure: BaseException) -> SeguqError:
        if isinstance(failure, OSError):
            error = SeguqError(_cannot_write(self.name, failure))
        elif isinstance(failure, SeguqError):
            error = SeguqError(f"{self.name}: {failure}")
        else:
            error = SeguqError(f"{self.name} failed with {type(failure).__name__}: {failure}")
        error.__cause__ = failure
        return error


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Say of a file that cannot be written in the block what `BackgroundWriter` would say.

    Args:
        name: who writes.
    """
    try:
        yield
    except OSError as error:
        raise SeguqError(_cannot_write(name, error)) from error


def _cannot_write(name: str, error: OSError) -> str:
    reason = "the disk is full" if error.errno in _DISK_FULL else error.strerror or error
    return f"{name} cannot write {error.filename or 'a file'}: {reason}"
