import os
import pickle
import re
import struct
import traceback
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.calibration import TemperatureScaling, load
from seguq.calibration.checkpoint import save_calibrator
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


# --- what torch does not check


def test_a_flipped_bit_of_the_weights_is_damage_wherever_it_is(tmp_path):
    torch.save({"state_dict": network().state_dict()}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as archive:
        headers = [item.header_offset for item in archive.infolist() if "/data/" in item.filename]
    for header in headers:
        damaged = bytearray(whole)
        lengths = struct.unpack("<HH", whole[header + 26 : header + 30])
        damaged[header + 30 + sum(lengths)] ^= 1
        (tmp_path / "a.ckpt").write_bytes(damaged)
        torch.load(tmp_path / "a.ckpt", weights_only=True)  # torch reads other weights without a word
        with pytest.raises(SeguqError, match=r"a\.ckpt is damaged: the checksum of its part"):
            read_checkpoint(tmp_path / "a.ckpt")
    assert len(headers) > 5


def test_a_file_that_was_written_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": network().state_dict()}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert set(read_checkpoint(tmp_path / "a.ckpt")) == {"state_dict"}


# --- nothing is run, whatever the environment says, and nobody is told to switch that off

HARMFUL = {
    "code": lambda path: torch.save({"x": Malicious(path.parent / "harm")}, path),
    "a blocked module": lambda path: torch.save({"x": os.system}, path),
    "a custom class": lambda path: torch.save({"x": Custom()}, path),
    "a whole module": lambda path: torch.save({"model": network()}, path),
    "TorchScript": lambda path: torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(1, 3, 8, 8)), path),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps({"x": Malicious(path.parent / "harm")})),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("environment", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("write", HARMFUL.values(), ids=HARMFUL.keys())
def test_no_message_advises_to_read_without_care(write, environment, tmp_path, monkeypatch):
    write(tmp_path / "a.ckpt")
    if environment:
        monkeypatch.setenv(environment, "1")
    with pytest.raises(SeguqError, match=r"a\.ckpt") as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    shown = "".join(traceback.format_exception(caught.value))
    assert "weights_only" not in shown.split("SeguqError:")[-1]
    assert "weights_only` argument in `torch.load`" not in shown  # of torch's own message, in a traceback either
    assert "set to `False`" not in shown
    assert not (tmp_path / "harm").exists()


# --- weights that are none


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensor: tensor.fill_(float("nan")), "hold NaN"),
        (lambda tensor: tensor.fill_(float("inf")), "hold infinite values"),
        (lambda tensor: tensor.to(torch.complex64), "are complex"),
        (lambda tensor: tensor.to_sparse(), "are no plain tensor"),
        (lambda tensor: tensor.to("meta"), "are no plain tensor"),
    ],
    ids=["NaN", "infinite", "complex", "sparse", "meta"],
)
def test_weights_that_are_no_finite_numbers_are_named(change, told, tmp_path):
    state = network().state_dict()
    state["3.weight"] = change(state["3.weight"])
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    model = network(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SeguqError, match=rf"a\.ckpt cannot be used: its weights '3\.weight' {told}"):
        load(tmp_path / "a.ckpt", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_infinite_mask_among_the_buffers_is_loaded(tmp_path):
    model = torch.nn.Conv2d(3, 2, 1)
    model.register_buffer("mask", torch.full((2,), float("-inf")))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert load(tmp_path / "a.pt", model) is model


# --- what other trainers save


@pytest.mark.parametrize("name", ["model_state_dict", "model", "net", "network_weights", "G"])
@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_the_weights_are_found_where_another_trainer_has_put_them(name, prefix, tmp_path):
    model = network(seed=3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    torch.save(
        {name: state, "optimizer_state_dict": optimizer.state_dict(), "epoch": 3, "loss": 0.5}, tmp_path / "a.pth"
    )
    loaded = load(tmp_path / "a.pth", network(seed=1))
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_a_name_that_is_known_comes_before_others(tmp_path):
    content = {"ema": network(seed=1).state_dict(), "model": network(seed=2).state_dict(), "best": torch.tensor(0.5)}
    torch.save(content, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth", network())
    assert torch.equal(loaded[0].weight, content["model"]["0.weight"])


def test_weights_under_several_unknown_names_are_an_error_that_names_them(tmp_path):
    torch.save({"G": network().state_dict(), "D": network().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(SeguqError, match=r"a\.pth: it holds weights under 'G', 'D', .* save the one"):
        load(tmp_path / "a.pth", network())


def test_a_calibrator_is_kept_beside_the_weights_of_another_trainer(tmp_path):
    torch.save({"model": network().state_dict(), "epoch": 3}, tmp_path / "a.pth")
    save_calibrator(tmp_path / "a.pth", TemperatureScaling(), "deterministic")
    content = read_checkpoint(tmp_path / "a.pth")
    assert (set(content), content["epoch"]) == ({"model", "epoch", "seguq"}, 3)
    assert set(load(tmp_path / "a.pth", network(seed=1)).calibrators) == {"deterministic"}
