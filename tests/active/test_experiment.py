"""Strategies side by side: one start for all, resumed, shared by processes, read again."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace

import pytest

from seguq.acquisition import Budget, Random, TopK
from seguq.active import Arm, Comparison, Experiment
from seguq.active.journal import Journal
from seguq.active.run_folder import RunFolder
from seguq.annotators import Oracle
from seguq.core.errors import SeguqError, UsageError
from seguq.data import ImageSource
from seguq.regions import Grid, WholeImage
from tests.active.small_loop import (
    asked_once,
    figures,
    labels_are_the_truth,
    make_data,
    make_loop,
    make_module,
    make_trainer,
    rows_of,
    write_data,
)

ARMS = (Arm("random", Random(), [Budget(regions=4)]), Arm("top", TopK(), [Budget(regions=4)], by="predictive_entropy"))
CELLS = [(name, seed) for seed in (0, 1) for name in ("start", "random", "top", "all")]


class Boom(Exception):
    """What interrupts an experiment."""


@pytest.fixture(scope="module")
def root(shared_path):
    return write_data(shared_path / "data", pool=3)


def experiment(root, folder, **settings):
    plain = {
        "make_task": make_module,
        "data": make_data(root),
        "pool": ImageSource(root / "images" / "pool"),
        "annotator": lambda: Oracle(root / "masks" / "pool"),
        "arms": ARMS,
        "seeds": (0, 1),
        "folder": folder,
        "first": Budget(regions=6),
        "partition": Grid(4),
        "trainer": make_trainer,
    }
    return Experiment(**{**plain, **settings})


@pytest.fixture(scope="module")
def done(root, shared_path):
    """An experiment that nobody has disturbed."""
    found = experiment(root, shared_path / "done")
    found.run()
    return found


def folder_of(found, name, seed):
    return found.path / f"seed-{seed:02d}" / name


def test_all_cells_are_there(done):
    points = done.points()
    assert [(point.arm, point.seed, point.round) for point in points] == [
        *((name, seed, number) for name in ("random", "top") for seed in (0, 1) for number in (0, 1)),
        ("all", 0, 0),
        ("all", 1, 0),
    ]
    for point in points:
        found = figures(folder_of(done, point.arm, point.seed), point.round)
        assert point.value == found["metrics"]["miou"]["value"]
        assert point.labeled == found["labeled"]
        assert point.pool == {"regions": 48, "pixels": 768, "images": 3}


def test_all_begin_with_the_labels_of_one_start(root, done):
    for seed in (0, 1):
        start = folder_of(done, "start", seed)
        for name in ("random", "top"):
            folder = folder_of(done, name, seed)
            assert rows_of(folder, 0) == rows_of(start, 0)
            assert figures(folder, 0) == figures(start, 0)
            labels_are_the_truth(root, folder)
            asked_once(folder, done.pool)
    assert rows_of(folder_of(done, "start", 0), 0) != rows_of(folder_of(done, "start", 1), 0)
    assert rows_of(folder_of(done, "random", 0), 1) != rows_of(folder_of(done, "top", 0), 1)


def test_all_labels_are_all_that_there_are(done):
    for seed in (0, 1):
        assert figures(folder_of(done, "all", seed), 0)["labeled"]["pixels"] == 768


def test_a_cell_is_a_loop_by_itself(root, done, tmp_path):
    budgets = [Budget(regions=6), Budget(regions=4)]
    settings = {"strategy": TopK(), "by": "predictive_entropy", "seed": 1, "calibrator": None}
    make_loop(root, tmp_path / "run", rounds=2, budget=budgets, **settings).run()
    for number in (0, 1):
        assert figures(tmp_path / "run", number) == figures(folder_of(done, "top", 1), number)


def test_interrupted_at_any_moment_it_comes_to_the_same(root, done, tmp_path, monkeypatch):
    """Right before the end of each step of each cell, and right after it."""
    write, met = Journal.copy, set()

    def copy(self, event):
        key = (str(self.path.parent), event.round, event.step)
        if event.event != "end" or "tmp" in self.path.parent.name:
            write(self, event)
            return
        new = key not in met
        met.add(key)
        if new and len(met) % 2:
            raise Boom
        write(self, event)
        if new:
            raise Boom

    monkeypatch.setattr(Journal, "copy", copy)
    found = experiment(root, tmp_path / "x", seeds=(0,))
    while True:
        try:
            found.run()
            break
        except Boom:
            pass
    assert len(met) > 30
    assert found.points() == [point for point in done.points() if point.seed == 0]


def test_a_start_that_is_measured_but_not_closed_is_closed_first(root, done, tmp_path, monkeypatch):
    """Its figures are there before the journal says so; nothing can be forked from it until then."""
    write = Journal.copy

    def copy(self, event):
        if (event.step, event.event) == ("report", "end"):
            raise Boom
        write(self, event)

    monkeypatch.setattr(Journal, "copy", copy)
    found = experiment(root, tmp_path / "x", seeds=(0,), full=False)
    with pytest.raises(Boom):
        found.run()
    assert RunFolder(folder_of(found, "start", 0)).metrics(0).exists()
    monkeypatch.undo()
    found.run()
    assert found.points() == [point for point in done.points() if point.seed == 0 and point.arm != "all"]


def work(root, folder, log):
    """What one of two processes does."""
    taken = []
    original = Experiment._work

    def spy(self, name, seed):
        taken.append([name, seed])
        original(self, name, seed)

    Experiment._work = spy
    import seguq.active.experiment as module

    module._PAUSE = 0.05
    experiment(root, folder).run()
    (log / f"{os.getpid()}.json").write_text(json.dumps(taken))


def test_two_processes_share_the_cells(root, done, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(root, tmp_path / "x", tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    taken = [tuple(cell) for path in tmp_path.glob("*.json") for cell in json.loads(path.read_text())]
    assert sorted(taken) == sorted(CELLS)
    assert experiment(root, tmp_path / "x").points() == done.points()


CHANGED = {
    "first": {"first": Budget(regions=7)},
    "partition": {"partition": Grid(8)},
    "an arm": {"arms": (ARMS[0], Arm("top", Random(), [Budget(regions=4)]))},
    "settings": {"settings": {"steps": 3}},
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_settings_are_noticed_in_cells_that_are_complete(root, done, name):
    with pytest.raises(UsageError, match="was begun with other settings"):
        experiment(root, done.folder, **CHANGED[name]).run()


def test_run_again_it_does_nothing(done):
    before = done.points()
    files = {path: path.stat().st_mtime_ns for path in done.path.rglob("*") if path.is_file()}
    done.run()
    assert done.points() == before
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*") if path.is_file()} == files


def test_arms_and_seeds_may_be_added(root, tmp_path):
    experiment(root, tmp_path / "x", arms=ARMS[:1], seeds=(0,), full=False).run()
    whole = Arm("whole", Random(), [Budget(images=1)], partition=WholeImage())
    found = experiment(root, tmp_path / "x", arms=(ARMS[0], whole), seeds=(0,), full=False)
    found.run()
    assert {point.arm for point in found.points()} == {"random", "whole"}
    assert len(rows_of(folder_of(found, "whole", 0), 1)) == 1
    asked_once(folder_of(found, "whole", 0), found.pool)


def test_more_than_the_pool_holds_is_a_sentence(root, tmp_path):
    arms = [Arm("greedy", Random(), [Budget(regions=100), Budget(regions=5)])]
    with pytest.raises(SeguqError, match="'greedy' asks for more than the pool holds"):
        experiment(root, tmp_path / "x", arms=arms, seeds=(0,), full=False).run()


def test_of_runs_that_are_at_work_nothing_is_compared(root, done):
    """Their last round so far would be taken for all that they were given."""
    longer = replace(ARMS[0], budgets=[*ARMS[0].budgets, Budget(regions=4)])
    found = experiment(root, done.folder, arms=(longer, ARMS[1]))
    assert {point.arm for point in found.points()} == {"random", "top", "all"}
    assert {point.arm for point in found.points(complete=True)} == {"top", "all"}
    assert done.points(complete=True) == done.points()


def test_it_can_be_compared(done):
    found = Comparison(done.points(), by="regions")
    assert found.arms == ["random", "top"]
    assert [curve.x.tolist() for curve in found.curves()] == [[6, 10], [6, 10]]


WRONG = [
    {"arms": ()},
    {"seeds": ()},
    {"arms": (Arm("all", Random(), []),)},
    {"arms": (Arm("a/b", Random(), []),)},
    {"arms": (Arm("", Random(), []),)},
    {"arms": (ARMS[0], ARMS[0])},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_argument_is_refused(root, tmp_path, wrong):
    with pytest.raises(UsageError):
        experiment(root, tmp_path / "x", **wrong)
