import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seguq.core.errors import UsageError
from seguq.core.locks import Lock, is_held

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

HOLD = """
import os, sys, time
from pathlib import Path
from seguq.core.locks import Lock
Lock(Path(sys.argv[1]), shared=len(sys.argv) > 2).take()
print("held", flush=True)
time.sleep(600)
"""


class Holder:
    """Another process that holds a lock."""

    def __init__(self, path, *more, code=HOLD):
        command = [sys.executable, "-c", code, str(path), *more]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


@pytest.fixture(params=["folder", "file"])
def path(request, tmp_path):
    if request.param == "folder":
        return tmp_path
    (tmp_path / "a.ckpt").touch()
    return tmp_path / "a.ckpt"


def test_another_process_is_kept_out_until_the_one_that_holds_it_is_killed(path):
    with Holder(path) as other:
        with pytest.raises(UsageError, match=f"another run writes into {path}"):
            Lock(path).take()
        assert is_held(path)
        other.kill()
        with Lock(path):
            assert is_held(path)
    assert not is_held(path)


def test_those_that_share_come_in_and_others_do_not(path):
    with Holder(path, "shared"):
        with Lock(path, shared=True):
            pass
        with pytest.raises(UsageError):
            Lock(path).take()


def test_one_process_may_take_it_many_times(path):
    outer, inner = Lock(path), Lock(path)
    outer.take()
    with inner:
        outer.release()
        outer.release()
        assert is_held(path)
    assert not is_held(path)


def test_a_forked_process_does_not_inherit_it(path):
    code = HOLD.replace(
        'print("held", flush=True)', "child = os.fork()\nif not child: print('held', flush=True)  # it runs"
    )
    code += "\n"
    with Holder(path, code=code.replace("time.sleep(600)", "time.sleep(20)")) as other:
        other.kill()  # the child lives on
        with Lock(path):
            pass


def test_a_lock_that_waits_gets_the_file_that_has_taken_the_place_of_the_one_it_waited_for(tmp_path):
    path, new = tmp_path / "a.ckpt", tmp_path / "new"
    path.touch()
    code = HOLD.replace("time.sleep(600)", "time.sleep(.3); os.replace(sys.argv[1][:-6] + 'new', sys.argv[1])")
    new.touch()
    with Holder(path, code=code), Lock(path, wait=True):
        assert not new.exists()
        assert is_held(path)


def test_waiting_ends_when_the_other_is_done(path):
    with Holder(path, code=HOLD.replace("600", ".3")):
        begin = time.monotonic()
        with Lock(path, wait=True):
            assert time.monotonic() - begin < 60


def test_what_is_missing_is_held_by_nobody(tmp_path):
    assert not is_held(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "missing").take()
    assert os.listdir(tmp_path) == []
