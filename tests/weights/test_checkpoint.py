import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.calibration import load
from seguq.core.errors import SeguqError, UsageError
from seguq.weights import read_checkpoint
from tests.calibration.test_checkpoint import names, network, train_one_step


@pytest.fixture
def checkpoint(tmp_path):
    train_one_step(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


class Custom:
    """A class of a user's own."""


@pytest.mark.parametrize(
    ("value", "type_name"),
    [(Path("runs"), type(Path()).__name__), (Custom(), "Custom"), (os.path.join, "join")],
    ids=["a path", "a custom class", "a function"],
)
def test_a_type_that_is_not_allowed_is_an_error_that_names_it_and_the_call_that_allows_it(tmp_path, value, type_name):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": network().state_dict(), "hyper_parameters": {"value": value}}, path)
    with pytest.raises(SeguqError, match=rf"a\.ckpt .*{type_name}.*torch\.serialization\.add_safe_globals") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_type_in_the_hyperparameters_of_a_real_training_is_named(tmp_path):
    train_one_step(tmp_path / "a.ckpt", note=Custom())
    with pytest.raises(SeguqError, match=r"Custom.*add_safe_globals"):
        load(tmp_path / "a.ckpt", network())


def test_a_type_that_was_allowed_as_the_error_says_is_read(tmp_path):
    torch.save({"hyper_parameters": {"value": Custom()}}, tmp_path / "a.ckpt")
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.add_safe_globals([Custom])
        assert isinstance(read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]["value"], Custom)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


FORMATS = {
    "torch's": torch.save,
    "torch's before 1.6": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content)),
    "pickle, protocol 2": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    write({"state_dict": network().state_dict(), "x": Malicious(tmp_path / "harm")}, tmp_path / "a.ckpt")
    with pytest.raises(SeguqError, match=r"a\.ckpt"):
        load(tmp_path / "a.ckpt", network())
    assert names(tmp_path) == ["a.ckpt"]


def test_the_malicious_file_of_these_tests_does_harm_where_it_is_run(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "harm"))).close()
    assert names(tmp_path) == ["harm"]


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_an_error(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(SeguqError, match=r"last\.ckpt cannot be read as a checkpoint"):
        read_checkpoint(checkpoint)


# the first letters of some of these are instructions of pickle's
@pytest.mark.parametrize(
    "content",
    ["# a title\n", '{"a": 1}', "seed: 1\n", "task: multiclass\n", "trainer:\n", "image_id,score\na,1\n", "a,b\n1,2\n"],
)
def test_a_text_file_is_an_error(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(SeguqError, match=r"a\.yaml cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "a.yaml")


@given(content=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_arbitrary_bytes_are_a_dict_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(content)
    try:
        assert isinstance(read_checkpoint(path), dict)
    except SeguqError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), (torch.zeros(2), "Tensor"), (None, "NoneType")])
def test_a_file_of_something_else_is_an_error_that_says_what(tmp_path, content, kind):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(SeguqError, match=rf"a\.pt holds a {kind}, not a checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_is_a_wrong_use_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "none.ckpt"))):
        load(tmp_path / "none.ckpt", network())
