"""What several commands share: estimators by name, devices, refusing to overwrite, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from seguq.calibration import Calibrator
from seguq.core.errors import SeguqError, UsageError, printable
from seguq.core.reading import reading
from seguq.inference import Estimator
from seguq.inference.measures import checked_measures, named_measures

if TYPE_CHECKING:
    from seguq.cli.model import Model  # which imports Lightning

_SAMPLES = 20


def make_estimator(
    estimator: Estimator | str,
    model: Model,
    *,
    samples: int | None = None,
    seed: int | None = None,
    members: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    calibrator: Calibrator | Literal["auto"] | None = "auto",
) -> Estimator:
    """The estimator that a command was asked for, of a trained model.

    Args:
        estimator: its name, or one without a model that was made with options of its own.
        model: the trained model.
        samples: for an estimator by name, if it has samples; None: 20.
        seed: for an estimator by name, if it draws; None: 0.
        members: further checkpoints of an ensemble by name.
        measures: names of the measures; None: all that it has.
        calibrator: as in `Estimator`.

    Raises:
        UsageError: for an unknown name, or options that do not go with the estimator.
    """
    if isinstance(estimator, Estimator):
        for name, value in (("samples", samples), ("seed", seed), ("members", members)):
            if value is not None:
                raise UsageError(
                    f"--{name} goes with an estimator by name, such as mc_dropout; the option of a class is "
                    f"--estimator.{name}"
                )
        made = estimator.bind(model.network).adapted(model.task, lambda own: own)
        made.calibrator = made.calibrator if calibrator == "auto" else calibrator
        if measures:
            made.measures = checked_measures(named_measures(measures) or (), made.available, type(made).__name__)
        return made
    kind = Estimator.named(estimator)
    takes = kind.constructor_arguments()
    if "members" in takes and not members:
        raise UsageError("an ensemble needs --members: the checkpoints beside --checkpoint, as [b.ckpt, c.ckpt]")
    if members and "members" not in takes:
        raise UsageError(f"--members does not go with --estimator {estimator}")
    offered: dict[str, Any] = {
        "samples": _SAMPLES if samples is None else samples,
        "seed": 0 if seed is None else seed,
        "task": model.task,
    }
    if members:
        offered["members"] = [model.network, *map(model.member, members)]
    else:
        offered |= {"model": model.network, "inner": model.network}
    return kind.make(estimator, **offered, measures=measures, calibrator=calibrator)


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


def with_interval(value: Tensor | float, interval: tuple[Tensor, Tensor] | tuple[float, float], digits: int = 3) -> str:
    """A number as people read it: value, and the interval in brackets."""
    low, high = (float(item) for item in interval)
    return f"{float(value):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """A table on the terminal."""
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
    console.width = max(console.width, 100)
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
