import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seguq import functional as F
from seguq.core.errors import SeguqError
from tests.oracles import uncertainty as oracles

OF_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")
OF_SAMPLES = ("expected_entropy", "total_entropy", "mutual_information", "variance", "variation_ratio")
OF_LOGITS = ("energy", "max_logit")
STREAMED = ("expected_entropy", "mutual_information", "total_entropy", "variance", "variation_ratio")
HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 5e-6}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}

property_test = settings(max_examples=20, deadline=None)


def spatial_shapes():
    return hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)


@st.composite
def sample_probs(draw, min_samples=1, max_samples=5, min_classes=1):
    """float64 ``(S, B, C, *spatial)`` summing to 1 over C; ties, exact zeros and exact ones are frequent."""
    samples = draw(st.integers(min_samples, max_samples))
    classes = draw(st.integers(min_classes, 5))
    shape = (samples, draw(st.integers(1, 2)), classes, *draw(spatial_shapes()))
    weight = draw(st.sampled_from([st.sampled_from([0.0, 0.0, 1.0, 3.0]), st.floats(0, 1)]))
    weights = draw(hnp.arrays(np.float64, shape, elements=weight))
    empty = weights.sum(2, keepdims=True) == 0
    weights = np.where(empty & (np.arange(classes).reshape(-1, *[1] * (len(shape) - 3)) == 0), 1.0, weights)
    weights = weights / weights.max(2, keepdims=True)
    return torch.from_numpy(weights / weights.sum(2, keepdims=True))


def probs(min_classes=1):
    return sample_probs(max_samples=1, min_classes=min_classes).map(lambda samples: samples[0])


@st.composite
def logits(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 5)), *draw(spatial_shapes()))
    elements = st.one_of(st.sampled_from([0.0, 1.0, -1e4, 1e4]), st.floats(-100, 100))
    return torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=elements)))


def argument_of(name):
    """A strategy for the argument of the measure ``name``."""
    if name in OF_SAMPLES:
        return sample_probs()
    return logits() if name in OF_LOGITS else probs(min_classes=2)


def check_against_oracle(name, value, **arguments):
    actual = getattr(F, name)(value, **arguments)
    expected = torch.from_numpy(getattr(oracles, name)(value.double().numpy(), **arguments)).to(value.dtype)
    torch.testing.assert_close(actual, expected, **TOLERANCE[value.dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES + OF_LOGITS)
@given(data=st.data())
@property_test
def test_measure_matches_the_loop(name, dtype, data):
    check_against_oracle(name, data.draw(argument_of(name)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(logits=logits(), temperature=st.floats(0.05, 20))
@property_test
def test_energy_matches_the_loop_at_any_temperature(dtype, logits, temperature):
    check_against_oracle("energy", logits.to(dtype), temperature=temperature)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES + OF_LOGITS)
@given(data=st.data())
@property_test
def test_measure_of_half_precision_is_that_of_the_same_values_in_float32(name, dtype, data):
    value = data.draw(argument_of(name)).to(dtype)
    actual = getattr(F, name)(value)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, getattr(F, name)(value.float()))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES)
def test_measure_is_finite_at_probabilities_of_exactly_0_and_1(name, dtype):
    certain = torch.eye(3, dtype=dtype).view(3, 1, 3, 1)  # three samples, each sure of another class
    value = certain if name in OF_SAMPLES else certain[:, 0]
    assert getattr(F, name)(value).isfinite().all()


@pytest.mark.parametrize("name", OF_PROBS)
def test_measure_of_probs_is_0_where_one_class_is_certain(name):
    assert getattr(F, name)(torch.eye(4).view(4, 4, 1)).eq(0).all()


@pytest.mark.parametrize(
    ("name", "largest"),
    [("predictive_entropy", math.log(4)), ("least_confidence", 0.75), ("smallest_margin", 1.0)],
)
def test_measure_of_probs_reaches_its_bound_where_all_classes_are_alike(name, largest):
    assert getattr(F, name)(torch.full((1, 4), 0.25)).item() == pytest.approx(largest, abs=1e-6)


@pytest.mark.parametrize("samples", [2, 4, 6])
@pytest.mark.parametrize("name", ["total_entropy", "mutual_information", "variance", "variation_ratio"])
def test_measure_of_samples_reaches_its_bound_where_certain_samples_disagree(name, samples):
    classes = 4
    certain = torch.eye(classes, dtype=torch.float64)[torch.arange(samples) % classes].view(samples, 1, classes)
    votes = torch.bincount(torch.arange(samples) % classes).double() / samples
    largest = {
        "total_entropy": -(votes * votes.log()).sum(),
        "mutual_information": -(votes * votes.log()).sum(),
        "variance": 1 - votes.square().sum(),
        "variation_ratio": 1 - votes.max(),
    }
    torch.testing.assert_close(getattr(F, name)(certain).squeeze(0), largest[name])


@given(probs(min_classes=2))
@property_test
def test_measures_of_probs_stay_within_their_bounds(probs):
    classes = probs.shape[1]
    bounds = {"predictive_entropy": math.log(classes), "least_confidence": 1 - 1 / classes, "smallest_margin": 1.0}
    for name, bound in bounds.items():
        measure = getattr(F, name)(probs.float())
        assert measure.min() >= 0, name
        assert measure.max() <= bound + 1e-6, name


@given(sample_probs())
@property_test
def test_measures_of_samples_stay_within_their_bounds(sample_probs):
    classes, fewest = sample_probs.shape[2], min(sample_probs.shape[0], sample_probs.shape[2])
    bounds = {
        "expected_entropy": math.log(classes),
        "total_entropy": math.log(classes),
        "mutual_information": math.log(fewest),
        "variance": 1 - 1 / fewest,
        "variation_ratio": 1 - 1 / fewest,
    }
    for name, bound in bounds.items():
        measure = getattr(F, name)(sample_probs.float())
        assert measure.min() >= 0, name
        assert measure.max() <= bound + 2e-6, name


def has_one_largest_class(value, class_dim):
    return (value == value.amax(class_dim, keepdim=True)).sum(class_dim) == 1


@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES + OF_LOGITS)
@given(data=st.data())
@property_test
def test_measure_does_not_depend_on_the_order_of_classes(name, data):
    value = data.draw(argument_of(name))
    class_dim = 2 if name in OF_SAMPLES else 1
    order = torch.tensor(data.draw(st.permutations(range(value.shape[class_dim]))))
    before, after = getattr(F, name)(value), getattr(F, name)(value.index_select(class_dim, order))
    if name == "variation_ratio":  # where classes tie the vote goes to the first of them, which the order decides
        clear = has_one_largest_class(value, class_dim).all(0)
        before, after = before[clear], after[clear]
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OF_SAMPLES)
@given(data=st.data())
@property_test
def test_measure_does_not_depend_on_the_order_of_samples(name, data):
    value = data.draw(sample_probs(min_samples=2))
    order = torch.tensor(data.draw(st.permutations(range(len(value)))))
    before, after = getattr(F, name)(value), getattr(F, name)(value[order])
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES + OF_LOGITS)
@given(data=st.data())
@property_test
def test_measure_does_not_depend_on_the_layout_in_memory(name, data):
    value = data.draw(argument_of(name))
    strided = value.movedim(-1, 0).contiguous().movedim(0, -1)
    torch.testing.assert_close(getattr(F, name)(strided), getattr(F, name)(value), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", OF_PROBS + OF_SAMPLES + OF_LOGITS)
def test_measure_leaves_its_argument_as_it_was(name, dtype):
    shape = (4, 2, 3, 5, 5) if name in OF_SAMPLES else (2, 3, 5, 5)
    value = torch.rand(shape, generator=torch.Generator().manual_seed(0)).softmax(-3).to(dtype)
    before = value.clone()
    getattr(F, name)(value)
    assert torch.equal(value, before)


@given(sample_probs())
@property_test
def test_total_entropy_is_expected_entropy_plus_mutual_information(sample_probs):
    parts = F.expected_entropy(sample_probs) + F.mutual_information(sample_probs)
    torch.testing.assert_close(F.total_entropy(sample_probs), parts, rtol=1e-10, atol=1e-12)


@given(sample_probs())
@property_test
def test_total_entropy_is_the_predictive_entropy_of_the_mean_sample(sample_probs):
    of_mean = F.predictive_entropy(sample_probs.mean(0))
    torch.testing.assert_close(F.total_entropy(sample_probs), of_mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["mutual_information", "variance", "variation_ratio"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@given(sample_probs=sample_probs())
@property_test
def test_disagreement_is_zero_when_all_samples_agree(name, dtype, sample_probs):
    agreeing = sample_probs[:1].to(dtype).expand(7, *sample_probs.shape[1:])
    assert getattr(F, name)(agreeing).max() < 2e-6


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_measure_is_not_below_0_by_rounding_when_all_samples_agree(name):
    probs = torch.randn(1, 2, 4, 500, generator=torch.Generator().manual_seed(0)).softmax(2)
    assert getattr(F, name)(probs.expand(7, *probs.shape[1:])).min() >= 0


@pytest.mark.parametrize("name", ["predictive_entropy", "expected_entropy", "total_entropy"])
def test_entropy_is_not_below_0_where_a_probability_rounds_to_above_1(name):
    probs = torch.tensor([[1 + 2**-20, 0.0]])
    assert getattr(F, name)(probs if name in OF_PROBS else probs.unsqueeze(0)).item() == 0


@given(sample_probs(max_samples=1))
@property_test
def test_expected_entropy_of_one_sample_is_its_predictive_entropy(sample_probs):
    assert torch.equal(F.expected_entropy(sample_probs), F.predictive_entropy(sample_probs[0]))


def one_logit():
    elements = st.one_of(st.sampled_from([0.0, -60.0, 60.0]), st.floats(-60, 60))
    shapes = st.tuples(st.integers(1, 2), st.just(1)).flatmap(lambda front: spatial_shapes().map(lambda s: front + s))
    return hnp.arrays(np.float64, shapes, elements=elements).map(torch.from_numpy)


def measure_of_binary(name, two_logits):
    return getattr(F, name)(two_logits if name in OF_LOGITS else two_logits.softmax(1))


@pytest.mark.parametrize("name", OF_PROBS + OF_LOGITS)
@given(logit=one_logit())
@property_test
def test_measure_of_one_binary_logit_is_that_of_the_two_logits_0_and_z(name, logit):
    explicit = torch.stack((torch.zeros_like(logit[:, 0]), logit[:, 0]), dim=1)
    assert torch.equal(
        measure_of_binary(name, F.class_logits(logit, "binary")),
        measure_of_binary(name, F.class_logits(explicit, "binary")),
    )


# with s = sigmoid(z), written so that no digit is lost where s is near 0 or 1
CLOSED_FORM = {
    "predictive_entropy": lambda z: z.sigmoid() * torch.log1p((-z).exp()) + (-z).sigmoid() * torch.log1p(z.exp()),
    "least_confidence": lambda z: (-z.abs()).sigmoid(),
    "smallest_margin": lambda z: 1 - (2 * z.sigmoid() - 1).abs(),
    "energy": lambda z: -torch.log1p(z.exp()),
    "max_logit": lambda z: -z.clamp_min(0),
}


@pytest.mark.parametrize("name", OF_PROBS + OF_LOGITS)
@given(logit=one_logit())
@property_test
def test_measure_of_one_binary_logit_is_the_closed_form_in_its_sigmoid(name, logit):
    actual = measure_of_binary(name, F.class_logits(logit, "binary"))
    torch.testing.assert_close(actual, CLOSED_FORM[name](logit[:, 0]), rtol=1e-9, atol=1e-12)


@given(sample_probs())
@property_test
def test_measures_of_samples_take_each_pixel_by_itself(sample_probs):
    for name in OF_SAMPLES:
        whole = getattr(F, name)(sample_probs)
        pixel = sample_probs.reshape(*sample_probs.shape[:3], -1)[:, -1:, :, -1]
        torch.testing.assert_close(getattr(F, name)(pixel), whole.flatten()[-1:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OF_PROBS + OF_LOGITS)
def test_measure_of_too_few_dimensions_raises_with_the_shape(name):
    with pytest.raises(SeguqError, match=r"\(B, C, \*spatial\).*shape \(7,\)"):
        getattr(F, name)(torch.rand(7))


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_measure_of_samples_of_too_few_dimensions_raises_with_the_shape(name):
    with pytest.raises(SeguqError, match=r"\(S, B, C, \*spatial\).*shape \(7, 3\)"):
        getattr(F, name)(torch.rand(7, 3))


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_measure_of_no_sample_raises_with_the_shape(name):
    with pytest.raises(SeguqError, match=r"at least one sample.*shape \(0, 2, 3, 4\)"):
        getattr(F, name)(torch.rand(0, 2, 3, 4))


def test_smallest_margin_of_one_class_raises_with_the_shape():
    with pytest.raises(SeguqError, match=r"at least 2 classes.*shape \(2, 1, 4\)"):
        F.smallest_margin(torch.ones(2, 1, 4))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_energy_at_a_temperature_not_above_0_raises(temperature):
    with pytest.raises(SeguqError, match="temperature must be above 0"):
        F.energy(torch.zeros(1, 2), temperature)


def test_an_error_of_shape_is_a_value_error():
    with pytest.raises(ValueError):
        F.predictive_entropy(torch.rand(7))


class LargestAllocation(TorchDispatchMode):
    """Records the size of the largest tensor that is made inside the block and is no view of ``given``."""

    def __init__(self, given):
        super().__init__()
        self.storage = given.untyped_storage().data_ptr()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.storage:
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", STREAMED)
def test_measure_of_samples_allocates_no_tensor_larger_than_one_sample(name, dtype):
    sample_probs = torch.rand(6, 2, 3, 8, 8).softmax(2).to(dtype)
    with LargestAllocation(sample_probs) as largest:
        getattr(F, name)(sample_probs)
    assert 0 < largest.numel <= sample_probs[0].numel()


def test_the_measurement_of_memory_sees_a_tensor_as_large_as_the_samples():
    sample_probs = torch.rand(6, 2, 3, 8, 8).softmax(2)
    with LargestAllocation(sample_probs) as largest:
        -(sample_probs[1:] * sample_probs[1:].log()).sum(2).mean(0)
    assert largest.numel == sample_probs[1:].numel()
