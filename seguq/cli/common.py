"""What several commands share: estimators by name, devices, refusing to overwrite, and tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seguq.calibration import Calibrator
from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError, UsageError
from seguq.inference import Estimator
from seguq.inference.deterministic import Deterministic
from seguq.inference.ensemble import DeepEnsemble
from seguq.inference.mc_dropout import MCDropout
from seguq.task import SegmentationTask

EstimatorName = Literal["deterministic", "mc_dropout", "deep_ensemble"]
ESTIMATORS: tuple[str, ...] = ("deterministic", "mc_dropout", "deep_ensemble")


def make_estimator(
    name: str,
    task: SegmentationTask,
    *,
    samples: int = 20,
    seed: int | None = 0,
    members: Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    calibrator: Calibrator | Literal["auto"] | None = "auto",
) -> Estimator:
    """An estimator by its name on the command line."""
    require_choice("estimator", name, ESTIMATORS)
    settings: dict[str, Any] = {"task": task.task, "measures": measures, "calibrator": calibrator}
    if members and name != "deep_ensemble":
        raise UsageError("--members goes with --estimator deep_ensemble")
    if name == "deterministic":
        return Deterministic(task, **settings)
    if name == "mc_dropout":
        return MCDropout(task, samples=samples, seed=seed, **settings)
    if not members:
        raise UsageError("an ensemble needs --members: the checkpoints beside --checkpoint, as [b.ckpt, c.ckpt]")
    others = [SegmentationTask.load(member).to(task.device) for member in members]
    return DeepEnsemble([task, *others], **settings)


def pick_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), or a device of torch.

    Raises:
        UsageError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"there is no device {name!r} here: use auto, cpu or cuda") from error
    return device


def refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    """Raise where a file is there already and was not meant to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: pass --overwrite to replace it, or another --out")


def with_interval(value: Tensor | float, interval: tuple[Tensor, Tensor] | tuple[float, float], digits: int = 3) -> str:
    """A figure as people read it: value, and the interval in brackets."""
    low, high = (float(item) for item in interval)
    return f"{float(value):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # a table that is narrower than its figures hides them, when the output goes to a file above all
    console.width = max(console.width, 100)
    console.print(table)


def require_folder(path: str, option: str) -> Path:
    """A folder that has to be there."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{option} {path} is no folder")
    return folder


def scalar(value: Tensor | dict[str, Tensor]) -> Tensor:
    """The one value of a metric that has one."""
    if isinstance(value, dict):
        raise SeguqError(f"one value was expected, but the metric has {', '.join(value)}")
    return value
