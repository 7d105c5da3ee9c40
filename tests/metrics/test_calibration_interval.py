import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.errors import SeguqError
from seguq.metrics import CalibrationError
from seguq.metrics.bootstrap import poisson_weights
from tests.metrics.builders import ids, probs_and_target
from tests.oracles import calibration_interval as oracles

N_BOOT = 40


def calibrated(seed=0, images=20, gap=0.0, scatter=0.15, pixels=100):
    """Two classes: confidences from .6 to .9, right as often as they say less a gap, on average over images."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.6, 0.9, (images, pixels))
    accuracy = confidence - gap + random.uniform(-scatter, scatter, (images, 1))
    right = random.random((images, pixels)) < accuracy
    probs = torch.from_numpy(np.stack((confidence, 1 - confidence), 1)).float()
    return probs, torch.from_numpy(np.where(right, 0, 1))


def filled(batch, group=None, n_boot=N_BOOT, **options):
    metric = CalibrationError(batch[0].shape[1], n_boot=n_boot, **options)
    metric.update(*batch, group=ids(len(batch[0])) if group is None else group)
    return metric


def ends(metric, level=0.95):
    return [float(bound) for bound in metric.compute_interval(level)]


def counts(images, n_boot=N_BOOT):
    return np.stack([poisson_weights(0, image_id, n_boot) for image_id in ids(images)])


def one_by_one(batch):
    return list(zip(*(tensor.numpy() for tensor in batch), strict=True))


any_data = st.builds(
    calibrated,
    seed=st.integers(0, 10_000),
    images=st.integers(1, 30),
    gap=st.sampled_from([-0.1, 0.0, 0.01, 0.1, 0.4]),
    scatter=st.sampled_from([0.0, 0.1]),
    pixels=st.integers(1, 40),
)

# --- the interval, the debiased value and the difference are what the words say

DATA = {
    "calibrated": calibrated(),
    "a gap": calibrated(gap=0.1),
    "a small gap": calibrated(gap=0.02, scatter=0.05),
    "few images": calibrated(images=3),
    "three classes": probs_and_target(images=20),
}
each_batch = pytest.mark.parametrize("batch", DATA.values(), ids=DATA.keys())


@pytest.mark.parametrize("level", [0.5, 0.95])
@each_batch
def test_the_interval_is_that_of_trying_truths_one_after_the_other(batch, level):
    expected = oracles.interval(one_by_one(batch), counts(len(batch[0])), level)
    assert ends(filled(batch), level) == pytest.approx(expected, abs=1e-6)


@each_batch
def test_the_debiased_value_is_that_of_trying_truths_one_after_the_other(batch):
    expected = oracles.debiased(one_by_one(batch), counts(len(batch[0])))
    assert float(filled(batch).compute_debiased()) == pytest.approx(expected, abs=1e-6)


def sharpened(batch):
    probs, target = batch
    return probs.square() / probs.square().sum(1, keepdim=True), target


@each_batch
def test_the_interval_of_a_difference_is_that_of_the_truths_that_may_be(batch):
    both = sharpened(batch), batch
    value, interval = filled(both[0]).compute_difference(filled(both[1]))
    expected = oracles.difference_interval(*map(one_by_one, both), counts(len(batch[0])))
    assert float(value) == pytest.approx(float(filled(both[0]).compute() - filled(both[1]).compute()), abs=1e-6)
    assert [float(bound) for bound in interval] == pytest.approx(expected, abs=1e-6)


# --- it holds the value


@given(any_data, st.sampled_from([0.01, 0.5, 0.95, 0.999]), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_the_interval_holds_the_value_and_stays_within_0_and_1(batch, level, n_boot):
    metric = filled(batch, n_boot=n_boot)
    low, high = metric.compute_interval(level)
    if not low.isnan():
        assert 0 <= low <= metric.compute() <= high <= 1


@given(any_data)
@settings(max_examples=40, deadline=None)
def test_the_debiased_value_is_not_above_the_value(batch):
    metric = filled(batch)
    assert 0 <= metric.compute_debiased() <= metric.compute()


@given(any_data, st.sampled_from([0.5, 0.95]))
@settings(max_examples=40, deadline=None)
def test_the_interval_of_a_difference_holds_the_difference(batch, level):
    value, (low, high) = filled(sharpened(batch)).compute_difference(filled(batch), level)
    assert -1 <= low <= value <= high <= 1


@given(any_data)
@settings(max_examples=20, deadline=None)
def test_a_difference_turned_around_has_the_interval_turned_around(batch):
    one, two = filled(sharpened(batch)), filled(batch)
    value, (low, high) = one.compute_difference(two)
    turned, (turned_low, turned_high) = two.compute_difference(one)
    torch.testing.assert_close(torch.stack((value, low, high)), -torch.stack((turned, turned_high, turned_low)))


# --- it is free of the value's bias


def test_the_lower_end_of_a_calibrated_model_is_0_in_most_experiments():
    lower = [ends(filled(calibrated(seed), n_boot=200))[0] for seed in range(50)]
    assert sum(low <= 0.002 for low in lower) >= 46


def test_the_lower_end_of_a_clear_gap_is_above_0():
    assert ends(filled(calibrated(gap=0.3)))[0] > 0.2


def test_the_debiased_value_of_calibrated_models_is_far_below_the_value():
    metrics = [filled(calibrated(seed), n_boot=100) for seed in range(50)]
    assert np.mean([float(m.compute_debiased()) for m in metrics]) < 0.6 * np.mean(
        [float(m.compute()) for m in metrics]
    )


def test_the_debiased_value_of_a_clear_gap_is_close_to_it():
    metrics = [filled(calibrated(seed, gap=0.2), n_boot=100) for seed in range(30)]
    assert np.mean([float(m.compute_debiased()) for m in metrics]) == pytest.approx(0.2, abs=0.02)


def test_an_interval_narrows_with_more_images():
    few, many = (ends(filled(calibrated(images=images, gap=0.2), n_boot=200)) for images in (20, 320))
    assert many[1] - many[0] < (few[1] - few[0]) / 2.5


def test_copies_of_a_group_tell_nothing_new():
    """Frames of one video are one unit: the interval is that of the videos, whatever the number of frames."""
    probs, target = calibrated(gap=0.1)
    frames = torch.cat([probs] * 5), torch.cat([target] * 5)
    assert ends(filled(frames, ids(20) * 5)) == pytest.approx(ends(filled((probs, target))), abs=1e-6)


# --- edges


def test_images_that_are_all_alike_leave_no_doubt():
    probs, target = calibrated(images=1, gap=0.1)
    metric = filled((probs.expand(30, 2, 100), target.expand(30, 100)))
    assert ends(metric) == pytest.approx([float(metric.compute())] * 2, abs=1e-6)
    assert float(metric.compute_debiased()) == pytest.approx(float(metric.compute()), abs=1e-6)


def test_a_value_of_exactly_0_begins_at_0():
    probs, target = torch.tensor([[[1.0], [0.0]]]).expand(12, 2, 1), torch.zeros(12, 1, dtype=torch.long)
    metric = filled((probs, target))
    assert ends(metric) == [0, 0]
    assert float(metric.compute_debiased()) == 0


def test_a_metric_that_has_seen_nothing_has_no_interval_and_no_debiased_value():
    metric, other = CalibrationError(2), CalibrationError(2)
    _, bounds = metric.compute_difference(other)
    assert torch.stack((*metric.compute_interval(), metric.compute_debiased(), *bounds)).isnan().all()


def test_images_without_a_label_change_nothing():
    probs, target = calibrated(gap=0.1)
    more = torch.cat((probs, probs)), torch.cat((target, torch.full_like(target, 255)))
    assert ends(filled(more)) == ends(filled((probs, target)))


def test_a_debiased_value_needs_the_image_ids():
    metric = CalibrationError(2)
    metric.update(*calibrated())
    with pytest.raises(SeguqError, match="group=image_ids"):
        metric.compute_debiased()


def test_a_difference_of_other_bins_is_an_error():
    with pytest.raises(SeguqError, match="the same bins, but n_bins is 10 here and 15"):
        filled(calibrated(), n_bins=10).compute_difference(filled(calibrated()))
