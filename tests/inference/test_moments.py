"""The Gaussian of SWAG, against numpy and against the paper's covariance."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from seguq.core.errors import SeguqError, UsageError
from seguq.inference.moments import WeightMoments


def trajectory(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=generator) * 0.5 + 4 for _ in range(count)]


def collected(values, rank=20, model=None):
    model = model or nn.Linear(2, 3, bias=False)
    moments = WeightMoments(rank)
    for value in values:
        model.weight.data.copy_(value)
        moments.add(model)
    return moments


def deviations_from_the_running_mean(values):
    """What the paper's algorithm 1 appends to D, one row each, in double precision."""
    stacked = np.stack([value.double().numpy().ravel() for value in values])
    return np.stack([stacked[i] - stacked[: i + 1].mean(0) for i in range(len(stacked))])


@pytest.mark.parametrize("count", [2, 5, 40])
def test_mean_and_variance_are_those_of_all_weights(count):
    values = trajectory(count)
    moments = collected(values)
    stacked = np.stack([value.double().numpy() for value in values])
    np.testing.assert_allclose(moments.mean["weight"], stacked.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance("weight"), stacked.var(0), rtol=1e-4)


def test_the_columns_are_the_last_deviations_from_the_running_mean():
    values = trajectory(9)
    held = collected(values, rank=4).state()["deviations"]["weight"]
    expected = deviations_from_the_running_mean(values)[-4:]
    np.testing.assert_allclose(np.stack([column.numpy().ravel() for column in held]), expected, atol=1e-6)


def empirical(moments, draws=40_000):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([moments.sample(generator)["weight"].flatten() for _ in range(draws)]).double()
    return drawn.mean(0), torch.cov(drawn.T)


@pytest.mark.parametrize(("count", "rank"), [(12, 4), (3, 20), (12, 0)])
def test_draws_have_the_covariance_of_the_paper(count, rank):
    values = trajectory(count)
    moments = collected(values, rank)
    mean, covariance = empirical(moments)
    diagonal = np.diag(np.stack([value.double().numpy().ravel() for value in values]).var(0))
    expected = diagonal
    if rank:
        columns = deviations_from_the_running_mean(values)[-rank:]
        expected = (diagonal + columns.T @ columns / (len(columns) - 1)) / 2
    error = 6 * np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / 40_000)
    assert (np.abs(covariance.numpy() - expected) < error).all()
    assert (np.abs(mean.numpy() - moments.mean["weight"].numpy().ravel()) < 6 * np.sqrt(np.diag(expected) / 4e4)).all()


def test_a_parameter_that_never_moved_is_held_once_and_never_drawn():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    moments = WeightMoments(3)
    for value in range(4):
        model[1].weight.data.fill_(value)
        moments.add(model)
    assert moments.moved == ("1.weight",)
    assert set(moments.sample(torch.Generator())) == {"1.weight"}
    assert set(moments.state()["deviations"]) == {"1.weight"}


def test_a_parameter_that_begins_to_move_late_is_as_if_it_had_been_followed_from_the_start():
    values = [torch.full((3, 2), 1.5)] * 3 + trajectory(3)
    moments = collected(values, rank=5)
    stacked = np.stack([value.double().numpy() for value in values])
    np.testing.assert_allclose(moments.variance("weight"), stacked.var(0), rtol=1e-4)
    held = np.stack([column.numpy().ravel() for column in moments.state()["deviations"]["weight"]])
    np.testing.assert_allclose(held, deviations_from_the_running_mean(values)[-5:], atol=1e-5)


def test_half_precision_weights_are_summed_in_single_precision():
    model = nn.Linear(2, 3, bias=False).bfloat16()
    values = trajectory(30)
    moments = collected(values, model=model)
    rounded = np.stack([value.bfloat16().double() for value in values])
    assert moments.mean["weight"].dtype == torch.float32
    np.testing.assert_allclose(moments.mean["weight"], rounded.mean(0), rtol=1e-5)


def test_adding_changes_nothing_that_was_handed_out():
    moments = collected(trajectory(3))
    before = moments.state()
    copies = {name: value.clone() for name, value in before["mean"].items()}
    moments.add(nn.Linear(2, 3, bias=False))
    assert torch.equal(before["mean"]["weight"], copies["weight"])
    assert len(before["deviations"]["weight"]) == 3


def test_its_state_passes_through_a_file_that_runs_nothing():
    moments = collected(trajectory(6), rank=4)
    file = io.BytesIO()
    torch.save(moments.state(), file)
    file.seek(0)
    again = WeightMoments.from_state(torch.load(file, weights_only=True))
    one, other = (each.sample(torch.Generator().manual_seed(3))["weight"] for each in (moments, again))
    assert torch.equal(one, other)


def test_a_parameter_with_two_names_is_held_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)})
    model["b"].weight = model["a"].weight
    moments = WeightMoments()
    moments.add(model)
    assert moments.aliases == {"b.weight": "a.weight"}
    assert "b.weight" not in moments.mean


@pytest.mark.parametrize("rank", [-1, 1, 2.0, True, "20"])
def test_a_rank_that_is_none_is_refused(rank):
    with pytest.raises(UsageError, match="rank must be 0"):
        WeightMoments(rank)


def test_weights_that_hold_nan_are_refused_and_leave_what_was_collected():
    moments = collected(trajectory(3))
    mean = moments.mean["weight"].clone()
    model = nn.Linear(2, 3, bias=False)
    model.weight.data[0, 0] = math.nan
    with pytest.raises(SeguqError, match="'weight': the training has diverged"):
        moments.add(model)
    assert moments.count == 3
    assert torch.equal(moments.mean["weight"], mean)


def test_weights_of_another_model_are_refused():
    with pytest.raises(SeguqError, match="another model"):
        collected(trajectory(2)).add(nn.Linear(4, 3, bias=False))


def test_one_set_of_weights_cannot_be_drawn_from():
    with pytest.raises(SeguqError, match="at least 2 moments of a training, but 1 were collected"):
        collected(trajectory(1)).sample(torch.Generator())


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("mean"),
        lambda state: state.update(rank="a"),
        lambda state: state["squares"].clear(),
        lambda state: state["deviations"]["weight"].pop(),
        lambda state: state["squares"].update(weight=torch.zeros(7)),
        lambda state: state["aliases"].update(other="nothing"),
    ],
)
def test_a_damaged_state_is_told_in_one_sentence(damage):
    state = collected(trajectory(4)).state()
    damage(state)
    with pytest.raises(SeguqError, match="collected for SWAG is damaged"):
        WeightMoments.from_state(state)
