"""``seguq benchmark``: strategies side by side on a data set whose labels are known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from seguq.acquisition import Budget, Strategy
from seguq.acquisition.class_aware_random import ClassAwareRandom
from seguq.acquisition.random_ import Random
from seguq.active.comparison import UNITS, Comparison, Needed
from seguq.active.experiment import FULL, Arm, Experiment, Point
from seguq.active.reports.records import MAIN_METRIC, Interval
from seguq.annotators.oracle import Oracle
from seguq.cli.common import print_table, require_folder
from seguq.cli.loop_run import GROUPS, data_maker, flat, result_of, task_maker, trainer_maker
from seguq.cli.parsing import run_function
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, write_bytes
from seguq.core.lightning import quiet
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
    quiet()
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
    by: Literal["clicks", "regions", "pixels", "images"] = "clicks",
    against: list[str] | None = None,
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
        against: the ways that others are compared with; by default those that look at no score (Random,
            ClassAwareRandom).
        only_show: show what was measured so far, and run nothing.
    """
    folder = require_folder(root, "--root")
    pool, masks = folder / "images" / pool_split, folder / "masks" / pool_split
    require_folder(str(pool), "--pool_split: the folder")
    require_folder(str(masks), "--pool_split: the folder")
    blind = [arm.name for arm in arms if isinstance(arm.strategy, (Random, ClassAwareRandom))]
    others = blind if against is None else against
    unknown = sorted(set(others) - {arm.name for arm in arms})
    if unknown:
        raise UsageError(
            f"--against {unknown[0]}: there is no way of that name, but {', '.join(arm.name for arm in arms)}"
        )
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
        settings=flat({"model": model, "data": result_of(options), "trainer": trainer}),
    )
    if not only_show:
        experiment.run()
    _show(experiment, Path(out), by, share, others)


def _show(experiment: Experiment, out: Path, by: str, share: float, against: Sequence[str]) -> None:
    """Print the table, and write it with the curves, as figures and as a picture."""
    points = experiment.points()
    if not points:
        raise SeguqError(f"nothing was measured in {out} yet")
    comparison = Comparison(experiment.points(complete=True), by)
    columns, rows = _summary(comparison, share, against)
    title = f"{by} until {share:g} of what all labels give, over {len(comparison.seeds)} seeds"
    print_table(title, columns, rows, _CAPTION)
    full = comparison.full()
    reference = None
    if full is not None:
        _, value, low, high = full.arrays()
        reference = float(value[0]), float(low[0]), float(high[0])
    figure = learning_curve(comparison.curves(), f"labeled {by}", "mean IoU on test images", reference, share)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, bbox_inches="tight")
    tables = [_markdown(title, columns, rows), _markdown(f"mean IoU ({by})", *_rounds(comparison)), _CAPTION, ""]
    with writing("seguq benchmark"), Lock(out):
        remove_leftovers(out)
        write_bytes(out / _POINTS, _csv(points).encode())
        write_bytes(out / _TABLE, "\n\n".join(tables).encode())
        write_bytes(out / _PICTURE.format(by=by), image.getvalue())
    logger.info("table, points and curves: %s", out)


_CAPTION = (
    "Mean over seeds, with 95 % intervals (Student's t). Labels needed are read from the mean curve between rounds, on "
    "a logarithmic scale; their intervals are bootstrapped over seeds, which is narrow with few of them. Where what is "
    "compared with does not reach the value, all that it was given counts as needed."
)


def _summary(comparison: Comparison, share: float, against: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """How far each way has come, and how much it takes to come near what all labels give."""
    full = comparison.full()
    columns = ["way", f"most {comparison.by}", "mean IoU with these"]
    columns += [] if full is None else [f"{comparison.by} needed", *(f"times those of {name}" for name in against)]
    rows = []
    for curve in comparison.curves():
        x, value, low, high = curve.arrays()
        cells = [_number(x[-1]), _interval(value[-1], low[-1], high[-1])]
        if full is not None:
            reached = comparison.reached(curve.name, share)
            cells.append(_needed(comparison.needed(curve.name, share)) if reached else f"above {_number(x[-1])}")
            ratios = [None if name == curve.name else comparison.ratio(curve.name, name, share) for name in against]
            cells += ["" if ratio is None else _needed(ratio, 2) for ratio in ratios]
        rows.append([curve.name, *cells])
    if full is not None:
        x, value, low, high = full.arrays()
        rows.append([f"{FULL} labels", _number(x[0]), _interval(value[0], low[0], high[0]), *[""] * (1 + len(against))])
    return columns, rows


def _rounds(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The mean IoU of each round, and the labels that it took."""
    most = max(len(curve.arrays()[0]) for curve in comparison.curves())
    rows = []
    for curve in comparison.curves():
        cells = [
            f"{_interval(value, low, high)} ({_number(labels)})"
            for labels, value, low, high in zip(*curve.arrays(), strict=True)
        ]
        rows.append([curve.name, *cells, *[""] * (most - len(cells))])
    return ["way", *(f"round {number}" for number in range(most))], rows


def _interval(value: float, low: float, high: float) -> str:
    return str(Interval(value, low, high))


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _needed(found: Needed, digits: int = 0) -> str:
    def said(value: float) -> str:
        return "not reached" if math.isinf(value) else f"{value:,.{digits}f}"

    ends = "" if math.isnan(found.low) else f" [{said(found.low)}, {said(found.high)}]"  # of a single seed
    return said(found.value) + ends


def _csv(points: Sequence[Point]) -> str:
    out, of_pool = io.StringIO(), ("regions", "pixels", "images")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["way", "seed", "round", *UNITS, *(f"pool_{name}" for name in of_pool), MAIN_METRIC])
    for point in points:
        numbers = [*(point.labeled[name] for name in UNITS), *(point.pool[name] for name in of_pool)]
        writer.writerow([point.arm, point.seed, point.round, *numbers, "" if point.value is None else point.value])
    return out.getvalue()


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
