"""``seguq benchmark``: strategies side by side on a data set whose labels are known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seguq.acquisition import Budget, Strategy
from seguq.active.comparison import UNITS, Comparison, Needed
from seguq.active.experiment import FULL, Arm, Experiment, Point
from seguq.active.judge import MAIN
from seguq.annotators.oracle import Oracle
from seguq.cli.common import print_table, require_folder
from seguq.cli.loop_run import GROUPS, data_maker, flat, task_maker, trainer_maker
from seguq.cli.parsing import run_function
from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError
from seguq.core.files import remove_leftovers, write_bytes
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.data import ImageSource
from seguq.export.learning_curve import learning_curve
from seguq.inference import Estimator
from seguq.regions import Partition
from seguq.store.writer import writing

_PARTITION = {"class_path": "Grid", "init_args": {"size": 32}}
_TABLE, _POINTS, _PICTURE = "table.md", "points.csv", "curves-{by}.png"

# so that a file may give any of them by the name of its class alone
Strategy.names(), Partition.names(), Estimator.names()


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(benchmark, "benchmark", words, {"partition": _PARTITION}, groups=GROUPS)


def benchmark(
    out: str,
    root: str,
    arms: list[Arm],
    first: Budget,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    trainer: Mapping[str, Any],
    partition: Partition,
    seeds: list[int],
    pool_split: str = "train",
    share: float = 0.95,
    by: str = "clicks",
    only_show: bool = False,
) -> None:
    """Compare ways of choosing what to label, on a data set with all labels: each with several seeds, resumable.

    Started again, it goes on where it stopped; started several times at once, each process takes other runs. Every run
    is an active-learning loop in a folder of its own (seguq loop status shows one).

    Args:
        out: folder of the experiment; table.md, points.csv and curves-BY.png are written into it.
        root: data set with images/, masks/ and classes.json; the models are judged on its test images.
        arms: the ways of choosing, best in a file (see configs/benchmark.yaml): each a name, a strategy, the budgets of
            its rounds, and if wanted a partition, by and an estimator of its own.
        first: how much is labeled first, the same for all.
        model: of seguq.SegmentationTask.
        data: of seguq.LabeledData; its root is --root.
        trainer: of Lightning's Trainer.
        partition: how images are cut.
        seeds: one run of each way for each.
        pool_split: the split that is labeled.
        share: of what all labels give; shown is how many labels that takes.
        by: what labels are counted in: clicks, regions, pixels or images.
        only_show: show what was measured so far, and run nothing.
    """
    require_choice("--by", by, UNITS)
    folder = require_folder(root, "--root")
    pool, masks = folder / "images" / pool_split, folder / "masks" / pool_split
    require_folder(str(pool), "--pool_split: the folder")
    require_folder(str(masks), "--pool_split: the folder")
    options = {**data, "root": root}
    experiment = Experiment(
        task_maker(model),
        data_maker(options),
        pool=ImageSource(pool),
        annotator=lambda: Oracle(masks, folder / "classes.json"),
        arms=arms,
        seeds=seeds,
        folder=out,
        first=first,
        partition=partition,
        trainer=trainer_maker(trainer, None),
        settings=flat({"model": model, "data": options, "trainer": trainer}),
    )
    if not only_show:
        experiment.run()
    _show(experiment, Path(out), by, share)


def _show(experiment: Experiment, out: Path, by: str, share: float) -> None:
    """Print the tables, and write them and the picture."""
    points = experiment.points()
    if not points:
        raise SeguqError(f"nothing was measured in {out} yet")
    comparison = Comparison(points, by)
    columns, rows = _rows(comparison, share)
    title = f"mean IoU over {len(comparison.seeds)} seeds [95 % over seeds], and {by} until {share:g} of all labels"
    print_table(title, columns, rows, _CAPTION)
    full = comparison.full()
    reference = None if full is None else (float(full.value[0]), float(full.low[0]), float(full.high[0]))  # type: ignore[index]
    figure = learning_curve(comparison.curves(), f"labeled {by}", "mean IoU on test images", reference, share)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, bbox_inches="tight")
    with writing("seguq benchmark"), Lock(out):
        remove_leftovers(out)
        write_bytes(out / _POINTS, _csv(points).encode())
        write_bytes(out / _TABLE, _markdown(title, columns, rows).encode())
        write_bytes(out / _PICTURE.format(by=by), image.getvalue())
    logger.info("table, points and curves: %s", out)


_CAPTION = (
    "labels needed are read from the mean curve between rounds, on a logarithmic scale; their intervals are bootstrapped "
    "over seeds, which with few seeds is narrow"
)


def _rows(comparison: Comparison, share: float) -> tuple[list[str], list[list[str]]]:
    known = comparison.full() is not None
    most = max(len(curve.value) for curve in comparison.curves())  # type: ignore[arg-type]
    columns = ["way", *(f"round {number}" for number in range(most))]
    columns += [f"{comparison.by} needed", f"against {comparison.arms[-1]}"] if known else []
    rows = []
    for curve in comparison.curves():
        x, value, low, high = curve.arrays()
        cells = [
            f"{v:.3f} [{lo:.3f}, {hi:.3f}] ({_number(n)})" for n, v, lo, hi in zip(x, value, low, high, strict=True)
        ]
        cells += ["" for _ in range(most - len(cells))]
        if known:
            needed = comparison.needed(curve.name, share)
            cells.append(_needed(needed) if comparison.reached(curve.name, share) else f"above {_number(x[-1])}")
            cells.append(_needed(comparison.ratio(curve.name, comparison.arms[-1], share), 2))
        rows.append([curve.name, *cells])
    full = comparison.full()
    if full is not None:
        x, value, low, high = full.arrays()
        cell = f"{value[0]:.3f} [{low[0]:.3f}, {high[0]:.3f}] ({_number(x[0])})"
        rows.append([f"{FULL} labels", cell, *[""] * (len(columns) - 2)])
    return columns, rows


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _needed(found: Needed, digits: int = 0) -> str:
    def said(value: float) -> str:
        return "not reached" if math.isinf(value) else f"{value:,.{digits}f}"

    return f"{said(found.value)} [{said(found.low)}, {said(found.high)}]"


def _csv(points: Sequence[Point]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["way", "seed", "round", *UNITS, *(f"pool_{name}" for name in ("regions", "pixels", "images")), MAIN]
    )
    for point in points:
        pool = [point.pool[name] for name in ("regions", "pixels", "images")]
        labeled = [point.labeled[name] for name in UNITS]
        writer.writerow(
            [point.arm, point.seed, point.round, *labeled, *pool, "" if point.value is None else point.value]
        )
    return out.getvalue()


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), "", _CAPTION, ""])
