import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from seguq.core.files import remove_leftovers, whole_file, write_bytes, write_json

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


@pytest.mark.skipif(os.name != "posix", reason="permissions and umask are those of POSIX")
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


def test_leftovers_are_removed_from_folders_below(tmp_path):
    with whole_file(tmp_path / "some" / "folder" / "a.txt") as temporary:
        leftover = temporary.with_name(temporary.name + "x")
        leftover.write_text("half")
    remove_leftovers(tmp_path)
    assert names(tmp_path / "some" / "folder") == ["a.txt"]


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
