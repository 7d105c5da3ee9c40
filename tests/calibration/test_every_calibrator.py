"""What all calibrators promise, and that each is found by the problem that is made for it."""

import copy
import math

import pytest
import torch

from seguq.calibration import Calibrator
from seguq.core.errors import SeguqError
from seguq.functional.logits import class_logits
from seguq.testing import check_calibrator
from tests.calibration.problems import Counted

NAMES = [name for name in Calibrator.names() if Calibrator.named(name).__module__.startswith("seguq.")]
OF_A_PIXEL = [name for name in NAMES if "spatial_dims" not in Calibrator.named(name).constructor_arguments()]
PER_PIXEL = [name for name in NAMES if hasattr(Calibrator.named(name), "temperature_map")]


def made(name, **settings):
    return Calibrator.make(name, **{"num_classes": 3, "epochs": 3, **settings})


def drawn(true_temperature, shape=(6, 3, 40, 40), scale=4.0, seed=0):
    """Logits of which the labels are drawn at a temperature: a number, or a map made from logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator)
    temperature = true_temperature(logits) if callable(true_temperature) else true_temperature
    chance = (logits / temperature).softmax(1).cumsum(1)
    target = (chance < torch.rand(shape[0], 1, *shape[2:], generator=generator)).sum(1).clamp_max(shape[1] - 1)
    return logits, target


def lost(name):
    """What it may lose of the likelihood by making a range of probabilities alike, as a share."""
    return 0.06 if Calibrator.named(name).piecewise_constant else 0.0


def batches_of(logits, target, size=2):
    return list(zip(logits.split(size), target.split(size), strict=True))


@pytest.mark.parametrize("spatial", [(12, 10), (5, 6, 4)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_what_all_promise(name, spatial):
    check_calibrator(made(name, epochs=1, spatial_dims=len(spatial)), spatial=spatial)


@pytest.mark.parametrize("name", NAMES)
def test_where_one_temperature_is_the_truth_all_come_near_its_likelihood(name):
    logits, target = drawn(1.7)
    found = made(name).fit(batches_of(logits, target))
    truth = torch.nn.functional.cross_entropy(logits / 1.7, target)
    assert torch.nn.functional.cross_entropy(found(logits), target) < truth * (1.01 + lost(name))
    held_out = drawn(1.7, seed=1)
    best = torch.nn.functional.cross_entropy(held_out[0] / 1.7, held_out[1])
    assert torch.nn.functional.cross_entropy(found(held_out[0]), held_out[1]) < best * (1.015 + lost(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_calibrated_stays_so(name):
    found = made(name).fit(batches_of(*drawn(1.0)))
    logits, target = drawn(1.0, seed=1)
    before = torch.nn.functional.cross_entropy(logits, target)
    assert torch.nn.functional.cross_entropy(found(logits), target) < before * (1.01 + lost(name))


@pytest.mark.parametrize("name", PER_PIXEL)
def test_logits_divided_by_t_are_what_it_gives(name):
    logits, target = drawn(1.7)
    found = made(name).fit(batches_of(logits, target))
    temperature = found.temperature_map(logits)
    assert temperature.shape == (6, 1, 40, 40)
    assert torch.allclose((logits / temperature).softmax(1), found(logits).softmax(1), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_logit_a_pixel_is_as_good_as_two(name):
    logits, target = drawn(1.7, shape=(4, 2, 16, 16))
    single = logits[:, 1:] - logits[:, :1]
    two = class_logits(single, "binary")
    one_fit = made(name, num_classes=2, task="binary").fit(batches_of(single, target))
    two_fit = made(name, num_classes=2, task="binary").fit(batches_of(two, target))
    assert one_fit(single).shape == single.shape
    assert torch.allclose(one_fit(single).sigmoid()[:, 0], two_fit(two).softmax(1)[:, 1], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_independent_labels_are_calibrated_each_as_a_sigmoid(name):
    generator = torch.Generator().manual_seed(0)
    own = 3 * torch.randn(4, 3, 16, 16, generator=generator)
    target = (torch.rand(own.shape, generator=generator) < (own / 2).sigmoid()).long()
    found = made(name, num_classes=2, task="multilabel").fit(batches_of(own, target))
    assert found(own).shape == own.shape
    pooled = class_logits(own, "multilabel")
    assert torch.allclose(found(pooled).softmax(1)[:, 1], found(own).sigmoid(), atol=1e-5)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert loss(found(own), target.float()) < loss(own, target.float())


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_that_fails_leaves_the_earlier_one_as_it_was(name):
    logits, target = drawn(1.7, shape=(4, 3, 16, 16))
    found = made(name).fit(batches_of(logits, target))
    before, state, told = found(logits), copy.deepcopy(found.state_dict()), repr(found)
    for broken in (
        [(torch.full_like(logits, math.nan), target)],
        [(logits, target + 3)],
        [(logits, torch.full_like(target, 255))],
        [],
        [(logits, target), (logits[:, :, :3], target)],
    ):
        with pytest.raises(SeguqError):
            found.fit(broken)
        assert torch.equal(found(logits), before)
        assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    assert repr(found) == told
    assert found.summary().images == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_is_out_of_sample_and_tells_images_and_groups(name):
    data = batches_of(*drawn(1.7))
    for batch, group in ((data, None), (data, lambda image_id: int(image_id) // 3)):
        found = made(name).fit(batch, group=group).summary()
        assert (found.images, found.pixels) == (6, 6 * 1600)
        assert found.groups == (6 if group is None else 2)
        assert found.nll_after < found.nll_before
        assert found.ece_after < found.ece_before
    alone = made(name).fit(data, group=lambda image_id: 0).summary()
    assert (alone.groups, alone.nll_after, alone.ece_after) == (1, None, None)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_fitted_on_one_class_alone(name):
    logits, _ = drawn(1.0, shape=(4, 3, 16, 16))
    with pytest.warns() if name == "global" else pytest.MonkeyPatch.context():
        found = made(name).fit([(logits, torch.zeros(4, 16, 16, dtype=torch.long))])
    assert found(logits).isfinite().all()


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "spatial_dims" not in Calibrator.named(n).constructor_arguments()]
)
def test_pixels_without_images_are_taken_as_they_are(name):
    logits, target = drawn(1.7, shape=(500, 3))
    found = made(name).fit([(logits, target)])
    assert found(logits).shape == logits.shape
    assert found.summary().pixels == 500


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_the_batches_at_most_8_times(name):
    counted = Counted(batches_of(*drawn(1.7)))
    made(name).fit(counted)
    assert counted.passes <= 8


@pytest.mark.parametrize("name", NAMES)
def test_classes_that_are_ruled_out_stay_so(name):
    logits, target = drawn(1.7, shape=(4, 3, 16, 16))
    target = target.clamp_max(1)
    for low in (-1e4, torch.finfo(torch.float32).min):
        logits[:, 2] = low
        found = made(name).fit(batches_of(logits, target))
        out = found(logits)
        assert out.isfinite().all()
        assert out.softmax(1)[:, 2].max() < 1e-3 if name not in ("image",) else True


def test_a_network_over_neighbors_says_that_it_takes_no_single_pixels():
    with pytest.raises(
        SeguqError, match=r"spatial_dims=2\) takes class logits of 2 spatial dimensions, but .*\(10, 3\)"
    ):
        made("local_network").fit([(torch.randn(10, 3), torch.zeros(10, dtype=torch.long))])


WITH_CLASSES = [name for name in NAMES if "num_classes" in Calibrator.named(name).constructor_arguments()]


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_another_number_of_classes_is_refused_and_changes_nothing(name):
    found = made(name).fit(batches_of(*drawn(1.7, shape=(4, 3, 16, 16))))
    told = repr(found)
    with pytest.raises(SeguqError, match=r"num_classes=3\) does not go with logits of 4 classes"):
        found(torch.randn(1, 4, 8, 8))
    with pytest.raises(SeguqError, match=r"num_classes=3\) does not go with logits of 4 classes"):
        found.fit([(torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 8, 8)))])
    assert repr(found) == told


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_images_is_passed_over(name):
    data = batches_of(*drawn(1.7, shape=(4, 3, 16, 16)))
    empty = (torch.zeros(0, 3, 5, 5), torch.zeros(0, 5, 5).long())
    one, other = made(name).fit([*data, empty]), made(name).fit(data)
    assert torch.allclose(one(data[0][0]), other(data[0][0]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_around_it_does_not_reach_it(name):
    logits, target = drawn(1.7, shape=(4, 3, 16, 16))
    found = made(name).fit(batches_of(logits, target))
    with torch.autocast("cpu", torch.bfloat16):
        inside, fitted = found(logits), made(name).fit(batches_of(logits, target))
    assert torch.allclose(inside, found(logits), atol=1e-5)
    assert torch.allclose(fitted(logits).softmax(1), found(logits).softmax(1), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_of_a_class_that_is_ruled_out_leaves_the_figures_readable(name):
    logits, target = drawn(1.7, shape=(4, 3, 16, 16))
    logits[:, 2] = torch.finfo(torch.float32).min
    target = target.clamp_max(1)
    target[0, 5, 5] = 2
    found = made(name).fit(batches_of(logits, target)).summary()
    assert found.nll_before < 1e4


@pytest.mark.parametrize("name", PER_PIXEL)
def test_gradients_go_through_it_to_the_logits(name):
    found = made(name).fit(batches_of(*drawn(1.7)))
    logits = drawn(1.7, seed=1)[0][:1].double().requires_grad_()
    # so small a step that no pixel changes its class, at which a network over classes jumps
    nearby = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).double() * 1e-6
    found(logits).softmax(1)[:, 0].sum().backward()
    with torch.no_grad():
        change = found(logits + nearby).softmax(1)[:, 0].sum() - found(logits - nearby).softmax(1)[:, 0].sum()
    assert float((logits.grad * nearby).sum() * 2) == pytest.approx(float(change), rel=1e-2)


def test_pixels_without_values_leave_the_temperature_of_their_image_as_it_is():
    found = made("image").fit(batches_of(*drawn(1.7)))
    logits = drawn(1.7, seed=1)[0]
    holed = logits.clone()
    holed[0, :, 10:, :] = torch.nan
    alone = found.temperature_map(logits[:1, :, :10]).unique()
    assert torch.equal(found.temperature_map(holed)[0].unique(), alone)
    assert torch.equal(found(holed)[1:], found(logits)[1:])
