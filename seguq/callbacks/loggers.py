"""Figures and tables into whatever loggers a Trainer has.

Loggers are told apart by what they can do, so that none of their packages has to be known or installed. What is given
to each:

=================  ============================================  =============================================
logger             a figure                                      a table
=================  ============================================  =============================================
TensorBoard        ``experiment.add_figure``                     ``experiment.add_text``, in Markdown
Weights & Biases   ``logger.log_image``                          ``logger.log_table``
MLflow             the file ``figures/NAME-step=STEP.png``       the file ``tables/NAME-step=STEP.csv``
Comet              ``experiment.log_figure``                     ``experiment.log_table``, the file as for MLflow
CSV                files as for MLflow, in its own folder        files as for MLflow, in its own folder
=================  ============================================  =============================================

Any other logger gets nothing, and so does one whose experiment is not real, such as those that Lightning gives to all
processes but the first.
"""

from __future__ import annotations

import csv
import inspect
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seguq.core.errors import SeguqError
from seguq.core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figure(loggers: Iterable[Any], name: str, figure: Figure, step: int) -> None:
    """Give a figure to every logger that can take one. The figure stays open and as it is.

    Args:
        loggers: loggers of ``pytorch_lightning`` or ``lightning.pytorch``, such as ``trainer.loggers``.
        name: what the figure shows; ``/`` groups figures, as in ``"val/reliability"``.
        figure: a matplotlib figure.
        step: the global step, a number of optimizer steps.

    Raises:
        SeguqError: if the name cannot be that of a file in a folder.
    """
    file = _file("figures", name, step, ".png")
    for logger, experiment in _real(loggers):
        if _takes(experiment, "add_figure", "tag", "figure", "global_step", "close"):
            canvas = figure.canvas
            experiment.add_figure(tag=name, figure=figure, global_step=step, close=False)
            figure.set_canvas(canvas)  # it draws on one of its own
        elif _takes(logger, "log_image", "key", "images", "step"):
            logger.log_image(key=name, images=[_image(figure)], step=step)
        elif _takes(experiment, "log_figure", "run_id", "figure", "artifact_file") and _run_id(logger):
            experiment.log_figure(run_id=_run_id(logger), figure=figure, artifact_file=file)
        elif _takes(experiment, "log_figure", "figure_name", "figure", "step"):
            experiment.log_figure(figure_name=name, figure=figure, step=step)
        elif folder := _folder(experiment):
            write_bytes(folder / file, _png(figure))


def log_table(
    loggers: Iterable[Any], name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int
) -> None:
    """Give a table to every logger that can take one.

    Args:
        loggers: loggers of ``pytorch_lightning`` or ``lightning.pytorch``, such as ``trainer.loggers``.
        name: what the table shows; ``/`` groups tables, as in ``"val/calibration"``.
        columns: their names.
        rows: a cell for each column: text, a number (also an array or tensor of one), or None.
        step: the global step, a number of optimizer steps.

    Raises:
        SeguqError: if the name cannot be that of a file in a folder, or a row has another number of cells.
    """
    file = _file("tables", name, step, ".csv")
    header, data = list(columns), [[_plain(cell) for cell in row] for row in rows]
    for i, row in enumerate(data):
        if len(row) != len(header):
            raise SeguqError(f"row {i} of the table {name!r} has {len(row)} cells, but there are {len(header)} columns")
    for logger, experiment in _real(loggers):
        if _takes(experiment, "add_text", "tag", "text_string", "global_step"):
            experiment.add_text(tag=name, text_string=_markdown(header, data), global_step=step)
        elif _takes(logger, "log_table", "key", "columns", "data", "step"):
            logger.log_table(key=name, columns=header, data=data, step=step)
        elif _takes(experiment, "log_text", "run_id", "text", "artifact_file") and _run_id(logger):
            experiment.log_text(run_id=_run_id(logger), text=_csv(header, data), artifact_file=file)
        elif _takes(experiment, "log_table", "filename", "tabular_data", "headers"):
            experiment.log_table(filename=file, tabular_data=data, headers=header)
        elif folder := _folder(experiment):
            write_bytes(folder / file, _csv(header, data).encode())


def _file(folder: str, name: str, step: int, suffix: str) -> str:
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise SeguqError(f"name: {name!r} cannot be that of a file in a folder; 'val/reliability' could")
    return f"{folder}/{name}-step={step:06d}{suffix}"


def _real(loggers: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The loggers that log, each with its experiment. Lightning's stand-in for an experiment has every attribute."""
    for logger in loggers:
        experiment = getattr(logger, "experiment", None)
        if experiment is not None and not hasattr(experiment, "no_name_of_anything"):
            yield logger, experiment


def _takes(owner: Any, method: str, *arguments: str) -> bool:
    """Whether there is such a method that can be called with these arguments, each by its name."""
    try:
        inspect.signature(getattr(owner, method)).bind(**dict.fromkeys(arguments))
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _run_id(logger: Any) -> str | None:
    """The run that MLflow's client, which serves them all, has to be told."""
    return getattr(logger, "run_id", None)


def _folder(experiment: Any) -> Path | None:
    """The folder of a CSV logger, where it is on this machine."""
    folder = experiment.log_dir if hasattr(experiment, "metrics_file_path") else ""
    return Path(folder) if folder and "://" not in folder else None


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _image(figure: Figure) -> Any:
    """A PIL image in RGB."""
    from PIL import Image

    return Image.open(io.BytesIO(_png(figure))).convert("RGB")


def _plain(cell: Any) -> Any:
    """A number of its own instead of an array or tensor of one."""
    return cell.item() if getattr(cell, "ndim", None) == 0 else cell


def _csv(columns: list[str], rows: list[list[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", r"\|").split())
