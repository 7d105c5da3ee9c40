"""Checkpoints read safely: weights by name, whatever prefix they have, and what they hash to."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError, UsageError


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
