"""A run that goes on from a round of another, in another way."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from seguq.acquisition import Budget, Random
from seguq.active import fork, status
from seguq.active.run_folder import RunFolder
from seguq.annotators import Oracle
from seguq.core.errors import SeguqError, UsageError
from seguq.regions import Grid
from tests.active.small_loop import (
    asked_once,
    classes_of,
    differences,
    figures,
    labels_are_the_truth,
    make_loop,
    outcome,
    rows_of,
    write_data,
)


@pytest.fixture(scope="module")
def root(shared_path):
    return write_data(shared_path / "data", pool=4)


def loop(root, run_dir, **settings):
    return make_loop(root, run_dir, **{"calibrator": None, "budget": Budget(regions=5), **settings})


@pytest.fixture(scope="module")
def whole(root, shared_path):
    """A run of three rounds. Tests only read it."""
    folder = shared_path / "whole"
    loop(root, folder).run()
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_fork_with_the_same_settings_comes_to_the_same(root, whole, tmp_path, number):
    fork(whole, number, tmp_path / "fork")
    known = [row for n in range(number + 1) for row in rows_of(whole, n)]
    labels_are_the_truth(root, tmp_path / "fork", rows=known)
    loop(root, tmp_path / "fork").run()
    assert differences(outcome(tmp_path / "fork"), outcome(whole)) == []
    assert status(tmp_path / "fork").forked_from == (str(whole.resolve()), number)


def test_nothing_of_either_changes_the_other(root, whole, tmp_path):
    before = contents(whole)
    fork(whole, 0, tmp_path / "fork")
    forked = contents(tmp_path / "fork")
    loop(root, tmp_path / "fork", strategy=Random(), calibrator="global", partition=Grid(8), seed=3).run()
    assert contents(whole) == before
    after = contents(tmp_path / "fork")
    kept = {name for name in forked if name.parts[0] == "round-00"}
    assert {name: after[name] for name in kept} == {name: forked[name] for name in kept}
    asked_once(tmp_path / "fork", loop(root, tmp_path / "fork").pool)
    labels_are_the_truth(root, tmp_path / "fork")
    assert rows_of(tmp_path / "fork", 1) != rows_of(whole, 1)


def test_what_is_never_changed_is_shared(whole, tmp_path):
    fork(whole, 1, tmp_path / "fork")
    for number in (0, 1):
        one, other = (RunFolder(folder).model(number) for folder in (whole, tmp_path / "fork"))
        assert os.path.samefile(one, other)
    for path in RunFolder(tmp_path / "fork").masks.iterdir():
        assert not os.path.samefile(path, RunFolder(whole).masks / path.name)


def test_where_there_are_no_links_files_are_copied(root, whole, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    fork(whole, 0, tmp_path / "fork")
    monkeypatch.undo()
    assert not os.path.samefile(RunFolder(whole).model(0), RunFolder(tmp_path / "fork").model(0))
    loop(root, tmp_path / "fork").run()
    assert differences(outcome(tmp_path / "fork"), outcome(whole)) == []


def test_the_fork_of_a_fork(root, whole, tmp_path):
    fork(whole, 1, tmp_path / "one")
    loop(root, tmp_path / "one").run()
    fork(tmp_path / "one", 0, tmp_path / "two")
    loop(root, tmp_path / "two").run()
    assert differences(outcome(tmp_path / "two"), outcome(whole)) == []


def test_a_fork_that_was_not_run_yet_is_forked_like_any(root, whole, tmp_path):
    fork(whole, 1, tmp_path / "one")
    fork(tmp_path / "one", 0, tmp_path / "two")
    loop(root, tmp_path / "two").run()
    assert differences(outcome(tmp_path / "two"), outcome(whole)) == []


def test_its_settings_are_kept_once_it_was_run(root, whole, tmp_path):
    fork(whole, 0, tmp_path / "fork")
    loop(root, tmp_path / "fork", strategy=Random()).run(until=2)
    with pytest.raises(UsageError, match=r"strategy was 'Random\(\)'"):
        loop(root, tmp_path / "fork").run()


@pytest.mark.parametrize("other", [{"names": ("class 1", "class 0", "class 2")}, {"ignore_index": 254}], ids=str)
def test_its_labels_are_not_taken_for_those_of_other_classes(root, whole, tmp_path, other):
    fork(whole, 0, tmp_path / "fork")
    classes = replace(classes_of(root), **other)
    there = loop(root, tmp_path / "fork", annotator=Oracle(root / "masks" / "pool", classes))
    for call in (there.check, there.run):
        with pytest.raises(UsageError, match="are of the classes class 0, class 1, class 2, ignored: 255, and not"):
            call()
    loop(root, tmp_path / "fork").run()
    assert differences(outcome(tmp_path / "fork"), outcome(whole)) == []


def test_it_stands_while_the_run_goes_on(root, whole, tmp_path):
    """A fork at every event of a run that is at work."""
    run, forks, failures = tmp_path / "run", [], []
    there = loop(root, run)
    there.run(until=1)

    def copy():
        try:
            while not ended.is_set():
                forks.append(tmp_path / f"fork{len(forks)}")
                fork(run, 0, forks[-1])
        except Exception as error:
            failures.append(error)

    ended = threading.Event()
    thread = threading.Thread(target=copy)
    thread.start()
    there.run()
    ended.set()
    thread.join()
    assert not failures
    assert len(forks) > 3
    for folder in (forks[0], forks[len(forks) // 2], forks[-1]):
        assert figures(folder, 0) == figures(whole, 0)
        assert not (folder / "round-01").exists()
    loop(root, forks[-1]).run()
    assert differences(outcome(forks[-1]), outcome(whole)) == []


def test_what_is_half_written_is_left_out(root, whole, tmp_path):
    """Of a process that works in the folder of regions, say."""
    run = tmp_path / "run"
    fork(whole, 0, run)
    (run / "partitions").mkdir()
    (run / "partitions" / "a.npz").write_bytes(b"regions")
    (run / "partitions" / ".seguq-tmp-x").symlink_to(tmp_path / "gone")
    loop(root, run).run(until=1)
    fork(run, 0, tmp_path / "fork")
    assert [path.name for path in (tmp_path / "fork" / "partitions").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("number", [-1, 3, 1.0, None])
def test_a_round_that_is_not_complete_is_refused(whole, tmp_path, number):
    with pytest.raises(UsageError, match="the rounds 0 to 2 are"):
        fork(whole, number, tmp_path / "fork")
    assert not (tmp_path / "fork").exists()


def test_an_open_round_is_refused(root, tmp_path):
    there = loop(root, tmp_path / "run")
    there.annotator.collect = lambda: iter(())
    there.run()
    with pytest.raises(UsageError, match="none is yet"):
        fork(tmp_path / "run", 0, tmp_path / "fork")


def test_another_folder_is_asked_for(whole, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        fork(whole, 0, tmp_path / "there")
    with pytest.raises(UsageError, match="holds no active-learning loop"):
        fork(tmp_path / "there", 0, tmp_path / "fork")


@pytest.mark.parametrize("broken", ["selection.json", "answers"])
def test_a_fork_that_fails_leaves_nothing(whole, tmp_path, broken):
    fork(whole, 0, tmp_path / "run")
    path = tmp_path / "run" / "round-00" / broken
    path = path if path.is_file() else next(iter(path.iterdir()))
    path.unlink()
    path.write_bytes(b"garbage")
    with pytest.raises(SeguqError):
        fork(tmp_path / "run", 0, tmp_path / "fork")
    assert {item.name for item in Path(tmp_path).iterdir()} == {"run"}
