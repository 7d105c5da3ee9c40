"""What happened in a pass, operation by operation, to find where two of them went apart."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seguq.inference.replay.operations import Kind, outputs_of


class Logged(NamedTuple):
    """One operation of a log.

    Attributes:
        name: what it was.
        values: its arguments that are no tensors.
        found: some of what it gave, where no draw is behind it.
        module: the module that called it, or None.
    """

    name: str
    values: str
    found: tuple[float, ...]
    module: nn.Module | None


def first_difference(one: Sequence[Logged], other: Sequence[Logged]) -> nn.Module | None:
    """The module in which two passes went apart, where that is known."""
    for a, b in itertools.zip_longest(one, other):
        if a is None or b is None or (a.name, a.values) != (b.name, b.values) or not _alike(a.found, b.found):
            entry: Logged = b if a is None else a
            return entry.module
    return None


def _alike(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))


def logged(kind: Kind, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Logged:
    """The entry of an operation; ``out`` is None where its values are not to be compared."""
    values = [value for value in (*args, *kwargs.items()) if not isinstance(value, (Tensor, list, tuple))]
    found: list[float] = []
    for tensor in () if "empty" in kind.name else outputs_of(out):
        if (
            tensor.layout == torch.strided
            and tensor.numel()
            and (tensor.is_floating_point() or tensor.dtype == torch.long)
        ):
            flat = tensor.detach().reshape(-1)
            found += [float(flat.double().sum()), *flat[:: max(1, len(flat) // 8)].double().tolist()]
    return Logged(kind.name, repr(values), tuple(found), calling_module())


def module_of(error: BaseException) -> nn.Module | None:
    """The innermost module in whose forward an error was raised."""
    found, step = None, error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("self",):
            owner = step.tb_frame.f_locals["self"]
            found = owner if isinstance(owner, nn.Module) else found
        step = step.tb_next
    return found


def calling_module() -> nn.Module | None:
    """The innermost module that is being called."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "seguq.inference.replay.samples":
            return None
        # a look at the names of a function that goes on keeps what they stand for
        if frame.f_code.co_name == "forward" and frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if isinstance(owner, nn.Module):
                return owner
    return None
