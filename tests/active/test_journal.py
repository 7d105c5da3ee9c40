"""A loop that is interrupted, changed, damaged or run twice: it goes on to the same end, or says one sentence."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Subset

from seguq.acquisition import Budget, TopK
from seguq.active import fork
from seguq.active.events import read_events
from seguq.active.journal import Journal
from seguq.active.run_folder import RunFolder
from seguq.annotators import Oracle
from seguq.core import files
from seguq.core.errors import SeguqError, UsageError
from seguq.core.locks import Lock
from seguq.data import Classes
from seguq.inference import MCDropout
from seguq.regions import Grid
from tests.active.small_loop import (
    asked_once,
    differences,
    figures,
    labels_are_the_truth,
    make_data,
    make_loop,
    outcome,
    rows_of,
    write_data,
    write_image,
)


class Boom(Exception):
    """What interrupts a run."""


@pytest.fixture(scope="module")
def root(shared_path):
    return write_data(shared_path / "data", pool=4)


def loop(root, run_dir, **settings):
    return make_loop(root, run_dir, **{"rounds": 2, "budget": Budget(regions=5), **settings})


@pytest.fixture(scope="module")
def undisturbed(root, shared_path):
    """The folder of a run of two rounds. Tests only read it."""
    folder = shared_path / "undisturbed"
    loop(root, folder).run()
    return folder


@pytest.fixture
def run_dir(undisturbed, tmp_path):
    """A copy of it that a test may do anything with."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.fixture
def first_round(root, undisturbed, tmp_path):
    """A run after its first round, whose files a test may damage."""
    fork(undisturbed, 0, tmp_path / "linked")
    shutil.copytree(tmp_path / "linked", tmp_path / "run")  # a fork shares files with what it was forked from
    loop(root, tmp_path / "run").run(until=1)
    return tmp_path / "run"


def everything(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("-shm"))
    return {path: content for path in files if (content := path.read_bytes())}  # an empty log of the journal is none


def unchanged(folder, action, error, match):
    """Raise unless an action ends in one sentence, and leaves every file as it was."""
    before = everything(folder)
    with pytest.raises(error, match=match) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert everything(folder) == before
    return str(caught.value)


# ---- interrupted ----


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_at_every_event_it_comes_to_the_same(root, undisturbed, tmp_path, monkeypatch, when):
    """Each event that would be written down ends the run once: right before it, or right after."""
    write, met = Journal.copy, set()

    def copy(self, event):
        key = (event.round, event.step, event.event, event.content.get("image_id"))
        new = key not in met
        met.add(key)
        if new and when == "before":
            raise Boom
        write(self, event)
        if new:
            raise Boom

    monkeypatch.setattr(Journal, "copy", copy)
    interrupted = 0
    while True:
        try:
            loop(root, tmp_path / "run").run()
            break
        except Boom:
            interrupted += 1
    assert interrupted == len(met) > 2 * 16
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed)) == []
    asked_once(tmp_path / "run", loop(root, tmp_path / "run").pool)


def test_interrupted_at_every_file_it_comes_to_the_same(root, undisturbed, tmp_path, monkeypatch):
    """Each file that is flushed finds the disk full once."""
    flush, flushed, allowed, done, said = os.fsync, 0, 0, 0, set()

    def fsync(handle):
        nonlocal flushed
        flushed += 1
        if flushed > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    while True:
        flushed = 0
        try:
            loop(root, tmp_path / "run").run()
            break
        except SeguqError as error:
            said.add(str(error))
            before, done = done, sum(event.event != "begin" for event in read_events(tmp_path / "run"))
            allowed = 0 if done > before else allowed + 1  # one file more of a step that was not finished
    assert len(said) > 20
    assert all("the disk is full" in text and "\n" not in text for text in said), said
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed)) == []
    assert not list(tmp_path.rglob(".seguq-tmp-*"))


def test_what_a_kill_leaves_behind_is_cleaned_up(root, first_round):
    for folder in (first_round, first_round / "masks", first_round / "round-00" / "answers"):
        (folder / ".seguq-tmp-abc.png").write_bytes(b"half")
    loop(root, first_round).run()
    assert not list(first_round.rglob(".seguq-tmp-*"))


# ---- changed ----

CHANGED = {
    "budget": {"budget": Budget(regions=4)},
    "partition": {"partition": Grid(8)},
    "strategy": {"strategy": TopK()},
    "start": {"start": TopK()},
    "estimator": {"estimator": MCDropout(samples=2)},
    "calibrator": {"calibrator": None},
    "group": {"group": "(.)"},
    "seed": {"seed": 1},
    "by": {"by": "predictive_entropy"},
    "aggregate": {"aggregate": "max"},
    "fine_tune": {"fine_tune": True},
    "mine": {"settings": {"mine": (1, "a")}},
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_is_named_and_how_to_go_on(root, first_round, name):
    said = unchanged(first_round, loop(root, first_round, **CHANGED[name]).run, UsageError, f"{name} was")
    assert f"seguq loop fork --run_dir {first_round} --round 0" in said
    loop(root, first_round).run(until=1)  # as it was, it is fine


def test_settings_of_ones_own_are_the_same_when_read_again(root, tmp_path):
    for _ in range(2):
        loop(root, tmp_path / "run", settings={"crop": (64, 64), "more": {"a": 1.5}}).run(until=0)


def test_another_annotator_may_take_over(root, tmp_path, first_round):
    """A fork, say, has a folder of tasks of its own."""
    masks = shutil.copytree(root / "masks" / "pool", tmp_path / "masks")
    shutil.copy(root / "classes.json", masks)
    assert len(loop(root, first_round, annotator=Oracle(masks)).run().records) == 2


def test_other_classes_are_named(root, first_round):
    classes = Classes.unnamed(4)
    annotator = Oracle(root / "masks" / "pool", classes)
    unchanged(first_round, loop(root, first_round, annotator=annotator).run, UsageError, "classes was")


def test_fewer_rounds_than_have_begun_are_refused(root, run_dir):
    unchanged(run_dir, loop(root, run_dir, rounds=1).run, UsageError, "has begun already")


# ---- the pool ----


@pytest.fixture
def pool(root, tmp_path):
    """A data set that a test may change, and a run after its first round."""
    data = Path(shutil.copytree(root, tmp_path / "data"))
    loop(data, tmp_path / "grown").run(until=1)
    return data, tmp_path / "grown"


def unlabeled_and_labeled(data, run_dir):
    labeled = sorted({row["image_id"] for row in rows_of(run_dir, 0)})
    others = sorted(path.stem for path in (data / "images" / "pool").iterdir() if path.stem not in labeled)
    return others, labeled


def test_an_image_with_labels_that_is_gone_is_a_sentence_and_goes_on_when_back(pool, tmp_path):
    data, run_dir = pool
    _, (labeled, *_) = unlabeled_and_labeled(data, run_dir)
    file = data / "images" / "pool" / f"{labeled}.png"
    file.rename(tmp_path / "away.png")
    unchanged(run_dir, loop(data, run_dir).run, SeguqError, f"not in the pool any more, such as '{labeled}'")
    (tmp_path / "away.png").rename(file)
    assert loop(data, run_dir).run().round == 1


def test_images_without_labels_may_come_and_go(pool, tmp_path, caplog):
    data, run_dir = pool
    (other, *_), _ = unlabeled_and_labeled(data, run_dir)
    (data / "images" / "pool" / f"{other}.png").unlink()
    for number in range(5):
        write_image(data, "pool", f"new{number}", 50 + number)
    loop(data, run_dir, budget=[Budget(regions=5), Budget(regions=60)]).run()
    labels_are_the_truth(data, run_dir)
    asked_once(run_dir, loop(data, run_dir).pool)
    assert any(row["image_id"].startswith("new") for row in rows_of(run_dir, 1))
    assert figures(run_dir, 1)["pool"] == {"regions": 8 * 16, "pixels": 8 * 256, "images": 8}
    assert figures(run_dir, 0)["pool"] == {"regions": 4 * 16, "pixels": 4 * 256, "images": 4}


@pytest.mark.parametrize("size", [8, 32])
def test_an_image_of_another_size_is_a_sentence(pool, size):
    data, run_dir = pool
    _, (labeled, *_) = unlabeled_and_labeled(data, run_dir)
    write_image(data, "pool", labeled, 1, size)
    unchanged(run_dir, loop(data, run_dir).run, SeguqError, f"{labeled}.png has {size} x {size} .*had 16 x 16")


def test_an_image_that_is_not_predicted_is_a_sentence(root, tmp_path):
    def data(labeled):
        found = make_data(root)(labeled)
        whole = found.predict_dataloader()
        found.predict_dataloader = lambda: DataLoader(Subset(whole.dataset, range(4)), collate_fn=whole.collate_fn)
        return found

    many = write_data(tmp_path / "data", pool=6)
    with pytest.raises(SeguqError, match="2 of the 6 images of the pool have no scores, such as 'p4'"):
        loop(many, tmp_path / "run", data=data).run()


# ---- two at once ----


def hold(folder, begun, end):
    with Lock(folder, alone=True):
        begun.set()
        end.wait()


@pytest.fixture
def other_process(first_round):
    """Another process that runs the loop of a folder."""
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(first_round, begun, end))
    process.start()
    assert begun.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_until_the_first_is_dead(root, first_round, other_process):
    unchanged(first_round, loop(root, first_round).run, UsageError, "another run writes into")
    other_process.kill()
    other_process.join()
    assert loop(root, first_round).run(until=1).round == 0


def test_a_loop_within_the_same_process_is_refused(root, first_round):
    outer = loop(root, first_round)
    outer.annotator.collect = lambda: loop(root, first_round).run()
    with pytest.raises(UsageError, match="another run writes into"):
        outer.run()
    loop(root, first_round).run()
    labels_are_the_truth(root, first_round)


# ---- damaged ----


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path):
    path.write_bytes(b"\x00\x01garbage" * 50)


def empty(path):
    path.write_bytes(b"")


DAMAGED = {
    "loop.json": lambda run: run / "loop.json",
    "journal.sqlite": lambda run: run / "journal.sqlite",
    "selection.json": lambda run: run / "round-00" / "selection.json",
    "pool.json": lambda run: run / "round-00" / "pool.json",
    "model.ckpt": lambda run: run / "round-00" / "model.ckpt",
    "evaluation.pt": lambda run: run / "round-00" / "evaluation.pt",
}


@pytest.mark.parametrize("damage", [cut, garbage, empty, Path.unlink], ids=lambda how: how.__name__)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(root, first_round, name, damage):
    path = DAMAGED[name](first_round)
    damage(path)
    labels = everything(first_round / "masks")
    before, calls = path.read_bytes() if path.exists() else None, []
    for _ in range(2):  # and says it again
        with pytest.raises(SeguqError) as caught:
            loop(root, first_round).run()
        calls.append(str(caught.value))
    assert calls[0] == calls[1]
    assert path.name in calls[0] or name == "loop.json"
    assert "\n" not in calls[0]
    assert (path.read_bytes() if path.exists() else None) == before
    if name != "evaluation.pt":  # before the answers of the second round
        assert everything(first_round / "masks") == labels


def test_a_damaged_mask_is_made_anew_from_the_answers(root, first_round):
    """Where its image has answers in the next round; for the training it has to be there as it is."""
    for damage in (garbage, Path.unlink):
        folder = shutil.copytree(first_round, first_round.with_name(damage.__name__))
        damage(next(iter(sorted((folder / "masks").iterdir()))))
        budgets = [Budget(regions=5), Budget(regions=59)]  # all that there is
        loop(root, folder, budget=budgets).run()
        labels_are_the_truth(root, folder)


def test_a_damaged_answer_is_one_sentence_where_it_is_needed(root, first_round):
    for path in (first_round / "round-00" / "answers").iterdir():
        garbage(path)
    budgets = [Budget(regions=5), Budget(regions=59)]
    with pytest.raises(SeguqError, match=r"answers/p\d.png cannot be read as a mask: it is damaged"):
        loop(root, first_round, budget=budgets).run()


def test_a_journal_that_is_an_older_copy_is_noticed(root, first_round):
    older = (first_round / "journal.sqlite").read_bytes()
    loop(root, first_round).run()
    (first_round / "journal.sqlite").write_bytes(older)
    unchanged(first_round, loop(root, first_round).run, SeguqError, "knows nothing of round-01")


def test_a_folder_of_other_things_is_refused(root, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    unchanged(tmp_path, loop(root, tmp_path).run, UsageError, r"holds mine.txt, but no loop")


def test_a_file_in_place_of_the_folder_is_one_sentence(root, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(SeguqError, match="cannot write"):
        loop(root, tmp_path / "run").run()


@pytest.mark.skipif(os.name == "nt", reason="files are told to be read-only otherwise")
def test_a_journal_that_cannot_be_written_is_one_sentence(root, first_round, monkeypatch):
    """As in a folder without permission to write, which does not hold for a superuser."""
    connect = sqlite3.connect

    def read_only(path, *args, **settings):
        if settings.get("uri"):
            return connect(path, *args, **settings)
        return connect(f"file:{path}?mode=ro", *args, uri=True, **settings)

    monkeypatch.setattr("seguq.active.journal.sqlite3.connect", read_only)
    unchanged(first_round, loop(root, first_round).run, SeguqError, "journal.sqlite cannot be written")


# ---- the journal itself ----


def test_an_event_is_there_for_others_once_it_is_added(tmp_path):
    journal = Journal(tmp_path)
    journal.add(0, "score", "begin")
    assert [(event.round, event.step, event.event) for event in read_events(tmp_path)] == [(0, "score", "begin")]
    journal.add(0, "score", "end", regions=3)
    assert Journal(tmp_path).ended(0, "score") == {"regions": 3}
    assert journal.ended(0, "select") is None
    assert journal.ended(1, "score") is None


def test_an_event_that_cannot_be_written_is_not_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.add(0, "score", "begin")
    shutil.rmtree(tmp_path)
    with pytest.raises(SeguqError, match="cannot be written"):
        journal.add(0, "score", "end")
    assert journal.ended(0, "score") is None


def test_writing_waits_for_who_looks_at_it(tmp_path):
    """A reader that holds the journal for a moment does not end a run."""
    journal = Journal(tmp_path)
    reader = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    reader.execute("BEGIN IMMEDIATE")
    thread = threading.Thread(target=journal.add, args=(0, "score", "begin"))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    reader.execute("ROLLBACK")
    reader.close()
    thread.join(30)
    assert len(read_events(tmp_path)) == 1


def test_the_settings_can_be_read_by_people(undisturbed):
    content = json.loads((undisturbed / "loop.json").read_text())
    assert content["settings"]["partition"] == "Grid(size=4)"
    assert content["settings"]["classes"] == ["class 0", "class 1", "class 2"]
    assert len(content["settings"]["budget"]) == 2
    assert RunFolder(undisturbed).content() == content
