"""Dirichlet calibration, histogram binning and isotonic calibration, beside plain loops and other packages."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

import seguq
from seguq.calibration import Calibrator
from seguq.calibration.isotonic import pool_adjacent_violators
from tests.calibration.test_every_calibrator import batches_of, drawn

NAMES = ("dirichlet", "histogram", "isotonic")


@pytest.mark.parametrize("ridge", [1e0, 1e-4])
def test_dirichlet_calibration_is_the_minimum_that_lbfgs_finds(ridge, monkeypatch):
    monkeypatch.setattr(seguq.DirichletCalibration, "ridges", (ridge,))
    logits, target = drawn(1.7, shape=(2, 3, 15, 10))
    logits[:, 1] += 1.0  # so that biases have something to mend
    found = seguq.DirichletCalibration(3).fit([(logits, target)])
    rows, labels = logits.double().log_softmax(1).movedim(1, -1).flatten(0, 2).clamp_min(-20), target.flatten()
    weight, bias = (tensor.double().requires_grad_() for tensor in (torch.eye(3), torch.zeros(3)))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def loss():
        optimizer.zero_grad()
        beside = weight[~torch.eye(3, dtype=torch.bool)]
        penalty = ridge / 2 * (beside.square().mean() + bias.square().mean())
        value = torch.nn.functional.cross_entropy(rows @ weight.T + bias, labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    expected = (rows @ weight.T + bias).softmax(1)
    probs = found(logits).softmax(1).movedim(1, -1).flatten(0, 2)
    assert torch.allclose(probs.double(), expected, atol=1e-4)
    assert found.bias.abs().max() > 0.01


def test_histogram_binning_is_the_loop():
    logits, target = drawn(1.7, shape=(2, 3, 12, 12))
    found = seguq.HistogramBinning(3).fit([(logits, target)])
    probs = logits.softmax(1).movedim(1, -1).flatten(0, 2).numpy()
    labels = target.flatten().numpy()
    expected = np.zeros_like(probs)
    for k in range(3):
        bins = np.clip(np.ceil(probs[:, k] * 15).astype(int) - 1, 0, 14)
        for b in set(bins):
            inside = bins == b
            expected[inside, k] = ((labels[inside] == k).sum() + (b + 0.5) / 15) / (inside.sum() + 1)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(found(logits).softmax(1).movedim(1, -1).flatten(0, 2), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_pooling_adjacent_violators_gives_what_scikit_learn_gives(seed):
    random = np.random.default_rng(seed)
    values, weights = random.random(200).round(1), random.random(200) + 0.01
    expected = IsotonicRegression().fit_transform(np.arange(200), values, sample_weight=weights)
    found = pool_adjacent_violators(torch.from_numpy(values), torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_isotonic_calibration_is_near_scikit_learn_on_the_same_pixels():
    logits, target = drawn(1.7, shape=(4, 3, 100, 100))
    probs, labels = logits.softmax(1).movedim(1, -1).flatten(0, 2).numpy(), target.flatten().numpy()
    each = [
        IsotonicRegression(out_of_bounds="clip").fit_transform(probs[:, k], (labels == k).astype(float))
        for k in range(3)
    ]
    expected = np.stack(each, 1)
    expected /= expected.sum(1, keepdims=True)
    found = seguq.IsotonicCalibration(3).fit(batches_of(logits, target))(logits).softmax(1)
    difference = np.abs(found.movedim(1, -1).flatten(0, 2).numpy() - expected)
    uncalibrated = np.abs(probs - expected)
    assert difference.mean() < 0.005 < 0.02 < uncalibrated.mean()


def test_a_bin_without_pixels_keeps_the_probability_in_its_middle():
    found = seguq.HistogramBinning(2)
    before = found.levels.clone()
    found.fit([(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))])
    assert (found.levels != before).sum(1).tolist() == [1, 1]


def test_isotonic_levels_rise_and_are_probabilities_above_0_whatever_was_seen():
    logits, target = drawn(1.7, shape=(300, 3))
    for labels in (target, 2 - target, torch.zeros_like(target)):
        levels = seguq.IsotonicCalibration(3).fit([(logits, labels)]).levels
        assert (levels.diff(dim=1) >= 0).all()
        assert (levels > 0).all()
        assert (levels <= 1).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("low", [-1e4, torch.finfo(torch.float32).min, -3e38])
@pytest.mark.parametrize("pixels", [1, 50])
def test_all_stays_finite_with_the_smallest_floats(name, low, pixels):
    logits, target = drawn(1.7, shape=(pixels, 2))
    found = Calibrator.make(name, num_classes=2).fit([(logits, target)])
    extreme = torch.tensor([[low, 0.0], [0.0, low], [low, low], [-low, low], [0.0, 0.0]])
    for given in (found, Calibrator.make(name, num_classes=2).fit([(extreme, torch.tensor([1, 0, 1, 0, 1]))])):
        out = given(extreme)
        assert out.isfinite().all()
        assert given.summary().pixels in (pixels, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_public_docstring_says_that_it_is_for_comparison(name):
    found = Calibrator.named(name)
    assert getattr(seguq, found.__name__) is found
    assert "For comparison only" in found.__doc__
    assert not found.order_preserving


def test_many_classes_of_dirichlet_calibration_are_warned_of():
    with pytest.warns(UserWarning, match="21 classes has 462 parameters"):
        seguq.DirichletCalibration(21)
