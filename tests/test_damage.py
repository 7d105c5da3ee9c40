"""A damaged file is one sentence that names it, whatever is wrong with it and whoever reads it."""

import errno
import os
from pathlib import Path

import pytest

from seguq.core.errors import SeguqError, UsageError
from seguq.core.reading import reading
from tests.damage import READERS, damages, held


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_whatever_is_wrong_with_a_file_is_one_sentence_that_names_it(reader, tmp_path):
    path = tmp_path / reader.name
    reader.write(path)
    reader.read(path)
    failures, tried = [], 0
    for content in damages(reader, path, seed=0, bits=40, cuts=10, every=5):
        path.write_bytes(content)
        fault = held(reader, path)
        tried += 1
        if fault is not None:
            failures.append(f"{content[:60]!r}: {fault}")
    assert tried > 60
    assert not failures, f"{len(failures)} of {tried}: {failures[:5]}"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_file_that_cannot_be_read_is_not_called_damaged(reader, code, tmp_path, monkeypatch):
    if reader.shown is None:
        pytest.skip("it can be done without")
    path = tmp_path / reader.name
    reader.write(path)
    opened = open

    def refused(file, *args, **kwargs):
        if not isinstance(file, int) and os.fspath(file) == str(path):
            raise OSError(code, os.strerror(code), str(path))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)
    with pytest.raises(SeguqError) as caught:
        reader.read(path)
    assert "damaged" not in str(caught.value)
    assert f"{path.name} cannot be read: {os.strerror(code)}" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["selection", "regions", "maps", "classes", "checkpoint", "weights", "task", "training", "run"]
)
def test_a_nul_in_a_path_is_one_sentence(name):
    with pytest.raises(SeguqError) as caught:
        READERS[name].read(Path("a\0b") / READERS[name].name)
    assert "damaged" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("version"), "a.json is damaged: it has no 'version'"),
        (TypeError("'int' object\nis no list"), "a.json is damaged: 'int' object is no list"),
        (ValueError("x" * 1000), "a.json is damaged: xxx"),
        (OverflowError("too large"), "a.json is damaged: too large"),
        (RecursionError("deep"), "a.json is damaged: it is nested too deeply"),
        (AssertionError(), "a.json is damaged: AssertionError"),
        (MemoryError("1 TB"), "a.json does not fit into memory"),
        (PermissionError(errno.EACCES, "no", "a.json"), "a.json cannot be read: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "no", "a.json"), "a.json cannot be read: Is a directory"),
        (FileNotFoundError(errno.ENOENT, "no", "a.json"), "a.json does not exist"),
        (SeguqError("the scale is wrong"), "a.json: the scale is wrong"),
        (UsageError("a.json is of version 9"), "a.json is of version 9"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_becomes_its_sentence(error, told):
    with pytest.raises(SeguqError) as caught, reading("a.json"):
        raise error
    assert str(caught.value).startswith(told)
    assert len(str(caught.value)) < 220
    assert type(caught.value) is UsageError if isinstance(error, (UsageError, FileNotFoundError)) else SeguqError


def test_what_to_do_stands_at_the_end():
    with pytest.raises(SeguqError, match=r"^a is damaged: it has no 1: remove it$"), reading("a", advice="remove it"):
        raise KeyError(1)
