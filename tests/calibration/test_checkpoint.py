import copy
import math
import os
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seguq.calibration import TemperatureScaling, load, read_checkpoint, weights_sha256
from seguq.calibration.checkpoint import KEY, save_calibrator
from seguq.core.errors import SeguqError, UsageError

TAG = "deterministic"


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))


def temperature(value=2.0):
    cal = TemperatureScaling(ignore_index=7)
    cal.log_temperature.fill_(math.log(value))
    return cal


class Holder(nn.Module):
    """A module that holds the network under a name, as LightningModules do."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class Task(LightningModule):
    """A small training; the loss has class weights, so that not all tensors are the network's."""

    def __init__(self, classes=2, lr=0.1, names=("a", "b"), note=None):
        super().__init__()
        self.save_hyperparameters()
        self.model = network()
        self.loss = nn.CrossEntropyLoss(torch.ones(classes))

    def training_step(self, batch):
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def train_one_step(path, **hyperparameters):
    """Train for one step, and save a Lightning checkpoint."""
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    task = Task(**hyperparameters)
    images = TensorDataset(torch.ones(2, 3, 4, 4), torch.zeros(2, 2, 2, dtype=torch.long))
    trainer.fit(task, DataLoader(images, batch_size=2))
    trainer.save_checkpoint(path)
    return task


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Lightning checkpoint's bytes, and the module that it was saved from."""
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and logging
        task = train_one_step(path)
    return path.read_bytes(), task


@pytest.fixture
def checkpoint(trained, tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(trained[0])
    return path


@pytest.fixture
def bare(tmp_path):
    """A file with nothing but the state dict of `network()`."""
    path = tmp_path / "bare.pt"
    torch.save(network().state_dict(), path)
    return path


def same_weights(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the hash of the weights


def with_names(change):
    return {change(name): tensor for name, tensor in network().state_dict().items()}


SAME = {
    "the module itself": lambda: network(),
    "held by a module": lambda: Holder(network()),
    "held twice over": lambda: Holder(Holder(network())),
    "compiled": lambda: torch.compile(network()),
    "compiled inside a module": lambda: Holder(torch.compile(network())),
    "a part compiled": lambda: with_names(lambda name: name.replace("0.", "0._orig_mod.")),
    "named by data-parallel training": lambda: with_names(lambda name: "module." + name),
    "in another order": lambda: dict(reversed(network().state_dict().items())),
    "not contiguous": lambda: {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
        for name, tensor in network().state_dict().items()
    },
    "as parameters": lambda: network().state_dict(keep_vars=True),
    "in training mode": lambda: network().train(),
}


@pytest.mark.parametrize("weights", SAME.values(), ids=SAME.keys())
def test_the_hash_is_the_same(weights):
    assert weights_sha256(weights()) == weights_sha256(network().state_dict())


def altered(change):
    state = network().state_dict()
    change(state)
    return state


def next_float(tensor):
    return torch.nextafter(tensor, torch.full_like(tensor, math.inf))


DIFFERENT = {
    "other weights": lambda: network(seed=1),
    "one weight one bit larger": lambda: altered(lambda s: s["0.bias"][:1].copy_(next_float(s["0.bias"][:1]))),
    "a floating-point buffer": lambda: altered(lambda s: s["1.running_mean"].add_(1)),
    "a name": lambda: with_names(lambda name: name.replace("3.bias", "3.offset")),
    "two tensors exchanged": lambda: altered(lambda s: s.update({"1.weight": s["1.bias"], "1.bias": s["1.weight"]})),
    "a type": lambda: altered(lambda s: s.update({"0.bias": s["0.bias"].double()})),
    "all types": lambda: network().half(),
    "a shape": lambda: altered(lambda s: s.update({"0.bias": s["0.bias"].view(2, 2)})),
    "a tensor more": lambda: altered(lambda s: s.update({"4.weight": torch.zeros(1)})),
    "a tensor less": lambda: altered(lambda s: s.pop("3.bias")),
}


@pytest.mark.parametrize("weights", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_the_hash_differs_for(weights):
    assert weights_sha256(weights()) != weights_sha256(network())


def test_the_hash_does_not_depend_on_integer_buffers():
    model = network()
    model[1].num_batches_tracked += 7
    assert weights_sha256(model) == weights_sha256(network())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_precision_have_a_hash(dtype):
    assert weights_sha256(network().to(dtype)) == weights_sha256(network().to(dtype))


def test_the_hash_differs_for_types_whose_bytes_are_the_same():
    half, brain = torch.zeros(3, dtype=torch.float16), torch.zeros(3, dtype=torch.bfloat16)
    assert weights_sha256({"weight": half}) != weights_sha256({"weight": brain})


def test_a_scalar_weight_has_a_hash():
    assert weights_sha256({"scale": torch.tensor(1.0)}) != weights_sha256({"scale": torch.tensor(2.0)})


# --- there and back


def test_a_calibrator_comes_back_through_a_bare_state_dict(bare):
    save_calibrator(bare, temperature(), TAG)
    (cal,) = load(bare, network(seed=1)).calibrators.values()
    assert torch.equal(cal.log_temperature, temperature().log_temperature)


def test_a_calibrator_comes_back_with_its_arguments_and_its_tag(bare):
    save_calibrator(bare, temperature(), TAG)
    cal = load(bare, network()).calibrators[TAG]
    assert (cal.arguments(), cal.tag) == (temperature().arguments(), TAG)


MODELS = {
    "the network": lambda: network(seed=1),
    "the LightningModule": Task,
    "the network compiled": lambda: torch.compile(network(seed=1)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_calibrator_comes_back_through_a_lightning_checkpoint_into(checkpoint, model):
    save_calibrator(checkpoint, temperature(), TAG)
    assert load(checkpoint, model()).calibrators[TAG].temperature == pytest.approx(2)


def test_the_weights_of_a_lightning_checkpoint_go_into_the_network_alone(trained, checkpoint):
    assert same_weights(load(checkpoint, network(seed=1)), trained[1].model)


def test_the_weights_of_a_lightning_checkpoint_go_into_the_lightning_module(trained, checkpoint):
    assert same_weights(load(checkpoint, Task()), trained[1])


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "_orig_mod.", "model._orig_mod."])
def test_the_weights_of_a_state_dict_with_a_prefix_go_into_the_network(prefix, tmp_path):
    torch.save(with_names(lambda name: prefix + name), tmp_path / "a.pt")
    assert same_weights(load(tmp_path / "a.pt", network(seed=1)), network())


def test_the_weights_of_a_bare_state_dict_go_into_a_module_that_holds_the_network(bare):
    assert same_weights(load(bare, Holder(network(seed=1))).model, network())


def test_the_weights_go_into_a_compiled_network(bare):
    assert weights_sha256(load(bare, torch.compile(network(seed=1)))) == weights_sha256(network())


def test_load_returns_the_model_it_was_given(bare):
    model = network()
    assert load(bare, model) is model


def test_a_checkpoint_without_calibrators_gives_none(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(checkpoint, network()).calibrators == {}


def test_all_else_in_a_lightning_checkpoint_stays_when_a_calibrator_is_saved(checkpoint):
    before = read_checkpoint(checkpoint)
    save_calibrator(checkpoint, temperature(), TAG)
    after = read_checkpoint(checkpoint)
    assert after.keys() - before.keys() == {KEY}
    assert after["hyper_parameters"] == {"classes": 2, "lr": 0.1, "names": ("a", "b"), "note": None}
    assert after["optimizer_states"][0]["param_groups"] == before["optimizer_states"][0]["param_groups"]
    assert all(torch.equal(after["state_dict"][name], tensor) for name, tensor in before["state_dict"].items())


def test_lightning_loads_a_checkpoint_with_a_calibrator_in_it(trained, checkpoint):
    save_calibrator(checkpoint, temperature(), TAG)
    assert same_weights(Task.load_from_checkpoint(checkpoint), trained[1])


def test_a_saved_calibrator_holds_the_step_of_its_weights(checkpoint):
    save_calibrator(checkpoint, temperature(), TAG)
    assert read_checkpoint(checkpoint)[KEY]["calibrators"][TAG]["global_step"] == 1


def test_calibrators_of_two_tags_stand_beside_each_other(bare):
    save_calibrator(bare, temperature(2), TAG)
    save_calibrator(bare, temperature(3), "mc_dropout(layers=dropout)")
    found = {tag: round(cal.temperature, 4) for tag, cal in load(bare, network()).calibrators.items()}
    assert found == {TAG: 2, "mc_dropout(layers=dropout)": 3}


def test_a_calibrator_of_the_same_tag_is_replaced(bare):
    save_calibrator(bare, temperature(2), TAG)
    save_calibrator(bare, temperature(3), TAG)
    assert load(bare, network()).calibrators[TAG].temperature == pytest.approx(3)


def test_a_calibrator_can_be_saved_into_another_file(bare, tmp_path):
    before = bare.read_bytes()
    save_calibrator(bare, temperature(), TAG, out=tmp_path / "new" / "calibrated.pt")
    assert list(load(tmp_path / "new" / "calibrated.pt", network()).calibrators) == [TAG]
    assert bare.read_bytes() == before


def test_calibrators_are_not_in_the_state_dict(bare):
    save_calibrator(bare, temperature(), TAG)
    assert load(bare, network()).state_dict().keys() == network().state_dict().keys()


def test_calibrators_are_not_parameters_or_modules_of_the_model(bare):
    save_calibrator(bare, temperature(), TAG)
    assert not any(isinstance(module, TemperatureScaling) for module in load(bare, network()).modules())


def test_calibrators_survive_a_deep_copy(bare):
    save_calibrator(bare, temperature(), TAG)
    assert copy.deepcopy(load(bare, network())).calibrators[TAG].temperature == pytest.approx(2)


# --- calibrators that do not fit


def with_other_weights(path):
    """Train on: the weights change, the calibrators stay."""
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    first = next(iter(state))
    state[first] = state[first] + 1
    torch.save(content, path)


def test_a_calibrator_of_other_weights_is_not_applied(checkpoint):
    save_calibrator(checkpoint, temperature(), TAG)
    with_other_weights(checkpoint)
    with pytest.warns(UserWarning):
        assert load(checkpoint, network()).calibrators == {}


def test_a_warning_says_which_calibrator_is_not_applied_and_why(checkpoint):
    save_calibrator(checkpoint, temperature(), TAG)
    with_other_weights(checkpoint)
    with pytest.warns(UserWarning, match="'deterministic' is not applied: it was fitted for other weights .*step 1"):
        load(checkpoint, network())


def test_the_warning_points_at_the_call_of_load(checkpoint):
    save_calibrator(checkpoint, temperature(), TAG)
    with_other_weights(checkpoint)
    with pytest.warns(UserWarning) as caught:
        load(checkpoint, network())
    assert [warning.filename for warning in caught] == [__file__]


def test_only_the_calibrators_of_other_weights_are_left_out(bare):
    save_calibrator(bare, temperature(), "old")
    with_other_weights(bare)
    save_calibrator(bare, temperature(), "new")
    with pytest.warns(UserWarning, match="'old'") as caught:
        assert list(load(bare, network()).calibrators) == ["new"]
    assert len(caught) == 1


def edit(path, change):
    content = torch.load(path, weights_only=True)
    change(content[KEY])
    torch.save(content, path)


def test_a_checkpoint_of_a_later_schema_is_an_error(bare):
    save_calibrator(bare, temperature(), TAG)
    edit(bare, lambda section: section.update(version=99))
    with pytest.raises(SeguqError, match=r"another version of seguq .*99"):
        load(bare, network())


def test_a_calibrator_is_not_saved_into_a_checkpoint_of_a_later_schema(bare):
    save_calibrator(bare, temperature(), TAG)
    edit(bare, lambda section: section.update(version=99))
    before = bare.read_bytes()
    with pytest.raises(SeguqError, match="another version of seguq"):
        save_calibrator(bare, temperature(), TAG)
    assert bare.read_bytes() == before


DAMAGE = {
    "an unknown class": lambda packed: packed.update({"class": "CrystalBall"}),
    "an unknown argument": lambda packed: packed["arguments"].update(color="red"),
    "a tensor that is missing": lambda packed: packed["tensors"].clear(),
    "a tensor of another shape": lambda packed: packed["tensors"].update(log_temperature=torch.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_calibrator_that_cannot_be_understood_is_an_error_that_names_it(bare, damage):
    save_calibrator(bare, temperature(), TAG)
    edit(bare, lambda section: damage(section["calibrators"][TAG]))
    with pytest.raises(SeguqError, match="'deterministic' in the checkpoint cannot be understood"):
        load(bare, network())


# --- weights that do not fit


def test_missing_weights_are_an_error_that_names_one_of_them_and_the_file(tmp_path):
    torch.save(altered(lambda s: s.pop("3.bias")), tmp_path / "a.pt")
    with pytest.raises(SeguqError, match=r"a\.pt does not fit the model: 1 of its 9 tensors .*'3\.bias'"):
        load(tmp_path / "a.pt", network())


def test_weights_of_another_network_are_an_error_that_names_a_tensor_of_each(bare):
    other = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), head=nn.Conv2d(4, 2, 1)))
    with pytest.raises(SeguqError, match=r"4 of its 4 tensors .*'stem\.weight'.*'0\.weight'"):
        load(bare, other)


def test_weights_of_another_size_are_an_error_that_names_the_tensor(bare):
    wider = network()
    wider[3] = nn.Conv2d(4, 5, 1)
    with pytest.raises(SeguqError, match=r"'3\.weight' has shape \(2, 4, 1, 1\) in the file, \(5, 4, 1, 1\) in"):
        load(bare, wider)


def test_weights_of_another_size_leave_the_model_as_it_was(bare):
    wider = network(seed=1)
    wider[3] = nn.Conv2d(4, 5, 1)
    before = copy.deepcopy(wider)
    with pytest.raises(SeguqError):
        load(bare, wider)
    assert same_weights(wider, before)


def test_a_count_of_batches_may_be_missing(tmp_path):
    torch.save(altered(lambda s: s.pop("1.num_batches_tracked")), tmp_path / "a.pt")
    assert same_weights(load(tmp_path / "a.pt", network(seed=1)), network())


def test_weights_that_the_model_has_no_place_for_are_an_error_that_names_one(tmp_path):
    deeper = nn.Sequential(*network(), nn.Conv2d(2, 2, 1))
    torch.save(deeper.state_dict(), tmp_path / "a.pt")
    with pytest.raises(SeguqError, match=r"4\.weight"):
        load(tmp_path / "a.pt", network())


def test_a_file_without_weights_is_an_error(tmp_path):
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(SeguqError, match=r"a\.pt holds no weights"):
        load(tmp_path / "a.pt", network())


def test_a_model_without_weights_is_an_error(bare):
    with pytest.raises(SeguqError, match="the model has no weights"):
        load(bare, nn.ReLU())


# --- files that are no checkpoint, or not to be trusted


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


# --- the file is written whole


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(bare, monkeypatch):
    before = bare.read_bytes()

    def fails_half_way(content, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(OSError, match="no space left"):
        save_calibrator(bare, temperature(), TAG)
    assert bare.read_bytes() == before
    assert names(bare.parent) == ["bare.pt"]


def test_a_save_leaves_nothing_beside_the_file(bare):
    save_calibrator(bare, temperature(), TAG)
    assert names(bare.parent) == ["bare.pt"]


def test_weights_that_are_in_the_file_twice_are_an_error_that_names_both(tmp_path):
    both = nn.ModuleDict({"ema": nn.Conv2d(3, 2, 1), "net": nn.Conv2d(3, 2, 1)})
    torch.save(both.state_dict(), tmp_path / "both.pt")
    with pytest.raises(SeguqError, match=r"more than once, as 'ema\.weight' and as 'net\.weight'"):
        load(tmp_path / "both.pt", nn.Conv2d(3, 2, 1))
