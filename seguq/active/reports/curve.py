"""Learning curves of loops: from run folders to a picture and a table."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seguq.active.reports.records import MAIN_METRIC, METRIC_NAMES, Record, read_records
from seguq.core.errors import UsageError
from seguq.export.learning_curve import Curve, learning_curve

_AXES: dict[str, tuple[str, Callable[[Record], float]]] = {
    "pixels": ("labeled pixels", lambda record: record.labeled.pixels),
    "regions": ("labeled regions", lambda record: record.labeled.regions),
    "clicks": ("clicks", lambda record: record.labeled.clicks),
    "images": ("images visited", lambda record: record.labeled.images),
    "share": ("labeled share of the pool's pixels (%)", lambda record: 100 * record.share),
}
AXES = tuple(_AXES)
"""What a learning curve can be drawn against."""

_COLUMNS = ("run", "round", "regions", "pixels", "clicks", "images", "share")


def curve_of(records: Sequence[Record], name: str, by: str = "pixels", metric: str = MAIN_METRIC) -> Curve:
    """The learning curve of one run.

    Args:
        records: its rounds.
        name: what it is called.
        by: what it is drawn against, one of `AXES`.
        metric: which metric; it is NaN in a round that has none.

    Raises:
        UsageError: for another ``by``.
    """
    _require_axis(by)
    unknown = (math.nan, math.nan, math.nan)
    value, low, high = zip(*(record.metrics.get(metric, unknown) for record in records), strict=True)
    return Curve(name, [_AXES[by][1](record) for record in records], value, low, high)


def plot_runs(
    run_dirs: Sequence[str | os.PathLike[str]],
    by: str = "pixels",
    metric: str = MAIN_METRIC,
    reference: tuple[float, float, float] | None = None,
) -> Any:
    """The learning curves of one or several loops in one picture.

    Args:
        run_dirs: their folders, which they are named by.
        by: what they are drawn against: ``pixels``, ``regions``, ``clicks``, ``images`` (visited), or ``share`` of the
            pool's pixels.
        metric: which metric; each round has it with its interval.
        reference: what all labels give, with the ends of its interval.

    Returns:
        A matplotlib figure; it is not shown.

    Raises:
        UsageError: for a folder that is no run, another ``by``, a metric that no round has, or a folder given twice.
        SeguqError: for a file that is damaged.
    """
    _require_axis(by)
    runs = _read(run_dirs)
    for run_dir, records in zip(run_dirs, runs, strict=True):
        _require_metric(run_dir, records, metric)
    names = run_names(run_dirs)
    curves = [curve_of(records, name, by, metric) for records, name in zip(runs, names, strict=True)]
    judged = sorted({f"{r.images} {r.split} images" for records in runs for r in records if metric in r.metrics})
    y_label = f"{METRIC_NAMES.get(metric, metric)} on {' or '.join(judged)}"
    return learning_curve(curves, _AXES[by][0], y_label, reference)


def curve_table(run_dirs: Sequence[str | os.PathLike[str]]) -> tuple[list[str], list[list[Any]]]:
    """All that the pictures are drawn of, as a table.

    Args:
        run_dirs: folders of loops.

    Returns:
        The columns, and a row for each round of each run: what was labeled up to it, and each metric with the ends of
        its interval; None where a round has none.

    Raises:
        UsageError: for a folder that is no run, or that is given twice.
        SeguqError: for a file that is damaged.
    """
    runs, names = _read(run_dirs), run_names(run_dirs)
    metrics = list(dict.fromkeys(metric for records in runs for record in records for metric in record.metrics))
    columns = [*_COLUMNS, *(f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high"))]
    rows: list[list[Any]] = []
    for name, records in zip(names, runs, strict=True):
        for record in records:
            labeled = record.labeled
            row = [name, record.round, labeled.regions, labeled.pixels, labeled.clicks, labeled.images, record.share]
            figures = [part for metric in metrics for part in record.metrics.get(metric, (None, None, None))]
            rows.append([*row, *(None if part is None or math.isnan(part) else part for part in figures)])
    return columns, rows


def curve_csv(run_dirs: Sequence[str | os.PathLike[str]]) -> bytes:
    """`curve_table` as the content of a CSV file; what is not known is an empty cell."""
    columns, rows = curve_table(run_dirs)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    # a spreadsheet would take such a name for a formula
    writer.writerows([f"'{row[0]}" if str(row[0])[:1] in "=+-@\t\r\n" else row[0], *row[1:]] for row in rows)
    return out.getvalue().encode("utf-8", errors="backslashreplace")


def run_names(run_dirs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What runs are called: the names of their folders, or the paths of those that share a name.

    Raises:
        UsageError: for a folder that is given twice.

    Example:
        >>> run_names(["runs/entropy", "runs/random", "old/random"])
        ['entropy', 'runs/random', 'old/random']
    """
    twice = [path for path, count in Counter(Path(run_dir).resolve() for run_dir in run_dirs).items() if count > 1]
    if twice:
        raise UsageError(f"the run {twice[0]} is given more than once")
    names = [Path(run_dir).resolve().name for run_dir in run_dirs]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [os.fspath(run_dir) if name in shared else name for run_dir, name in zip(run_dirs, names, strict=True)]


def _require_axis(by: str) -> None:
    if by not in AXES:
        raise UsageError(f"by must be one of {', '.join(AXES)}, but is {by!r}")


def _read(run_dirs: Sequence[str | os.PathLike[str]]) -> list[list[Record]]:
    if not run_dirs:
        raise UsageError("no run is given")
    return [read_records(run_dir) for run_dir in run_dirs]


def _require_metric(run_dir: str | os.PathLike[str], records: Sequence[Record], metric: str) -> None:
    found = list(dict.fromkeys(name for record in records for name in record.metrics))
    if not records:
        raise UsageError(f"{os.fspath(run_dir)} has no round that was judged yet: nothing can be drawn of it")
    if not found:
        raise UsageError(f"{os.fspath(run_dir)} was judged on no labeled images: it has no metric to draw")
    if metric not in found:
        raise UsageError(f"{os.fspath(run_dir)} has no metric {metric!r}: there are {', '.join(found)}")
