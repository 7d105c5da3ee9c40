"""Conformal objects in a checkpoint, beside the calibrators: tied to the weights, and to the calibrator in use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch

from seguq.calibration.checkpoint import KEY, change, pack, section, unpacked
from seguq.calibration.conformal import Conformal
from seguq.core.reading import mapping, reading, text


def unpack_conformal(tag: str, name: str, packed: Mapping[str, Any]) -> Conformal:
    """The conformal object that `pack` made plain.

    Raises:
        SeguqError: if it is of an unknown class or damaged.
    """
    what = f"the conformal object {name!r} of {tag!r}"
    conformal: Conformal = unpacked(what, Conformal, tag, packed)
    with reading(f"{what} in the checkpoint"):
        conformal.calibrated_by = text(packed["calibrated_by"], "'calibrated_by'")
    return conformal


def calibrator_sha256(packed: Mapping[str, Any] | None) -> str:
    """A hash of what a calibrator does, as `pack` gives it; of none, too."""
    if packed is None:
        return "none"
    digest = sha256(repr((packed.get("class"), sorted(mapping(packed["arguments"], "'arguments'").items()))).encode())
    for name, tensor in sorted(mapping(packed["tensors"], "'tensors'").items()):
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def add_conformal(checkpoint: dict[str, Any], conformal: Mapping[str, Mapping[str, Conformal]], weights: str) -> None:
    """Put conformal objects into a checkpoint that is about to be written, but for those of other weights.

    Args:
        checkpoint: it is changed in place.
        conformal: fitted ones, by tag and name; those that know no weights are taken to be for these.
        weights: `weights_sha256` of the weights that the checkpoint is of.
    """
    found = section(checkpoint)
    parts = dict(found.get("conformal", {}))
    for tag, objects in conformal.items():
        for name, item in objects.items():
            if item.weights_sha256 in (None, weights):
                item.weights_sha256 = weights
                packed = pack(item, weights, int(item.global_step or 0))
                packed["calibrated_by"] = item.calibrated_by or calibrated_by(found, tag)
                parts[tag] = {**parts.get(tag, {}), name: packed}
    checkpoint[KEY] = {**found, "conformal": parts}


def conformal_of(checkpoint: Mapping[str, Any], weights: str) -> dict[str, dict[str, Conformal]]:
    """The conformal objects of a checkpoint that still hold, by tag and name; a warning names each that does not.

    Those do not that were fitted for other weights, or for another calibrator than the one that the checkpoint has.

    Args:
        checkpoint: as `read_checkpoint` gives it.
        weights: `weights_sha256` of the weights in hand.
    """
    found = section(checkpoint)
    fitting: dict[str, dict[str, Conformal]] = {}
    for tag, objects in found.get("conformal", {}).items():
        with reading(f"what the checkpoint holds of conformal objects of {tag!r}"):
            objects = mapping(objects, "it")
        for name, packed in objects.items():
            item = unpack_conformal(tag, name, packed)
            if item.weights_sha256 != weights:
                other = f"other weights (those of step {item.global_step})"
            elif item.calibrated_by != calibrated_by(found, tag):
                other = "another calibrator than the estimator has now"
            else:
                fitting.setdefault(tag, {})[name] = item
                continue
            warnings.warn(
                f"the conformal object {name!r} of {tag!r} is not given, as it promises nothing any more: it was "
                f"fitted for {other}; fit it again",
                stacklevel=4,
            )
    return fitting


def calibrated_by(found: Mapping[str, Any], tag: str) -> str:
    """The hash of the calibrator that a checkpoint's section has for an estimator."""
    with reading(f"the calibrator {tag!r} in the checkpoint"):
        packed = found.get("calibrators", {}).get(tag)
        return calibrator_sha256(None if packed is None else mapping(packed, "its content"))


def save_conformal(
    path: str | os.PathLike[str],
    conformal: Conformal,
    tag: str,
    name: str | None = None,
    out: str | os.PathLike[str] | None = None,
    weights: str | None = None,
) -> None:
    """Put a conformal object beside those that a checkpoint has, as `save_calibrator` does a calibrator.

    What it promises is of the probabilities that the estimator gives now. So it is kept for the weights in the file and
    for the calibrator that the file has for this estimator; where either is another later on, `load` leaves it out, and
    says so.

    Args:
        path: checkpoint file.
        conformal: a fitted one.
        tag: the tag of the estimator whose output it was fitted on, ``est.tag``.
        name: what it is found by, in ``model.conformal[tag][name]``; one of the same name is replaced. None: the
            name of its class, such as "prediction_sets".
        out: file to write instead of ``path``.
        weights: hash of the weights that it was fitted for, `weights_sha256`; None: those in the file, as is known.

    Raises:
        SeguqError: if it is not fitted, or the file has other weights by now.

    Example:
        >>> import os, tempfile, torch, seguq
        >>> from seguq.calibration import save_conformal
        >>> model, masks = torch.nn.Conv2d(3, 1, 1), torch.ones(20, 8, 8, dtype=torch.bool)
        >>> file = os.path.join(tempfile.mkdtemp(), "model.pt")
        >>> torch.save(model.state_dict(), file)
        >>> save_conformal(file, seguq.ConformalMargin(0.1).fit([(masks, masks)]), "deterministic")
        >>> seguq.load(file, model).conformal
        {'deterministic': {'conformal_margin': ConformalMargin() [margin=0, empirical_risk=0, images=20, groups=20]}}
    """
    conformal.require_fitted()

    def add(found: dict[str, Any], there: str, step: int) -> None:
        packed = {**pack(conformal, there, step), "calibrated_by": calibrated_by(found, tag)}
        parts = {tag: {}, **found.get("conformal", {})}
        found["conformal"] = {**parts, tag: {**parts[tag], conformal.name if name is None else name: packed}}

    change(path, add, "conformal object", path if out is None else out, weights)
