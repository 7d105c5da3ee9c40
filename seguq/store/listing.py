"""What was put into a folder that others may put files into, too: only that is removed or replaced again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError
from seguq.core.files import naming, remove_leftovers, require_replaceable, write_bytes


class OwnFiles:
    """The files of one writer in a folder: ``.seguq-files`` lists each, with a hash of its content, before it is there.

    A file counts as its own while it is listed and has a listed content: what somebody else has put there, or has
    changed since, is neither replaced nor removed. A kill at any time leaves no file that is not listed.

    Args:
        folder: made with the first file.

    Example:
        >>> folder = getfixture("tmp_path") / "pictures"
        >>> OwnFiles(folder).write("a.png", b"a picture")
        >>> _ = (folder / "b.png").write_bytes(b"somebody else's")
        >>> _ = OwnFiles(folder).clear()
        >>> [path.name for path in folder.iterdir()]
        ['b.png']
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.list = self.folder / ".seguq-files"
        """The file that lists them."""

    def listed(self) -> dict[str, set[str]]:
        """Hashes of the contents that a file may have, by its name.

        Raises:
            SeguqError: if the list names files elsewhere.
        """
        found: dict[str, set[str]] = {}
        if not self.list.is_file():
            return found
        for line in self.list.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                name, digest = json.loads(line)
            except (ValueError, TypeError):  # cut off by a kill, before the file was written
                continue
            require_plain_name(f"{self.list} is damaged: the file", name)
            found.setdefault(name, set()).add(digest)
        return found

    def is_own(self, name: str) -> bool:
        """Whether a file is there that was written by this, and is as it was."""
        return self._has(name, self.listed().get(name, set()))

    def _has(self, name: str, hashes: set[str]) -> bool:
        path = self.folder / name
        return bool(hashes) and path.is_file() and _hash(path.read_bytes()) in hashes

    def require_free(self, name: str) -> None:
        """Raise where a file is there that is not its own.

        Raises:
            SeguqError: with its path.
        """
        require_plain_name("the file", name)
        path = self.folder / name
        if os.path.lexists(path) and not self.is_own(name):
            raise SeguqError(
                f"{path} is there and was written, or changed, by somebody else: move it away, or choose another folder"
            )
        require_replaceable(path)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, as a whole.

        Raises:
            SeguqError: if one is there that is not its own.
        """
        self.require_free(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with naming(self.folder / name), self.list.open("ab") as file:
            file.write(f"\n{json.dumps([name, _hash(content)])}\n".encode())  # the last line may have been cut off
        write_bytes(self.folder / name, content)

    def clear(self) -> list[str]:
        """Remove its files; gives the names of those that stay, because somebody has changed them."""
        changed = []
        for name, hashes in self.listed().items():
            if self._has(name, hashes):
                (self.folder / name).unlink()
            elif os.path.lexists(self.folder / name):
                changed.append(name)
        remove_leftovers(self.folder)
        self.list.unlink(missing_ok=True)
        return changed


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
