"""What is read of the rounds of a loop: whole and in order, or one sentence."""

import json
import math
import shutil

import pytest

from seguq.active import Record, read_records
from seguq.core.errors import SeguqError, UsageError
from tests.active.runs import Run, finished


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "three", rounds=3).folder


@pytest.fixture
def run(three, tmp_path):
    return shutil.copytree(three, tmp_path / "run")


def test_rounds_come_in_order_with_what_they_hold(three):
    records = read_records(three)
    content = json.loads((three / "round-02" / "metrics.json").read_text())
    assert [record.round for record in records] == [0, 1, 2]
    assert records[2].metrics["miou"] == tuple(content["metrics"]["miou"][part] for part in ("value", "low", "high"))
    assert (records[0].gain, records[0].since) == ({}, None)
    assert (records[2].since, set(records[2].gain)) == (1, {"miou"})
    assert records[2].labeled._asdict() == content["labeled"]
    assert records[2].share == content["labeled"]["pixels"] / content["pool"]["pixels"]
    assert (records[1].unit, records[1].spent) == ("regions", 24)


def test_more_than_a_hundred_rounds_come_in_order(tmp_path):
    run = Run(tmp_path / "run")
    for number in range(102):
        (run.round(number) / "metrics.json").write_text(json.dumps(run.metrics(number)))
    assert [record.round for record in read_records(run.folder)] == list(range(102))


def test_a_round_that_is_not_judged_yet_is_not_there(run):
    (run / "round-02" / "metrics.json").unlink()
    assert [record.round for record in read_records(run)] == [0, 1]


def test_a_run_that_has_only_begun_has_no_records(tmp_path):
    assert read_records(Run(tmp_path / "run").folder) == []


@pytest.mark.parametrize("written", ["null", "NaN"])
def test_a_figure_that_is_not_known_is_nan(written, run):
    path = run / "round-01" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["ece"]["low"] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', written))
    assert math.isnan(read_records(run)[1].metrics["ece"].low)


def test_a_round_without_figures_is_read(tmp_path):
    run = Run(tmp_path / "run")
    (run.round(0) / "metrics.json").write_text(json.dumps(run.metrics(0, judged=False)))
    (record,) = read_records(run.folder)
    assert (record.split, record.metrics, record.gain, record.images) == (None, {}, {}, 0)


def test_a_gap_is_one_sentence(run):
    (run / "round-01" / "metrics.json").unlink()
    with pytest.raises(SeguqError, match=r"round-01/metrics\.json is missing, though round 2 has its own"):
        read_records(run)


def test_a_round_that_lies_in_the_folder_of_another_is_one_sentence(run):
    shutil.copy(run / "round-01" / "metrics.json", run / "round-02" / "metrics.json")
    with pytest.raises(SeguqError, match=r"round-02/metrics\.json is of round 1"):
        read_records(run)


def test_what_was_written_by_another_version_says_so(run):
    path = run / "round-00" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(SeguqError, match="by another version of seguq"):
        Record.read(path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.write_text(""), "is no folder"),
        (lambda folder: folder.mkdir(), "is no run of seguq loop: it has no loop.json"),
    ],
    ids=["missing", "file", "empty"],
)
def test_what_is_no_run_is_wrong_use(make, told, tmp_path):
    make(tmp_path / "x")
    with pytest.raises(UsageError, match=told):
        read_records(tmp_path / "x")


def test_a_gain_is_since_an_earlier_round(run):
    path = run / "round-01" / "metrics.json"
    content = json.loads(path.read_text())
    content["gain"]["since"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(SeguqError, match="'since' must be a round before 1, but is 1"):
        Record.read(path)
