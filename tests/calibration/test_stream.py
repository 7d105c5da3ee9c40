"""A temperature from one reading, and its figures out of sample, against several readings."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.calibration import TemperatureScaling, cross_fit
from seguq.calibration.folds import BUCKETS, TooFewGroups, assign, block_of, bucket_of
from seguq.core.errors import SeguqError
from seguq.metrics import CalibrationError, NegativeLogLikelihood


def batches(images=6, size=64, classes=3, scale=4.0, sharpness=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, size, size, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = torch.distributions.Categorical(logits=(logits * sharpness).movedim(1, -1)).sample()
    target[:, :3] = 255
    return [(logits[i : i + 2], target[i : i + 2]) for i in range(0, images, 2)]


def add(stream, logits, target, numbers):
    stream.add(logits, target, [f"image {number}" for number in numbers], list(numbers))


def streamed(data, task="multiclass", group=None):
    stream, seen = TemperatureScaling(task).stream(group), 0
    for logits, target in data:
        add(stream, logits, target, range(seen, seen + len(logits)))
        seen += len(logits)
    return stream


@pytest.mark.parametrize(("classes", "scale", "sharpness"), [(2, 3, 0.5), (19, 4, 0.3), (5, 1, 2.0), (3, 6, 0.9)])
def test_it_finds_the_temperature_of_several_readings(classes, scale, sharpness):
    data = batches(classes=classes, scale=scale, sharpness=sharpness)
    fit = streamed(data).fit()
    exact = TemperatureScaling().fit(data)
    assert fit.temperature == pytest.approx(exact.temperature, abs=1e-3)
    assert (fit.nll_before, fit.nll_after) == pytest.approx((exact.nll_before, exact.nll_after), abs=1e-5)
    assert (fit.summary().images, fit.summary().groups) == (6, 6)


def test_what_is_after_is_that_of_the_cross_fit_and_before_that_of_the_softmax():
    data = batches(size=128)
    fit = streamed(data).fit().summary()
    metrics = [kind(3) for kind in (CalibrationError, NegativeLogLikelihood) for _ in range(2)]
    for part in cross_fit(TemperatureScaling, data):
        for metric, logits in zip(metrics, (part.logits, part.calibrated) * 2, strict=True):
            metric.update(logits.softmax(1), part.target)
    ece_before, ece_after, nll_before, nll_after = (float(metric.compute()) for metric in metrics)
    assert (fit.ece_before, fit.nll_before, fit.nll_after) == pytest.approx(
        (ece_before, nll_before, nll_after), abs=1e-5
    )
    assert fit.ece_after == pytest.approx(ece_after, abs=1e-3)


def test_an_image_is_judged_by_the_temperature_of_the_other_fold():
    sharp, blunt = (batches(images=2, sharpness=sharpness, seed=1)[0] for sharpness in (0.1, 1.0))
    stream = TemperatureScaling().stream()
    add(stream, *sharp, [0, 1])
    add(stream, *blunt, [2, 3])
    other = [TemperatureScaling().fit([pair]) for pair in (blunt, sharp)]
    metric = NegativeLogLikelihood(3)
    for (logits, target), calibrator in zip((sharp, blunt), other, strict=True):
        metric.update(calibrator(logits).softmax(1), target)
    assert stream.fit().summary().nll_after == pytest.approx(float(metric.compute()), abs=1e-4)


@pytest.mark.parametrize("group", [None, lambda image_id: int(image_id[-1]) // 2], ids=["blocks", "groups"])
def test_the_order_and_the_size_of_batches_do_not_matter(group):
    data = batches()
    logits, target = (torch.cat(items) for items in zip(*data, strict=True))
    order = [5, 0, 3, 1, 4, 2]
    stream = TemperatureScaling().stream(group)
    add(stream, logits[order], target[order], order)
    assert torch.allclose(stream.sums, streamed(data, group=group).sums, rtol=1e-5, atol=1e-2)


def test_one_image_has_a_temperature_and_nothing_out_of_sample():
    logits, target = batches()[0]
    fit = streamed([(logits[:1], target[:1])]).fit()
    assert fit.temperature > 1.5
    assert (fit.summary().images, fit.summary().ece_after, fit.summary().nll_after) == (1, None, None)


def test_without_a_labeled_pixel_there_is_no_fit():
    logits, target = batches()[0]
    assert streamed([(logits, torch.full_like(target, 255))]).fit() is None


def test_a_temperature_that_makes_nothing_better_stays_one():
    logits = torch.zeros(2, 2, 4, 4)
    assert streamed([(logits, torch.zeros(2, 4, 4, dtype=torch.long))]).fit().temperature == 1


def test_the_bound_is_said_once_and_of_the_whole():
    logits, target = torch.randn(4, 2, 8, 8) * 5, torch.randint(2, (4, 8, 8))
    target = target.where(torch.rand(4, 8, 8) < 0.2, 1 - logits.argmax(1))
    with pytest.warns(UserWarning, match="lies at its bound, T = 20") as caught:
        streamed([(logits, target)]).fit()
    assert len(caught) == 1


def test_logits_that_are_not_finite_are_an_error():
    logits, target = batches()[0]
    logits[0, 0, 5, 5] = float("nan")
    with pytest.raises(SeguqError, match="NaN or infinite"):
        streamed([(logits, target)])


def binary(logits, target):
    """One logit a pixel, as a model of two classes might give."""
    return logits[:, 1:2] - logits[:, :1], target


def multilabel(logits, target):
    """Three labels; each of them is its own class or not."""
    labels = torch.stack([(target == label).long() for label in range(3)], 1)
    return logits, labels.where(target[:, None] != 255, torch.tensor(255))


@pytest.mark.parametrize(
    ("task", "classes", "made"),
    [
        ("multiclass", 2, binary),
        ("binary", 2, binary),
        ("binary", 2, lambda *pair: pair),
        ("multilabel", 3, multilabel),
    ],
    ids=["one logit", "a sigmoid", "two logits of a binary task", "labels"],
)
def test_other_tasks_have_the_temperature_of_several_readings(task, classes, made):
    data = [made(*pair) for pair in batches(classes=classes)]
    assert streamed(data, task).fit().temperature == pytest.approx(
        TemperatureScaling(task).fit(data).temperature, abs=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_other_precisions_have_the_temperature_of_several_readings(dtype):
    data = [(logits.to(dtype), target) for logits, target in batches()]
    assert streamed(data).fit().temperature == pytest.approx(TemperatureScaling().fit(data).temperature, abs=1e-3)


@given(seed=st.integers(0, 2**31), classes=st.integers(2, 12), scale=st.floats(0.2, 30), sharpness=st.floats(0.05, 3))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:the best temperature lies at its bound")
def test_any_data_have_the_temperature_of_several_readings(seed, classes, scale, sharpness):
    data = batches(4, 24, classes, scale, sharpness, seed)
    exact = TemperatureScaling().fit(data).temperature
    assert streamed(data).fit().temperature == pytest.approx(exact, abs=1e-3, rel=1e-3)


def test_sums_of_several_processes_add_up():
    data = batches(6)
    whole, parts = streamed(data), [TemperatureScaling().stream() for _ in range(2)]
    for number, (logits, target) in enumerate(data):
        add(parts[number % 2], logits, target, (2 * number, 2 * number + 1))
    parts[0].combine([part.state() for part in parts])
    assert torch.allclose(parts[0].sums, whole.sums)
    assert parts[0].summary().ece_after == pytest.approx(whole.summary().ece_after, abs=1e-9)


def test_an_image_without_a_labeled_pixel_is_not_counted():
    logits, target = batches()[0]
    target[1] = 255
    assert streamed([(logits, target)]).summary().images == 1


def test_images_of_one_group_have_no_error_out_of_sample():
    found = streamed(batches(), group="image").summary()
    assert (found.images, found.groups, found.ece_after, found.nll_after) == (6, 1, None, None)
    assert found.ece_before > 0


def test_groups_without_a_labeled_pixel_are_none():
    logits, target = batches()[0]
    target[1] = 255
    found = streamed([(logits, target)], group=lambda image_id: image_id).summary()
    assert (found.groups, found.ece_after) == (1, None)


def test_many_images_are_cut_near_the_middle():
    """Any number of images in fixed sums: the halves differ by a sixteenth of the images at most."""
    for images in (2, 3, 16, 17, 40, 101, 1000, 12_345):
        blocks = Counter(map(block_of, range(images)))
        fold_of = assign(blocks, 2, contiguous=True)
        first = sum(count for block, count in blocks.items() if fold_of[block] == 0)
        assert abs(first - images / 2) <= max(0.5, images / 16)
        assert [fold_of[block_of(number)] for number in range(images)] == [0] * first + [1] * (images - first)


@given(number=st.integers(0, 2**40))
def test_blocks_are_in_the_order_of_the_images_and_of_a_fixed_number(number):
    assert 0 <= block_of(number) <= block_of(number + 1) <= min(block_of(number) + 1, BUCKETS - 1)


@given(sizes=st.lists(st.integers(0, 50), max_size=12), folds=st.integers(2, 5), contiguous=st.booleans())
def test_every_fold_has_a_group_or_it_is_an_error(sizes, folds, contiguous):
    pixels = {f"{name:02}": size for name, size in enumerate(sizes)}
    filled = [name for name, size in pixels.items() if size]
    if len(filled) < folds:
        with pytest.raises(TooFewGroups, match=f"but they are in {len(filled)}"):
            assign(pixels, folds, contiguous)
        return
    found = assign(pixels, folds, contiguous)
    assert sorted(found) == filled
    assert set(found.values()) == set(range(folds))
    assert not contiguous or list(found.values()) == sorted(found.values())


def test_groups_that_share_a_bucket_go_to_one_fold():
    names = {}
    for number in range(1000):
        names.setdefault(bucket_of(f"video {number}"), []).append(f"video {number}")
    one, other, *_ = next(group for group in names.values() if len(group) > 1)
    logits, target = batches()[0]
    stream = TemperatureScaling().stream(lambda image_id: image_id)
    stream.add(logits, target, [one, other], [0, 1])
    assert (stream.summary().groups, stream.summary().ece_after) == (1, None)


def test_the_settings_are_kept_and_what_was_passed_is_left_unfitted():
    unfitted = TemperatureScaling("binary", ignore_index=7)
    stream = unfitted.stream()
    logits, target = batches(classes=2)[0]
    add(stream, logits, target.where(target != 255, torch.tensor(7)), [0, 1])
    fitted = stream.fit()
    assert fitted.arguments() == {"task": "binary", "ignore_index": 7}
    assert unfitted.temperature == 1 != fitted.temperature


def test_the_size_of_what_is_kept_does_not_grow():
    small, large = streamed(batches(2, 8)), streamed(batches(8, 64))
    assert small.sums.shape == large.sums.shape
    assert small.sums.numel() < 100_000


def test_fit_tells_the_summary_of_its_own_data_too():
    data = batches()
    found, expected = TemperatureScaling().fit(data).summary(), streamed(data).summary()
    assert found == expected


def test_what_was_not_measured_is_an_error_that_says_how_it_is():
    with pytest.raises(SeguqError, match=r"TemperatureScaling knows no values out of sample.*cross_fit"):
        TemperatureScaling().summary()


def test_labels_out_of_range_are_an_error_with_the_value():
    logits, target = batches()[0]
    target[0, 5, 5] = 3
    with pytest.raises(SeguqError, match="target holds the value 3"):
        streamed([(logits, target)])
