import copy
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader, TensorDataset

from seguq.calibration import TemperatureScaling
from seguq.core.errors import SeguqError
from tests.calibration.problems import LOG_BOUND, Counted, as_pixels, mean_nll, problem, searched_log_temperature

property_test = settings(max_examples=60, deadline=None)
problems = st.builds(
    problem,
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 11),
    scale=st.floats(0.1, 30),
    error_rate=st.floats(0.02, 1),
    shape=st.sampled_from([(1, 1), (40,), (2, 30), (1, 12, 9), (3, 4, 5, 3)]),
    ignored=st.sampled_from([0.0, 0.3]),
).filter(lambda case: bool((case[1] != 255).any()))
inside_the_bounds = pytest.mark.filterwarnings("ignore:the best temperature lies at its bound")


def fitted_log_temperature(batches, **arguments):
    return float(TemperatureScaling(**arguments).fit(batches).log_temperature)


def one_hot_logits(labels, margin, classes=3):
    return margin * torch.nn.functional.one_hot(labels, classes).double()


# --- the temperature that is found


@inside_the_bounds
@given(case=problems)
@property_test
def test_log_temperature_is_within_1e_6_of_a_search_over_the_likelihood_of_all_pixels(case):
    rows, labels = as_pixels(*case)
    best = searched_log_temperature(rows, labels)
    assume(mean_nll(rows, labels, best) > 1e-6)  # below, the likelihood is flat to the search
    assert fitted_log_temperature([case]) == pytest.approx(best, abs=1e-6)


@inside_the_bounds
@given(case=problems)
@property_test
def test_the_likelihoods_told_are_those_at_1_and_at_the_temperature(case):
    rows, labels = as_pixels(*case)
    cal = TemperatureScaling().fit([case])
    expected = mean_nll(rows, labels, 0.0), mean_nll(rows, labels, float(cal.log_temperature))
    assert (cal.nll_before, cal.nll_after) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@inside_the_bounds
@given(case=problems)
@property_test
def test_fitting_never_makes_the_likelihood_worse(case):
    cal = TemperatureScaling().fit([case])
    assert cal.nll_after <= cal.nll_before


@inside_the_bounds
@given(case=problems)
@property_test
def test_fitting_reads_the_batches_at_most_8_times(case):
    batches = Counted([case])
    TemperatureScaling().fit(batches)
    assert batches.passes <= 8


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("scale", [0.5, 4.0, 15.0])
def test_fitting_reads_the_batches_twice_as_a_rule(classes, scale):
    batches = Counted([problem(classes=classes, scale=scale)])
    TemperatureScaling().fit(batches)
    assert batches.passes == 2


def test_t_is_that_of_fiducio_where_it_is_installed():
    fiducio = pytest.importorskip("fiducio", reason="fiducio is not installed (pip install 'seguq[peers]')")
    logits, target = problem(seed=3, classes=4, ignored=0.1)
    rows, labels = as_pixels(logits, target)
    theirs = fiducio.TemperatureScaling(optimizer="lbfgs", device="cpu").fit(rows.float(), labels)
    ours = TemperatureScaling().fit([(logits, target)])
    assert ours.temperature == pytest.approx(theirs.temperature, rel=2e-3)


@pytest.mark.parametrize("classes", [3, 7])
def test_temperature_is_that_of_scikit_learn(classes):
    pytest.importorskip("sklearn", minversion="1.8", reason="scikit-learn has temperature scaling from 1.8 on")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        """A classifier whose inputs are its logits already."""

        classes_ = np.arange(classes)

        def fit(self, inputs, labels):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def decision_function(self, inputs):
            return inputs

        def predict(self, inputs):
            return inputs.argmax(1)

    rows, labels = as_pixels(*problem(classes=classes))
    reference = CalibratedClassifierCV(FrozenEstimator(Logits()), method="temperature").fit(rows.numpy(), labels)
    probs = TemperatureScaling().fit([(rows, labels)])(rows).softmax(1)
    np.testing.assert_allclose(probs.numpy(), reference.predict_proba(rows.numpy()), atol=1e-6)


def test_the_temperature_that_logits_were_multiplied_with_is_found_again():
    logits, _ = problem(scale=3.0, shape=(20_000,))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(0)).flatten()
    assert TemperatureScaling().fit([(2.5 * logits, labels)]).temperature == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("factor", [0.25, 0.7, 3.0, 4.0])
def test_scaling_the_logits_scales_the_temperature(factor):
    logits, target = problem()
    one = TemperatureScaling().fit([(logits, target)]).temperature
    assert TemperatureScaling().fit([(factor * logits, target)]).temperature == pytest.approx(factor * one, rel=1e-6)


def test_calibrated_logits_lose_next_to_nothing_held_out():
    logits, _ = problem(scale=3.0, shape=(40_000,))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(0)).flatten()
    found = TemperatureScaling().fit([(logits[:20_000], labels[:20_000])])
    loss = torch.nn.functional.cross_entropy
    assert loss(found(logits[20_000:]), labels[20_000:]) < loss(logits[20_000:], labels[20_000:]) * 1.001


# --- how the batches come


def ragged_batches():
    shapes = [(1, 5, 7), (3, 2, 9), (2, 11, 3), (1, 1, 1)]
    return [problem(seed=n, shape=shape, ignored=0.2) for n, shape in enumerate(shapes)]


def test_batches_and_images_of_different_sizes_are_as_good_as_one_batch():
    parts = [as_pixels(*batch) for batch in ragged_batches()]
    whole = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert fitted_log_temperature(ragged_batches()) == pytest.approx(fitted_log_temperature([whole]), abs=1e-6)


def test_all_labeled_pixels_of_all_batches_are_counted():
    cal = TemperatureScaling().fit(ragged_batches())
    assert cal.pixels == sum(int((target != 255).sum()) for _, target in ragged_batches())


def test_the_order_of_the_batches_does_not_matter():
    backward = fitted_log_temperature(ragged_batches()[::-1])
    assert backward == pytest.approx(fitted_log_temperature(ragged_batches()), abs=1e-6)


def test_a_batch_without_a_labeled_pixel_changes_nothing():
    empty = (torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.full((2, 4, 4), 255))
    assert fitted_log_temperature([empty, *ragged_batches()]) == fitted_log_temperature(ragged_batches())


def test_a_shuffling_data_loader_will_do():
    logits, target = problem(shape=(12, 4, 4))
    loader = DataLoader(TensorDataset(logits, target), batch_size=5, shuffle=True)
    assert fitted_log_temperature(loader) == pytest.approx(fitted_log_temperature([(logits, target)]), abs=1e-6)


def test_batches_may_hold_the_image_between_logits_and_target():
    logits, target = problem()
    assert fitted_log_temperature([(logits, torch.zeros(2, 1, 10, 10), target)]) == fitted_log_temperature(
        [(logits, target)]
    )


class TrackedBatches:
    """Batches that are made as they are asked for; counts how many are in memory when the next one is made."""

    def __init__(self, count, requires_grad=False):
        self.count, self.requires_grad, self.made, self.most = count, requires_grad, [], 0

    def __iter__(self):
        for number in range(self.count):
            yield self.make(number)

    def alive(self):
        return sum(reference() is not None for reference in self.made)

    def make(self, number):
        self.most = max(self.most, self.alive())
        logits, target = problem(seed=number)
        array = logits.numpy().copy()  # a tensor's storage holds its array, whoever views or detaches the tensor
        self.made.append(weakref.ref(array))
        return torch.from_numpy(array).requires_grad_(self.requires_grad), target


@pytest.mark.parametrize("requires_grad", [False, True], ids=["without gradient", "with gradient"])
def test_logits_are_not_kept_between_batches(requires_grad):
    batches = TrackedBatches(count=9, requires_grad=requires_grad)
    TemperatureScaling().fit(batches)
    assert batches.most <= 1 + 1  # the one just worked on, and one in the hands of a loop that asks for the next


def test_logits_are_not_kept_after_the_fit():
    batches = TrackedBatches(count=3)
    cal = TemperatureScaling().fit(batches)
    assert cal.nll_after < cal.nll_before
    assert batches.alive() == 0


# --- one logit, several labels, ignored pixels, offsets, types


def one_logit_problem():
    logits, target = problem(classes=2)
    return logits[:, 1:] - logits[:, :1], target


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_a_model_of_one_logit_has_the_temperature_of_the_two_logits_0_and_z(task):
    one, target = one_logit_problem()
    two = torch.cat((torch.zeros_like(one), one), 1)
    assert fitted_log_temperature([(one, target)], task=task) == fitted_log_temperature([(two, target)])


def test_the_sigmoid_of_a_calibrated_logit_is_the_softmax_of_the_calibrated_two_logits():
    one, target = one_logit_problem()
    two = torch.cat((torch.zeros_like(one), one), 1)
    cal = TemperatureScaling().fit([(one, target)])
    torch.testing.assert_close(cal(one).sigmoid()[:, 0], cal(two).softmax(1)[:, 1])


def test_a_mask_of_one_logit_models_may_have_a_channel_and_be_float():
    one, target = one_logit_problem()
    assert fitted_log_temperature([(one, target[:, None].float())]) == fitted_log_temperature([(one, target)])


def test_multilabel_fits_one_temperature_over_the_sigmoids_of_all_labels():
    labels = [one_logit_problem(), tuple(tensor.flip(0) for tensor in one_logit_problem())]
    labels[1] = (3 * labels[1][0], labels[1][1])
    logits = torch.cat([z for z, _ in labels], 1)
    target = torch.stack([y for _, y in labels], 1)
    together = fitted_log_temperature([(logits, target)], task="multilabel")
    assert together == pytest.approx(fitted_log_temperature(labels, task="binary"), abs=1e-6)


@pytest.mark.parametrize("ignore_index", [255, -1, -100, 0, 2])
def test_ignored_pixels_are_as_good_as_absent(ignore_index):
    logits, target = problem()
    target[torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = ignore_index
    absent = fitted_log_temperature([as_pixels(logits, target, ignore_index)])
    assert fitted_log_temperature([(logits, target)], ignore_index=ignore_index) == pytest.approx(absent, abs=1e-6)


@given(seed=st.integers(0, 999), size=st.sampled_from([1.0, 1e3, 1e6]))
@property_test
def test_an_offset_of_all_logits_of_a_pixel_does_not_change_the_temperature(seed, size):
    logits, target = problem(seed=seed)
    offset = size * torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 1, 10, 10)))
    assert fitted_log_temperature([(logits + offset, target)]) == pytest.approx(
        fitted_log_temperature([(logits, target)]), abs=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_fitted_in_float32(dtype):
    logits, target = problem()
    half = logits.to(dtype)
    assert fitted_log_temperature([(half, target)]) == fitted_log_temperature([(half.float(), target)])


@given(case=problems)
@inside_the_bounds
@property_test
def test_logits_of_float32_have_the_temperature_of_a_search_in_float64(case):
    logits, target = case[0].float(), case[1]
    cal = TemperatureScaling().fit([(logits, target)])
    best = searched_log_temperature(*as_pixels(logits, target))
    assert cal.nll_after <= mean_nll(*as_pixels(logits, target), best) + 1e-6


# --- where there is nothing to find


@pytest.mark.parametrize("content", [0.0, 1.0, -7.5])
def test_the_temperature_of_constant_logits_stays_1(content):
    target = torch.tensor([[0, 1, 2, 1]])
    assert TemperatureScaling().fit([(torch.full((1, 3, 4), content), target)]).temperature == 1


def test_the_temperature_stays_1_where_every_label_is_certain_already():
    labels = torch.tensor([0, 1, 2, 1])
    assert TemperatureScaling().fit([(one_hot_logits(labels, margin=1e6), labels)]).temperature == 1


def calibrated_exactly():
    """Always 75 % sure of class 0, and right 3 times in 4."""
    return torch.tensor([[0.75, 0.25]], dtype=torch.float64).log().repeat(4, 1), torch.tensor([0, 0, 0, 1])


def test_the_temperature_of_calibrated_logits_is_1():
    assert TemperatureScaling().fit([calibrated_exactly()]).temperature == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("batch", [calibrated_exactly(), problem(), (torch.zeros(4, 2), torch.tensor([0, 1, 1, 1]))])
def test_a_temperature_between_the_bounds_comes_without_a_warning(batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not TemperatureScaling().fit([batch]).at_bound


def separable(margin=1.0):
    labels = torch.tensor([0, 1, 2, 1])
    return one_hot_logits(labels, margin), labels


def misleading():
    labels = torch.tensor([0, 1, 2, 1])
    return one_hot_logits(labels, -1.0), labels


@pytest.mark.parametrize(("batch", "temperature"), [(separable(), 0.05), (misleading(), 20.0)], ids=["right", "wrong"])
def test_the_temperature_of_labels_without_or_with_nothing_but_errors_is_at_its_bound_with_a_warning(
    batch, temperature
):
    with pytest.warns(UserWarning, match=f"bound, T = {temperature:.4g}"):
        cal = TemperatureScaling().fit([batch])
    assert cal.temperature == pytest.approx(temperature)
    assert cal.at_bound


@inside_the_bounds
def test_at_bound_is_taken_back_by_a_fit_that_ends_inside():
    assert not TemperatureScaling().fit([separable()]).fit([problem()]).at_bound


# --- errors


def altered(place, value):
    logits, target = problem()
    (logits if place == "logits" else target)[1].view(-1)[7] = value
    return logits, target


def cut(logits=None, target=None):
    z, y = problem()
    return z[logits] if logits else z, y[target] if target else y


WRONG = {
    "NaN": ([problem(), altered("logits", math.nan)], "batch 1: logits hold NaN"),
    "infinity": ([problem(), problem(), altered("logits", math.inf)], "batch 2: logits hold NaN or infinite"),
    "class out of range": ([problem(), altered("target", 3)], r"batch 1: target holds the value 3, .* 0\.\.2"),
    "negative class": ([altered("target", -1)], "batch 0: target holds the value -1"),
    "a mask of fractions": ([(problem()[0], problem()[1] + 0.5)], "batch 0: target .* no whole numbers"),
    "no labeled pixel": ([(problem()[0], torch.full((2, 10, 10), 255))], "no labeled pixel"),
    "no batch": ([], "no labeled pixel"),
    "fewer images than logits": ([problem(), cut(target=slice(1))], r"batch 1: target must be .*\(2, 10, 10\)"),
    "a smaller mask": ([cut(target=(slice(None), slice(5)))], r"\(2, 10, 10\).*\(2, 5, 10\)"),
    "logits without classes": ([(torch.zeros(4), torch.zeros(4))], r"batch 0: logits must be \(B, C, \*spatial\)"),
    "logits of integers": ([(torch.zeros(1, 2, 3).long(), torch.zeros(1, 3))], "batch 0: logits must be floating"),
    "a lone tensor": ([torch.zeros(1)], "batches must yield"),
    "a dict": ([{"image": problem()[0], "mask": problem()[1]}], "batches must yield"),
}


@pytest.mark.parametrize(("batches", "message"), WRONG.values(), ids=WRONG.keys())
def test_fitting_on_wrong_batches_is_one_clear_error(batches, message):
    with pytest.raises(SeguqError, match=message) as caught:
        TemperatureScaling().fit(batches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batches", "_message"), WRONG.values(), ids=WRONG.keys())
def test_fitting_on_wrong_batches_leaves_the_temperature_as_it_was(batches, _message):
    cal = TemperatureScaling()
    cal.log_temperature.fill_(0.5)
    with pytest.raises(SeguqError):
        cal.fit(batches)
    assert cal.log_temperature == 0.5


@pytest.mark.parametrize("channels", [3, 4])
def test_too_many_logits_for_binary_are_an_error(channels):
    with pytest.raises(SeguqError, match="batch 0: task='binary' needs 1 or 2 logits"):
        TemperatureScaling(task="binary").fit([problem(classes=channels)])


def test_batches_that_differ_between_passes_are_an_error():
    class Shrinking(Counted):
        def __iter__(self):
            self.passes += 1
            return iter(self.batches if self.passes == 1 else self.batches[1:])

    with pytest.raises(SeguqError, match="400 labeled pixels when first read, and 200 when read again"):
        TemperatureScaling().fit(Shrinking([problem(seed=1), problem(seed=2)]))


def test_batches_that_are_gone_when_read_again_are_an_error_that_says_so():
    class Once:
        def __init__(self, batches):
            self.iterator = iter(batches)

        def __iter__(self):
            return self.iterator

    with pytest.raises(SeguqError, match="200 labeled pixels when first read, and 0 when read again"):
        TemperatureScaling().fit(Once([problem()]))


def test_an_unknown_task_is_an_error_before_any_batch_is_read():
    batches = Counted([problem()])
    with pytest.raises(SeguqError, match="task must be one of"):
        TemperatureScaling(task="multi-class").fit(batches)
    assert batches.passes == 0


@pytest.mark.parametrize("call", ["forward", "temperature_map"])
def test_calling_with_logits_without_classes_is_an_error(call):
    with pytest.raises(SeguqError, match=r"logits must be \(B, C, \*spatial\)"):
        getattr(TemperatureScaling(), call)(torch.zeros(3))


# --- what the calibrator is


@pytest.mark.parametrize("spatial", [(), (7,), (5, 6), (3, 4, 5)])
def test_the_temperature_map_holds_the_temperature_at_every_pixel(spatial):
    cal = TemperatureScaling().fit([problem()])
    assert torch.equal(
        cal.temperature_map(torch.zeros(2, 3, *spatial)), cal.log_temperature.exp().expand(2, 1, *spatial)
    )


@pytest.mark.parametrize("spatial", [(), (7,), (5, 6), (3, 4, 5)])
def test_calibrated_logits_are_the_logits_divided_by_the_temperature_map(spatial):
    cal = TemperatureScaling().fit([problem()])
    logits = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cal(logits), logits / cal.temperature_map(logits))


def test_an_unfitted_calibrator_changes_nothing():
    logits, _ = problem()
    assert torch.equal(TemperatureScaling()(logits), logits)


log_temperatures = st.one_of(st.sampled_from([-LOG_BOUND, LOG_BOUND]), st.floats(-LOG_BOUND, LOG_BOUND))


@given(
    log_temperature=log_temperatures,
    logits=hnp.arrays(np.float32, (1, 5, 6), elements=st.floats(-100, 100, width=32)),
)
@property_test
def test_the_class_of_the_largest_logit_keeps_it(log_temperature, logits):
    cal = TemperatureScaling()
    cal.log_temperature.fill_(log_temperature)
    logits = torch.from_numpy(logits)
    calibrated = cal(logits)
    assert torch.equal(calibrated.gather(1, logits.argmax(1, keepdim=True)), calibrated.amax(1, keepdim=True))


@given(
    log_temperature=log_temperatures,
    logits=hnp.arrays(np.float32, (1, 5, 6), elements=st.integers(-2000, 2000).map(lambda k: k / 64)),
)
@property_test
def test_the_predicted_class_never_changes(log_temperature, logits):
    cal = TemperatureScaling()
    cal.log_temperature.fill_(log_temperature)
    logits = torch.from_numpy(logits)
    assert torch.equal(cal(logits).argmax(1), logits.argmax(1))


def test_logits_made_under_inference_mode_can_be_fitted_on_outside_of_it():
    with torch.inference_mode():
        batch = problem()[0] * 1, problem()[1] * 1
    assert fitted_log_temperature([batch]) == fitted_log_temperature([problem()])


def test_a_calibrator_made_under_inference_mode_can_be_fitted_outside_of_it():
    with torch.inference_mode():
        cal = TemperatureScaling()
    assert float(cal.fit([problem()]).log_temperature) == fitted_log_temperature([problem()])


def test_logits_with_a_gradient_are_fitted_like_others():
    logits, target = problem()
    cal = TemperatureScaling().fit([(logits.clone().requires_grad_(), target)])
    assert float(cal.log_temperature) == fitted_log_temperature([(logits, target)])


def test_the_fitted_temperature_has_no_gradient():
    logits, target = problem()
    assert not TemperatureScaling().fit([(logits.requires_grad_(), target)]).log_temperature.requires_grad


def test_gradients_pass_through_a_calibrator():
    cal = TemperatureScaling().fit([problem()])
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    cal(logits).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 3, 4), 1 / cal.temperature))


def test_fitting_leaves_the_batches_as_they_were():
    batch = problem()
    TemperatureScaling().fit([batch])
    assert all(torch.equal(now, before) for now, before in zip(batch, problem(), strict=True))


def test_a_copy_is_fitted_alone():
    cal = TemperatureScaling().fit([problem()])
    before = cal.temperature
    copy.deepcopy(cal).fit([problem(seed=1, scale=9.0)])
    assert cal.temperature == before


def test_a_calibrator_that_was_cast_under_inference_mode_can_be_fitted_outside_of_it():
    calibrator = TemperatureScaling()
    with torch.inference_mode():
        calibrator.double()
    calibrator.fit([(torch.tensor([[4.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1]))])
    assert calibrator.temperature != 1
