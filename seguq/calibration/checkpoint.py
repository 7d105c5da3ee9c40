"""Calibrators in a checkpoint, under the key ``seguq``: tensors and plain values only, tied to the weights."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seguq.calibration.base import Calibrator
from seguq.calibration.conformal import Conformal
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_torch
from seguq.core.locks import Lock
from seguq.core.named import Named
from seguq.core.reading import mapping, reading, text, whole
from seguq.weights.checkpoint import read_checkpoint, weights_in, weights_sha256

SCHEMA_VERSION = 1
KEY = "seguq"


def pack(kept: Calibrator | Conformal, weights: str, global_step: int) -> dict[str, Any]:
    """A calibrator or a conformal object as tensors and plain values.

    Args:
        kept: a fitted one.
        weights: `weights_sha256` of the weights that it was fitted for.
        global_step: the training step of those weights.
    """
    packed = {
        "class": kept.name,
        "defined_in": type(kept).__module__,
        "arguments": kept.arguments(),
        "tensors": {name: tensor.detach().cpu() for name, tensor in kept.state_dict().items()},
        "global_step": global_step,
        "weights_sha256": weights,
        "fitted_for": kept.weights_sha256,
    }
    if isinstance(kept, Conformal):
        kept.require_fitted()
        packed["arguments"] = kept.plain_arguments()
    return packed


def _class_of(what: str, kind: type[Named], packed: Mapping[str, Any]) -> type[Any]:
    """The class of what was packed: one of seguq's, or one that the running program has defined."""
    name = text(packed["class"], "its class")
    if "." not in name:  # nothing is imported because a file says so
        try:
            return kind.named(name)
        except UsageError:
            pass
    where = str(packed.get("defined_in") or "")
    where = where if all(part.isidentifier() for part in where.split(".")) else ""  # it is what a file says
    raise SeguqError(
        f"{what} in the checkpoint cannot be understood, as nobody here knows a {name!r}: import "
        f"{where or 'the module that defines it'} first (on the command line: --import {where or 'MODULE'})"
    )


def unpack(tag: str, packed: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `pack` made plain.

    Raises:
        SeguqError: if it is of an unknown class or damaged.
    """
    calibrator: Calibrator = unpacked(f"the calibrator {tag!r}", Calibrator, tag, packed)
    return calibrator


def unpacked(what: str, kind: type[Named], tag: str, packed: Mapping[str, Any]) -> Any:
    """What `pack` made plain, of a class of one kind.

    Args:
        what: what it is, for messages.
        kind: `Calibrator` or `Conformal`.
        tag: of the estimator that it was fitted for.
        packed: as `pack` gives it.
    """
    with reading(f"{what} in the checkpoint"):
        packed = mapping(packed, "its content")
        kept = _class_of(what, kind, packed)(**mapping(packed["arguments"], "'arguments'"))
        tensors, own = mapping(packed["tensors"], "'tensors'"), kept.state_dict()
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or (name in own and not _same_kind(tensor, own[name])):
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "no tensor"
                raise ValueError(f"its {name!r} is {found}")
        kept.load_state_dict(tensors)
        kept.require_valid()
        step = packed.get("global_step")
        kept.tag = tag
        kept.weights_sha256 = text(packed.get("weights_sha256") or "unknown", "'weights_sha256'")
        kept.global_step = None if step is None else whole(step, "'global_step'", 0)
    return kept


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
    parts = [found.get(name, {}) for name in ("calibrators", "conformal")] if isinstance(found, Mapping) else [None]
    if not all(isinstance(part, Mapping) and all(isinstance(tag, str) for tag in part) for part in parts):
        raise SeguqError(f"what the checkpoint holds under {KEY!r} is damaged")
    if found.get("version") != SCHEMA_VERSION:
        raise SeguqError(f"the checkpoint was written by another version of seguq (schema {found.get('version')})")
    return dict(found)


def carried(module: nn.Module) -> dict[str, Calibrator]:
    """The calibrators that a module carries in its attribute ``calibrators``, by tag."""
    found = vars(module).get(attribute(module)) or {}
    return dict(found)


def carry(module: nn.Module, calibrators: Mapping[str, Calibrator]) -> None:
    """Give a module calibrators, by tag, beside those that it carries."""
    setattr(module, attribute(module), {**carried(module), **calibrators})


def attribute(module: nn.Module, name: str = "calibrators", kind: type = Calibrator) -> str:
    """The name of a dict of one kind on a module; another one where somebody's module has something else under it."""
    taken = getattr(module, name, None)
    ours = isinstance(taken, dict) and all(isinstance(item, kind) for item in taken.values())
    return name if taken is None or ours else f"_seguq_{name}"


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

    def add(found: dict[str, Any], there: str, step: int) -> None:
        found["calibrators"] = {**found.get("calibrators", {}), tag: pack(calibrator, there, step)}

    change(path, add, "calibrator", path if out is None else out, weights)


def change(
    path: str | os.PathLike[str],
    add: Callable[[dict[str, Any], str, int], None],
    what: str,
    target: str | os.PathLike[str],
    weights: str | None,
) -> None:
    """Write a checkpoint anew whose section ``add`` has changed, given the hash and the step of its weights."""
    with Lock(Path(path), wait=True) if Path(path).is_file() else nullcontext():
        checkpoint = read_checkpoint(path)
        with reading(path):
            found = section(checkpoint)
            state = weights_in(checkpoint)
            step = whole(checkpoint.get("global_step", 0), "'global_step'", 0)
            there = weights_sha256(state)
        if weights not in (None, there):
            raise SeguqError(f"{path} was replaced while the {what} was fitted, by one of other weights: fit it again")
        add(found, there, step)
        if state is checkpoint:
            checkpoint = {"state_dict": checkpoint}
        write_torch(target, {**checkpoint, KEY: found})
