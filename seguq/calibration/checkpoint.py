"""Calibrators in a checkpoint, under the key ``seguq``: tensors and plain values only, tied to the weights."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from seguq.calibration.base import Calibrator
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file

SCHEMA_VERSION = 1
KEY = "seguq"


Module = TypeVar("Module", bound=nn.Module)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file, with ``weights_only=True``: nothing in it is run.

    Raises:
        UsageError: if the file is missing.
        SeguqError: if it is no checkpoint, or holds a type that is not allowed (the error names it).
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise SeguqError(f"{path} cannot be read as a checkpoint: it is damaged or of another format") from error
        name = found[1].strip("`'\"").removesuffix(".")
        raise SeguqError(
            f"{path} holds the type {name}, which is not loaded from files that may be anybody's: if you trust the "
            f"file, call torch.serialization.add_safe_globals([{name}]) first"
        ) from error
    except Exception as error:  # a file that is no pickle can end in any error of the unpickler
        raise SeguqError(f"{path} cannot be read as a checkpoint: it is damaged or of another format") from error
    if not isinstance(content, dict):
        raise SeguqError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def _plain_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without what torch.compile puts into names."""
    return {name.replace("_orig_mod.", ""): value for name, value in state.items() if isinstance(value, Tensor)}


def weights_sha256(weights: nn.Module | Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of the floating-point tensors, sorted by name.

    ``_orig_mod.`` (torch.compile) and a prefix common to all names are left out, so that a model has the same hash
    alone, compiled, and inside a LightningModule.

    Args:
        weights: a module or its state dict.
    """
    state = _plain_names(weights.state_dict() if isinstance(weights, nn.Module) else weights)
    tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    shared = 0
    for parts in zip(*(name.split(".")[:-1] for name in tensors), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(".".join(name.split(".")[shared:]).encode())
        digest.update(f"|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(calibrator: Calibrator, weights: str, global_step: int) -> dict[str, Any]:
    """A calibrator as tensors and plain values.

    Args:
        calibrator: a fitted one.
        weights: `weights_sha256` of the weights that it was fitted for.
        global_step: the training step of those weights.
    """
    return {
        "class": type(calibrator).__name__,
        "arguments": calibrator.arguments(),
        "tensors": {name: tensor.detach().cpu() for name, tensor in calibrator.state_dict().items()},
        "global_step": global_step,
        "weights_sha256": weights,
        "fitted_for": calibrator.weights_sha256,
    }


def _calibrator_class(name: str) -> type[Calibrator]:
    """The class of a calibrator by its name: one of seguq's, or one that the running program has defined."""
    found: dict[str, type[Calibrator]] = {}
    waiting: list[type[Calibrator]] = [Calibrator]  # type: ignore[type-abstract]
    while waiting:
        for subclass in waiting.pop().__subclasses__():
            found.setdefault(subclass.__name__, subclass)
            waiting.append(subclass)
    return found[name]


def unpack(tag: str, packed: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `pack` made plain.

    Raises:
        SeguqError: if it is of an unknown class or damaged.
    """
    try:
        calibrator = _calibrator_class(packed["class"])(**packed["arguments"])
        calibrator.load_state_dict(packed["tensors"])
        if not all(bool(torch.isfinite(tensor).all()) for tensor in calibrator.state_dict().values()):
            raise ValueError("its tensors hold NaN or infinite values")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SeguqError(f"the calibrator {tag!r} in the checkpoint cannot be understood ({error})") from error
    calibrator.tag = tag
    calibrator.weights_sha256 = str(packed.get("weights_sha256") or "unknown")
    calibrator.global_step = packed.get("global_step")
    return calibrator


def section(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds under ``seguq``, or an empty one.

    Raises:
        SeguqError: if it was written by a later version.
    """
    found = checkpoint.get(KEY) or {"version": SCHEMA_VERSION}
    if not isinstance(found, Mapping) or not isinstance(found.get("calibrators", {}), Mapping):
        raise SeguqError(f"what the checkpoint holds under {KEY!r} is damaged")
    if found.get("version") != SCHEMA_VERSION:
        raise SeguqError(f"the checkpoint was written by another version of seguq (schema {found.get('version')})")
    return dict(found)


def carried(module: nn.Module) -> dict[str, Calibrator]:
    """The calibrators that a module carries in its attribute ``calibrators``, by tag."""
    found = vars(module).get(_attribute(module)) or {}
    return dict(found)


def carry(module: nn.Module, calibrators: Mapping[str, Calibrator]) -> None:
    """Give a module calibrators, by tag, beside those that it carries."""
    setattr(module, _attribute(module), {**carried(module), **calibrators})


def _attribute(module: nn.Module) -> str:
    """``calibrators``; another name where somebody's module has something else under it."""
    taken = getattr(module, "calibrators", None)
    ours = isinstance(taken, dict) and all(isinstance(item, Calibrator) for item in taken.values())
    return "calibrators" if taken is None or ours else "_seguq_calibrators"


def add_calibrators(checkpoint: dict[str, Any], calibrators: Mapping[str, Calibrator]) -> None:
    """Put calibrators, by tag, into a checkpoint that is about to be written, beside those that it has.

    Args:
        checkpoint: it is changed in place.
        calibrators: fitted ones, that know the weights that they were fitted for.
    """
    found = section(checkpoint)
    packed = {
        tag: pack(calibrator, calibrator.weights_sha256 or "", int(calibrator.global_step or 0))
        for tag, calibrator in calibrators.items()
    }
    found["calibrators"] = {**found.get("calibrators", {}), **packed}
    checkpoint[KEY] = found


def calibrators_of(checkpoint: Mapping[str, Any], weights: str) -> dict[str, Calibrator]:
    """The calibrators of a checkpoint that were fitted for given weights; a warning names each that was not.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        weights: `weights_sha256` of the weights in hand.
    """
    fitting = {}
    for tag, packed in section(checkpoint).get("calibrators", {}).items():
        if packed.get("weights_sha256") == weights:
            fitting[tag] = unpack(tag, packed)
        else:
            warnings.warn(
                f"the calibrator {tag!r} is not applied: it was fitted for other weights "
                f"(those of step {packed.get('global_step')}); fit it again with `seguq calibrate`",
                stacklevel=3,
            )
    return fitting


def save_calibrator(
    path: str | os.PathLike[str], calibrator: Calibrator, tag: str, out: str | os.PathLike[str] | None = None
) -> None:
    """Put a calibrator beside those that a checkpoint has; the file is replaced as a whole.

    Args:
        path: checkpoint file.
        calibrator: a fitted one.
        tag: the tag of the estimator that it was fitted for; one of the same tag is replaced.
        out: file to write instead of ``path``.
    """
    checkpoint = read_checkpoint(path)
    found = section(checkpoint)
    state = checkpoint.get("state_dict", checkpoint)
    packed = pack(calibrator, weights_sha256(state), int(checkpoint.get("global_step", 0)))
    found["calibrators"] = {**found.get("calibrators", {}), tag: packed}
    if "state_dict" not in checkpoint:
        checkpoint = {"state_dict": checkpoint}
    target = path if out is None else out
    with whole_file(target) as temporary:
        try:
            torch.save({**checkpoint, KEY: found}, temporary)
        except RuntimeError as error:  # torch's own word for a failed write is a line of its source
            if "enforce fail" not in str(error):
                raise
            raise SeguqError(f"{target} cannot be written: is the disk full?") from error


def load(checkpoint: str | os.PathLike[str], model: Module) -> Module:
    """Load the weights of a checkpoint into a model, and the calibrators that were fitted for them.

    Args:
        checkpoint: file of a Lightning checkpoint or of a bare state dict; of the model itself, of it compiled, or
            of a LightningModule that holds it.
        model: the module that the weights go into.

    Returns:
        The same module, with ``model.calibrators``: calibrators by estimator tag, a plain dict outside the state dict.

    Raises:
        SeguqError: if the weights do not fit the model, naming what is missing.
    """
    content = read_checkpoint(checkpoint)
    section(content)
    load_all_weights(model, content, str(checkpoint))
    calibrators = calibrators_of(content, weights_sha256(content.get("state_dict", content)))
    if calibrators:
        own = weights_sha256(model)  # the file may hold more than the model
        for calibrator in calibrators.values():
            calibrator.weights_sha256 = own
    setattr(model, _attribute(model), calibrators)
    return model


def load_all_weights(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> None:
    """`load_weights`, which raises where the checkpoint has tensors that the model has no place for."""
    left_over = load_weights(model, checkpoint, name)
    if left_over:
        raise SeguqError(
            f"{name} does not fit the model: it holds {len(left_over)} tensors that the model has no place for, "
            f"such as {left_over[0]!r}"
        )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> list[str]:
    """Load the weights of a checkpoint into a model, whatever prefix their names have (see `load`).

    Args:
        model: the module that the weights go into.
        checkpoint: a Lightning checkpoint or a bare state dict.
        name: the checkpoint's name, for messages.

    Returns:
        The names in the checkpoint, under the prefix that fits, that the model has no place for.

    Raises:
        SeguqError: if a tensor of the model is missing or of another shape, naming it.
    """
    state = _plain_names(checkpoint.get("state_dict", checkpoint))
    own = {key.replace("_orig_mod.", ""): key for key in model.state_dict()}
    names = matching_names(model, checkpoint, name)
    current = model.state_dict()
    wrong = [p for p, source in names.items() if source in state and state[source].shape != current[own[p]].shape]
    if wrong:
        found, expected = tuple(state[names[wrong[0]]].shape), tuple(current[own[wrong[0]]].shape)
        raise SeguqError(
            f"{name} does not fit the model: {wrong[0]!r} has shape {found} in the file, {expected} in the model"
        )
    model.load_state_dict({own[p]: state.get(source, current[own[p]]) for p, source in names.items()})
    taken = set(names.values())
    first = next(iter(names))
    prefix = names[first].removesuffix(first) if names[first].endswith(first) else ""
    return [key for key in state if key.startswith(prefix) and key not in taken]


def matching_names(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> dict[str, str]:
    """The names of a model's tensors, and under which ones a checkpoint has them, whatever their prefix.

    ``_orig_mod.`` is left out of all of them. Arguments and errors are those of `load_weights`.
    """
    state = _plain_names(checkpoint.get("state_dict", checkpoint))
    own = [key.replace("_orig_mod.", "") for key in model.state_dict()]
    if not state or not own:
        raise SeguqError(f"{name} holds no weights" if not state else "the model has no weights to load into")
    first = next(iter(own))
    # the model may be a part of what was saved, or hold what was saved as a part
    outer = ["", *(key[: -len(first)] for key in state if key.endswith("." + first))]
    inner = ["", *(".".join(first.split(".")[: depth + 1]) + "." for depth in range(first.count(".")))]
    candidates = [{plain: prefix + plain for plain in own} for prefix in outer]
    candidates += [{plain: plain.removeprefix(prefix) for plain in own} for prefix in inner[1:]]
    names = min(candidates, key=lambda mapping: sum(source not in state for source in mapping.values()))
    rivals = [mapping[first] for mapping in candidates[1:] if set(mapping.values()) <= set(state)]
    if len(rivals) > 1 and first not in state:
        raise SeguqError(
            f"{name} holds the model's weights more than once, as {' and as '.join(map(repr, rivals))}: "
            "load it into the module that holds them all, or keep one of them in the file"
        )
    # a count of batches that some exporters leave out; nothing at prediction depends on it
    absent = [p for p, source in names.items() if source not in state and not p.endswith("num_batches_tracked")]
    if absent:
        raise SeguqError(
            f"{name} does not fit the model: {len(absent)} of its {len(own)} tensors are missing, such as "
            f"{absent[0]!r}; the checkpoint has names like {next(iter(state))!r}"
        )
    return names
