"""Hashes that are remembered: what is seen of a change, and that nothing is computed where there was none."""

import copy
import pickle

import pytest
import torch
from torch import nn

import seguq
from seguq.weights import hashes, weights_sha256
from seguq.weights.hashes import WeightHashes


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


@pytest.fixture
def computed(monkeypatch):
    """The models whose weights were hashed in full."""
    seen = []
    monkeypatch.setattr(hashes, "weights_sha256", lambda model: seen.append(model) or weights_sha256(model))
    return seen


def no_grad(change):
    def changed(model):
        with torch.no_grad():
            change(model)

    return changed


def a_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(1, 3, 4, 4)).sum().backward()
    optimizer.step()


def through_numpy(model):
    weight = model[0].weight.detach().numpy()
    weight *= 2


CHANGES = {
    "an optimizer's step": a_step,
    "one value": no_grad(lambda model: model[0].weight[0, 0, 0].add_(1)),
    "other weights loaded": lambda model: model.load_state_dict(network(1).state_dict()),
    "other tensors loaded": lambda model: model.load_state_dict(network(1).state_dict(), assign=True),
    "a buffer": no_grad(lambda model: model[1].running_mean.add_(1)),
    "another layer": lambda model: model.insert(3, nn.Conv2d(8, 8, 1)),
    "another precision": lambda model: model.double(),
    "a parameter of the same values in another shape": lambda model: setattr(
        model[0].weight, "data", model[0].weight.data.view(8, 27, 1, 1)
    ),
    "all of a tensor through .data": lambda model: model[0].weight.data.mul_(2),
    "a tensor put into .data": lambda model: setattr(model[0].weight, "data", model[0].weight.data * 2),
    "all of a tensor through numpy": through_numpy,
    "one value through .data": lambda model: model[0].weight.data[3, 1, 2, 0].add_(1),
    "a bias through .data": lambda model: model[3].bias.data.add_(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change):
    hash_of, model = WeightHashes(), network()
    before = hash_of(model)
    change(model)
    assert hash_of(model) == weights_sha256(model) != before


def test_of_a_large_tensor_a_change_of_all_of_it_through_data_is_seen():
    hash_of, model = WeightHashes(), nn.Linear(300, 300)
    before = hash_of(model)
    model.weight.data.mul_(1.01)
    assert hash_of(model) == weights_sha256(model) != before


def test_tensors_that_come_and_go_in_one_place_are_told_apart():
    hash_of, model = WeightHashes(), network()
    for seed in range(20):
        model[0].weight = nn.Parameter(torch.full((8, 3, 3, 3), float(seed)))
        assert hash_of(model) == weights_sha256(model)


UNCHANGED = {
    "nothing": lambda model: None,
    "a pass": lambda model: model(torch.rand(1, 3, 4, 4)),
    "the mode": lambda model: model.train(),
    "a count of batches": lambda model: model[1].num_batches_tracked.add_(1),
    "a gradient": lambda model: model(torch.rand(1, 3, 4, 4)).sum().backward(),
}


@pytest.mark.parametrize("act", UNCHANGED.values(), ids=UNCHANGED)
def test_without_a_change_nothing_is_computed_again(act, computed):
    hash_of, model = WeightHashes(), network()
    before = hash_of(model)
    act(model)
    assert hash_of(model) == before
    assert computed == [model]


def test_each_model_has_its_own_hash(computed):
    hash_of, models = WeightHashes(), [network(0), network(1)]
    assert [hash_of(model) for model in models * 2] == [weights_sha256(model) for model in models] * 2
    assert len(computed) == 2


def test_a_model_that_is_gone_is_forgotten():
    hash_of, model = WeightHashes(), network()
    hash_of(model)
    del model
    assert not hash_of._known


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_remembers_nothing(copied, computed):
    hash_of, model = WeightHashes(), network()
    hash_of(model)
    copied(hash_of)(model)
    assert len(computed) == 2


def test_tensors_of_any_strides_have_a_hash():
    hash_of, model = WeightHashes(), network().to(memory_format=torch.channels_last)
    model.register_buffer("spread", torch.ones(1, 4).expand(3, 4))
    model.register_buffer("empty", torch.ones(0))
    before = hash_of(model)
    assert before == weights_sha256(model)
    model[0].weight.data.add_(1)
    assert hash_of(model) != before


def test_tensors_made_under_inference_mode_are_hashed_each_time():
    with torch.inference_mode():
        model = network()
        before = WeightHashes()(model)
        model[0].weight.add_(1)
        assert WeightHashes()(model) != before


def test_an_estimator_hashes_its_weights_once_for_many_calls(computed):
    members = [network(0), network(1)]
    est = seguq.DeepEnsemble(members)
    est.calibrate(seguq.TemperatureScaling(), [(torch.rand(2, 3, 4, 4), torch.randint(2, (2, 4, 4)))])
    for _ in range(3):
        est(torch.rand(1, 3, 4, 4))
    assert computed == members
