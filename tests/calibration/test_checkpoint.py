import copy
import errno
import math
import warnings
from collections import OrderedDict

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seguq.calibration import TemperatureScaling, load
from seguq.calibration.checkpoint import KEY, save_calibrator
from seguq.core.errors import SeguqError
from seguq.weights import read_checkpoint, weights_sha256

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


def with_names(change):
    return {change(name): tensor for name, tensor in network().state_dict().items()}


def altered(change):
    state = network().state_dict()
    change(state)
    return state


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
    "a temperature beyond all bounds": lambda packed: packed["tensors"].update(log_temperature=torch.tensor(1e30)),
    "a complex temperature": lambda packed: packed["tensors"].update(log_temperature=torch.tensor(1j)),
    "a temperature of whole numbers": lambda packed: packed["tensors"].update(log_temperature=torch.tensor(1)),
    "a number in the place of a tensor": lambda packed: packed["tensors"].update(log_temperature=0.5),
    "arguments that are none": lambda packed: packed.update(arguments=5),
    "tensors that are none": lambda packed: packed.update(tensors=None),
    "a step that is text": lambda packed: packed.update(global_step="one"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_calibrator_that_cannot_be_understood_is_an_error_that_names_it(bare, damage):
    save_calibrator(bare, temperature(), TAG)
    edit(bare, lambda section: damage(section["calibrators"][TAG]))
    with pytest.raises(SeguqError, match=r"'deterministic' in the checkpoint (is damaged|cannot be understood)"):
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


# --- the file is written whole


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(bare, monkeypatch):
    before = bare.read_bytes()

    def fails_half_way(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(OSError, match=str(bare)):
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
