"""Calibrators in a checkpoint, under the key ``seguq``: tensors and plain values only, tied to the weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from seguq.calibration.base import Calibrator
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_torch
from seguq.core.locks import Lock
from seguq.core.reading import mapping, reading, text, whole
from seguq.weights.checkpoint import load_all_weights, read_checkpoint, weights_in, weights_sha256

SCHEMA_VERSION = 1
KEY = "seguq"


Module = TypeVar("Module", bound=nn.Module)


def pack(calibrator: Calibrator, weights: str, global_step: int) -> dict[str, Any]:
    """A calibrator as tensors and plain values.

    Args:
        calibrator: a fitted one.
        weights: `weights_sha256` of the weights that it was fitted for.
        global_step: the training step of those weights.
    """
    return {
        "class": calibrator.name,
        "defined_in": type(calibrator).__module__,
        "arguments": calibrator.arguments(),
        "tensors": {name: tensor.detach().cpu() for name, tensor in calibrator.state_dict().items()},
        "global_step": global_step,
        "weights_sha256": weights,
        "fitted_for": calibrator.weights_sha256,
    }


def _calibrator_class(tag: str, packed: Mapping[str, Any]) -> type[Calibrator]:
    """The class of a packed calibrator: one of seguq's, or one that the running program has defined."""
    name = text(packed["class"], "its class")
    if "." not in name:  # nothing is imported because a file says so
        try:
            return Calibrator.named(name)
        except UsageError:
            pass
    where = str(packed.get("defined_in") or "")
    where = where if all(part.isidentifier() for part in where.split(".")) else ""  # it is what a file says
    raise SeguqError(
        f"the calibrator {tag!r} in the checkpoint cannot be understood, as nobody here knows a {name!r}: import "
        f"{where or 'the module that defines it'} first (on the command line: --import {where or 'MODULE'})"
    )


def unpack(tag: str, packed: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `pack` made plain.

    Raises:
        SeguqError: if it is of an unknown class or damaged.
    """
    with reading(f"the calibrator {tag!r} in the checkpoint"):
        packed = mapping(packed, "its content")
        calibrator = _calibrator_class(tag, packed)(**mapping(packed["arguments"], "'arguments'"))
        tensors, own = mapping(packed["tensors"], "'tensors'"), calibrator.state_dict()
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or (name in own and not _same_kind(tensor, own[name])):
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "no tensor"
                raise ValueError(f"its {name!r} is {found}")
        calibrator.load_state_dict(tensors)
        calibrator.require_valid()
        step = packed.get("global_step")
        calibrator.tag = tag
        calibrator.weights_sha256 = text(packed.get("weights_sha256") or "unknown", "'weights_sha256'")
        calibrator.global_step = None if step is None else whole(step, "'global_step'", 0)
    return calibrator


def _same_kind(one: Tensor, other: Tensor) -> bool:
    """Whether both hold real numbers, or both whole ones, or ...; some versions of torch take one value of several."""
    if 0 in (one.ndim, other.ndim) and one.ndim != other.ndim:
        return False
    return (one.is_complex(), one.is_floating_point()) == (other.is_complex(), other.is_floating_point())


def section(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds under ``seguq``, or an empty one.

    Raises:
        SeguqError: if it was written by a later version.
    """
    found = checkpoint.get(KEY)
    found = {"version": SCHEMA_VERSION} if found is None else found
    parts = found.get("calibrators", {}) if isinstance(found, Mapping) else None
    if not isinstance(parts, Mapping) or not all(isinstance(tag, str) for tag in parts):
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
        if not isinstance(packed, Mapping) or packed.get("weights_sha256") == weights:
            fitting[tag] = unpack(tag, packed)
        else:
            warnings.warn(
                f"the calibrator {tag!r} is not applied: it was fitted for other weights "
                f"(those of step {packed.get('global_step')}); fit it again with `seguq calibrate`",
                stacklevel=4,
            )
    return fitting


def save_calibrator(
    path: str | os.PathLike[str],
    calibrator: Calibrator,
    tag: str,
    out: str | os.PathLike[str] | None = None,
    weights: str | None = None,
) -> None:
    """Put a calibrator beside those that a checkpoint has; the file is replaced as a whole.

    Processes that do so with one file at the same time wait for each other, and no calibrator is lost.

    Args:
        path: checkpoint file.
        calibrator: a fitted one.
        tag: the tag of the estimator that it was fitted for; one of the same tag is replaced.
        out: file to write instead of ``path``.
        weights: hash of the weights that it was fitted for, `weights_sha256`; None: those in the file, as is known.

    Raises:
        SeguqError: if the file has other weights by now.
    """
    with Lock(Path(path), wait=True) if Path(path).is_file() else nullcontext():
        _add_calibrator(path, calibrator, tag, path if out is None else out, weights)


def _add_calibrator(
    path: str | os.PathLike[str],
    calibrator: Calibrator,
    tag: str,
    target: str | os.PathLike[str],
    weights: str | None,
) -> None:
    checkpoint = read_checkpoint(path)
    with reading(path):
        found = section(checkpoint)
        state = weights_in(checkpoint)
        step = whole(checkpoint.get("global_step", 0), "'global_step'", 0)
        there = weights_sha256(state)
    if weights not in (None, there):
        raise SeguqError(f"{path} was replaced while the calibrator was fitted, by one of other weights: fit it again")
    packed = pack(calibrator, there, step)
    found["calibrators"] = {**found.get("calibrators", {}), tag: packed}
    if state is checkpoint:
        checkpoint = {"state_dict": checkpoint}
    write_torch(target, {**checkpoint, KEY: found})


def load(checkpoint: str | os.PathLike[str], model: Module) -> Module:
    """Load the weights of a checkpoint into a model, and the calibrators that were fitted for them.

    Args:
        checkpoint: file of a Lightning checkpoint, of a bare state dict, or of what another trainer has saved with the
            weights under ``model_state_dict``, ``model``, ``net`` or the like; of the model itself, of it compiled, or
            of a LightningModule that holds it.
        model: the module that the weights go into.

    Returns:
        The same module, with ``model.calibrators``: calibrators by estimator tag, a plain dict outside the state dict.

    Raises:
        SeguqError: if the file is damaged, or the weights do not fit the model, naming what is missing; or are not
            finite.
    """
    return load_content(read_checkpoint(checkpoint), checkpoint, model)


def load_content(content: Mapping[str, Any], checkpoint: str | os.PathLike[str], model: Module) -> Module:
    """`load` of what was read of a checkpoint already.

    Args:
        content: as `read_checkpoint` gives it.
        checkpoint: the file that it is of, for messages.
        model: the module that the weights go into.
    """
    with reading(checkpoint):
        section(content)
        load_all_weights(model, content, str(checkpoint))
        calibrators = calibrators_of(content, weights_sha256(weights_in(content)))
    if calibrators:
        own = weights_sha256(model)  # the file may hold more than the model
        for calibrator in calibrators.values():
            calibrator.weights_sha256 = own
    setattr(model, _attribute(model), calibrators)
    return model
