"""Checkpoints read safely: weights by name, whatever prefix they have, and what they hash to."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError, UsageError
from seguq.core.reading import mapping, reading
from seguq.weights.numpy_values import STAND_INS, settled


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file, with ``weights_only=True``: nothing in it is run, whatever the environment says.

    The checksums that torch writes into the file are verified, which torch does not do. Numbers, texts and arrays of
    NumPy among the hyperparameters are read as what they are.

    Raises:
        UsageError: if the file is missing.
        SeguqError: if it is damaged or no checkpoint, or holds a type that is not allowed (the error names it).
    """
    path = Path(path)
    with reading(path, "a checkpoint"):
        if not path.exists():
            raise UsageError(f"checkpoint {path} does not exist")
        _require_checksums(path)
        content = _unpickled(path)
        if not isinstance(content, dict):
            raise SeguqError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
        return content


def _require_checksums(path: Path) -> None:
    """Raise where a part of torch's zip archive is not as it was written."""
    if not zipfile.is_zipfile(path):
        return  # torch's format before 1.6 has no checksums
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise SeguqError(f"{path} is a TorchScript archive, which holds a program: save the module's state_dict()")
        # torch.serialization.set_crc32_options(False) leaves all of them 0
        wrong = archive.testzip() if any(part.CRC for part in parts) else None
    if wrong is not None:
        raise SeguqError(f"{path} is damaged: the checksum of its part {wrong!r} is not that of its content")


_SAFE_GLOBALS = threading.Lock()


def _unpickled(path: Path) -> Any:
    """What torch reads with ``weights_only=True``, or one of our sentences: torch's own advises to switch that off."""
    replaced = {name for _, name in STAND_INS}
    with _SAFE_GLOBALS:
        allowed = torch.serialization.get_safe_globals()
        others = [item for item in allowed if _name_of(item) not in replaced]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*others, *STAND_INS])
        try:
            return settled(torch.load(path, map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:
            message = str(error)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)
    found = re.search(r"GLOBAL (\S+)|got <class '([^']+)'>", message)
    if found is None:
        raise SeguqError(f"{path} cannot be read as a checkpoint: it is damaged or another kind of file")
    name = (found[1] or found[2]).strip("`'\"").removesuffix(".")
    if "is blocked" in message:
        raise SeguqError(f"{path} holds {name}, which could run commands here: nothing of that kind is ever loaded")
    raise SeguqError(
        f"{path} holds the type {name}, which is not loaded from files that may be anybody's: if you trust the "
        f"file, call torch.serialization.add_safe_globals([{_as_allowed(name)}]) first"
    )


def _name_of(allowed: Any) -> str:
    """The name in files that one of torch's safe globals goes by."""
    return str(allowed[1]) if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"


def _as_allowed(name: str) -> str:
    """How a name in a file is allowed: where it is an old name of a thing, torch has to be told both."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)  # nothing is imported because a file says so
    current = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    return name if found is None or current == name else f"({name}, {name!r})"


WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""Where trainers keep the weights in what they save; the first that is there counts."""


def weights_in(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a checkpoint: under one of the names in `WEIGHTS`; or all of it; or its one part that is one.

    Raises:
        SeguqError: if several parts hold tensors, none of them under such a name.
    """
    for name in WEIGHTS:
        if _holds_tensors(checkpoint.get(name)):
            return weights_in(checkpoint[name])
    if "state_dict" in checkpoint:
        return mapping(checkpoint["state_dict"], "'state_dict'")
    if any(isinstance(value, Tensor) for value in checkpoint.values()):
        return mapping(checkpoint, "what it holds")
    parts = [name for name, value in checkpoint.items() if _holds_tensors(value)]
    if len(parts) > 1:
        raise SeguqError(
            f"it holds weights under {', '.join(map(repr, parts))}, and none of these names tells which are the "
            "model's: save the one that you mean in a file of its own"
        )
    return weights_in(checkpoint[parts[0]]) if parts else checkpoint


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a mapping of names to tensors, or one that has a state dict."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    nested = [value[name] for name in WEIGHTS if isinstance(value.get(name), Mapping)]
    return any(isinstance(item, Tensor) for item in value.values()) or any(map(_holds_tensors, nested))


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
        checkpoint: as `read_checkpoint` gives it, with weights as `weights_in` finds them.
        name: the checkpoint's name, for messages.

    Returns:
        The names in the checkpoint, under the prefix that fits, that the model has no place for.

    Raises:
        SeguqError: if a tensor of the model is missing or of another shape, naming it; or if one is not finite.
    """
    state = _plain_names(weights_in(checkpoint))
    own = {key.replace("_orig_mod.", ""): key for key in model.state_dict()}
    names = matching_names(model, checkpoint, name)
    current = model.state_dict()
    wrong = [p for p, source in names.items() if source in state and state[source].shape != current[own[p]].shape]
    if wrong:
        found, expected = tuple(state[names[wrong[0]]].shape), tuple(current[own[wrong[0]]].shape)
        raise SeguqError(
            f"{name} does not fit the model: {wrong[0]!r} has shape {found} in the file, {expected} in the model"
        )
    parameters = {parameter for parameter, _ in model.named_parameters(remove_duplicate=False)}
    for plain, source in names.items():
        fault = source in state and _fault_of(state[source], current[own[plain]], own[plain] in parameters)
        if fault:
            raise SeguqError(f"{name} cannot be used: its weights {source!r} {fault}")
    model.load_state_dict({own[p]: state.get(source, current[own[p]]) for p, source in names.items()})
    taken = set(names.values())
    first = next(iter(names))
    prefix = names[first].removesuffix(first) if names[first].endswith(first) else ""
    return [key for key in state if key.startswith(prefix) and key not in taken]


def _fault_of(tensor: Tensor, place: Tensor, is_parameter: bool) -> str | None:
    """What keeps a tensor of the right shape from being loaded into its place; None: nothing."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return f"are no plain tensor ({tensor.device.type}, {tensor.layout}, {tensor.dtype})"
    if tensor.is_complex() and not place.is_complex():
        return "are complex, those of the model are real"
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    tensor = tensor if tensor.element_size() > 1 else tensor.float()  # of 8 bits torch cannot tell
    if bool(tensor.isnan().any()):
        return "hold NaN: the training has diverged"
    # a mask among the buffers may well be infinite
    return "hold infinite values: the training has diverged" if is_parameter and bool(tensor.isinf().any()) else None


def matching_names(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> dict[str, str]:
    """The names of a model's tensors, and under which ones a checkpoint has them, whatever their prefix.

    ``_orig_mod.`` is left out of all of them. Arguments and errors are those of `load_weights`.
    """
    state = _plain_names(weights_in(checkpoint))
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
