"""A checkpoint's weights into a model, and what was fitted for them beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from seguq.calibration.checkpoint import attribute, calibrators_of, section
from seguq.calibration.conformal_checkpoint import conformal_of
from seguq.core.reading import reading
from seguq.weights.checkpoint import load_all_weights, read_checkpoint, weights_in, weights_sha256

Module = TypeVar("Module", bound=nn.Module)


def load(checkpoint: str | os.PathLike[str], model: Module) -> Module:
    """Load the weights of a checkpoint into a model, and the calibrators that were fitted for them.

    Args:
        checkpoint: file of a Lightning checkpoint, of a bare state dict, or of what another trainer has saved with the
            weights under ``model_state_dict``, ``model``, ``net`` or the like; of the model itself, of it compiled, or
            of a LightningModule that holds it.
        model: the module that the weights go into.

    Returns:
        The same module, with ``model.calibrators``: calibrators by estimator tag, a plain dict outside the state dict;
        and ``model.conformal`` in the same way: conformal objects by estimator tag and name.

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
        weights = weights_sha256(weights_in(content))
        calibrators, conformal = calibrators_of(content, weights), conformal_of(content, weights)
    if calibrators or conformal:
        own = weights_sha256(model)  # the file may hold more than the model
        for calibrator in calibrators.values():
            calibrator.weights_sha256 = own
        for objects in conformal.values():
            for item in objects.values():
                item.weights_sha256 = own
    setattr(model, attribute(model), calibrators)
    setattr(model, attribute(model, "conformal", dict), conformal)
    return model
