"""SWAG: draws against the closed form of a linear model, statistics renewed against numpy, and what is refused."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import seguq
from seguq.core.errors import SeguqError, UsageError
from seguq.inference.moments import WeightMoments
from seguq.weights import weights_sha256


def trained(model, count=8, rank=5, seed=0, scale=0.1):
    """Moments along a random walk of a model's weights, which ends with the model itself."""
    generator = torch.Generator().manual_seed(seed)
    moments = WeightMoments(rank)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * scale)
        moments.add(model)
    return moments


def written(path, model, moments):
    torch.save({"state_dict": model.state_dict(), "seguq": {"version": 1, "swag": moments.state()}}, path)
    return path


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(3, 2, 1)


def normalized(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def images(count=2, size=6, seed=5):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_logits_of_a_linear_model_have_the_gaussian_of_the_closed_form(tmp_path):
    model = linear()
    moments = trained(model)
    est = seguq.SWAG(model, written(tmp_path / "a.ckpt", model, moments), samples=4000, calibrator=None)
    x = images(1, 2)
    logs = torch.stack([probs.log() for probs in est.samples(x)]).double()
    margins = (logs[:, 0, 1] - logs[:, 0, 0]).flatten(1)  # z1 - z0 at four pixels: linear in the weights
    rows = x[0].flatten(1).T.double()
    jacobian = torch.cat([-rows, rows, -torch.ones(4, 1), torch.ones(4, 1)], 1)
    state = moments.state()
    columns = torch.stack(
        [torch.cat([state["deviations"][n][k].flatten() for n in ("weight", "bias")]) for k in range(5)]
    )
    diagonal = torch.cat([moments.variance(name).flatten() for name in ("weight", "bias")]).double()
    covariance = (diagonal.diag() + columns.double().T @ columns.double() / 4) / 2
    expected = jacobian @ covariance @ jacobian.T
    mean = jacobian @ torch.cat([moments.mean[name].flatten() for name in ("weight", "bias")]).double()
    spread = expected.diag().sqrt()
    assert ((margins.mean(0) - mean).abs() < 5 * spread / 4000**0.5).all()
    assert ((torch.cov(margins.T) - expected).abs() < 5 * spread[:, None] * spread * (2 / 4000) ** 0.5).all()


def test_a_sample_is_the_model_with_the_weights_drawn_for_it(tmp_path):
    model = linear()
    moments = trained(model)
    est = seguq.SWAG(model, written(tmp_path / "a.ckpt", model, moments), samples=3, seed=7, calibrator=None)
    x = images()
    for sample, probs in enumerate(est.samples(x)):
        drawn = moments.sample(torch.Generator().manual_seed(seguq.core.seeds.derive_seed(7, sample)))
        one = linear()
        one.load_state_dict(drawn)
        assert torch.equal(probs, torch.softmax(one(x), 1))


def test_the_same_seed_gives_the_same_answer_and_leaves_the_global_generator(tmp_path):
    model = linear()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    before = torch.get_rng_state()
    one, again = (seguq.SWAG(model, file, samples=4, seed=1, calibrator=None)(images()) for _ in range(2))
    other = seguq.SWAG(model, file, samples=4, seed=2, calibrator=None)(images())
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one["mutual_information"], again["mutual_information"])
    assert not torch.equal(one["mutual_information"], other["mutual_information"])


def test_draws_that_are_not_kept_are_drawn_again(tmp_path, monkeypatch):
    model = normalized()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    batches = [images(4, seed=seed) for seed in range(2)]
    kept = seguq.SWAG(model, file, samples=5, bn_batches=batches, calibrator=None)
    monkeypatch.setattr("seguq.inference.swag._KEPT_BYTES", 1200)  # two draws
    some = seguq.SWAG(model, file, samples=5, bn_batches=batches, calibrator=None)
    assert (len(kept._kept), len(some._kept)) == (5, 2)
    for one, other in zip(kept.samples(images()), some.samples(images()), strict=True):
        assert torch.equal(one, other)


def test_statistics_are_those_of_the_batches_under_the_weights_of_each_sample(tmp_path):
    model = normalized()
    est = seguq.SWAG(
        model,
        written(tmp_path / "a.ckpt", model, trained(model)),
        samples=2,
        bn_batches=[(images(4, seed=1), torch.zeros(4, 6, 6)), (images(2, seed=2), None)],
        calibrator=None,
    )
    for sample in range(2):
        first = nn.Conv2d(3, 4, 3)
        first.load_state_dict({name: est._kept[sample][f"0.{name}"] for name in ("weight", "bias")})
        seen = [first(images(count, seed=seed)).detach().double().numpy() for count, seed in ((4, 1), (2, 2))]
        means = [values.mean((0, 2, 3)) for values in seen]
        variances = [values.var((0, 2, 3), ddof=1) for values in seen]
        found = est._statistics[sample]
        np.testing.assert_allclose(found["1.running_mean"], (4 * means[0] + 2 * means[1]) / 6, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["1.running_var"], (4 * variances[0] + 2 * variances[1]) / 6, rtol=1e-4)


def test_the_mean_model_has_the_mean_weights_and_statistics_of_its_own(tmp_path):
    model = normalized()
    moments = trained(model)
    batches = [images(4, seed=1)]
    est = seguq.SWAG(
        model, written(tmp_path / "a.ckpt", model, moments), samples=2, bn_batches=batches, calibrator=None
    )
    mean = est.mean_model
    assert torch.equal(mean[0].weight, moments.mean["0.weight"])
    seen = mean[0](batches[0])
    torch.testing.assert_close(mean[1].running_mean, seen.mean((0, 2, 3)))
    assert mean[1].momentum == 0.1


def test_the_model_that_is_passed_stays_as_it_is(tmp_path):
    model = normalized().train()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    for parameter in model.parameters():
        parameter.data.zero_()
    before, state = weights_sha256(model), [part.training for part in model.modules()]
    seguq.SWAG(model, file, samples=2, bn_batches=[images(4)], calibrator=None)(images())
    assert weights_sha256(model) == before
    assert [part.training for part in model.modules()] == state


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.twin = self.network.head = linear()  # one layer under two names
        self.scale = nn.Parameter(torch.ones(1))


def test_a_part_of_the_module_that_was_trained_takes_its_weights(tmp_path):
    whole = Whole()
    moments = trained(whole)
    assert moments.aliases == {"network.head.weight": "network.twin.weight", "network.head.bias": "network.twin.bias"}
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("network.twin")}
    torch.save({"state_dict": state, "seguq": {"version": 1, "swag": moments.state()}}, tmp_path / "a.ckpt")
    est = seguq.SWAG(linear(3), tmp_path / "a.ckpt", samples=2, calibrator=None)
    assert torch.equal(est.mean_model.weight, moments.mean["network.twin.weight"])
    assert est(images())["mutual_information"].min() > 0


def test_a_frozen_part_keeps_its_weights(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), linear())
    moments = WeightMoments(4)
    for value in range(4):
        nn.init.constant_(model[1].bias, value)
        moments.add(model)
    est = seguq.SWAG(model, written(tmp_path / "a.ckpt", model, moments), samples=2, calibrator=None)
    assert set(est._kept[0]) == {"1.bias"}
    assert torch.equal(est.mean_model[0].weight, model[0].weight)


def test_two_threads_at_once_get_what_one_gets(tmp_path):
    model = normalized()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    est = seguq.SWAG(model, file, samples=6, bn_batches=[images(4)], calibrator=None)
    expected = est(images())["mutual_information"]
    found = []
    threads = [
        threading.Thread(target=lambda: [found.append(est(images())["mutual_information"]) for _ in range(10)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(values, expected) for values in found)


def test_a_draw_in_half_precision_and_inference_mode(tmp_path):
    model = normalized()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    with torch.inference_mode():
        est = seguq.SWAG(copy.deepcopy(model).bfloat16(), file, samples=3, bn_batches=[images(4)], calibrator=None)
        maps = est(images())
    assert maps.probs.dtype == torch.float32
    assert torch.isfinite(maps["mutual_information"]).all()
    full = seguq.SWAG(model, file, samples=3, bn_batches=[images(4)], calibrator=None)(images())
    assert (maps.probs - full.probs).abs().max() < 0.03


def test_members_of_an_ensemble_may_be_swag(tmp_path):
    files = [written(tmp_path / f"{seed}.ckpt", model, trained(model)) for seed in (0, 1) for model in [linear(seed)]]
    members = [seguq.SWAG(linear(), file, samples=3, calibrator=None) for file in files]
    ensemble = seguq.DeepEnsemble(members, calibrator=None)
    probs = torch.stack([probs for member in members for probs in member.samples(images())])
    torch.testing.assert_close(
        ensemble(images())["mutual_information"], seguq.functional.mutual_information(probs), atol=1e-6, rtol=1e-4
    )
    assert ensemble.describe()["passes"] == 6


def test_a_calibrator_is_fitted_for_it_and_comes_back_from_its_file(tmp_path):
    model = linear()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    est = seguq.SWAG(model, file, samples=3)
    assert est.tag == "swag(collected=8, rank=5)"
    masks = torch.randint(2, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    fitted = est.calibrate(seguq.TemperatureScaling(), [(images(), masks)])
    seguq.calibration.checkpoint.save_calibrator(file, fitted, est.tag)
    again = seguq.SWAG(model, file, samples=3)
    assert torch.equal(est(images()).probs, again(images()).probs)
    raw = seguq.SWAG(model, file, samples=3, calibrator=None)
    assert not torch.equal(raw(images()).probs, again(images()).probs)


def test_a_checkpoint_without_anything_for_it(tmp_path):
    torch.save({"state_dict": linear().state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(SeguqError, match=r"a\.ckpt holds nothing for SWAG: train with seguq.callbacks.SWAG"):
        seguq.SWAG(linear(), tmp_path / "a.ckpt")


def test_a_checkpoint_with_too_little(tmp_path):
    model = linear()
    with pytest.raises(SeguqError, match="but 1 were collected"):
        seguq.SWAG(model, written(tmp_path / "a.ckpt", model, trained(model, count=1)))


def test_a_checkpoint_of_another_model(tmp_path):
    file = written(tmp_path / "a.ckpt", linear(), trained(linear()))
    with pytest.raises(SeguqError, match=r"a\.ckpt does not fit the model"):
        seguq.SWAG(nn.Conv2d(4, 2, 1), file)


def test_weights_that_were_collected_from_another_model(tmp_path):
    file = written(tmp_path / "a.ckpt", linear(), trained(nn.Conv2d(4, 2, 1)))
    with pytest.raises(SeguqError, match="SWAG collected nothing like its 'weight'"):
        seguq.SWAG(linear(), file)


def test_layers_with_statistics_need_batches(tmp_path):
    model = normalized()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    with pytest.raises(UsageError, match=r"such as '1'.*pass bn_batches="):
        seguq.SWAG(model, file)
    with pytest.raises(UsageError, match="bn_batches has no images"):
        seguq.SWAG(model, file, bn_batches=[])
    with pytest.raises(SeguqError, match="read only once"):
        seguq.SWAG(model, file, bn_batches=iter([images(4)]))


def test_a_batch_of_one_that_is_too_small_for_a_layer(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Upsample(6))
    file = written(tmp_path / "a.ckpt", model, trained(model))
    with pytest.raises(UsageError, match="a batch of 1, which is too small"):
        seguq.SWAG(model, file, bn_batches=[images(1)])
    assert seguq.SWAG(model, file, bn_batches=[images(2)], calibrator=None)(images(1)).probs.shape == (1, 2, 6, 6)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True])
def test_a_number_of_samples_that_is_none(tmp_path, samples):
    with pytest.raises(UsageError, match="samples must be a whole number"):
        seguq.SWAG(linear(), tmp_path / "a.ckpt", samples=samples)


def test_a_calibrator_is_not_applied_to_other_statistics(tmp_path):
    model = normalized()
    file = written(tmp_path / "a.ckpt", model, trained(model))
    masks = torch.randint(2, (4, 6, 6), generator=torch.Generator().manual_seed(0))
    est = seguq.SWAG(model, file, samples=2, bn_batches=[images(4)])
    fitted = est.calibrate(seguq.TemperatureScaling(), [(images(4), masks)])
    seguq.calibration.checkpoint.save_calibrator(file, fitted, est.tag)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = seguq.SWAG(model, file, samples=2, bn_batches=[images(4)])
        assert torch.equal(again(images()).probs, est(images()).probs)
    other = seguq.SWAG(model, file, samples=2, bn_batches=[images(4, seed=8)])
    with pytest.warns(UserWarning, match="is not applied: it was fitted for other weights"):
        other(images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_no_numbers_are_refused(tmp_path, value):
    model = linear()
    moments = trained(model)
    moments.mean["weight"][0, 0] = value
    with pytest.raises(SeguqError, match="the parts of 'weight' are no finite numbers"):
        seguq.SWAG(model, written(tmp_path / "a.ckpt", model, moments))


def test_made_under_inference_mode_it_works_outside(tmp_path):
    network, checkpoint = nn.Conv2d(3, 2, 1), tmp_path / "swag.ckpt"
    written(checkpoint, network, trained(network))
    with torch.inference_mode():
        est = seguq.SWAG(network, checkpoint, samples=3, calibrator=None)
    expected = seguq.SWAG(network, checkpoint, samples=3, calibrator=None)(torch.ones(1, 3, 4, 4))
    assert torch.equal(est(torch.ones(1, 3, 4, 4)).probs, expected.probs)


@pytest.mark.parametrize("seed", [None, 1.5, "a", True])
def test_a_seed_that_is_no_whole_number_is_refused(seed, tmp_path):
    with pytest.raises(SeguqError, match="seed must be a whole number"):
        seguq.SWAG(nn.Conv2d(3, 2, 1), tmp_path / "swag.ckpt", seed=seed)


def test_without_a_checkpoint_or_a_model_it_waits_and_says_so():
    with pytest.raises(UsageError, match="SWAG needs checkpoint"):
        seguq.SWAG(nn.Conv2d(3, 2, 1))
    for est, told in ((seguq.SWAG(), "SWAG needs checkpoint"), (seguq.SWAG(None, "a.ckpt"), "SWAG has no model")):
        assert est.unbound
        with pytest.raises(SeguqError, match=told):
            est(torch.rand(1, 3, 16, 16))
