import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.core.files import TEMPORARY_PREFIX, remove_leftovers, whole_file, write_bytes, write_json, write_torch

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def start(code, *arguments):
    """Run Python code in a process of its own; what it prints can be read as it comes."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill(process):
    process.kill()  # SIGKILL where there are signals: no handler and no `finally` runs
    process.wait()
    process.stdout.close()


def test_a_whole_file_holds_what_was_written(tmp_path):
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_whole_file_replaces_the_old_one(tmp_path):
    (tmp_path / "a.txt").write_text("old and longer")
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_nothing_is_left_beside_a_whole_file(tmp_path):
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"


def test_there_is_no_file_until_the_block_ends(tmp_path):
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()


def test_the_temporary_file_lies_in_the_same_folder_with_the_same_suffix(tmp_path):
    with whole_file(tmp_path / "a.png") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")


def test_folders_that_are_missing_are_made(tmp_path):
    with whole_file(tmp_path / "some" / "folders" / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "some" / "folders" / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="an open file can be replaced under POSIX")
def test_a_reader_that_has_the_old_file_open_reads_it_to_the_end(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (tmp_path / "a.txt").open() as reader:
        write_bytes(tmp_path / "a.txt", b"new")
        assert reader.read() == "old"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise error
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_an_exception_leaves_no_file_where_none_was(tmp_path):
    with pytest.raises(ValueError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half of the n")
        raise ValueError
    assert names(tmp_path) == []


def test_two_writers_of_the_same_file_do_not_mix(tmp_path):
    with whole_file(tmp_path / "a.txt") as one, whole_file(tmp_path / "a.txt") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"  # the outer block ends last
    assert names(tmp_path) == ["a.txt"]


POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and umask are those of POSIX")


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o777, 0o200])
def test_a_file_that_is_replaced_hands_on_its_permissions(tmp_path, mode):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(mode)
    write_bytes(tmp_path / "a.txt", b"new")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only a superuser gives files away")
def test_a_file_that_is_replaced_hands_on_its_owner(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    os.chown(tmp_path / "a.txt", 1234, 5678)
    write_bytes(tmp_path / "a.txt", b"new")
    found = (tmp_path / "a.txt").stat()
    assert (found.st_uid, found.st_gid) == (1234, 5678)


@POSIX
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / "folder").mkdir()
    if there:
        (tmp_path / "folder" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(Path("folder") / "a.txt")
    write_bytes(tmp_path / "link.txt", b"new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "folder" / "a.txt").read_text() == "new"
    assert names(tmp_path / "folder") == ["a.txt"]


@POSIX
def test_a_write_protected_file_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o444)
    with pytest.raises(SeguqError, match=r"a\.txt is write-protected"):
        write_bytes(tmp_path / "a.txt", b"new")
    assert (names(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "old")


@POSIX
def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SeguqError, match="is a device or a pipe"):
        write_bytes(tmp_path / "pipe", b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def _arrays(path):
    with whole_file(path) as temporary:
        np.savez(temporary, a=np.zeros(100_000))


def _table(path):
    with whole_file(path) as temporary:
        pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), temporary)


WRITERS = {
    "a.bin": lambda path: write_bytes(path, bytes(500_000)),
    "a.json": lambda path: write_json(path, "x" * 500_000),
    "a.npz": _arrays,
    "a.parquet": _table,
    "a.ckpt": lambda path: write_torch(path, {"weights": torch.zeros(100_000)}),
}
LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.core.test_files import WRITERS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
for name, write in WRITERS.items():
    try:
        write(Path(sys.argv[1]) / name)
    except OSError as error:
        print(error)
"""


@POSIX
def test_a_file_that_finds_no_room_is_named_and_stays_as_it_was(tmp_path):
    for name in WRITERS:
        (tmp_path / name).write_text("old")
    out = start(LIMITED, tmp_path).communicate()[0]
    assert out.splitlines() == [f"[Errno 27] File too large: '{tmp_path / name}'" for name in WRITERS]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(WRITERS, "old")


def test_what_torch_is_given_can_be_read_back(tmp_path):
    write_torch(tmp_path / "a.ckpt", {"weights": torch.arange(5), "step": 3})
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert found["weights"].tolist() == [0, 1, 2, 3, 4] and found["step"] == 3


@POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    code = (
        "import os, sys; os.umask(int(sys.argv[2])); from seguq.core.files import write_bytes; "
        "write_bytes(sys.argv[1], b'new')"
    )
    process = start(code, tmp_path / "a.txt", umask)
    process.communicate()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


WRITE_HALF = """
import sys, time
from seguq.core.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        file.write("half of the n")
        file.flush()
        print("half", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file_whole(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    process = start(WRITE_HALF, tmp_path / "a.txt")
    assert process.stdout.readline() == "half\n"
    kill(process)
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.slow
def test_what_a_kill_leaves_is_removed_as_a_leftover(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    process = start(WRITE_HALF, tmp_path / "a.txt")
    assert process.stdout.readline() == "half\n"
    kill(process)
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.txt"]


WRITE_FOREVER = """
import sys
from seguq.core.files import write_bytes
while True:
    for letter in b"ab":
        write_bytes(sys.argv[1], bytes([letter]) * 1_000_000)
        print("whole", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("writes", [1, 2, 3, 4, 5])
def test_a_kill_at_any_time_leaves_a_whole_file(tmp_path, writes):
    process = start(WRITE_FOREVER, tmp_path / "a.bin")
    for _ in range(writes):
        assert process.stdout.readline() == "whole\n"
    kill(process)
    content = (tmp_path / "a.bin").read_bytes()
    assert content in (b"a" * 1_000_000, b"b" * 1_000_000)


def test_leftovers_are_removed_from_the_folder_and_where_asked_for_from_those_below(tmp_path):
    (tmp_path / "some" / "folder").mkdir(parents=True)
    here, below = (tmp_path / part / f"{TEMPORARY_PREFIX}a" for part in ("", "some/folder"))
    for path in (here, below):
        path.write_text("half")
    remove_leftovers(tmp_path)
    assert (here.exists(), below.exists()) == (False, True)
    remove_leftovers(tmp_path, below=True)
    assert not below.exists()


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_what_a_live_process_writes_is_no_leftover(tmp_path):
    process = start(WRITE_HALF, tmp_path / "a.txt")
    assert process.stdout.readline() == "half\n"
    remove_leftovers(tmp_path)
    left = names(tmp_path)
    kill(process)
    assert len(left) == 1
    with whole_file(tmp_path / "b.txt"):
        remove_leftovers(tmp_path)  # neither is what this process writes, but what the killed one left
        assert len(names(tmp_path)) == 1 and names(tmp_path) != left


def test_only_leftovers_are_removed(tmp_path):
    for name in (".hidden", "seguq-tmp-a", ".seguq", "a.tmp"):
        (tmp_path / name).write_text("kept")
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == before


def test_removing_leftovers_of_a_folder_that_is_missing_does_nothing(tmp_path):
    remove_leftovers(tmp_path / "missing")
    assert names(tmp_path) == []


def test_write_bytes_writes_the_bytes(tmp_path):
    write_bytes(tmp_path / "a.bin", b"\x00\r\n\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\r\n\xff"


def test_write_json_can_be_read_back(tmp_path):
    content = {"name": "Größe 大", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_write_json_of_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"good": 1, "bad": object()})
    assert (tmp_path / "a.json").read_text() == "{}"
    assert names(tmp_path) == ["a.json"]
