import copy
import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import pytest

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file, write_bytes
from seguq.store.writer import BackgroundWriter, writing

ROOT = Path(__file__).parents[2]
SOON = 30  # seconds, far more than anything here needs


class Held:
    """A job that says when it runs and goes on when it is let go."""

    def __init__(self, end=lambda: None):
        self.running, self.let_go, self.end = threading.Event(), threading.Event(), end

    def __call__(self):
        self.running.set()
        assert self.let_go.wait(SOON)
        self.end()


def fail(error):
    raise error


def nothing():
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.fixture
def writer():
    writer = BackgroundWriter("Heat maps", limit=100)
    yield writer
    writer.cancel()


# jobs run, in order


def test_jobs_run_in_the_order_in_which_they_came(writer):
    done = []
    for i in range(500):
        writer.submit(partial(done.append, i), 1)
    writer.close()
    assert done == list(range(500))


def test_jobs_of_several_threads_all_run(writer):
    done = []

    def submit(number):
        for i in range(100):
            writer.submit(partial(done.append, (number, i)), 30)

    submitters = [in_thread(partial(submit, number)) for number in range(4)]
    for thread in submitters:
        thread.join(SOON)
    writer.close()
    assert [[i for other, i in done if other == number] for number in range(4)] == [list(range(100))] * 4


def test_jobs_run_on_one_daemon_thread_that_is_not_the_callers(writer):
    seen = []
    for _ in range(10):
        writer.submit(lambda: seen.append(threading.current_thread()), 1)
    writer.close()
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()
    assert seen[0].daemon


def test_submit_does_not_wait_for_the_job(writer):
    job = Held()
    writer.submit(job, 1)
    assert job.running.wait(SOON)
    job.let_go.set()


def test_close_waits_for_all_jobs(writer):
    done = []
    for i in range(3):
        writer.submit(lambda i=i: (time.sleep(0.02), done.append(i)), 1)
    writer.close()
    assert done == [0, 1, 2]


def test_there_is_no_thread_before_the_first_job_and_none_after_the_end():
    writer = BackgroundWriter("a name that no other thread has")
    assert threads(writer.name) == []
    writer.submit(nothing, 1)
    assert len(threads(writer.name)) == 1
    writer.close()
    assert threads(writer.name) == []
    writer.submit(nothing, 1)
    writer.cancel()
    assert threads(writer.name) == []


@pytest.mark.parametrize("end", ["close", "cancel"])
def test_ending_a_writer_that_never_ran_or_has_ended_does_nothing(writer, end):
    for _ in range(2):
        getattr(writer, end)()


def test_a_writer_can_be_used_again_after_its_end(writer):
    done = []
    for i in range(3):
        writer.submit(partial(done.append, i), 1)
        writer.close()
    assert done == [0, 1, 2]


def test_what_a_job_held_is_let_go_when_it_is_done(writer):
    class Big:
        def __call__(self):
            pass

    big = Big()
    gone = threading.Event()
    weakref.finalize(big, gone.set)
    writer.submit(big, 1)
    del big
    assert gone.wait(5)
    assert len(threads(writer.name)) == 1


def test_a_writer_that_is_used_again_has_one_thread_again(writer):
    seen = []
    for _ in range(2):
        for _ in range(3):
            ran = threading.Event()
            writer.submit(lambda ran=ran: (seen.append(threading.current_thread()), ran.set()), 1)
            assert ran.wait(SOON)
            time.sleep(0.01)
        writer.close()
    assert len(set(seen[:3])) == len(set(seen[3:])) == 1


def test_two_closes_at_once_both_end(writer):
    job = Held()
    writer.submit(job, 1)
    closers = [in_thread(writer.close) for _ in range(4)]
    job.let_go.set()
    for thread in closers:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in closers)


# bytes are bounded


def test_jobs_never_hold_more_bytes_than_the_limit():
    lock, held, most = threading.Lock(), [0], [0]

    def add(size):
        with lock:
            held[0] += size
            most[0] = max(most[0], held[0])

    sizes = [7, 40, 3, 25, 60, 1, 99, 100, 12] * 10
    with BackgroundWriter("Heat maps", limit=100) as writer:
        for size in sizes:
            job = partial(add, -size)
            writer.submit(lambda job=job: (time.sleep(0.0005), job()), size)
            add(size)
    # a job ends just before its bytes are given back, and `add` counts just after the job is let in
    assert held[0] == 0
    assert most[0] <= 100


def test_submit_waits_while_the_bytes_would_exceed_the_limit(writer):
    job, accepted = Held(), []
    writer.submit(job, 60)
    assert job.running.wait(SOON)

    def more():
        for size in (20, 20, 20, 20):
            writer.submit(nothing, size)
            accepted.append(size)

    thread = in_thread(more)
    deadline = time.monotonic() + SOON
    while len(accepted) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    thread.join(0.1)
    assert accepted == [20, 20]  # 60 + 20 + 20 = 100: the third has to wait for the job that runs
    job.let_go.set()
    thread.join(SOON)
    assert accepted == [20, 20, 20, 20]


def test_a_job_larger_than_the_limit_runs_alone(writer):
    done = []
    small = Held(partial(done.append, "small"))
    writer.submit(small, 1)
    thread = in_thread(lambda: writer.submit(partial(done.append, "large"), 1000))
    thread.join(0.05)
    assert thread.is_alive()
    small.let_go.set()
    thread.join(SOON)
    writer.submit(partial(done.append, "after"), 1)
    writer.close()
    assert done == ["small", "large", "after"]


def test_a_job_that_holds_nothing_is_let_in(writer):
    job = Held()
    writer.submit(job, 100)
    writer.submit(nothing, 0)
    job.let_go.set()
    writer.close()


def test_a_negative_size_is_an_error(writer):
    with pytest.raises(SeguqError, match="size: -1 bytes"):
        writer.submit(nothing, -1)


# errors


def test_close_raises_the_error_of_a_job(writer):
    original = KeyError("no such map")
    writer.submit(partial(fail, original), 1)
    with pytest.raises(SeguqError, match=r"^Heat maps failed with KeyError: 'no such map'$") as caught:
        writer.close()
    assert caught.value.__cause__ is original


def test_the_next_submit_raises_the_error_of_a_job(writer):
    running = Held(partial(fail, ValueError("no")))
    writer.submit(running, 1)
    running.let_go.set()
    with pytest.raises(SeguqError, match="Heat maps failed with ValueError: no"):
        for _ in range(100_000):
            writer.submit(nothing, 1)


def test_an_error_that_submit_has_raised_is_not_raised_again_by_close(writer):
    running = Held(partial(fail, ValueError("no")))
    writer.submit(running, 100)
    running.let_go.set()
    for _ in range(3):  # no job is dropped in silence
        with pytest.raises(SeguqError, match="no"):
            writer.submit(nothing, 100)
    writer.close()


def test_only_the_first_error_is_raised_and_later_jobs_are_dropped(writer):
    done = []
    first = Held(partial(fail, ValueError("first")))
    writer.submit(first, 1)
    writer.submit(partial(fail, ValueError("second")), 1)
    writer.submit(partial(done.append, "later"), 1)
    first.let_go.set()
    with pytest.raises(SeguqError, match="first"):
        writer.close()
    assert done == []


def test_after_an_error_was_raised_by_close_the_writer_can_be_used_again(writer):
    writer.submit(partial(fail, ValueError("no")), 70)
    with pytest.raises(SeguqError):
        writer.close()
    done = []
    writer.submit(partial(done.append, 1), 70)
    writer.close()
    assert done == [1]


def test_a_submit_that_waits_is_woken_by_an_error(writer):
    caught = []

    def submit():
        try:
            writer.submit(nothing, 80)
        except SeguqError as error:
            caught.append(str(error))

    job = Held(partial(fail, ValueError("no")))
    writer.submit(job, 80)
    waiting = [in_thread(submit) for _ in range(3)]
    time.sleep(0.05)
    assert caught == []
    job.let_go.set()
    for thread in waiting:
        thread.join(SOON)
    assert caught == ["Heat maps failed with ValueError: no"] * 3


def test_submit_does_not_hang_after_an_error_though_much_was_waiting(writer):
    job = Held(partial(fail, ValueError("no")))
    writer.submit(job, 10)
    for _ in range(9):
        writer.submit(nothing, 10)
    job.let_go.set()
    with pytest.raises(SeguqError):
        writer.submit(nothing, 100)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])
def test_an_error_that_is_no_exception_is_not_lost(writer, error):
    writer.submit(partial(fail, error("no")), 1)
    with pytest.raises(SeguqError, match=error.__name__):
        writer.close()


def test_an_error_that_is_one_sentence_already_is_kept(writer):
    writer.submit(partial(fail, UsageError("the map 'energy' holds NaN")), 1)
    with pytest.raises(SeguqError, match=r"^Heat maps: the map 'energy' holds NaN$"):
        writer.close()


# canceling


def test_cancel_drops_what_waits_and_waits_for_the_job_that_runs(writer):
    done = []
    job = Held(partial(done.append, "runs"))
    writer.submit(job, 1)
    assert job.running.wait(SOON)
    for i in range(20):
        writer.submit(partial(done.append, i), 1)
    thread = in_thread(writer.cancel)
    thread.join(0.05)
    assert thread.is_alive()
    job.let_go.set()
    thread.join(SOON)
    assert not thread.is_alive()
    assert done == ["runs"]


def test_cancel_gives_the_bytes_of_what_it_drops_back(writer):
    job = Held()
    writer.submit(job, 50)
    writer.submit(nothing, 50)
    job.let_go.set()
    writer.cancel()
    running = Held()
    writer.submit(running, 50)
    writer.submit(nothing, 50)
    running.let_go.set()
    writer.close()


@pytest.mark.parametrize("failed", ["before", "during"])
def test_cancel_raises_nothing_and_forgets_the_error(writer, failed):
    job = Held(partial(fail, ValueError("no")))
    writer.submit(job, 1)
    if failed == "before":
        job.let_go.set()
    else:
        threading.Timer(0.05, job.let_go.set).start()
    writer.cancel()
    writer.submit(nothing, 1)
    writer.close()


def test_the_end_of_a_block_closes():
    done = []
    with BackgroundWriter("Heat maps") as writer:
        writer.submit(lambda: (time.sleep(0.05), done.append(1)), 1)
    assert done == [1]


def test_the_end_of_a_block_raises_the_error_of_a_job():
    with pytest.raises(SeguqError, match="no"), BackgroundWriter("Heat maps") as writer:
        writer.submit(partial(fail, ValueError("no")), 1)


def test_an_exception_in_the_block_cancels_and_is_the_one_that_is_raised():
    done = []
    job = Held(partial(fail, ValueError("of the job")))
    with pytest.raises(ZeroDivisionError), BackgroundWriter("Heat maps") as writer:
        writer.submit(job, 1)
        writer.submit(partial(done.append, 1), 1)
        job.let_go.set()
        raise ZeroDivisionError
    assert done == []


# copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda writer: pickle.loads(pickle.dumps(writer))])
@pytest.mark.parametrize("state", ["new", "closed", "running"])
def test_a_copy_starts_without_jobs_and_works(writer, duplicate, state):
    job = Held()
    if state != "new":
        writer.submit(job, 90)
    if state == "closed":
        job.let_go.set()
        writer.close()
    other = duplicate(writer)
    assert (other.name, other.limit) == ("Heat maps", 100)
    done = []
    other.submit(partial(done.append, 1), 90)
    other.close()
    assert done == [1]
    job.let_go.set()


# files


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, writer, number):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "maps" / "a.npz"
    writer.submit(partial(write_bytes, path, b"new"), 3)
    with pytest.raises(SeguqError) as caught:
        writer.close()
    assert str(caught.value) == f"Heat maps cannot write {path}: the disk is full"


def test_a_full_disk_leaves_the_old_file_and_no_half_of_the_new(tmp_path, monkeypatch, writer):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    writer.submit(partial(write_bytes, path, b"new"), 3)
    with pytest.raises(SeguqError):
        writer.close()
    assert (names(tmp_path), path.read_bytes()) == (["a.npz"], b"old")


def test_a_write_that_fails_in_a_jobs_own_code_names_the_file(tmp_path, writer):
    def job():
        with whole_file(tmp_path / "a.npz") as temporary:
            full(temporary)

    writer.submit(job, 1)
    with pytest.raises(SeguqError) as caught:
        writer.close()
    assert str(caught.value) == f"Heat maps cannot write {tmp_path / 'a.npz'}: the disk is full"
    assert names(tmp_path) == []


def test_a_file_that_cannot_even_be_begun_is_named(tmp_path, monkeypatch, writer):
    def mkstemp(*, prefix, suffix, dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dir / (prefix + suffix)))

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)
    writer.submit(partial(write_bytes, tmp_path / "a.npz", b""), 1)
    with pytest.raises(SeguqError) as caught:
        writer.close()
    assert str(caught.value) == f"Heat maps cannot write {tmp_path / 'a.npz'}: the disk is full"


def test_a_full_disk_that_names_nothing_is_still_one_sentence(writer):
    writer.submit(full, 1)
    with pytest.raises(SeguqError, match=r"^Heat maps cannot write a file: the disk is full$"):
        writer.close()


def test_another_error_of_a_file_names_it_and_the_reason(tmp_path, writer):
    (tmp_path / "maps").write_text("a file where a folder should be")
    writer.submit(partial(write_bytes, tmp_path / "maps" / "a.npz", b""), 1)
    with pytest.raises(SeguqError) as caught:
        writer.close()
    assert str(caught.value) == f"Heat maps cannot write {tmp_path / 'maps'}: File exists"


def test_a_file_that_cannot_be_replaced_is_named_with_the_reason(tmp_path, writer):
    (tmp_path / "a.npz").mkdir()
    writer.submit(partial(write_bytes, tmp_path / "a.npz", b""), 1)
    with pytest.raises(SeguqError) as caught:
        writer.close()
    assert str(caught.value) == f"Heat maps cannot write {tmp_path / 'a.npz'}: Is a directory"
    assert names(tmp_path) == ["a.npz"]


def test_a_file_that_is_written_in_the_foreground_has_the_same_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SeguqError) as caught, writing("Regions"):
        write_bytes(tmp_path / "a.json", b"new")
    assert str(caught.value) == f"Regions cannot write {tmp_path / 'a.json'}: the disk is full"
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_of_the_foreground_pass_as_they_are():
    with pytest.raises(ZeroDivisionError), writing("Regions"):
        raise ZeroDivisionError


WRITE = """
import sys
from functools import partial
from seguq.core.errors import SeguqError
from seguq.core.files import write_bytes
from seguq.store.writer import BackgroundWriter
if sys.argv[2:]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with BackgroundWriter("Heat maps") as writer:
        for i in range(3):
            writer.submit(partial(write_bytes, f"{sys.argv[1]}/{i}.bin", bytes(300_000 * i)), 300_000 * i)
except SeguqError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits are those of POSIX")
def test_a_file_over_the_real_limit_of_its_size_is_named_and_not_left(tmp_path):
    command = [sys.executable, "-c", WRITE, str(tmp_path), "500000"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == f"Heat maps cannot write {tmp_path / '2.bin'}: File too large\n"
    assert names(tmp_path) == ["0.bin", "1.bin"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="a small disk is made with unshare")
def test_a_disk_that_is_really_full_is_named_and_nothing_half_is_left(tmp_path):
    small = f'mount -t tmpfs -o size=500k none "{tmp_path}" || exit 77; '
    command = ["unshare", "-Urm", "sh", "-c", small + '"$@" || exit; ls -A "$0"', str(tmp_path)]
    done = subprocess.run([*command, sys.executable, "-c", WRITE, str(tmp_path)], cwd=ROOT, capture_output=True)
    if not done.stdout:
        pytest.skip(f"no small disk can be made here: {done.stderr.decode()}")
    expected = [f"Heat maps cannot write {tmp_path / '2.bin'}: the disk is full", "0.bin", "1.bin"]
    assert done.stdout.decode().splitlines() == expected
