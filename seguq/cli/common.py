"""What several commands share: devices, refusing to overwrite, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from seguq.core.errors import SeguqError, UsageError, printable
from seguq.core.files import require_replaceable
from seguq.core.reading import reading

_FIRST = 12  # letters that the first column of a table has at least, where it needs them


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), or a device of torch.

    Raises:
        UsageError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # "meta" has tensors, but no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"there is no device {name!r} here: use auto, cpu or cuda") from error
    return device


def refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    """Raise where a file is there already and was not meant to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: pass --overwrite to replace it, or another --out")


def require_free(path: Path, what: str, option: str, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raise where a file cannot be written, must not be, or does not end as its kind does."""
    if path.suffix not in suffixes:
        raise UsageError(f"{what} is a {' or '.join(suffixes)} file, but {option} is {path}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: pass --overwrite to replace it, or another {option}")
    require_replaceable(path)


def with_interval(value: Tensor | float, interval: tuple[Tensor, Tensor] | tuple[float, float], digits: int = 3) -> str:
    """A number as people read it: value, and the interval in brackets."""
    low, high = (float(item) for item in interval)
    return f"{float(value):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """A table on the terminal."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def plain(text: str) -> Text:  # no markup, no emoji codes, no control codes: it may hold names of files
        return Text(printable(text))

    table = Table(
        title=plain(title),
        caption=None if caption is None else plain(caption),
        title_justify="left",
        caption_justify="left",
    )
    for i, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console()
    # a table that is narrower than its numbers hides them, when the output goes to a file above all
    first, *numbers = (max(map(cell_len, column)) for column in zip(columns, *rows, strict=True))
    needed = min(first, _FIRST) + sum(numbers) + 3 * len(columns) + 1
    console.width = max(console.width, 100, needed)
    console.print(table)


def require_folder(path: str, option: str) -> Path:
    """A folder that has to be there."""
    folder = Path(path)
    with reading(path):  # a folder that lies in a locked one
        if not folder.is_dir():
            raise UsageError(f"{option} {path} is no folder")
    return folder


def scalar(value: Tensor | dict[str, Tensor]) -> Tensor:
    """The one value of a metric that has one."""
    if isinstance(value, dict):
        raise SeguqError(f"one value was expected, but the metric has {', '.join(value)}")
    return value
