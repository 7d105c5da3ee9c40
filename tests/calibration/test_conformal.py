import copy
import io
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

import seguq
from seguq import ConformalMargin, ConformalRiskControl, PredictionSets
from seguq.calibration import Conformal
from seguq.core.errors import SeguqError, UsageError
from seguq.functional import dilate, dilations_to_reach
from tests.oracles import conformal as oracle

pytestmark = pytest.mark.filterwarnings("ignore:all classes are in the set", "ignore:all sets are empty")


def images(seed, number=30, classes=3, spatial=(4, 5), task="multiclass", ignored=0.1, sharpness=2.0):
    """Probabilities and labels of images that are hard or easy, with pixels that are ignored."""
    random = np.random.default_rng(seed)
    hardness = random.uniform(0.2, 1.5, (number, 1, *[1] * len(spatial)))
    logits = sharpness * random.normal(size=(number, classes, *spatial))
    noisy = hardness * sharpness * random.normal(size=logits.shape) + logits
    if task == "multiclass":
        probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        target = noisy.argmax(1)
    else:
        probs, target = 1 / (1 + np.exp(-logits)), (noisy > 0).astype(np.int64)
        probs, target = (probs[:, :1], target[:, 0]) if task == "binary" else (probs, target)
    target[random.random(target.shape) < ignored] = 255
    return torch.from_numpy(probs).float(), torch.from_numpy(target)


def masks(seed, number=30, spatial=(9, 12)):
    """Predicted masks, and true ones that lie a few pixels elsewhere; all of them are somewhere."""
    random = np.random.default_rng(seed)
    predicted, true = (np.zeros((number, *spatial), np.int64) for _ in range(2))
    for n in range(number):
        start = [int(random.integers(0, size - 2)) for size in spatial]
        moved = [int(np.clip(i + random.integers(-3, 4), 0, s - 2)) for i, s in zip(start, spatial, strict=True)]
        predicted[(n, *(slice(i, i + 2) for i in start))] = 1
        true[(n, *(slice(i, i + 2) for i in moved))] = 1
    true[random.random(true.shape) < 0.05] = 255
    return torch.from_numpy(predicted), torch.from_numpy(true)


def missed(sets, target):
    """A risk of one's own: the share of labeled pixels whose class is not in the set."""
    labeled = target != 255
    inside = sets.gather(1, target.masked_fill(~labeled, 0).unsqueeze(1)).squeeze(1)
    return (labeled & ~inside).flatten(1).sum(1) / labeled.flatten(1).sum(1)


TASKS = ("multiclass", "binary", "multilabel")
CASES = {
    **{f"miss {task}": (lambda alpha, t=task: ConformalRiskControl("miss", alpha, t), task) for task in TASKS},
    **{
        f"false positive {task}": (lambda alpha, t=task: ConformalRiskControl("false_positive", alpha, t), task)
        for task in TASKS
    },
    "own": (lambda alpha: ConformalRiskControl(missed, alpha), "multiclass"),
    **{f"sets {task}": (lambda alpha, t=task: PredictionSets(alpha, 0.8, t), task) for task in TASKS},
    "margin": (lambda alpha: ConformalMargin(alpha), "masks"),
    "margin covering .7": (lambda alpha: ConformalMargin(alpha, 0.7), "masks"),
}
every = pytest.mark.parametrize(("make", "task"), CASES.values(), ids=CASES.keys())


def data(task, seed=0, **settings):
    return masks(seed, **settings) if task == "masks" else images(seed, task=task, **settings)


def state(conformal):
    return {name: float(tensor) for name, tensor in conformal.state_dict().items()}


def test_every_kind_is_among_the_cases():
    assert {make(0.1).name for make, _ in CASES.values()} == set(Conformal.names())


# --- what is fitted is what the definition says


@pytest.mark.parametrize("alpha", [0.07, 0.2, 0.5])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_threshold_of_missed_pixels_is_that_of_the_loop(task, alpha, seed):
    probs, target = images(seed, task=task)
    units = [oracle.true_pairs(p.numpy(), t.numpy(), task) for p, t in zip(probs, target, strict=True)]
    exact = oracle.largest_threshold([pairs for pairs in units if pairs], oracle.miss, alpha)
    fitted = ConformalRiskControl("miss", alpha, task).fit([(probs, target)])
    assert float(fitted.threshold) == oracle.grid_below(exact)
    assert exact * 31 / 32 <= float(fitted.threshold) <= exact


@pytest.mark.parametrize("alpha", [0.07, 0.2, 0.5])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_threshold_of_false_positives_is_that_of_the_loop(task, alpha, seed):
    probs, target = images(seed, task=task)
    units = [oracle.wrong_pairs(p.numpy(), t.numpy(), task) for p, t in zip(probs, target, strict=True)]
    exact = oracle.smallest_threshold([pairs for pairs in units if pairs], oracle.false_positive, alpha)
    fitted = ConformalRiskControl("false_positive", alpha, task).fit([(probs, target)])
    assert float(fitted.threshold) == (0 if exact is None else oracle.grid_above(exact))


@pytest.mark.parametrize("coverage", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_the_threshold_of_prediction_sets_is_that_of_the_loop(task, coverage):
    probs, target = images(2, task=task)
    units = [oracle.true_pairs(p.numpy(), t.numpy(), task) for p, t in zip(probs, target, strict=True)]

    def too_little(pairs, threshold):
        return float(sum(largest or p >= threshold for p, largest in pairs) / len(pairs) < coverage)

    exact = oracle.largest_threshold([pairs for pairs in units if pairs], too_little, 0.1)
    fitted = PredictionSets(0.1, coverage, task).fit([(probs, target)])
    assert float(fitted.threshold) == oracle.grid_below(exact)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("spatial", [(12,), (9, 12), (5, 6, 7)])
def test_the_margin_is_that_of_the_loop(spatial, coverage):
    predicted, true = masks(0, spatial=spatial)
    counted = [pair for pair in zip(predicted.numpy(), true.numpy(), strict=True) if (pair[1] == 1).any()]
    wanted = oracle.quantile([oracle.least_margin([pair], coverage) for pair in counted], 0.1)
    fitted = ConformalMargin(0.1, coverage).fit([(predicted, true)])
    assert (int(fitted.margin), int(fitted.images)) == (wanted, len(counted))


@every
def test_the_empirical_risk_is_the_mean_loss_of_what_is_given(make, task):
    prediction, target = data(task)
    fitted = make(0.2).fit([(prediction, target)])
    losses = [loss for loss in map(lambda p, t: loss_of(fitted, p, t), prediction, target) if loss is not None]
    assert float(fitted.empirical_risk) == pytest.approx(np.mean(losses), abs=1e-6)
    assert len(losses) == int(fitted.images) == int(fitted.groups)


def loss_of(fitted, prediction, target):
    """The loss of one image by what a fitted object gives for it, in plain words; None where it has none."""
    out = fitted(prediction[None])[0]
    if isinstance(fitted, ConformalMargin):
        true = target == 1
        return float((out & true).sum() / true.sum() < fitted.coverage) if true.any() else None
    labeled = target != 255
    if fitted.task == "multiclass":
        is_it = torch.arange(len(out)).view(-1, *[1] * target.ndim) == target
        positive, negative = is_it & labeled, ~is_it & labeled
    else:
        out = out if fitted.task == "multilabel" else out[0]
        positive, negative = target == 1, target == 0
    if getattr(fitted, "risk", "miss") == "false_positive":
        return float((out & negative).sum() / negative.sum()) if negative.any() else None
    covered = (out & positive).sum().item() / positive.sum().item() if positive.any() else None
    if covered is None or not isinstance(fitted, PredictionSets):
        return None if covered is None else 1 - covered
    return float(covered < fitted.coverage)


@every
@pytest.mark.parametrize("number", [9, 14, 25])
def test_of_any_images_each_in_turn_the_new_one_has_a_mean_loss_of_at_most_alpha(make, task, number):
    # the guarantee itself, exactly: an average over which of the images is the new one, with no chance in it
    alpha = 0.15
    prediction, target = data(task, number=number, ignored=0.0) if task != "masks" else data(task, number=number)
    losses = []
    for new in range(number):
        others = [n for n in range(number) if n != new]
        fitted = make(alpha).fit([(prediction[others], target[others])])
        losses.append(loss_of(fitted, prediction[new], target[new]))
    assert None not in losses
    assert np.mean(losses) <= alpha + 1e-9


@pytest.mark.parametrize("number", [12, 20])
def test_of_any_groups_each_in_turn_the_new_one_has_a_mean_loss_of_at_most_alpha(number):
    probs, target = images(3, number=3 * number, ignored=0)
    group = [str(n % number) for n in range(3 * number)]
    losses = []
    for new in range(number):
        rows = [n for n, name in enumerate(group) if name != str(new)]
        ids = [group[n] for n in rows]
        fitted = ConformalRiskControl("miss", 0.15).fit([(probs[rows], target[rows], ids)], group=str)
        own = [n for n, name in enumerate(group) if name == str(new)]
        losses.append(np.mean([loss_of(fitted, probs[n], target[n]) for n in own]))  # images are of one size
    assert np.mean(losses) <= 0.15


# --- sets


def thresholded(threshold, channels=3, **settings):
    """Sets of a given threshold."""
    sets = ConformalRiskControl(**settings)
    for name, value in {"threshold": threshold, "images": 20, "groups": 20, "channels": channels}.items():
        getattr(sets, name).fill_(value)
    return sets


PIXELS = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.5, 0.5, 0.0]]).T[None]


def test_a_set_holds_every_class_above_the_threshold_and_the_top_one():
    assert thresholded(0.3)(PIXELS)[0].T.tolist() == [[True, False, False], [True, True, False], [True, True, False]]


def test_a_set_holds_the_top_class_whatever_the_threshold_and_of_equals_each():
    assert thresholded(1.0)(PIXELS)[0].T.tolist() == [[True, False, False], [True, False, False], [True, True, False]]


def test_a_threshold_of_0_lets_every_class_in():
    assert bool(thresholded(0.0)(PIXELS).all())


def test_sets_of_sure_classes_may_be_empty():
    sets = thresholded(0.6, risk="false_positive")
    assert sets(PIXELS)[0].T.tolist() == [[True, False, False], [False] * 3, [False] * 3]


def test_size_counts_the_classes_of_each_set():
    sizes = thresholded(0.3).size(PIXELS)
    assert (sizes.dtype, sizes.tolist()) == (torch.int64, [[1, 2, 2]])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("spatial", [(), (7,), (4, 5), (3, 4, 5)])
def test_sets_and_sizes_have_the_shapes_that_they_should(task, spatial):
    probs, target = images(0, task=task, spatial=spatial, ignored=0)
    sets = ConformalRiskControl("miss", 0.3, task).fit([(probs, target)])
    out, size = sets(probs), sets.size(probs)
    assert (out.dtype, out.shape) == (torch.bool, (30, 1 if task == "binary" else 3, *spatial))
    assert (size.dtype, size.shape) == (torch.int64, (30, *spatial))


def test_a_binary_model_with_two_channels_gives_the_mask_of_its_foreground():
    probs, target = images(0, task="binary")
    two = torch.cat((1 - probs, probs), 1)
    one_, two_ = (ConformalRiskControl(alpha=0.2, task="binary").fit([(p, target)]) for p in (probs, two))
    assert torch.equal(one_(probs), two_(two))


def test_the_size_is_drawn_as_a_heat_map():
    from seguq.export import Scale, ScaleFinder, colorize, heatmap

    size = thresholded(0.3).size(PIXELS.unsqueeze(2))
    finder = ScaleFinder()
    finder.add(size)
    colors = colorize(size[0].numpy(), Scale(1, 3))
    assert (colors[0, 0].tolist(), colors[0, 1].tolist()) == ([68, 1, 84], [33, 145, 140])
    assert heatmap(size[0].numpy(), finder.scale(), "classes in the set").ndim == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_compared_as_float32_in_fits_and_in_sets(dtype):
    probs, target = images(0)
    sets = PredictionSets(0.1).fit([(probs.to(dtype), target)])
    alike = PredictionSets(0.1).fit([(probs.to(dtype).float(), target)])
    assert state(sets) == state(alike)
    assert torch.equal(sets(probs.to(dtype)), alike(probs.to(dtype).float()))


def test_a_small_probability_is_no_reason_for_all_classes():
    # an over-confident model: what it misses has probabilities far below what steps of a hundredth could tell apart
    probs, target = images(0, sharpness=12.0)
    sets = PredictionSets(0.1, 0.95).fit([(probs, target)])
    assert 0 < float(sets.threshold) < 1e-6
    assert not bool(sets(probs).all())


# --- margins and dilations


@pytest.mark.parametrize("spatial", [(12,), (9, 12), (5, 6, 7)])
@pytest.mark.parametrize("distance", [0, 1, 2, 30])
def test_dilations_are_those_of_the_loop(spatial, distance):
    mask = masks(1, number=2, spatial=spatial)[0].bool()
    wanted = [m.numpy() for m in mask]
    for _ in range(distance):
        wanted = [oracle.grown(m) for m in wanted]
    assert np.array_equal(dilate(mask, distance).numpy(), np.stack(wanted))


@pytest.mark.parametrize("spatial", [(12,), (9, 12), (5, 6, 7)])
def test_the_dilations_that_reach_a_pixel_are_those_after_which_the_mask_holds_it(spatial):
    mask = masks(2, number=3, spatial=spatial)[0].bool()
    mask[1] = False
    pixels = torch.ones_like(mask).nonzero()
    reach = dilations_to_reach(mask, pixels)
    assert reach.max() == max(spatial)
    for distance in range(max(spatial)):
        assert torch.equal(dilate(mask, distance)[tuple(pixels.T)], reach <= distance)


def test_an_empty_mask_stays_empty():
    assert not bool(dilate(torch.zeros(2, 3, 3, dtype=torch.bool), 2).any())


def test_images_without_a_true_pixel_are_left_out_of_a_margin():
    predicted, true = masks(0)
    more = torch.cat((predicted, predicted)), torch.cat((true, torch.zeros_like(true)))
    assert state(ConformalMargin(0.1).fit([more])) == state(ConformalMargin(0.1).fit([(predicted, true)]))


def test_an_image_with_an_object_but_no_predicted_pixel_is_covered_by_no_margin():
    predicted, true = masks(0, number=40)
    predicted[:10] = 0
    with pytest.raises(SeguqError, match=r"in 10 of 40 .* an alpha of at least 0\.2683"):
        ConformalMargin(0.2).fit([(predicted, true)])
    fitted = ConformalMargin(0.2684).fit([(predicted, true)])
    assert float(fitted.empirical_risk) == pytest.approx(0.25)


def test_masks_may_be_bool_or_numbers_or_probabilities():
    predicted, true = masks(0)
    one = ConformalMargin(0.1).fit([(predicted, true)])
    for given in (predicted.bool(), predicted.byte(), predicted.float(), 0.2 + 0.6 * predicted.half()):
        other = ConformalMargin(0.1).fit([(given, true.byte())])
        assert state(other) == state(one)
        assert torch.equal(other(given), one(predicted))


def test_what_is_predicted_on_ignored_pixels_grows_but_is_not_asked_for():
    predicted = torch.zeros(20, 1, 9, dtype=torch.int64)
    predicted[:, :, 2] = 1
    true = torch.zeros_like(predicted)
    true[:, :, 3], true[:, :, 5:] = 1, 255
    assert int(ConformalMargin(0.1).fit([(predicted, true)]).margin) == 1


# --- streaming, ignored pixels, groups


@every
def test_batches_are_read_once_and_how_they_are_cut_changes_nothing(make, task):
    prediction, target = data(task)
    whole = make(0.2).fit([(prediction, target)])
    parts = make(0.2).fit((prediction[i : i + 7], target[i : i + 7]) for i in range(0, 30, 7))
    found = [state(item) for item in (whole, parts)]
    risks = [item.pop("empirical_risk") for item in found]
    assert found[0] == found[1] and risks[0] == pytest.approx(risks[1], abs=1e-6)


@every
def test_what_is_ignored_changes_nothing_even_where_it_is_no_number(make, task):
    prediction, target = data(task)
    fitted = make(0.2).fit([(prediction, target)])
    if task == "masks":
        other = torch.zeros_like(prediction)
    else:
        without = (target == 255) if task == "multilabel" else (target == 255).unsqueeze(1).expand_as(prediction)
        other = prediction.masked_fill(without, float("nan"))
        assert bool(other.isnan().any())
        assert state(make(0.2).fit([(other, target)])) == state(fitted)
    nothing = torch.full_like(target, 255)
    assert state(make(0.2).fit([(prediction, target), (other, nothing)])) == state(fitted)


MERGED = {name: case for name, case in CASES.items() if name != "own" and "margin" not in name}


@pytest.mark.parametrize(("make", "task"), MERGED.values(), ids=MERGED.keys())
def test_the_images_of_a_group_count_as_one_large_image(make, task):
    prediction, target = data(task, number=60)
    ids = [f"{n % 20}_{n}" for n in range(60)]
    batches = [(prediction[rows], target[rows], ids[rows]) for rows in (slice(31), slice(31, None))]
    fitted = make(0.2).fit(batches, group=r"^\d+")
    large = [torch.cat([values[start : start + 20] for start in (0, 20, 40)], -1) for values in (prediction, target)]
    alike = make(0.2).fit([large])
    assert (int(fitted.groups), int(fitted.images)) == (20, 60)
    assert state(fitted) == {**state(alike), "images": 60}


def test_of_a_group_a_risk_of_ones_own_is_the_mean_over_its_images():
    probs, target = images(0, number=60, ignored=0)  # images are of one size: the mean is that of all pixels together
    ids = [n % 20 for n in range(60)]
    fitted = ConformalRiskControl(missed, 0.2).fit([(probs, target, ids)], group=str)
    large = [torch.cat([values[start : start + 20] for start in (0, 20, 40)], -1) for values in (probs, target)]
    assert state(fitted) == pytest.approx({**state(ConformalRiskControl(missed, 0.2).fit([large])), "images": 60})


def test_the_margin_of_a_group_covers_its_true_pixels_together():
    predicted, true = masks(4, number=60)
    ids = [str(n % 20) for n in range(60)]
    fitted = ConformalMargin(0.1, 0.7).fit([(predicted, true, ids)], group=str)
    pairs = list(zip(predicted.numpy(), true.numpy(), strict=True))
    wanted = oracle.quantile([oracle.least_margin(pairs[n::20], 0.7) for n in range(20)], 0.1)
    assert int(fitted.margin) == wanted


def test_ids_come_from_the_batch_or_from_its_attribute_or_are_numbers():
    probs, target = images(0)

    class Named(tuple):
        image_ids = tuple(f"{n // 2}" for n in range(30))

    one = PredictionSets(0.2).fit([(probs, target, [f"{n // 2}" for n in range(30)])], group=str)
    two = PredictionSets(0.2).fit([Named((probs, target))], group=str)
    three = PredictionSets(0.2).fit([(probs, target)], group=lambda number: str(int(number) // 2))
    assert state(one) == state(two) == state(three)
    assert int(one.groups) == 15


# --- risks of one's own


def test_a_risk_of_ones_own_is_kept_as_the_same_one_by_name_with_coarser_thresholds():
    probs, target = images(0)
    own, named = (ConformalRiskControl(risk, 0.2).fit([(probs, target)]) for risk in (missed, "miss"))
    assert float(named.threshold) * 7 / 8 <= float(own.threshold) <= float(named.threshold)


def test_an_image_whose_own_risk_is_nan_is_left_out():
    probs, target = images(0)

    def of_class_2(sets, target):
        positive = (target == 2).flatten(1)
        return 1 - (sets[:, 2].flatten(1) & positive).sum(1) / positive.sum(1)

    without = int((target != 2).flatten(1).all(1).sum())
    target[0][target[0] == 2] = 1
    fitted = ConformalRiskControl(of_class_2, 0.3).fit([(probs, target)])
    assert int(fitted.images) == 30 - without - 1


WRONG_RISKS = {
    "rises": (lambda sets, target: sets.flatten(1).float().mean(1), "rises as sets grow"),
    "is no tensor of B": (
        lambda sets, target: torch.zeros(3),
        r"a loss for each of 30 images, a tensor \(B,\), but gives \(3,\)",
    ),
    "is a number": (lambda sets, target: 0.5, "but gives float"),
    "lies beyond 1": (lambda sets, target: torch.full((30,), 1.5), "between 0 and 1"),
    "never falls to alpha": (lambda sets, target: torch.full((30,), 0.5), "0.5 where sets hold all classes"),
    "is NaN now and then": (
        lambda sets, target: torch.where(sets.flatten(1).all(1), 0.0, torch.nan),
        "NaN for some sets",
    ),
}


@pytest.mark.parametrize(("risk", "said"), WRONG_RISKS.values(), ids=WRONG_RISKS.keys())
def test_a_risk_of_ones_own_that_no_guarantee_holds_for_is_refused(risk, said):
    with pytest.raises(SeguqError, match=said):
        ConformalRiskControl(risk, 0.2).fit([images(0, ignored=0)])


# --- what cannot be fitted


@every
@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.01, 99), (0.3, 3), (0.05, 19)])
def test_too_few_images_are_an_error_that_says_how_many_it_needs(make, task, alpha, needed):
    prediction, target = data(task, number=needed - 1)
    target.flatten(1)[:, 0], target.flatten(1)[:, 1] = 1, 0  # each image has all kinds of pixels
    with pytest.raises(SeguqError, match=rf"needs at least {needed} images .*, but there are {needed - 1}"):
        make(alpha).fit([(prediction, target)])
    if task != "masks":
        more = torch.cat((prediction, prediction[:1])), torch.cat((target, target[:1]))
        assert int(make(alpha).fit([more]).images) == needed


def test_an_alpha_that_the_error_advises_is_enough():
    probs, target = images(0, number=6)
    with pytest.raises(SeguqError, match=r"an alpha of at least 0\.1429$"):
        PredictionSets(0.1).fit([(probs, target)])
    PredictionSets(0.1429).fit([(probs, target)])


def test_groups_are_what_is_counted():
    probs, target = images(0)
    with pytest.raises(SeguqError, match=r"needs at least 9 groups .*, but there are 3"):
        PredictionSets(0.1).fit([(probs, target, [n % 3 for n in range(30)])], group=str)


def broken(task, **change):
    prediction, target = data(task)
    return {"prediction": prediction, "target": target, **change}


BAD = {
    "NaN": (lambda p, t: (p.float().index_fill(0, torch.tensor([3]), float("nan")), t), "NaN"),
    "another shape": (lambda p, t: (p[..., :-1], t), "shape"),
    "a target out of range": (lambda p, t: (p, t.masked_fill(t == 1, 7)), "holds the value 7"),
    "values above 1": (lambda p, t: (p.float() * 3 + 2, t), "between 0 and 1"),
    "no tensors": (lambda p, t: (p.tolist(), t.tolist()), "batches must yield"),
    "one thing": (lambda p, t: (p,), "batches must yield"),
    "ids of another number": (lambda p, t: (p, t, ["a"]), "one id for each of 30 images"),
}


@every
@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_batch_is_one_sentence_with_its_number_and_leaves_the_earlier_fit(make, task, change, said):
    good = data(task)
    fitted = make(0.2).fit([good])
    before = state(fitted)
    with pytest.raises(SeguqError, match=f"^batch 1: .*{said}") as caught:
        fitted.fit([good, change(*data(task, seed=1))])
    assert "\n" not in str(caught.value)
    assert state(fitted) == before


@every
def test_nothing_to_fit_on_is_one_sentence(make, task):
    prediction, target = data(task)
    read = iter([(prediction, target)])
    list(read)
    with pytest.raises(SeguqError, match=r"of 0 images none has .* \(was a generator read before\?\)"):
        make(0.2).fit(read)
    with pytest.raises(SeguqError, match="of 30 images none has a"):
        make(0.2).fit([(prediction, torch.full_like(target, 255))])


@every
def test_a_call_before_a_fit_is_refused(make, task):
    made = make(0.2)
    for call in (lambda: made(data(task)[0]), made.summary):
        with pytest.raises(SeguqError, match="not fitted yet"):
            call()


@pytest.mark.parametrize(
    "make",
    [
        *(lambda a=alpha: PredictionSets(a) for alpha in (0, 1, -0.1, 1.5, float("nan"), "0.1", True, None)),
        *(lambda c=coverage: ConformalMargin(0.1, c) for coverage in (0, 1.1, float("nan"), "1", None, True)),
        *(lambda r=risk: ConformalRiskControl(r) for risk in ("misses", None, 3, "", "a b.c")),
        lambda: PredictionSets(task="regression"),
        lambda: PredictionSets(ignore_index=0.5),
    ],
)
def test_arguments_that_cannot_be_are_refused(make):
    with pytest.raises((UsageError, SeguqError)):
        make()


def test_batches_of_another_number_of_classes_are_refused_in_fits_and_calls():
    probs, target = images(0)
    two = images(0, classes=2)
    sets = PredictionSets(0.1).fit([(probs, target)])
    with pytest.raises(SeguqError, match="batch 1: a prediction of 2 classes follows one of 3"):
        PredictionSets(0.1).fit([(probs, target), two])
    with pytest.raises(SeguqError, match="2 classes, but the sets were fitted for 3"):
        sets(two[0])


@pytest.mark.parametrize("value", [float("nan"), -4.0, 3.0])
def test_what_are_no_probabilities_get_no_sets(value):
    probs, target = images(0)
    sets = PredictionSets(0.1).fit([(probs, target)])
    probs[3, 1, 2, 2] = value
    with pytest.raises(SeguqError, match="probs"):
        sets(probs)


def test_sets_of_all_classes_and_empty_ones_are_told_of():
    sure_and_wrong = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1).expand(10, 3, 5), torch.ones(10, 5, dtype=torch.long)
    with pytest.warns(UserWarning, match="all classes are in the set of every pixel"):
        assert bool(PredictionSets(0.1).fit([sure_and_wrong])(sure_and_wrong[0]).all())
    with pytest.warns(UserWarning, match="all classes are in the set of every pixel"):
        assert bool(ConformalRiskControl("miss", 0.1).fit([sure_and_wrong])(sure_and_wrong[0]).all())
    with pytest.warns(UserWarning, match="all sets are empty"):
        assert not bool(ConformalRiskControl("false_positive", 0.1).fit([sure_and_wrong])(sure_and_wrong[0]).any())


def test_targets_of_0_and_255_alone_are_told_of():
    probs, target = images(0)
    with pytest.warns(UserWarning, match="hold 0 and 255, but no other class"):
        PredictionSets(0.1).fit([(probs, target.masked_fill(target != 255, 0))])


# --- what is kept


@every
def test_a_copy_by_pickle_by_state_dict_and_by_arguments_gives_the_same(make, task):
    prediction, target = data(task)
    fitted = make(0.2).fit([(prediction, target)])
    copies = [copy.deepcopy(fitted), type(fitted)(**fitted.arguments())]
    copies[1].load_state_dict(fitted.state_dict())
    if task != "multiclass" or getattr(fitted, "risk", "") is not missed:
        copies.append(pickle.loads(pickle.dumps(fitted)))
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == fitted.state_dict().keys()
    for other in copies:
        assert torch.equal(other(prediction), fitted(prediction))
        assert repr(other) == repr(fitted)


@every
def test_inference_mode_makes_no_difference(make, task):
    prediction, target = data(task)
    fitted = make(0.2).fit([(prediction, target)])
    with torch.inference_mode():
        inside = make(0.2).fit([(prediction.clone(), target.clone())])
        assert torch.equal(inside(prediction), fitted(prediction))
    inside.images.fill_(3)


@every
def test_inputs_and_the_global_generator_are_left_as_they_are(make, task):
    prediction, target = data(task)
    kept, before = (prediction.clone(), target.clone()), torch.get_rng_state()
    make(0.2).fit([(prediction, target)])(prediction)
    assert torch.equal(prediction, kept[0]) and torch.equal(target, kept[1])
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_a_summary_says_what_is_promised_and_repr_what_was_fitted(make, task):
    fitted = make(0.2).fit([data(task)])
    summary = fitted.summary()
    assert "new image" in summary.promise and "\n" not in summary.promise
    assert (summary.alpha, summary.images) == (0.2, int(fitted.images))
    assert 0 <= summary.empirical_risk <= 0.2
    assert all(f"{name}=" in repr(fitted) for name in (*summary.fitted, "images", "groups", "empirical_risk"))


def test_names_are_found_by_the_package_and_by_the_registry():
    assert seguq.PredictionSets is Conformal.named("prediction_sets") is seguq.calibration.PredictionSets
    assert not hasattr(seguq.calibration, "NoSuchThing")


# --- beside another library


@pytest.mark.parametrize("alpha", [0.1, 0.25])
def test_thresholds_of_a_binary_model_are_those_of_mapie(alpha):
    mapie = pytest.importorskip("mapie.risk_control")
    probs, target = images(5, number=60, task="binary", ignored=0, spatial=(8, 8))
    controller = mapie.SemanticSegmentationController(
        predict_function=lambda x: x, risk="recall", method="crc", target_level=1 - alpha
    )
    controller.calibrate(probs.numpy(), target.numpy())
    theirs = float(controller.best_predict_param[0])
    ours = float(ConformalRiskControl("miss", alpha, "binary").fit([(probs, target)]).threshold)
    assert math.isclose(ours, theirs, abs_tol=0.01 + ours / 32)  # their steps, and ours


def test_no_warning_is_given_where_there_is_nothing_to_say():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PredictionSets(0.2).fit([images(0)])
