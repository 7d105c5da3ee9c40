"""Files of options, looked at before the parser reads them: it would expand what a short file says without an end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seguq.core.errors import SeguqError
from seguq.core.reading import reading

_LARGEST = 2**22  # bytes
_MOST = 100_000  # values
_DEEPEST = 100


def require_configs(words: Sequence[str]) -> None:
    """Check the files after ``--config``, and all others ending in .yaml or .yml that are named alone.

    Raises:
        SeguqError: for one that cannot be read, is no YAML, or holds more than a file of options can: 4 MiB, 100 000
            values (an alias counts as all that it stands for), 100 levels.
    """
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        value = value if equals and option.startswith("--") else word
        is_config = before == "--config" or (equals and option == "--config")
        if is_config or (value.endswith((".yaml", ".yml")) and Path(value).is_file()):
            require_config(value)


def require_config(path: str) -> None:
    """Check one file (see `require_configs`)."""
    import yaml  # type: ignore[import-untyped]

    with reading(path, "a YAML file"):
        if not path or (Path(path).exists() and not Path(path).is_file()):
            raise SeguqError(f"--config {path or repr(path)} is no file")
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise SeguqError(f"--config {path} is larger than {_LARGEST / 2**20:g} MiB, which no file of options is")
        text = content.decode()
        _require_bounded(path, yaml.parse(text))
        yaml.safe_load(text)


def _require_bounded(path: str, events: object) -> None:
    """Count the values that a file stands for without expanding it."""
    import yaml

    sizes: dict[str, int] = {}  # by anchor: the values that it stands for
    stack: list[tuple[str | None, int]] = []  # of the collections that are open: their anchors, and values up to here
    total = 0
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, 1)  # 1: within what it stands for, which has no end
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            total += 1
            stack.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = stack.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if total > _MOST:
            raise SeguqError(f"--config {path} stands for more than {_MOST} values, which no file of options does")
        if len(stack) > _DEEPEST:
            raise SeguqError(f"--config {path} is nested more than {_DEEPEST} levels deep, which no option is")
