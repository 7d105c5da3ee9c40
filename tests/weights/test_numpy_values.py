"""Values of NumPy among the hyperparameters of a checkpoint: read as what they are, whatever NumPy wrote them."""

import argparse
import zipfile

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.weights import read_checkpoint

VALUES = {
    "float64": np.float64(1e-3),
    "float32": np.float32(0.1),
    "int64": np.int64(7),
    "bool": np.bool_(True),
    "complex": np.complex128(1 + 2j),
    "text": np.str_("resnet"),
    "no text": np.str_(""),
    "bytes": np.bytes_(b"ab"),
    "big endian": np.array([1.5, 2.5], ">f4"),
    "array": np.arange(6.0).reshape(2, 3),
    "column by column": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "no dimension": np.array(5.0),
    "nothing": np.zeros((0, 3)),
    "dtype": np.dtype("int16"),
}


def as_numpy_1_names_it(path):
    """The same file with the names that NumPy had before its version 2."""
    with zipfile.ZipFile(path) as old:
        parts = {item.filename: old.read(item) for item in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_comes_back_as_it_was(value, version, tmp_path):
    nested = {"plain": 3, "value": value, "in": [{"a": (value, 1)}]}
    torch.save({"hyper_parameters": nested}, tmp_path / "a.ckpt")
    if version == 1:
        as_numpy_1_names_it(tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]
    for one in (found["value"], found["in"][0]["a"][0]):
        assert type(one) is type(value)
        assert getattr(one, "dtype", None) == getattr(value, "dtype", None)
        assert np.array_equal(one, value)
    assert (found["plain"], found["in"][0]["a"][1]) == (3, 1)


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Forged:
    """What NumPy would make an array of, of a type or content of somebody's choice."""

    def __init__(self, dtype, data):
        self.dtype, self.data = dtype, data

    def __reduce__(self):
        function, arguments, _ = np.zeros(1).__reduce__()
        return function, arguments, (1, (1,), self.dtype, False, self.data)


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}], dtype=object),
        Forged(np.dtype("f8"), b"123"),
        Forged(np.dtype("f8"), b"1" * 16),
        Forged(np.dtype([("a", "f8")]), b"1" * 8),
        Forged(np.dtype("O"), [1]),
        np.datetime64("2020-01-01"),
        np.array([Harm("harm")], dtype=object),
    ],
    ids=["objects", "too short", "too long", "fields", "forged objects", "a date", "code"],
)
def test_what_is_neither_numbers_nor_text_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"hyper_parameters": {"x": value}}, "a.ckpt")
    with pytest.raises(SeguqError, match=r"a\.ckpt"):
        read_checkpoint("a.ckpt")
    assert not (tmp_path / "harm").exists()


def test_what_torch_was_told_to_trust_is_as_it_was(tmp_path):
    torch.save({"hyper_parameters": {"x": np.float64(1)}}, tmp_path / "a.ckpt")
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([np.dtype, argparse.Namespace]):
        assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["x"] == 1
        assert set(torch.serialization.get_safe_globals()) >= {np.dtype, argparse.Namespace}
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_way_in_that_an_error_advises_works_for_an_old_name(tmp_path, monkeypatch):
    import tests.weights.test_numpy_values as module

    monkeypatch.setattr(module, "OldName", argparse.Namespace, raising=False)
    torch.save({"x": argparse.Namespace(lr=1)}, tmp_path / "b.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt") as old:
        parts = {item.filename: old.read(item) for item in old.infolist()}
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as new:
        for name, content in parts.items():
            new.writestr(name, content.replace(b"argparse\nNamespace", f"{__name__}\nOldName".encode()))
    with pytest.raises(SeguqError, match=r"add_safe_globals\(\[\(\S+OldName, '\S+OldName'\)\]\)"):
        read_checkpoint(tmp_path / "b.ckpt")
    with torch.serialization.safe_globals([(argparse.Namespace, f"{__name__}.OldName")]):
        assert read_checkpoint(tmp_path / "b.ckpt")["x"].lr == 1
