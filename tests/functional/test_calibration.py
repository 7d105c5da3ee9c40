import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seguq.functional import expected_calibration_error, temperature_nll, top1_calibration_bins
from tests.oracles import calibration as oracles

property_test = settings(max_examples=40, deadline=None)


@st.composite
def targets_for(draw, shape, ignored=255):
    images, classes, *spatial = shape
    labels = st.sampled_from([*range(classes), ignored])
    return torch.from_numpy(draw(hnp.arrays(np.int64, (images, *spatial), elements=labels)))


def shapes():
    front = st.tuples(st.integers(1, 3), st.integers(1, 4))
    space = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)
    return st.tuples(front, space).map(lambda pair: pair[0] + pair[1])


@st.composite
def logits_and_target(draw, elements=None):
    shape = draw(shapes())
    elements = st.floats(-30, 30, width=32) if elements is None else elements
    logits = torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=elements)))
    return logits, draw(targets_for(shape))


@st.composite
def probs_and_target(draw):
    """float32 probabilities; confidences that lie on an edge of a bin are frequent."""
    shape = draw(shapes())
    weights = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.5]))) + 1e-300
    probs = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return torch.from_numpy(probs), draw(targets_for(shape))


inverse_temperatures = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 5))


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1e-4, 2e-3), (torch.float64, 1e-9, 1e-9)], ids=["float32", "float64"]
)
@given(case=logits_and_target(), inverse_temperature=inverse_temperatures)
@property_test
def test_temperature_nll_matches_the_loop(dtype, rtol, atol, case, inverse_temperature):
    logits, target = case
    actual = temperature_nll(logits.to(dtype), target, inverse_temperature)
    expected = oracles.temperature_nll(logits.to(dtype).numpy(), target.numpy(), inverse_temperature)
    assert [float(value) for value in actual] == pytest.approx(expected, rel=rtol, abs=atol)


@given(case=logits_and_target(st.floats(-10, 10)), inverse_temperature=st.floats(0, 3))
@property_test
def test_temperature_nll_has_the_derivatives_of_automatic_differentiation(case, inverse_temperature):
    logits, target = case
    beta = torch.tensor(inverse_temperature, dtype=torch.float64, requires_grad=True)
    nll = torch.nn.functional.cross_entropy(beta * logits, target, ignore_index=255, reduction="sum")
    (first,) = torch.autograd.grad(nll, beta, create_graph=True)
    (second,) = torch.autograd.grad(first, beta)
    actual = temperature_nll(logits, target, inverse_temperature)
    torch.testing.assert_close(actual[1:], (nll.detach(), first.detach(), second), rtol=1e-8, atol=1e-9)


@given(case=logits_and_target(st.integers(-160, 160).map(lambda n: n / 16)), data=st.data())
@property_test
def test_temperature_nll_is_the_same_when_a_constant_is_added_to_the_logits_of_a_pixel(case, data):
    logits, target = case
    # sixteenths and whole numbers add up without rounding in float32, so not one bit may differ
    offset = data.draw(hnp.arrays(np.float32, (len(logits), 1, *logits.shape[2:]), elements=st.integers(-4096, 4096)))
    logits = logits.float()
    before, after = (temperature_nll(z, target, 0.7) for z in (logits, logits + torch.from_numpy(offset)))
    assert torch.equal(torch.stack(before), torch.stack(after))


@given(case=logits_and_target())
@property_test
def test_temperature_nll_never_curves_down(case):
    assert temperature_nll(*case, 1.3).second >= 0


@given(case=logits_and_target(), content=st.sampled_from([0.0, 1e6, math.nan, math.inf]))
@property_test
def test_temperature_nll_does_not_depend_on_the_logits_of_ignored_pixels(case, content):
    logits, target = case
    other = logits.masked_fill((target == 255).unsqueeze(1), content)
    assert torch.equal(
        torch.stack(temperature_nll(logits, target, 1.0)), torch.stack(temperature_nll(other, target, 1.0))
    )


@pytest.mark.parametrize(("ignore_index", "pixels"), [(None, 4), (255, 4), (0, 3), (1, 2), (-100, 4)])
def test_temperature_nll_leaves_out_the_pixels_of_ignore_index(ignore_index, pixels):
    logits = torch.tensor([[[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, -1.0, 0.5], [0.5, 2.0, 0.0, 0.0]]])
    target = torch.tensor([[0, 1, 1, 2]])
    kept = [i for i, label in enumerate(target[0].tolist()) if label != ignore_index]
    actual = temperature_nll(logits, target, 1.0, ignore_index)
    assert actual.pixels == pixels
    torch.testing.assert_close(actual, temperature_nll(logits[..., kept], target[..., kept], 1.0, None))


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_temperature_nll_leaves_out_ignored_pixels_of_any_index(ignored):
    logits = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]]])
    actual = temperature_nll(logits, torch.tensor([[0, ignored, 1]]), 1.0, ignored)
    torch.testing.assert_close(actual, temperature_nll(logits[..., ::2], torch.tensor([[0, 1]]), 1.0))


def test_temperature_nll_is_zero_where_every_pixel_is_ignored():
    out = temperature_nll(torch.randn(2, 3, 4), torch.full((2, 4), 255), 1.0)
    assert torch.stack(out).eq(0).all()


def test_temperature_nll_sums_in_float64():
    out = temperature_nll(torch.zeros(1, 2, 4), torch.zeros(1, 4, dtype=torch.int64), 1.0)
    assert {value.dtype for value in out} == {torch.float64}


def test_temperature_nll_leaves_the_logits_as_they_were():
    logits = torch.randn(2, 3, 4)
    before = logits.clone()
    temperature_nll(logits, torch.zeros(2, 4, dtype=torch.int64), 0.5)
    assert torch.equal(logits, before)


@given(case=probs_and_target(), n_bins=st.integers(1, 20))
@property_test
def test_top1_calibration_bins_match_the_loop(case, n_bins):
    probs, target = case
    expected = oracles.top1_calibration_bins(probs.numpy(), target.numpy(), n_bins)
    if target.ndim == 1:  # flat is one image
        expected = expected.sum(0, keepdims=True)
    torch.testing.assert_close(top1_calibration_bins(probs, target, n_bins), torch.from_numpy(expected))


@pytest.mark.parametrize("n_bins", range(1, 31))
def test_a_float32_confidence_on_an_edge_is_in_the_bin_below_it(n_bins):
    edges = torch.tensor([(i + 1) / n_bins for i in range(n_bins)], dtype=torch.float32)
    bins = top1_calibration_bins(edges.view(1, 1, -1), torch.zeros(1, n_bins, dtype=torch.int64), n_bins)
    assert bins[0, 0].tolist() == [1.0] * n_bins


@pytest.mark.parametrize("n_bins", range(1, 31))
def test_a_float32_confidence_just_above_an_edge_is_in_the_bin_above_it(n_bins):
    edges = torch.tensor([i / n_bins for i in range(n_bins)], dtype=torch.float32)
    above = torch.nextafter(edges, torch.ones(()))
    bins = top1_calibration_bins(above.view(1, 1, -1), torch.zeros(1, n_bins, dtype=torch.int64), n_bins)
    assert bins[0, 0].tolist() == [1.0] * n_bins


def test_a_float64_confidence_on_an_edge_is_in_the_bin_below_it():
    for n_bins in range(1, 31):
        edges = torch.tensor([(i + 1) / n_bins for i in range(n_bins)], dtype=torch.float64)
        bins = top1_calibration_bins(edges.view(1, 1, -1), torch.zeros(1, n_bins, dtype=torch.int64), n_bins)
        assert bins[0, 0].tolist() == [1.0] * n_bins, n_bins


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(case=probs_and_target(), n_bins=st.integers(1, 20))
@property_test
def test_top1_calibration_bins_of_half_precision_hold_every_labeled_pixel_and_its_confidence(dtype, case, n_bins):
    probs, target = case[0].to(dtype), case[1]
    bins = top1_calibration_bins(probs, target, n_bins)
    labeled = target != 255
    assert bins[:, 0].sum() == labeled.sum()
    torch.testing.assert_close(bins[:, 1].sum(), probs.amax(1).double()[labeled].sum())


def test_a_confidence_of_0_is_in_the_first_bin():
    bins = top1_calibration_bins(torch.zeros(1, 2), torch.tensor([0]), n_bins=4)
    assert bins[0, 0].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("ignore_index", [None, 255, 0, 1])
def test_top1_calibration_bins_leave_out_the_pixels_of_ignore_index(ignore_index):
    probs, target = torch.tensor([[[0.3, 0.6, 0.9], [0.7, 0.4, 0.1]]]), torch.tensor([[0, 1, 0]])
    kept = [i for i, label in enumerate(target[0].tolist()) if label != ignore_index]
    expected = top1_calibration_bins(probs[..., kept], target[..., kept], 5)
    assert torch.equal(top1_calibration_bins(probs, target, 5, ignore_index), expected)


def test_top1_calibration_bins_keep_images_apart():
    probs, target = torch.rand(3, 4, 5, 5).softmax(1), torch.randint(0, 4, (3, 5, 5))
    each = [top1_calibration_bins(probs[i : i + 1], target[i : i + 1])[0] for i in range(3)]
    assert torch.equal(top1_calibration_bins(probs, target), torch.stack(each))


@given(case=probs_and_target(), n_bins=st.integers(1, 20))
@property_test
def test_expected_calibration_error_matches_the_loop(case, n_bins):
    probs, target = case
    for bins in top1_calibration_bins(probs, target, n_bins):
        if bins[0].sum() > 0:
            expected = oracles.expected_calibration_error(bins.tolist())
            assert expected_calibration_error(bins).item() == pytest.approx(expected, abs=1e-12)


def test_expected_calibration_error_is_taken_table_by_table():
    bins = top1_calibration_bins(torch.rand(4, 3, 9).softmax(1), torch.randint(0, 3, (4, 9)), n_bins=5)
    each = torch.stack([expected_calibration_error(table) for table in bins])
    assert torch.equal(expected_calibration_error(bins), each)


def test_expected_calibration_error_is_0_where_confidence_is_accuracy():
    # 4 pixels of confidence 3/4, 3 of them right, and 2 of confidence 1/2, one of them right
    probs = torch.tensor([[[0.75, 0.75, 0.75, 0.75, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25, 0.5, 0.5]]])
    target = torch.tensor([[0, 0, 0, 1, 0, 1]])
    assert expected_calibration_error(top1_calibration_bins(probs, target, n_bins=10)).item() == 0


def test_expected_calibration_error_is_1_where_certain_predictions_are_wrong():
    probs, target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor([[1, 1]])
    assert expected_calibration_error(top1_calibration_bins(probs, target)).item() == 1


def test_expected_calibration_error_of_nothing_is_nan():
    assert expected_calibration_error(torch.zeros(3, 15)).isnan()


def test_top1_calibration_bins_do_not_depend_on_the_probabilities_of_ignored_pixels():
    probs, target = torch.tensor([[[0.9, 0.2], [0.1, 0.8]]]), torch.tensor([[0, 255]])
    spoiled = probs.masked_fill((target == 255).unsqueeze(1), math.nan)
    assert torch.equal(top1_calibration_bins(spoiled, target), top1_calibration_bins(probs, target))


def test_of_classes_that_tie_the_first_is_predicted():
    bins = top1_calibration_bins(torch.full((1, 2, 2), 0.5), torch.tensor([[0, 1]]), n_bins=1)
    assert bins[0, :, 0].tolist() == [2, 1, 1]
