"""From run folders to learning curves: what is drawn is what the rounds hold."""

import csv
import io
import json
import math

import numpy as np
import pytest

from seguq.active import curve_csv, curve_table, plot_runs, read_records
from seguq.active.reports.curve import AXES, curve_of, run_names
from seguq.core.errors import UsageError
from tests.active.runs import Run, finished


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [finished(root / name, rounds=3, per_round=6, seed=seed).folder for seed, name in enumerate(("a", "=b"))]


@pytest.mark.parametrize("by", AXES)
def test_the_line_goes_through_the_figures_of_the_rounds(by, runs):
    figure = plot_runs(runs, by=by)
    lines = {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in figure.axes[0].get_lines()}
    for run in runs:
        records = read_records(run)
        x = [100 * r.share if by == "share" else getattr(r.labeled, by) for r in records]
        assert (tuple(map(float, x)), tuple(r.metrics["miou"].value for r in records)) in lines


def test_the_axes_say_what_is_drawn_and_on_how_many_images(runs):
    axes = plot_runs(runs, by="clicks").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("clicks", "mean IoU on 12 test images")


def test_another_metric_can_be_drawn(runs):
    assert plot_runs(runs, metric="ece").axes[0].get_ylabel().startswith("ECE on")


def test_a_round_without_the_metric_is_a_gap(tmp_path):
    run = Run(tmp_path / "run")
    for number in range(3):
        (run.round(number) / "metrics.json").write_text(json.dumps(run.metrics(number, judged=number != 1)))
    found = curve_of(read_records(run.folder), "run").value
    assert [math.isnan(value) for value in found] == [False, True, False]
    plot_runs([run.folder])


def test_the_table_has_a_row_for_each_round_of_each_run(runs):
    columns, rows = curve_table(runs)
    assert [row[:2] for row in rows] == [[name, number] for name in ("a", "=b") for number in range(3)]
    record = read_records(runs[1])[2]
    row = dict(zip(columns, rows[-1], strict=True))
    assert (row["miou"], row["miou_low"], row["miou_high"]) == record.metrics["miou"]
    assert (row["pixels"], row["clicks"], row["share"]) == (record.labeled.pixels, record.labeled.clicks, record.share)


def test_what_is_not_known_is_an_empty_cell(tmp_path):
    run = Run(tmp_path / "run")
    content = run.metrics(0)
    content["metrics"] = {"miou": {"value": 0.5, "low": None, "high": float("nan")}}
    (run.round(0) / "metrics.json").write_text(json.dumps(content))
    columns, (row,) = curve_table([run.folder])
    assert [row[columns.index(name)] for name in ("miou", "miou_low", "miou_high")] == [0.5, None, None]
    assert curve_csv([run.folder]).decode().splitlines()[1].endswith("0.5,,")


def test_the_table_as_csv_is_read_back_and_no_name_is_a_formula(runs):
    first, *rows = csv.reader(io.StringIO(curve_csv(runs).decode()))
    columns, expected = curve_table(runs)
    assert first == columns
    np.testing.assert_array_equal([row[1:] for row in rows], [[str(value) for value in row[1:]] for row in expected])
    assert {row[0] for row in rows} == {"a", "'=b"}


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert run_names(["x/a", "y/a", "y/b"]) == ["x/a", "y/a", "b"]


def _empty(tmp_path):
    return [Run(tmp_path / "run").folder]


def _unjudged(tmp_path):
    run = Run(tmp_path / "run")
    (run.round(0) / "metrics.json").write_text(json.dumps(run.metrics(0, judged=False)))
    return [run.folder]


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (lambda path: [], {}, "no run is given"),
        (lambda path: [path / "none"], {}, "there is no folder"),
        (_empty, {}, "has no round that was judged yet"),
        (_unjudged, {}, "was judged on no labeled images"),
        (lambda path: [finished(path / "r", rounds=1, per_round=3).folder] * 2, {}, "given more than once"),
        (lambda path: [finished(path / "r", rounds=1, per_round=3).folder], {"metric": "dice"}, "has no metric 'dice'"),
    ],
    ids=["none", "missing", "empty", "unjudged", "twice", "metric"],
)
def test_what_cannot_be_drawn_is_wrong_use(make, settings, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        plot_runs(make(tmp_path), **settings)


def test_another_axis_is_refused_with_those_that_there_are(runs):
    with pytest.raises(UsageError, match="by must be one of pixels, regions, clicks, images, share, but is 'nonsense'"):
        plot_runs(runs, by="nonsense")
