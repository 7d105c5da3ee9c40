"""Active-learning loops, killed by ``kill -9``: at the end of all, labels, choices, figures and models are the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from seguq.acquisition import Budget
from seguq.active import status
from seguq.active.journal import Journal
from seguq.core.errors import SeguqError
from tests.active.small_loop import (
    asked_once,
    differences,
    labels_are_the_truth,
    make_loop,
    outcome,
    write_data,
)

pytestmark = pytest.mark.slow

resource = pytest.importorskip("resource", reason="there is no kill -9")


def loop(root, run_dir):
    return make_loop(root, run_dir, rounds=2, budget=Budget(regions=6))


def whole(root, run_dir):
    """Run as far as it goes."""
    loop(root, run_dir).run()


def to_the_next_event(root, run_dir, when, known):
    """Run until something is to be written down that was not before; kill this process right before or after that."""
    write, met = Journal.copy, set(Path(known).read_text().splitlines()) if Path(known).exists() else set()

    def copy(self, event):
        key = f"{event.round} {event.step} {event.event} {event.content.get('image_id')}"
        if when == "after":
            write(self, event)
        if key not in met:
            with Path(known).open("a") as file:
                file.write(key + "\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "before":
            write(self, event)

    Journal.copy = copy
    whole(root, run_dir)


@pytest.fixture(scope="module")
def start():
    """Starts a process from one that has everything imported; gives its exit code once it has ended."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.slow.test_kill_loop"])

    def run(function, *args, seconds=None):
        process = context.Process(target=function, args=args)
        process.start()
        process.join(120 if seconds is None else seconds)
        if process.is_alive():
            assert seconds is not None, "it hangs"
            process.kill()
            process.join()
        return process.exitcode

    yield run
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), pool=4)


@pytest.fixture(scope="module")
def undisturbed(root, start, tmp_path_factory):
    """The outcome of a run that nobody has killed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert start(time.sleep, 0) == 0  # all is imported then
    begin = time.monotonic()
    assert start(whole, root, folder) == 0
    return outcome(folder), time.monotonic() - begin


def is_the_same(root, run_dir, undisturbed):
    labels_are_the_truth(root, run_dir)
    asked_once(run_dir, loop(root, run_dir).pool)
    assert differences(outcome(run_dir), undisturbed[0]) == []
    assert not list(run_dir.rglob(".seguq-tmp-*"))
    assert "was the last of 2 rounds" in status(run_dir).lines()[0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_boundary_of_a_step(root, start, undisturbed, tmp_path, when):
    """Each event once, one kill after the other in one run."""
    kills = 0
    while (code := start(to_the_next_event, root, tmp_path / "run", when, tmp_path / "known")) != 0:
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 2 * 16 + 4
    is_the_same(root, tmp_path / "run", undisturbed)


@pytest.mark.parametrize("seed", range(12))  # with those at every event a hundred kills
def test_killed_at_random_moments_again_and_again(root, start, undisturbed, tmp_path, seed):
    """At first so soon that little is done; later there is time for a step, and for several."""
    draw, seconds = random.Random(seed), undisturbed[1]
    for number in range(60):
        delay = draw.uniform(0.05, 0.3 + 0.04 * number) * seconds
        code = start(whole, root, tmp_path / "run", seconds=delay)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert number >= 3
    is_the_same(root, tmp_path / "run", undisturbed)


def on_a_small_disk(root, run_dir, size):
    """Run on where no file may become larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        whole(root, run_dir)
    except SeguqError as error:
        said = str(error)
        os._exit(1 if "\n" not in said and ("cannot be written" in said or "cannot write" in said) else 2)


def test_a_disk_that_is_full_at_any_size_of_a_file_is_a_sentence(root, start, undisturbed, tmp_path):
    """By a limit that the system keeps: the database, a table, a checkpoint and a page meet it at different sizes."""
    for size in (0, 300, 1000, 3000, 5000, 9000, 20_000, 30_000, 33_000, 60_000):
        assert start(on_a_small_disk, root, tmp_path / "run", size) in (0, 1), size
    assert start(whole, root, tmp_path / "run") == 0
    is_the_same(root, tmp_path / "run", undisturbed)
