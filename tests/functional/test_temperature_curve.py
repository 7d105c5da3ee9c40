"""Sums along a grid of temperatures, against a softmax at each of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from seguq.core.memory import Workspace
from seguq.functional import temperature_curve as curves
from seguq.functional.calibration import expected_calibration_error, top1_calibration_bins
from seguq.functional.temperature_curve import (
    BINNED_LOG_BETAS,
    LOG_BETAS,
    curve_calibration_error,
    curve_nll,
    curve_slope,
    temperature_curve,
)

AT_ONE = BINNED_LOG_BETAS.index(0.0)


def problem(classes=4, shape=(3, 9, 11), scale=3.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    target = torch.randint(classes, shape, generator=generator)
    right = torch.rand(shape, generator=generator) < 0.7
    target = torch.where(right, logits.argmax(1), target)
    target[torch.rand(shape, generator=generator) < 0.1] = 255
    return logits.to(dtype), target


def slow(logits, target, log_beta):
    """NLL, its derivative along beta, and the gap of each bin, from a softmax in double precision."""
    beta = torch.tensor(math.exp(log_beta), dtype=torch.float64, requires_grad=True)
    nll = F.cross_entropy(logits.double() * beta, target, ignore_index=255, reduction="sum")
    (slope,) = torch.autograd.grad(nll, beta)
    _, confidence, correct = top1_calibration_bins((logits.double() * beta).softmax(1).detach(), target).sum(0)
    return float(nll), float(slope), confidence - correct


@pytest.fixture(params=["at once", "in small parts", "in single precision"])
def size(request, monkeypatch):
    if request.param != "at once":
        monkeypatch.setattr(curves, "_SMALL", 0)
    if request.param == "in small parts":
        monkeypatch.setattr(curves, "_CPU_VALUES", 37 * 67)


@pytest.mark.parametrize("classes", [2, 3, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_point_of_the_grid_is_that_of_a_softmax(size, classes, dtype):
    logits, target = problem(classes, dtype=dtype)
    sums = temperature_curve(logits, target)
    assert float(sums.pixels) == int((target != 255).sum())
    for k, log_beta in enumerate(LOG_BETAS):
        nll, slope, gaps = slow(logits, target, log_beta)
        assert float(sums.nll[k]) == pytest.approx(nll, rel=1e-5)
        if k % 2 == 0:
            assert float(sums.slope[k // 2]) == pytest.approx(slope, rel=1e-4, abs=2e-3)
        if log_beta in BINNED_LOG_BETAS:
            assert torch.allclose(sums.gaps[BINNED_LOG_BETAS.index(log_beta)], gaps, atol=2e-3)


def test_the_grid_spans_the_bounds_of_the_temperature_with_one_in_its_middle():
    assert LOG_BETAS[0] < -math.log(20) and math.log(20) < LOG_BETAS[-1]
    assert LOG_BETAS[len(LOG_BETAS) // 2] == 0


def test_confidences_are_binned_at_1_at_the_ends_and_in_steps_of_a_quarter_power_of_2_around_1():
    assert 0.0 in BINNED_LOG_BETAS
    assert (BINNED_LOG_BETAS[0], BINNED_LOG_BETAS[-1]) == pytest.approx((LOG_BETAS[0], LOG_BETAS[-1]))
    fine = [log_beta for log_beta in BINNED_LOG_BETAS if -math.log(5.7) < log_beta < math.log(2.9)]
    steps = torch.tensor(fine).diff()
    assert torch.allclose(steps, torch.full_like(steps, math.log(2) / 4))


@pytest.mark.parametrize(("classes", "bound"), [(2, 2e-4), (19, 4e-3), (150, 2e-2)])
def test_confidences_between_the_points_of_classes_at_one_distance_are_within_the_bound(classes, bound):
    distances = 10 ** torch.linspace(-3, 4, 5000, dtype=torch.float64)

    def confidences(log_betas):
        return torch.stack([1 / (1 + (classes - 1) * torch.exp(-math.exp(x) * distances)) for x in log_betas])

    found = curves._confidences(confidences(LOG_BETAS), Workspace(distances, len(distances)))[curves._ORDER_BINNED]
    assert (found - confidences(BINNED_LOG_BETAS)).abs().max() < bound


def test_of_tied_logits_the_first_is_the_prediction():
    logits = torch.zeros(1, 3, 1, 4)
    sums = temperature_curve(logits, torch.tensor([[[0, 1, 2, 255]]]), n_bins=3)
    assert sums.gaps[AT_ONE].tolist() == pytest.approx([1.0 - 1, 0, 0], abs=1e-6)  # three thirds, and one that is right


def test_ties_of_half_precision_logits_count_as_in_the_bins(size):
    logits, target = problem(5, scale=1.0)
    logits = logits.to(torch.bfloat16).float()
    assert (logits == logits.amax(1, keepdim=True)).sum(1).max() > 1
    assert torch.allclose(temperature_curve(logits, target).gaps[AT_ONE], slow(logits, target, 0.0)[2], atol=1e-4)


def test_a_class_that_is_ruled_out_by_the_smallest_float_does_no_harm(size):
    logits, target = problem(3)
    logits[:, 2] = torch.finfo(torch.float32).min
    target = target.clamp(max=1).where(target != 255, target)
    whole, without = temperature_curve(logits, target), temperature_curve(logits[:, :2], target)
    for one, other in zip(whole, without, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-5)


def test_a_ruled_out_class_that_is_right_leaves_every_sum_finite(size):
    logits, target = problem(3)
    logits[:, 2] = torch.finfo(torch.float32).min
    assert (target == 2).any()
    assert all(bool(torch.isfinite(item).all()) for item in temperature_curve(logits, target))


@pytest.mark.parametrize("ignore_index", [-100, 0, 2])
def test_another_value_can_be_left_out(size, ignore_index):
    logits, target = problem()
    other = target.where(target != 255, torch.tensor(ignore_index))
    left_out = target.where(other != ignore_index, torch.tensor(255))
    for one, two in zip(temperature_curve(logits, other, ignore_index=ignore_index),
                        temperature_curve(logits, left_out), strict=True):  # fmt: skip
        assert torch.equal(one, two)


def test_without_an_ignore_index_every_pixel_counts(size):
    logits, target = problem()
    target = target.clamp(max=3)
    sums = temperature_curve(logits, target, ignore_index=None)
    assert float(sums.pixels) == target.numel()
    assert float(sums.nll[9]) == pytest.approx(slow(logits, target, 0.0)[0], rel=1e-5)


def test_no_labeled_pixel_gives_nothing(size):
    logits, target = problem()
    assert all(not item.any() for item in temperature_curve(logits, torch.full_like(target, 255)))


@pytest.mark.parametrize("shape", [(0, 9, 11), (5,), (2, 3, 4, 5)], ids=str)
def test_images_of_any_dimensions_are_one_list_of_pixels(size, shape):
    logits, target = problem(shape=shape)
    flat = temperature_curve(logits.movedim(1, -1).reshape(-1, 4), target.flatten())
    for one, two in zip(temperature_curve(logits, target), flat, strict=True):
        assert torch.allclose(one, two, rtol=1e-9)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 100])
def test_the_number_of_bins_is_that_of_the_metric(size, n_bins):
    logits, target = problem()
    _, confidence, correct = top1_calibration_bins(logits.double().softmax(1), target, n_bins=n_bins).sum(0)
    assert torch.allclose(temperature_curve(logits, target, n_bins).gaps[AT_ONE], confidence - correct, atol=1e-4)


def test_logits_are_left_as_they_were(size):
    logits, target = problem()
    before = logits.clone(), target.clone()
    temperature_curve(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


def test_adding_one_number_to_all_logits_of_a_pixel_changes_nothing(size):
    logits, target = problem(dtype=torch.float64)
    shifted = logits + 100 * torch.randn(3, 1, 9, 11, dtype=torch.float64)
    for one, two in zip(temperature_curve(logits, target), temperature_curve(shifted, target), strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-5)


def test_parts_add_up():
    logits, target = problem(shape=(4, 8, 8))
    parts = [temperature_curve(logits[i : i + 1], target[i : i + 1]) for i in range(4)]
    for whole, *pieces in zip(temperature_curve(logits, target), *parts, strict=True):
        assert torch.allclose(whole, torch.stack(pieces).sum(0))


STEEP = (-math.log(5.65), math.log(2.82))  # where bins are counted in small steps
BOUNDS = {2: 1e-5, 19: 1e-3, 150: 1e-2}  # of the docstring; a third between T = 1/8 and 8


def nll_bound(classes, log_beta, value):
    return BOUNDS[classes] / (3 if abs(log_beta) < math.log(8) else 1) + 5e-8 * value


@pytest.mark.parametrize("classes", BOUNDS)
@pytest.mark.parametrize("gap", [10 ** (k / 8) for k in range(-16, 25)])
def test_between_the_points_the_likelihood_of_classes_at_one_distance_is_within_its_bound(classes, gap):
    logits = torch.cat([torch.zeros(1, 1), torch.full((1, classes - 1), -gap)], 1).double()
    right, wrong = (temperature_curve(logits, torch.tensor([label])) for label in (0, 1))
    for log_beta in torch.linspace(-2.99, 2.99, 42).tolist():
        beta = math.exp(log_beta)
        expected = math.log1p((classes - 1) * math.exp(-beta * gap))
        assert abs(curve_nll(right, log_beta) - expected) <= nll_bound(classes, log_beta, expected)
        expected += beta * gap
        assert abs(curve_nll(wrong, log_beta) - expected) <= nll_bound(classes, log_beta, expected)


@pytest.mark.parametrize("classes", BOUNDS)
@given(seed=st.integers(0, 2**31), scale=st.floats(-2, 3), power=st.floats(0.1, 3), log_beta=st.floats(-2.99, 2.99))
@settings(max_examples=150, deadline=None)
def test_between_the_points_the_likelihood_of_any_pixel_is_within_its_bound(classes, seed, scale, power, log_beta):
    generator = torch.Generator().manual_seed(seed)
    logits = -(10**scale) * torch.rand(1, classes, generator=generator, dtype=torch.float64) ** power
    target = torch.randint(classes, (1,), generator=generator)
    expected = slow(logits, target, log_beta)[0]
    found = curve_nll(temperature_curve(logits, target), log_beta)
    assert abs(found - expected) <= nll_bound(classes, log_beta, expected)


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 9), scale=st.floats(0.1, 20), log_beta=st.floats(-2.99, 2.99))
@settings(max_examples=60, deadline=None)
def test_between_the_points_the_calibration_error_is_within_its_bound(seed, classes, scale, log_beta):
    logits, target = problem(classes, shape=(1, 13, 17), scale=scale, seed=seed, dtype=torch.float64)
    labeled = target.flatten() != 255

    def confidences(log_beta):
        return (logits * math.exp(log_beta)).softmax(1).amax(1).flatten()[labeled]

    nodes = BINNED_LOG_BETAS
    first = min(max(sum(node <= log_beta for node in nodes) - 2, 0), len(nodes) - 4)
    here, changes = confidences(log_beta), []
    for node in nodes[first : first + 4]:
        there = confidences(node)
        changed = ((here * 15).ceil() != (there * 15).ceil()).double().mean()
        # a confidence between two points of the grid is its own to 2e-3, and may lie on the other side of an edge
        near = ((there * 15 - (there * 15).round()).abs() < 0.03).double().mean()
        changes.append(float((here - there).abs().mean() + 2 * (changed + near)) + 2e-3)
    expected = float(slow(logits, target, log_beta)[2].abs().sum()) / int(labeled.sum())
    weights = 1.25 if STEEP[0] <= log_beta <= STEEP[1] else 2.8
    found = curve_calibration_error(temperature_curve(logits, target), log_beta)
    assert abs(found - expected) <= weights * max(changes) + 1e-9


def test_the_weights_between_the_points_add_up_to_what_the_docstring_says():
    eye = torch.eye(len(BINNED_LOG_BETAS), dtype=torch.float64)  # one bin a point: the gaps are the weights
    sums = curves.TemperatureSums(torch.tensor(1.0), eye.sum(0), eye.sum(0), eye)
    for log_beta in torch.linspace(LOG_BETAS[0], LOG_BETAS[-1], 999).tolist():
        weights = curves.curve_gaps(sums, log_beta)
        assert float(weights.sum()) == pytest.approx(1)
        assert float(weights.abs().sum()) <= (1.2501 if STEEP[0] <= log_beta <= STEEP[1] else 2.8)


@pytest.mark.parametrize("log_beta", [-2.9, -1.3, -0.4, 0.0, 0.1, 0.9, 2.2])
def test_the_slope_is_the_derivative_of_the_likelihood(log_beta):
    sums = temperature_curve(*problem(7))
    step = 1e-4
    difference = (curve_nll(sums, log_beta + step) - curve_nll(sums, log_beta - step)) / (2 * step)
    assert curve_slope(sums, log_beta) == pytest.approx(difference, abs=3e-5)


def a_million_pixels(classes, kind):
    """Logits of four images that are right with the probabilities that they have at T = 1 / 0.6."""
    generator = torch.Generator().manual_seed(classes)
    if kind == "noise":
        logits = 4 * torch.randn(4, classes, 512, 512, generator=generator)
    else:
        coarse = 6 * torch.randn(4, classes, 16, 16, generator=generator)
        logits = F.interpolate(coarse, size=(512, 512), mode="bicubic")
    drawn = torch.rand(4, 1, 512, 512, generator=generator)
    target = ((0.6 * logits).softmax(1).cumsum(1) < drawn).sum(1).clamp_max(classes - 1)
    return logits, target


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("classes", [2, 19])
def test_the_calibration_error_of_a_million_pixels_is_within_2e_4_between_the_points_and_exact_at_1(classes, kind):
    logits, target = a_million_pixels(classes, kind)
    sums = temperature_curve(logits, target)
    for log_beta in (-0.9, math.log(0.6), -0.43, 0.0, 0.3):  # the second is where the error is least
        bins = sum(
            top1_calibration_bins((image * math.exp(log_beta)).softmax(0)[None], labels[None])[0]
            for image, labels in zip(logits, target, strict=True)
        )
        found = curve_calibration_error(sums, log_beta)
        assert found == pytest.approx(float(expected_calibration_error(bins)), abs=2e-4 if log_beta else 1e-6)
