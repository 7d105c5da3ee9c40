"""A loop whose Trainers are of two processes on the CPU: the same table of scores as with one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from seguq.active.run_folder import RunFolder
from seguq.data import ImageSource
from tests.active.small_loop import asked_once, figures, labels_are_the_truth, rounds_of, rows_of, weights, write_data

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="processes are not forked there")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), pool=5)  # which two processes cannot share evenly


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """The folder of a run by a strategy."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def of(strategy):
        if strategy not in done:
            rounds = 1 if strategy == "ddp_spawn" else 2  # each process that is spawned imports all anew
            words = ["-m", "tests.active.processes_script", root, folder / strategy, strategy, str(rounds)]
            settings = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
            found = subprocess.run([sys.executable, *words], timeout=240, **settings)
            assert found.returncode == 0, found.stderr[-3000:]
            done[strategy] = folder / strategy
        return done[strategy]

    return of


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_two_processes_score_and_choose_as_one(root, run, strategy):
    one, two = RunFolder(run("one")), RunFolder(run(strategy))
    tables = [pq.read_table(folder.table(0)) for folder in (one, two)]
    assert tables[0].drop_columns("score").equals(tables[1].drop_columns("score"))
    scores = [table["score"].to_numpy() for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert rows_of(one.path, 0) == rows_of(two.path, 0)
    assert not list(two.path.rglob("*shard*"))
    for number in rounds_of(two.path):
        assert figures(two.path, number)["images"] == 3
        assert figures(two.path, number)["pool"] == {"regions": 80, "pixels": 5 * 256, "images": 5}
    labels_are_the_truth(root, two.path)
    asked_once(two.path, ImageSource(root / "images" / "pool"))


@pytest.mark.parametrize("strategy", ["ddp_notebook", "ddp_spawn"])
def test_the_way_of_starting_them_changes_nothing(run, strategy):
    forked, other = run("ddp_fork"), run(strategy)
    for number in rounds_of(other):
        assert rows_of(forked, number) == rows_of(other, number)
        for name, value in weights(forked, number).items():
            np.testing.assert_allclose(value, weights(other, number)[name], atol=1e-6)
