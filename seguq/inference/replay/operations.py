"""What a recorder has to know of operations, and of where tensors lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_SEEDED, _METADATA = torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# they write all of what they are given, whatever was there
OVERWRITING = frozenset(
    f"aten::{name}_"
    for name in ("bernoulli", "uniform", "normal", "random", "exponential", "cauchy", "log_normal", "geometric", "copy")
)
REPLACING = frozenset(("aten::set_", "aten::resize_", "aten::resize_as_"))


class Kind:
    """What is known of an operation from its schema."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.name = schema.name
        self.written = tuple(
            (i, argument.name)
            for i, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        tags = func.tags
        aten = self.name.startswith("aten::")
        self.may_draw = _SEEDED in tags or not aten or any("Generator" in str(a.type) for a in schema.arguments)
        self.by_value = any(tag in tags for tag in _BY_VALUE)
        self.indexes = self.name == "aten::index"  # by masks, the shape depends on values; by numbers it does not
        if _METADATA in tags and self.name not in REPLACING:  # it changes how a tensor lies, and no value
            self.written = ()
        # an operator of other people may write or give anything
        self.plain_outputs = all("Tensor" in str(value.type) for value in schema.returns)
        names = [argument.name for argument in schema.arguments]
        # batch normalization writes its statistics, and its schema does not say so
        self.statistics = None
        if "batch_norm" in self.name and {"training", "running_mean"} <= set(names):
            self.statistics = (names.index("training"), names.index("running_mean"))

    def targets(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """The tensors among the arguments that the operation writes into."""
        for position, name in self.written:
            yield from outputs_of(args[position] if position < len(args) else kwargs.get(name))


KINDS: dict[Any, Kind] = {}


class Lying:
    """How a tensor lies in its memory."""

    __slots__ = ("dtype", "offset", "shape", "strides")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.strides = tuple(tensor.shape), tuple(tensor.stride())
        self.offset, self.dtype = tensor.storage_offset(), tensor.dtype


def geometry_of(tensor: Tensor, base: Any) -> tuple[Any, ...] | None:
    """How a tensor lies in the memory of a slot; None: as the slot's own tensor."""
    shape, strides, offset = tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()
    if (shape, strides, offset) == (base.shape, base.strides, base.offset):
        return None
    return shape, strides, offset


PLAIN = (Tensor, torch.nn.Parameter)


def memory_of(tensor: Tensor) -> int:
    """A name of the memory that a tensor lies in, the same for all of its views while it lasts."""
    name: int = tensor.untyped_storage()._cdata
    return name


def copy_of_memory(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor lies in, in one dimension."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0).clone()


def view_of(memory: Tensor, like: Tensor) -> Tensor:
    """A tensor that lies in a memory, as `copy_of_memory` gives it, as another one does in its own."""
    return memory.view(like.dtype).as_strided(like.shape, like.stride(), like.storage_offset())


def tensors_of(args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any, Tensor]]:
    """The tensors among the arguments of an operation, each with the container and the key that it is found by."""
    for container in (args, kwargs):
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, Tensor):
                yield container, key, value
            elif isinstance(value, (list, tuple)):
                for inner, item in enumerate(value):
                    if isinstance(item, Tensor):
                        yield value, inner, item


def outputs_of(out: Any) -> Iterator[Tensor]:
    """The tensors of a value that is one, or a list of some, or neither."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for item in out:
            if isinstance(item, Tensor):
                yield item
