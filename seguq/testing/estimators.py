"""What all of a kind promise, as checks for those that somebody adds: `check_estimator`."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seguq.calibration.temperature import TemperatureScaling
from seguq.core.errors import SeguqError, UsageError
from seguq.core.seeds import seeded
from seguq.inference import Estimator, UncertaintyMaps

_UP_TO: dict[str, Callable[[int], float]] = {
    **dict.fromkeys(("predictive_entropy", "expected_entropy", "total_entropy", "mutual_information"), math.log),
    "least_confidence": lambda classes: 1 - 1 / classes,
    **dict.fromkeys(("smallest_margin", "variation_ratio", "variance", "augmentation_variance"), lambda classes: 1.0),
}
"""The most that a measure of one distribution over so many classes can be; the least is 0."""
_FROM_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")


def check_estimator(make: Callable[..., Estimator], images: Tensor) -> None:
    """Check what every estimator promises, on one that somebody has made.

    Shapes, names and ranges of maps and of scores of images; probabilities that sum to 1; measures that do not depend
    on which others are asked for; models left as they were found; the same answer for the same seed, whatever the
    batch; half precision, autocast and inference mode; the tag; which calibrator is applied; binding; ids; errors; maps
    on disk.

    Args:
        make: makes the estimator, the same each time, of the settings that it is passed: ``measures``, ``calibrator``,
            and ``seed`` and ``samples`` where its constructor has them. One that draws random numbers must know a seed.
        images: ``(B, channels, *spatial)`` that its models take, at least two, that differ.

    Raises:
        AssertionError: in one sentence, for the first promise that is not kept.

    Example:
        >>> from seguq import MCDropout
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)).eval()
        >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> check_estimator(lambda **settings: MCDropout(model, **{"samples": 3, "seed": 0, **settings}), images)
    """
    if isinstance(make, Estimator) or not callable(make):
        raise UsageError(
            "check_estimator takes a function that makes the estimator, such as lambda **settings: "
            f"Mine(model, **settings), but was given {make!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for claim in _CLAIMS_OF_ESTIMATORS:
            with _carrying_nothing(make()):
                claim(make, images)


def _require(est: Estimator, kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(f"{type(est).__name__} ({est.tag}): {promise}")


def _require_close(est: Estimator, one: Tensor, other: Tensor, promise: str) -> None:
    _require(est, one.shape == other.shape, f"{promise} (the shapes are {tuple(one.shape)} and {tuple(other.shape)})")
    same = torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)
    apart = "" if same else f" (they differ by up to {float((one.double() - other.double()).abs().max()):.2g})"
    _require(est, same, promise + apart)


@contextmanager
def _carrying_nothing(est: Estimator) -> Iterator[None]:
    """Without the calibrators that a check puts into a model."""
    holder, names = est.carrier, ("calibrators", "_seguq_calibrators")
    before = {name: copy.copy(vars(holder)[name]) for name in names if name in vars(holder)}
    try:
        yield
    finally:
        for name in names:
            vars(holder).pop(name, None)
        vars(holder).update(before)


def _ids(images: Tensor) -> list[str]:
    return [f"image {number}" for number in range(len(images))]


def _answer(est: Estimator, images: Tensor, ids: list[str] | None = None) -> UncertaintyMaps:
    """What it says, with the global generators at the same place each time."""
    with seeded(0, images.device):
        return est(images, _ids(images) if ids is None else ids)


def _raw(make: Callable[..., Estimator]) -> Estimator:
    return make(calibrator=None)


def _maps_have_names_shapes_and_ids(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    maps = _answer(est, images.clone().requires_grad_(images.is_floating_point()))
    count, size = len(images), tuple(images.shape[2:])
    _require(est, maps.probs.shape[0] == count and maps.probs.shape[2:] == size, "probs are (B, C, *spatial)")
    _require(est, maps.names == est.measures, "the maps are the measures, in their order")
    _require(est, not maps.image_scores and maps.features is None, "scores of images and features are on request alone")
    for name in maps.names:
        _require(est, tuple(maps[name].shape) == (count, *size), f"{name} is (B, *spatial)")
        _require(est, maps[name].dtype == maps.probs.dtype == torch.float32, f"{name} and the probs are float32")
        _require(est, not maps[name].requires_grad, f"{name} carries no gradient")
    shape = maps.probs.shape if maps.multilabel else (count, *size)
    _require(est, maps.prediction.shape == shape, "there is a prediction for each pixel")
    _require(est, maps.image_ids == tuple(_ids(images)), "the ids are those that were passed")
    _require(est, maps.estimator == est.tag, "the maps carry the tag")


def _values_are_in_range(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    maps = _answer(est, images)
    labels = maps.num_classes if maps.multilabel else 1
    classes = 2 if maps.multilabel else maps.num_classes
    _require(est, bool(((maps.probs >= 0) & (maps.probs <= 1)).all()), "probs are from 0 to 1")
    if not maps.multilabel:
        total = maps.probs.sum(1)
        _require_close(est, total, torch.ones_like(total), "probs sum to 1 over the classes")
    for name in maps.names:
        _require(est, bool(torch.isfinite(maps[name]).all()), f"{name} is finite")
        if name in _UP_TO:
            least, most = float(maps[name].min()), float(maps[name].max())
            bound = labels * _UP_TO[name](classes)
            kept = least >= 0 and most <= bound + 1e-4
            _require(est, kept, f"{name} is from 0 to {bound:.4g} (it is from {least:.4g} to {most:.4g})")


def _a_measure_alone_is_the_same_as_among_all(make: Callable[..., Estimator], images: Tensor) -> None:
    every = _answer(_raw(make), images)
    turned = make(calibrator=None, measures=every.names[::-1])
    _require(turned, _answer(turned, images).names == every.names[::-1], "maps come in the order that was asked for")
    for name in every.names:
        est = make(calibrator=None, measures=[name])
        alone = _answer(est, images)
        _require(est, alone.names == (name,), "only the measures that were asked for are there")
        _require_close(est, alone[name], every[name], f"{name} alone is the same as among all")
        _require_close(est, alone.probs, every.probs, "probs do not depend on the measures")


def _a_score_of_images_is_one_number_an_image(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    if "pairwise_dice" not in est.available:
        _require_error(est, lambda: make(measures=["pairwise_dice"]), "it has no samples to compare")
        return
    est, first = make(calibrator=None, measures=["pairwise_dice"]), _answer(est, images)
    maps, ids = _answer(est, images), _ids(images)
    scores = maps.image_scores["pairwise_dice"]
    _require(est, maps.names == () and tuple(maps.image_scores) == ("pairwise_dice",), "a score of images is no map")
    _require(est, tuple(scores.shape) == (len(images),), "a score of images is (B,)")
    _require(est, scores.dtype == torch.float32 and scores.device == maps.probs.device, "it is float32, where maps are")
    _require(est, bool(((scores >= 0) & (scores <= 1)).all()), "pairwise_dice is from 0 to 1")
    _require_close(est, maps.probs, first.probs, "probs do not depend on scores of images")
    one_by_one = [est(image[None], [image_id]) for image, image_id in zip(images, ids, strict=True)]
    alone = torch.cat([one.image_scores["pairwise_dice"] for one in one_by_one])
    apart = (alone - est(images, ids).image_scores["pairwise_dice"]).abs().max()
    level = apart <= 0.02  # rounding turns a class where two are level
    _require(est, not _seeded_itself(est) or bool(level), "a score of an image is the same alone and in a batch")


def _samples_are_distributions(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    maps = _answer(est, images)
    with seeded(0, images.device):
        samples = list(est.samples(images, _ids(images)))
    _require(est, len(samples) > 0, "there is a sample at least")
    for probs in samples:
        _require(est, probs.shape == maps.probs.shape, "a sample has the shape of the probs")
        _require(est, not probs.requires_grad, "a sample carries no gradient")
    _require_close(est, torch.stack(samples).mean(0), maps.probs, "raw probs are the mean of the samples")


def _models_are_left_as_they_were(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    models = list(est.models)
    modes = [[(part, part.training) for part in model.modules()] for model in models]
    try:
        for model in models:
            model.train()
        next(iter(models[0].modules())).training = False  # a mixture, as users have it
        before, state = [_state_of(model) for model in models], torch.get_rng_state()
        est(images, _ids(images))
        drew = not torch.equal(torch.get_rng_state(), state)
        list(est.samples(images, _ids(images)))
        found = [_state_of(model) for model in models]
    finally:
        for part, mode in (pair for pairs in modes for pair in pairs):
            part.training = mode
    for what in ("modes", "hooks", "gradients", "tensors"):
        same = [one[what] for one in before] == [one[what] for one in found]
        _require(est, same, f"the {what} of its models are left as they were found")
    _require(est, torch.is_grad_enabled(), "the grad mode is left as it was found")
    if getattr(est, "seed", 0) is not None and _seeded_itself(est):
        _require(est, not drew, "with a seed, the global generator is left as it was found")


def _state_of(model: nn.Module) -> dict[str, Any]:
    tensors = (*model.parameters(), *model.buffers())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modes": [part.training for part in model.modules()],
        "hooks": [[len(getattr(part, name, ())) for name in hooks] for part in model.modules()],
        "gradients": [(tensor.requires_grad, tensor.grad is None) for tensor in tensors],
        "tensors": [(id(tensor), tensor.detach().cpu().numpy().tobytes()) for tensor in tensors],
    }


def _seeded_itself(est: Estimator) -> bool:
    """Whether the estimator, or the one inside of it, takes a seed or draws nothing."""
    inner = getattr(est, "inner", None)
    return getattr(est, "seed", 0) is not None and (inner is None or _seeded_itself(inner))


def _an_image_has_the_same_answer_in_any_batch(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    _require(est, _seeded_itself(est), "make() must give one with a seed, as it draws random numbers")
    ids = _ids(images)
    whole, again = est(images, ids), est(images, ids)
    alone = [est(image[None], [image_id]) for image, image_id in zip(images, ids, strict=True)]
    back = est(images.flip(0), ids[::-1])
    for name in (*whole.names, "probs"):
        values = [maps.probs if name == "probs" else maps[name] for maps in (whole, again, back)]
        single = torch.cat([maps.probs if name == "probs" else maps[name] for maps in alone])
        _require(est, torch.equal(values[0], values[1]), f"{name} of two calls is the same")
        if name == "variation_ratio":  # rounding turns a vote where two classes are level
            for other in (single, values[2].flip(0)):
                level = ~torch.isclose(other, values[0], rtol=1e-4, atol=1e-5)
                _require(est, float(level.double().mean()) <= 0.02, f"{name} does not depend on batch and order")
            continue
        _require_close(est, single, values[0], f"{name} of an image is the same alone and in a batch")
        _require_close(est, values[2].flip(0), values[0], f"{name} of an image does not depend on the order")
    nothing = est(images[:0], [])
    _require(est, nothing.probs.shape == (0, *whole.probs.shape[1:]), "a batch without images has no answer, but maps")


def _precision_and_mode_change_little(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    rounded = images.half()
    expected = _answer(est, rounded.float())
    ways = {"half precision": _answer(est, rounded), "float64": _answer(est, rounded.double())}
    with torch.inference_mode():
        ways["inference mode"] = _answer(est, rounded.float())
    ways["a call after inference mode"] = _answer(est, rounded.float())
    for way, maps in ways.items():
        for name in maps.names:
            _require_close(est, maps[name], expected[name], f"{name} of images in {way} is the same")
    with torch.autocast(images.device.type, torch.bfloat16):
        maps = _answer(est, images)
    _require(est, maps.probs.dtype == torch.float32, "under autocast the probs are float32")
    _require(est, bool(torch.isfinite(maps.probs).all()), "under autocast the probs are finite")


def _the_tag_is_of_kind_and_settings(make: Callable[..., Estimator], images: Tensor) -> None:
    est = make()
    _require(est, est.tag.partition("(")[0] == est.name, f"the tag begins with the name, {est.name!r}")
    _require(est, make().tag == est.tag, "two with the same settings have one tag")
    if "samples" in est.constructor_arguments():
        _require(est, make(samples=2).tag == make(samples=3).tag, "the number of samples is no part of the tag")
    about = est.describe()
    _require(est, about["estimator"] == est.tag and about["measures"] == est.measures, "describe() names both")
    _require(est, est.describe(images)["forwards"] >= 1, "describe(images) counts the forwards")


def _arguments_make_another_one_like_it(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    again = type(est)(**est.arguments())
    _require(est, est.same_as(again) and again.tag == est.tag, "its arguments() make another one like it")
    probs = _answer(est, images).probs
    _require_close(est, _answer(again, images).probs, probs, "one made of its arguments() gives the same")
    _require(est, est.bind(nn.Identity()) is est, "one that has its models stays with them when it is bound")
    unbound = _without_model(est)
    if unbound is not None and unbound.unbound:
        bound = unbound.bind(est.models[0])
        _require(est, unbound.unbound and not bound.unbound, "binding gives another one, and leaves the one as it is")
        _require(est, bound.tag == est.tag, "a bound one has the same tag")
        _require_close(est, _answer(bound, images).probs, probs, "a bound one gives the same")
        _require_error(est, lambda: unbound(images), "one without a model is asked")


def _without_model(est: Estimator) -> Estimator | None:
    arguments = est.arguments()
    if isinstance(arguments.get("inner"), Estimator):
        arguments["inner"] = _without_model(arguments["inner"])
    elif "model" in arguments and est.constructor_arguments()["model"].default is None:
        arguments["model"] = None
    else:
        return None
    return type(est)(**arguments)


def _a_calibrator_is_applied_to_its_own_estimator(make: Callable[..., Estimator], images: Tensor) -> None:
    est = make()
    raw, logits = _answer(est, images), _pooled(est, images)
    shape = raw.probs.shape if raw.multilabel else raw.prediction.shape
    values = torch.arange(math.prod(shape), device=logits.device).reshape(shape)
    target = values % (2 if raw.multilabel else raw.num_classes)
    calibrator = est.calibrate(TemperatureScaling(task=est.task), [(images, target)])
    _require(est, calibrator.tag == est.tag and est.calibrator is calibrator, "calibrate() tags and attaches")
    after = torch.softmax(calibrator(logits, None), 1)
    after = after[:, 1] if raw.multilabel else after
    for setting in (calibrator, "auto"):
        est.calibrator = setting
        maps = _answer(est, images)
        _require_close(est, maps.probs, after, f"with calibrator={setting!r} the pooled output is calibrated")
        for name in set(maps.names) - set(_FROM_PROBS):
            _require_close(est, maps[name], raw[name], f"{name} is that of the raw output, calibrated or not")
    est.calibrator = None
    _require_close(est, _answer(est, images).probs, raw.probs, "with calibrator=None nothing is calibrated")
    other = copy.deepcopy(calibrator)
    other.tag = "another estimator"
    est.calibrator = other
    _require_error(est, lambda: est(images), "it is given a calibrator of another estimator")


def _pooled(est: Estimator, images: Tensor) -> Tensor:
    with seeded(0, images.device):
        return est.pooled_logits(images, _ids(images))


def _images_are_numbered_and_counted(make: Callable[..., Estimator], images: Tensor) -> None:
    est, count = _raw(make), len(images)
    found = (*est(images).image_ids, *est(images).image_ids)
    _require(est, found == tuple(map(str, range(2 * count))), "without ids, images are numbered since it was made")
    numbers: Any = range(count)
    _require(est, est(images, numbers).image_ids == tuple(map(str, range(count))), "ids become strings")
    _require_error(est, lambda: est(images, ["one too few"] * (count - 1)), "it is given too few ids")
    _require_error(est, lambda: est(images[0, 0]), "it is given images without dimensions")


def _what_is_missing_is_said(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    maps = _answer(est, images)
    missing = next((name for name in ("mutual_information", "energy") if name not in maps), None)
    try:
        maps[missing or "no measure"]
    except KeyError as error:
        said = "measure of" in str(error) if missing else est.measures[0] in str(error)
        _require(est, said, f"the KeyError of a missing measure says who has it (it says {error})")
    else:
        _require(est, False, "a missing measure is a KeyError")
    _require_error(est, lambda: make(measures=["no measure"]), "it is asked for a measure that there is not")


def _maps_survive_a_file(make: Callable[..., Estimator], images: Tensor) -> None:
    est = _raw(make)
    maps = _answer(est, images)
    with tempfile.TemporaryDirectory() as folder:
        maps.save(Path(folder) / "maps.npz")
        found = UncertaintyMaps.load(Path(folder) / "maps.npz")
    about = (found.names, found.image_ids, found.estimator, found.multilabel)
    _require(est, about == (maps.names, maps.image_ids, est.tag, maps.multilabel), "a file keeps names, ids and tag")
    same = [torch.equal(found[name], maps[name].cpu()) for name in maps.names]
    same += [torch.equal(found.probs, maps.probs.cpu()), torch.equal(found.prediction, maps.prediction.cpu())]
    _require(est, all(same), "a file keeps all values")


def _require_error(est: Estimator, act: Callable[[], object], where: str) -> None:
    try:
        act()
    except SeguqError:
        return
    _require(est, False, f"a SeguqError is raised where {where}")


_CLAIMS_OF_ESTIMATORS = (
    _maps_have_names_shapes_and_ids,
    _values_are_in_range,
    _a_measure_alone_is_the_same_as_among_all,
    _a_score_of_images_is_one_number_an_image,
    _samples_are_distributions,
    _models_are_left_as_they_were,
    _an_image_has_the_same_answer_in_any_batch,
    _precision_and_mode_change_little,
    _the_tag_is_of_kind_and_settings,
    _arguments_make_another_one_like_it,
    _a_calibrator_is_applied_to_its_own_estimator,
    _images_are_numbered_and_counted,
    _what_is_missing_is_said,
    _maps_survive_a_file,
)
