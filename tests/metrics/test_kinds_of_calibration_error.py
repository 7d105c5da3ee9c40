"""Every kind, norm, average, border and task of the calibration error against loops over pixels in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.borders import near_border
from seguq.metrics import BrierDecomposition, BrierScore, CalibrationError, LocalCalibrationError
from tests.metrics.builders import ids, probs_and_target

N_BINS = 7


def filled(batch, n_boot=2, parts=1, metric=CalibrationError, **options):
    made = metric(options.pop("num_classes", batch[0].shape[1]), n_bins=N_BINS, n_boot=n_boot, **options)
    for places in np.array_split(np.arange(len(batch[0])), parts):
        made.update(batch[0][places], batch[1][places], [ids(len(batch[0]))[i] for i in places])
    return made


def rows_of(probs, target, kind, task):
    """Per class: confidences and hits of the pixels that count, of one image."""
    if task != "multiclass":
        labels = [(probs, target)] if task == "binary" else list(zip(probs, target, strict=True))
        pairs = [(p[t != 255], t[t != 255]) for p, t in labels]
        if kind == "classwise":
            return pairs
        confidence = np.concatenate([np.maximum(p, 1 - p) for p, _ in pairs])
        return [(confidence, np.concatenate([(p > 0.5) == t for p, t in pairs]))]
    kept = target != 255
    probs, target = probs[:, kept], target[kept]
    if kind == "classwise":
        return [(probs[c], target == c) for c in range(len(probs))]
    return [(probs.max(0), probs.argmax(0) == target)]


def places(confidence, kind):
    if kind == "adaptive":
        return np.argsort(np.argsort(confidence, kind="stable"), kind="stable") * N_BINS // len(confidence)
    return np.clip(np.ceil(confidence * N_BINS) - 1, 0, N_BINS - 1).astype(int)


def error_by_loop(rows, kind, norm, average):
    """Bin by bin, in float64."""
    found = []
    for confidence, hits in rows:
        number = places(confidence, kind)
        for b in range(N_BINS):
            n = int((number == b).sum())
            if n:
                said, came = confidence[number == b].mean(), hits[number == b].mean()
                found.append((n / len(confidence) / len(rows), said - came, came * (1 - came) / max(1, n - 1)))
    weights, gaps, noise = np.array(found).T
    if average == "nonempty":
        weights = np.full(len(gaps), 1 / len(gaps))
    if norm == "max":
        return np.abs(gaps).max()
    if norm == "l1":
        return (weights * np.abs(gaps)).sum()
    return math.sqrt(max(0, (weights * (gaps**2 - noise)).sum()))


def batch_of(task, seed=0, images=5, size=(9, 11)):
    probs, target = probs_and_target(seed, images=images, size=size)
    if task == "multiclass":
        return probs, target
    foreground = probs if task == "multilabel" else probs[:, 1]
    hit = torch.rand(foreground.shape, generator=torch.Generator().manual_seed(seed)) < foreground**2
    ignored = target == 255 if task == "binary" else (target == 255).unsqueeze(1).expand_as(foreground)
    return foreground, hit.long().masked_fill(ignored, 255)


CASES = list(itertools.product(("top1", "classwise"), ("l1", "l2", "max"), ("pooled", "image", "nonempty")))


@pytest.mark.parametrize(("kind", "norm", "average"), CASES)
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_the_value_is_that_of_a_loop_over_bins(kind, norm, average, task):
    batch = batch_of(task)
    images = [(probs.double().numpy(), target.numpy()) for probs, target in zip(*batch, strict=True)]
    each = [rows_of(*image, kind, task) for image in images]
    if average == "image":
        expected = np.mean([error_by_loop(rows, kind, norm, "pooled") for rows in each])
    else:
        rows = [tuple(map(np.concatenate, zip(*row, strict=True))) for row in zip(*each, strict=True)]
        expected = error_by_loop(rows, kind, norm, average)
    classes = 1 if task == "binary" else 3
    found = filled(batch, num_classes=classes, parts=2, kind=kind, norm=norm, average=average, task=task)
    assert float(found.compute()) == pytest.approx(expected, abs=1e-6)


def confidences(kind, n=7 * 4000):
    random = np.random.default_rng(0)
    return {
        "spread": lambda: random.uniform(0.5, 1, n),
        "crowded": lambda: 1 - 1e-5 * random.random(n),
        "tied": lambda: random.choice([0.6, 0.75, 0.9], n),
        "constant": lambda: np.full(n, 0.8),
        "sure": lambda: np.ones(n),
    }[kind]()


@pytest.mark.parametrize("average", ["pooled", "image"])
@pytest.mark.parametrize("kind", ["spread", "crowded", "tied", "constant", "sure"])
def test_bins_of_equal_mass_are_those_of_sorted_confidences(kind, average):
    confidence = torch.from_numpy(confidences(kind)).float().double()
    lacks = (1 - confidence) / float((1 - confidence).max().clamp_min(1e-9))
    hits = torch.rand(len(confidence), generator=torch.Generator().manual_seed(0)) < 0.9 - 0.5 * lacks
    probs = torch.stack((confidence, 1 - confidence)).view(1, 2, 100, -1)
    found = filled((probs, (~hits).long().view(1, 100, -1)), kind="adaptive", average=average).compute()
    # equal ones are alike: in order of confidence, and those of one value mixed
    order = torch.argsort(confidence, stable=True)
    gaps = (confidence - hits.double())[order]
    if kind in ("tied", "constant", "sure"):
        for value in confidence.unique():
            here = confidence[order] == value
            gaps[here] = gaps[here].mean()
    expected = gaps.view(N_BINS, -1).mean(1).abs().mean()
    assert float(found) == pytest.approx(float(expected), abs=2e-4)


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_adaptive_bins_of_classes_of_one_probability_need_no_pixel_in_each_bin(norm):
    probs = torch.tensor([[[0.75] * 8, [0.25] * 8]])
    target = torch.tensor([[0] * 4 + [1] * 4])
    assert float(filled((probs, target), kind="adaptive", norm=norm).compute()) == pytest.approx(
        0.25 if norm != "l2" else math.sqrt(max(0, 0.0625 - 0.25 / (8 / 7 - 1))), abs=1e-6
    )


def near_by_loop(classes, distance, ignored):
    """Pixel by pixel: two classes that differ within its square."""
    out = np.zeros(classes.shape, dtype=bool)
    for place in np.ndindex(*classes.shape):
        square = classes[tuple(slice(max(0, i - distance), i + distance + 1) for i in place)]
        out[place] = len(set(square[square != ignored].tolist())) > 1
    return out


@pytest.mark.parametrize("size", [(15,), (8, 9), (4, 5, 6)])
@pytest.mark.parametrize("distance", [1, 2, 20])
@pytest.mark.parametrize("ignored", [None, 255])
def test_pixels_near_a_border_are_those_of_a_loop(size, distance, ignored):
    random = np.random.default_rng(0)
    classes = np.repeat(random.integers(0, 3, (3, *(-(-side // 4) for side in size))), 4, 1)
    for axis in range(1, len(size)):
        classes = np.repeat(classes, 4, axis + 1)
    classes = classes[(slice(None), *(slice(side) for side in size))]
    classes[random.random(classes.shape) < 0.2] = 255 if ignored else 0
    found = near_border(torch.from_numpy(classes), distance, ignored)
    assert found.numpy().tolist() == [near_by_loop(one, distance, ignored).tolist() for one in classes]


@pytest.mark.parametrize("border", ["predicted", "true"])
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("size", [(8, 9), (4, 5, 6)])
def test_near_a_border_only_those_pixels_count(border, task, size):
    probs, target = batch_of(task, size=size)
    said = {"multiclass": probs.argmax(1) if task == "multiclass" else None}.get(task)
    predicted = (probs > 0.5).long() if said is None else said
    classes = target if border == "true" else predicted.masked_fill(target == 255, 255)
    images = classes.flatten(0, 1) if task == "multilabel" else classes
    near = np.stack([near_by_loop(one.numpy(), 1, 255) for one in images]).reshape(classes.shape)
    kept = target.masked_fill(~torch.from_numpy(near), 255)
    options = {"num_classes": 3, "task": task}
    found = filled((probs, target), near_border=1, border=border, **options)
    assert torch.equal(found.sums, filled((probs, kept), **options).sums) and found.sums[:N_BINS].sum() > 0


def test_windows_of_labels_of_8_bits_count_the_same():
    probs, target = batch_of("multiclass")
    for options in ({"near_border": 1}, {"near_border": 2, "border": "true"}):
        found, other = filled((probs, target), **options), filled((probs, target.to(torch.uint8)), **options)
        assert torch.equal(found.sums, other.sums)


# --- intervals


@pytest.mark.parametrize(
    ("kind", "norm", "average"), [*CASES, ("adaptive", "l1", "pooled"), ("adaptive", "l2", "image")]
)
def test_an_interval_holds_its_value_and_a_difference_with_itself_is_none(kind, norm, average):
    metric = filled(batch_of("multiclass", images=30), n_boot=40, kind=kind, norm=norm, average=average)
    low, high = metric.compute_interval()
    assert 0 <= low <= metric.compute() <= high <= 1 and low < high
    difference, (below, above) = metric.compute_difference(metric)
    assert (float(difference), float(below), float(above)) == pytest.approx((0, 0, 0), abs=1e-9)
    if average != "image":
        assert float(metric.compute_debiased()) <= float(metric.compute()) + (0.05 if norm == "l2" else 1e-7)


def test_images_without_a_pixel_have_no_border():
    metric = CalibrationError(3, near_border=1)
    metric.update(torch.zeros(2, 3, 4, 0), torch.zeros(2, 4, 0, dtype=torch.int64))
    assert metric.compute().isnan()


def test_metrics_of_other_settings_have_no_difference():
    batch = batch_of("multiclass")
    with pytest.raises(SeguqError, match="norm is 'l1' here and 'l2' there"):
        filled(batch).compute_difference(filled(batch, norm="l2"))


# --- local error, parts of the Brier score


@pytest.mark.parametrize("size", [(20,), (9, 11), (5, 6, 7)])
@pytest.mark.parametrize("window", [3, 4, 10**6])
def test_the_local_error_is_the_mean_over_windows(size, window):
    probs, target = probs_and_target(size=size)
    target[0] = 255
    errors = []
    for p, t in zip(probs.double().numpy(), target.numpy(), strict=True):
        for corner in itertools.product(*(range(0, side, window) for side in size)):
            place = tuple(slice(start, start + window) for start in corner)
            if (t[place] != 255).any():
                rows = rows_of(p[(slice(None), *place)], t[place], "top1", "multiclass")
                errors.append(error_by_loop(rows, "top1", "l1", "pooled"))
    found = filled((probs, target), metric=LocalCalibrationError, window=window, parts=2)
    assert float(found.compute()) == pytest.approx(np.mean(errors), abs=1e-6)
    assert float(found.sums[0]) == len(errors)


def test_the_parts_of_the_brier_score_are_those_of_a_loop_and_add_up():
    batch = probs_and_target(images=5, size=(9, 11))
    found = {name: float(value) for name, value in filled(batch, metric=BrierDecomposition).compute().items()}
    plain = BrierScore(3)
    plain.update(*batch)
    assert found["brier"] == pytest.approx(float(plain.compute()), abs=1e-6)
    kept = batch[1].numpy() != 255
    probs, target = batch[0].double().numpy().swapaxes(0, 1)[:, kept], batch[1].numpy()[kept]
    parts = np.zeros(3)
    for c in range(3):
        number, share = places(probs[c], "classwise"), (target == c).mean()
        for b in np.unique(number):
            here = number == b
            came = (target == c)[here].mean()
            parts += here.mean() * np.array([(probs[c][here].mean() - came) ** 2, (came - share) ** 2, 0])
        parts[2] += share * (1 - share)
    assert [found[name] for name in ("reliability", "resolution", "uncertainty")] == pytest.approx(
        parts.tolist(), abs=1e-6
    )
    total = found["reliability"] - found["resolution"] + found["uncertainty"] + found["within"]
    assert total == pytest.approx(found["brier"], abs=1e-6)
    assert abs(found["within"]) < 0.02


# --- wrong use


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "top"}, "kind must be one of top1, classwise, adaptive"),
        ({"norm": "l3"}, "norm must be one of l1, l2, max"),
        ({"average": "mean"}, "average must be one of pooled, image, nonempty"),
        ({"border": "both"}, "border must be one of predicted, true"),
        ({"task": "regression"}, "task must be one of"),
        ({"n_bins": 0}, "n_bins must be a whole number of at least 1"),
        ({"near_border": 0}, "near_border must be a whole number of at least 1"),
    ],
)
def test_a_wrong_option_is_an_error_at_once(options, told):
    with pytest.raises(SeguqError, match=told):
        CalibrationError(3, **options)


@pytest.mark.parametrize(
    ("task", "probs", "target", "told"),
    [
        ("binary", torch.rand(2, 2, 4), torch.ones(2, 4).long(), "one probability for each value"),
        ("binary", torch.rand(2, 4) + 1.5, torch.ones(2, 4).long(), "not between 0 and 1"),
        ("binary", torch.rand(2, 4), torch.full((2, 4), 2), "class index in 0..1"),
        ("multilabel", torch.rand(2, 2, 4), torch.ones(2, 2, 4).long(), "with 3 labels"),
        ("multilabel", torch.rand(2, 3, 4), torch.ones(2, 4).long(), "one probability for each value"),
    ],
)
def test_what_is_not_of_the_task_is_an_error(task, probs, target, told):
    with pytest.raises(SeguqError, match=told):
        CalibrationError(3, task=task).update(probs, target)


def test_one_channel_is_taken_for_the_foreground():
    probs, target = batch_of("binary")
    plain = filled((probs, target), num_classes=2, task="binary")
    assert torch.equal(plain.sums, filled((probs.unsqueeze(1), target), num_classes=2, task="binary").sums)


def test_without_bins_there_is_no_diagram_but_the_value():
    metric = filled(batch_of("multiclass"), average="image")
    with pytest.raises(SeguqError, match="no bins are kept"):
        _ = metric.bins
    with pytest.raises(SeguqError, match="not taken out"):
        metric.compute_debiased()
    _, ax = metric.plot()
    assert ax.get_xticklabels()[0].get_text() == "CalibrationError"
