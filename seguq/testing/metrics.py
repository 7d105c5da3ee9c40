"""What every metric promises, as one function that tests call: for those of seguq, and for one's own."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from seguq.core.errors import SeguqError, UsageError
from seguq.core.seeds import other_generators
from seguq.testing.claims import claim, named
from seguq.testing.metric_batch import MetricBatch, agree, filled, numbers, states_of, value_and_bounds

Make = Callable[..., Any]
_NO_CLASS = 12345  # no class index, and no ignore_index


def check_metric(make: Make, scores: Tensor, target: Tensor, *, by_pixel: bool = True) -> None:
    """Raise unless a metric keeps what all of them promise.

    It is made and filled some hundred times from one batch. These are the promises:

    - states are tensors of fixed size, those that add up int64 or float64, also in a module cast to half precision;
    - images in any order and in batches of any size, parts merged in any order, tiles under the id of their image, and
      two processes give the value and the interval of one batch;
    - so do flat values of one image, and images of any number of spatial dimensions;
    - half precision is computed in float32, inference mode makes no difference, an input that requires a gradient
      leaves no graph, and neither the inputs nor the global generators are touched;
    - scores of ignored pixels may be anything; NaN elsewhere, a label that is no class, shapes that do not fit and ids
      that are not one an image are a SeguqError of one sentence, after which all is as before;
    - the interval needs ids, holds the value, and one of a higher level holds it; a difference turned around is the
      negative one;
    - in a collection it has the values that it has alone; calling it gives the value of a batch, and takes it in;
    - it is as new after `reset`, and goes on after pickling, `clone` and a ``state_dict``;
    - where nothing was seen, its value is NaN, with a warning;
    - `plot` draws a value or values over steps, into given axes or new ones.

    Args:
        make: makes the metric, the same each time, of the settings that it is passed: ``seed``, ``dist_sync_fn`` and
            ``distributed_available_fn``. Few replicates (``n_boot=20``) make the check fast.
        scores: what `update` takes first, ``(B, C, *spatial)`` or ``(B, *spatial)``, of at least 4 images.
        target: what it takes second, ``(B, *spatial)`` with at least 2 values along the last axis, some of them the
            metric's ``ignore_index``, none of the images wholly.
        by_pixel: whether each pixel counts by itself, wherever it lies. Metrics of borders, windows or whole images are
            not asked for tiles, images of other dimensions, and flat values.

    Raises:
        AssertionError: for the first promise that is broken.

    Example:
        >>> from seguq.metrics import BrierScore
        >>> generator = torch.Generator().manual_seed(0)
        >>> probs = torch.randn(5, 3, 6, 4, generator=generator).softmax(1)
        >>> target = torch.randint(3, (5, 6, 4), generator=generator)
        >>> target[:, 0, 0] = 255
        >>> check_metric(lambda **settings: BrierScore(3, n_boot=20, **settings), probs, target)
    """
    if isinstance(make, Metric) or not callable(make):
        raise UsageError(
            "check_metric takes a function that makes the metric, such as lambda **settings: Mine(**settings), but was "
            f"given {make!r}"
        )
    if len(target) < 4 or not bool((target == make().ignore_index).any()):
        raise UsageError("check_metric needs at least 4 images, with some pixels of the metric's ignore_index")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in METRIC_CHECKS if by_pixel else [each for each in METRIC_CHECKS if each not in _BY_PIXEL]:
            metric = make()
            with named(metric, check.__name__):
                check(make, MetricBatch.of(scores, target, metric.ignore_index))


def _sees(metric: Any, expected: Any, promise: str) -> None:
    found, wanted = value_and_bounds(metric), value_and_bounds(expected)
    claim(agree(found, wanted), f"{promise} (values and bounds {found.tolist()} instead of {wanted.tolist()})")


def _keeps_states_of_fixed_size_and_full_precision(make: Make, batch: MetricBatch) -> None:
    metric = make()
    states = metric.metric_state
    claim(all(isinstance(state, Tensor) for state in states.values()), "a state must be a tensor, and no list")
    before = {name: (state.shape, state.dtype) for name, state in states.items()}
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    for number in range(20):
        filled(metric, replace(batch, ids=[f"{image} {number}" for image in batch.ids]), batch.tiles()[0])
    after = {name: (state.shape, state.dtype) for name, state in metric.metric_state.items()}
    claim(after == before, "a state must keep its size over updates, and its type in a module cast to half precision")
    one, two = states_of(filled(make(), batch)), states_of(filled(make(), batch, batch))
    for name, state in two.items():
        adds_up = not torch.equal(state, one[name]) and torch.equal(state, 2 * one[name])
        exact = state.dtype in (torch.int64, torch.float64)
        claim(exact or not adds_up, f"a state that adds up must be int64 or float64, but {name} is {state.dtype}")


def _takes_images_in_any_order_and_number(make: Make, batch: MetricBatch) -> None:
    whole, images = filled(make(), batch), range(len(batch))
    _sees(filled(make(), *(batch[[image]] for image in images)), whole, "images one by one must be as one batch")
    _sees(filled(make(), batch[images[::-1]]), whole, "the order of the images must not matter")
    _sees(filled(make(), batch[images[:3]], batch[images[3:]]), whole, "the size of the batches must not matter")
    _sees(filled(make(), batch[[]], batch), whole, "a batch without an image must change nothing")


def _takes_tiles_for_their_image(make: Make, batch: MetricBatch) -> None:
    whole, (left, right) = filled(make(), batch), batch.tiles()
    _sees(filled(make(), left, right), whole, "tiles under the id of their image must be as the whole image")
    twice = filled(make(), batch[[0, *range(len(batch))]])
    _sees(twice, filled(make(), batch[[0]], batch), "an id may come twice in a batch, for tiles of one image")


def _merges_in_any_order(make: Make, batch: MetricBatch) -> None:
    if not hasattr(Metric, "merge_state"):  # older versions of torchmetrics; processes are put together all the same
        return
    whole = filled(make(), batch)
    shares = [batch[range(1)], batch[range(1, 3)], batch[range(3, len(batch))]]
    for order in itertools.permutations(range(4)):
        merged = make()
        for part in order:
            merged.merge_state(filled(make(), *shares[part : part + 1]))  # the last has seen nothing
        _sees(merged, whole, "parts merged in any order must be as one metric of all images")


def _is_one_over_two_processes(make: Make, batch: MetricBatch) -> None:
    images = range(len(batch))
    for theirs in (images[1::2], images[:0]):  # the other process may have no image
        ours = [image for image in images if image not in theirs]
        both = [filled(make(), batch[theirs])]

        def gather(state: Tensor, group: Any = None, both: list[Any] = both) -> list[Tensor]:
            """What torchmetrics asks for: the state of every process."""
            (name,) = [name for name, own in both[1].metric_state.items() if own is state]
            return [getattr(metric, name) for metric in both]

        metric = filled(make(dist_sync_fn=gather, distributed_available_fn=lambda: True), batch[ours])
        both.append(metric)
        before = states_of(metric)
        _sees(metric, filled(make(), batch), "two processes must find what one does")
        same = all(torch.equal(state, before[name]) for name, state in metric.metric_state.items())
        claim(same, "after a value over all processes each must go on with its own states")


def _takes_any_number_of_spatial_dimensions(make: Make, batch: MetricBatch) -> None:
    whole, pixels = filled(make(), batch), batch.target[0].numel()
    for spatial in ((pixels,), (1, pixels), (pixels, 1, 1), (1, pixels, 1, 1)):
        _sees(filled(make(), batch.shaped(*spatial)), whole, f"images of size {spatial} must be as any other")


def _takes_flat_values_for_one_image(make: Make, batch: MetricBatch) -> None:
    one = batch[[0]].shaped(batch.target[0].numel())
    target = one.target[0]
    scores = one.scores[0].T if one.scores.ndim > one.target.ndim else one.scores[0]
    flat, kept, counted = make(), make(), target != batch.ignore_index
    flat.update(scores, target, group=one.ids)
    kept.update(scores[counted], target[counted], group=one.ids)
    _sees(flat, filled(make(), one), "flat values, (N, C) or (N,), must be one image")
    _sees(kept, flat, "ignored pixels must be as good as absent")


def _computes_half_precision_in_full(make: Make, batch: MetricBatch) -> None:
    if not batch.floating:
        return
    for given in (torch.float16, torch.bfloat16):
        half = replace(batch, scores=batch.scores.to(given))
        full = replace(batch, scores=half.scores.float())
        _sees(filled(make(), half), filled(make(), full), f"scores of {given} must be as the same ones in float32")
    double = filled(make(), replace(batch, scores=batch.scores.double()))
    claim(agree(value_and_bounds(double), value_and_bounds(filled(make(), batch)), 1e-3), "scores may be float64")


def _works_in_inference_mode(make: Make, batch: MetricBatch) -> None:
    whole, parts = filled(make(), batch), (batch[range(2)], batch[range(2, len(batch))])
    metric = make()
    with torch.inference_mode():
        filled(metric, parts[0])
        metric.reset()
        filled(metric, parts[0])
        metric.compute()
    _sees(filled(metric, parts[1]), whole, "what began in inference mode must go on outside of it")
    metric = filled(make(), parts[0])
    with torch.inference_mode():
        filled(metric, parts[1])
    _sees(metric, whole, "what began outside of inference mode must go on in it")


def _keeps_no_graph(make: Make, batch: MetricBatch) -> None:
    if not batch.floating:
        return
    metric, scores = make(), batch.scores.clone().requires_grad_()
    metric.update(scores, batch.target, group=batch.ids)
    metric(scores, batch.target, group=batch.ids)
    graph = [name for name, state in metric.metric_state.items() if state.requires_grad]
    claim(not graph, f"scores that require a gradient must leave no graph in the states, but {graph} have one")


def _leaves_the_world_as_it_is(make: Make, batch: MetricBatch) -> None:
    given, states = copy.deepcopy(batch), (torch.get_rng_state(), other_generators())
    value_and_bounds(filled(make(), given))
    same = torch.equal(given.target, batch.target) and torch.equal(given.scores, batch.scores)
    claim(same and given.ids == batch.ids, "update must not change what it is given")
    same = torch.equal(torch.get_rng_state(), states[0]) and other_generators() == states[1]
    claim(same, "the global random generators must be left as they were")


def _leaves_ignored_pixels_out(make: Make, batch: MetricBatch) -> None:
    whole = filled(make(), batch)
    for garbage in (torch.nan, torch.inf, -torch.inf, 1e30) if batch.floating else (-7, 999):
        spoiled = replace(batch, scores=batch.scores.masked_fill(batch.ignored, garbage))
        _sees(filled(make(), spoiled), whole, f"scores of ignored pixels may be anything, such as {garbage}")
    nothing = replace(batch, target=torch.full_like(batch.target, batch.ignore_index))
    _sees(filled(make(), batch, nothing), whole, "images of ignored pixels alone must change nothing")
    alone = numbers(filled(make(), nothing).compute())
    claim(bool(alone.isnan().all()), "the value of ignored pixels alone must be NaN")


def _refuses_what_is_wrong_and_takes_nothing_in(make: Make, batch: MetricBatch) -> None:
    scores, target, ids = batch.scores, batch.target, batch.ids
    first = tuple((target != batch.ignore_index).nonzero()[-1])  # the last pixel that counts
    label = target.clone()
    label[first] = _NO_CLASS
    wrong: dict[str, tuple[Any, Any, Any]] = {
        "a label that is no class": (scores, label, ids),
        "shapes that do not fit": (scores, target[..., 1:], ids),
        "too few ids": (scores, target, ids[1:]),
        "one text for all ids": (scores, target, "x" * len(batch)),
    }
    if batch.floating:
        spoiled = scores.clone()
        place = first if scores.ndim == target.ndim else (first[0], slice(None), *first[1:])
        spoiled[place] = torch.nan
        wrong["NaN at a pixel that counts"] = (spoiled, target, ids)
    metric = filled(make(), batch)
    before = states_of(metric)
    for what, (some, labels, group) in wrong.items():
        try:
            metric.update(some, labels, group=group)
        except SeguqError as error:
            claim("\n" not in str(error), f"the error for {what} must be one sentence, but is {error}")
        else:
            claim(False, f"{what} must be a SeguqError")
        after = metric.metric_state
        same = all(torch.equal(state, after[name]) for name, state in before.items())
        claim(same, f"an update that fails must take nothing in, but {what} changed a state")


def _gives_intervals_that_hold_the_value(make: Make, batch: MetricBatch) -> None:
    one = filled(make(), batch[[0]])
    low, high = numbers(one.compute_interval()).view(-1, 2).T
    value = numbers(one.compute())
    claim(_holds(low, value, high), "the interval of one image must hold its value")
    metric = filled(make(), batch)
    value = numbers(metric.compute())
    narrow, wide = (numbers(metric.compute_interval(level)).view(-1, 2).T for level in (0.5, 0.95))
    for low, high in (narrow, wide):
        claim(_holds(low, value, high), "the interval must hold the value")
    nested = _holds(wide[0], narrow[0], narrow[1]) and _holds(narrow[0], narrow[1], wide[1])
    claim(nested, "the interval of a higher level must hold that of a lower one")
    claim(agree(numbers(metric.compute()), value), "asking for an interval must leave the value as it is")
    numbered = make()
    numbered.update(batch.scores, batch.target, group=range(len(batch)))
    texts = filled(make(), replace(batch, ids=[str(number) for number in range(len(batch))]))
    _sees(numbered, texts, "ids may be numbers")
    for level in (0, 1, 95):
        _claim_refused(lambda level=level: metric.compute_interval(level), f"level={level}", "level")  # type: ignore[misc]


def _holds(low: Tensor, value: Tensor, high: Tensor) -> bool:
    """Whether each value lies between its bounds, where it is one."""
    return bool((((low <= value) & (value <= high)) | value.isnan()).all())


def _needs_ids_for_an_interval_alone(make: Make, batch: MetricBatch) -> None:
    metric = filled(make(), batch, ids=False)
    close = agree(numbers(metric.compute()), numbers(filled(make(), batch).compute()))
    claim(close, "the value must need no ids")
    _claim_refused(metric.compute_interval, "an interval of images without ids", "group=")
    mixed = filled(filled(make(), batch), batch, ids=False)
    _claim_refused(mixed.compute_interval, "an interval where some images had no ids", "group=")


def _turns_differences_around(make: Make, batch: MetricBatch) -> None:
    one = filled(make(), batch)
    shifted = replace(batch, scores=batch.scores.where(batch.ignored, batch.scores.roll(1, 0)))
    if batch.floating:
        shifted = replace(shifted, scores=shifted.scores.nan_to_num())
    value, (low, high) = _difference(one, filled(make(), shifted))
    turned, (turned_low, turned_high) = _difference(filled(make(), shifted), one)
    back = torch.stack((-turned, -turned_high, -turned_low))
    claim(agree(torch.stack((value, low, high)), back), "a difference turned around must be the negative one")
    claim(_holds(low, value, high), "the interval of a difference must hold it")
    found = torch.cat([part.flatten() for part in _difference(one, filled(make(), batch))])
    claim(not bool(found.any()), "the difference from itself must be 0")
    without = filled(make(), batch, ids=False)
    _claim_refused(lambda: one.compute_difference(without), "a difference of images without ids", "group=")
    other_seed = filled(make(seed=1), batch)
    _claim_refused(lambda: one.compute_difference(other_seed), "a difference of other seeds", "seed")


def _difference(one: Any, other: Any) -> tuple[Tensor, Tensor]:
    """The difference of each value, ``(n,)``, and the bounds of each, ``(2, n)``."""
    values, bounds = one.compute_difference(other)
    return numbers(values), numbers(bounds).view(-1, 2).T


def _is_in_a_collection_as_alone(make: Make, batch: MetricBatch) -> None:
    together = MetricCollection({"one": make(), "again": make(), "other": make(seed=1)}, compute_groups=True)
    for _ in range(2):
        for part in (batch[range(2)], batch[range(2, len(batch))]):
            together.update(part.scores, part.target, group=part.ids)
        together.compute()
        for name, seed in (("one", 0), ("again", 0), ("other", 1)):
            _sees(together[name], filled(make(seed=seed), batch), "in a collection it must see what it sees alone")
        together.reset()


def _gives_the_value_of_a_batch_when_called(make: Make, batch: MetricBatch) -> None:
    first, second = batch[range(2)], batch[range(2, len(batch))]
    metric = filled(make(), first)
    value = metric(second.scores, second.target, group=second.ids)
    alone = filled(make(), second).compute()
    claim(agree(numbers(value), numbers(alone)), "calling it must give the value of the batch")
    values = value.values() if isinstance(value, dict) else [value]
    claim(all(each.dtype == torch.float32 and each.ndim == 0 for each in values), "a value must be a float32 scalar")
    _sees(metric, filled(make(), batch), "calling it must take the batch in")


def _starts_again_and_goes_on(make: Make, batch: MetricBatch) -> None:
    first, second = batch[range(2)], batch[range(2, len(batch))]
    whole, metric = filled(make(), batch), filled(filled(make(), first), first, ids=False)
    metric.reset()
    _sees(filled(metric, batch), whole, "after reset it must be as new")
    begun = filled(make(), first)
    begun.persistent(True)
    saved = begun.state_dict()
    loaded = make()
    loaded.persistent(True)
    loaded.load_state_dict(saved)
    ways = {"pickling": pickle.loads(pickle.dumps(begun)), "clone()": begun.clone(), "a state_dict": loaded}
    before, kept = copy.deepcopy(saved), states_of(begun)
    for way, metric in ways.items():
        _sees(filled(metric, second), whole, f"it must go on after {way}")
    alike = [torch.equal(saved[name], before[name]) for name in before]
    alike += [torch.equal(state, kept[name]) for name, state in begun.metric_state.items()]
    claim(all(alike), "what goes on after a copy must leave the metric and the state_dict that it came from")


def _says_that_nothing_was_seen(make: Make, batch: MetricBatch) -> None:
    metric = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.compute()
    said = [str(each.message) for each in caught if "update" in str(each.message)]
    claim(len(said) == 1 and "\n" not in said[0], "where nothing was seen, compute must say so in one sentence")
    claim(bool(numbers(value).isnan().all()), "the value of nothing must be NaN")
    claim(bool(numbers(metric.compute_interval()).isnan().all()), "the interval of nothing must be NaN")


def _draws_itself(make: Make, batch: MetricBatch) -> None:
    from matplotlib.figure import Figure

    metric, axes = filled(make(), batch), Figure().add_subplot()
    figure, drawn = metric.plot()
    claim(drawn in figure.axes and bool(drawn.lines), "plot() must draw into new axes, and give figure and axes")
    given = metric.plot(metric.compute(), axes)
    claim(given == (axes.figure, axes) and bool(axes.lines), "plot(val, ax) must draw into the axes it is given")
    axes = Figure().add_subplot()
    metric.plot([metric.compute()] * 3, axes)
    steps: Any = axes.lines[0].get_xdata()
    claim(len(steps) == 3, "plot([val, val, val]) must draw them over their steps")


def _claim_refused(act: Callable[[], object], what: str, word: str) -> None:
    try:
        act()
    except SeguqError as error:
        claim(word in str(error) and "\n" not in str(error), f"the error for {what} must name {word}, but is {error}")
        return
    claim(False, f"{what} must be a SeguqError")


_BY_PIXEL = (
    _takes_tiles_for_their_image,
    _takes_any_number_of_spatial_dimensions,
    _takes_flat_values_for_one_image,
)
METRIC_CHECKS: tuple[Callable[[Make, MetricBatch], None], ...] = (
    _takes_images_in_any_order_and_number,
    _takes_tiles_for_their_image,
    _takes_any_number_of_spatial_dimensions,
    _takes_flat_values_for_one_image,
    _keeps_states_of_fixed_size_and_full_precision,
    _merges_in_any_order,
    _is_one_over_two_processes,
    _computes_half_precision_in_full,
    _works_in_inference_mode,
    _keeps_no_graph,
    _leaves_the_world_as_it_is,
    _leaves_ignored_pixels_out,
    _refuses_what_is_wrong_and_takes_nothing_in,
    _gives_intervals_that_hold_the_value,
    _needs_ids_for_an_interval_alone,
    _turns_differences_around,
    _is_in_a_collection_as_alone,
    _gives_the_value_of_a_batch_when_called,
    _starts_again_and_goes_on,
    _says_that_nothing_was_seen,
    _draws_itself,
)
