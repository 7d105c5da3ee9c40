"""One pass through a model, written down so that only what depends on a random draw has to be run again.

While a pass runs, every operation comes by `Recorder`. One during which the generator moved is random, and one that
reads what a random one has made depends on it; these are put on a `Tape` with what they read. Running the tape gives
what another pass would give, to the bit, as the same kernels are called on the same values in the same order, and draws
come in the same order from the same generator.

What is made of a random draw is known by the memory that it lies in: tensors are views of one memory or another, and
an operation that writes in place changes all views of it at once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from seguq.core.seeds import generator_state, same_state

_SEEDED, _METADATA = torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# they write all of what they are given, whatever was there
_OVERWRITING = frozenset(
    f"aten::{name}_"
    for name in ("bernoulli", "uniform", "normal", "random", "exponential", "cauchy", "log_normal", "geometric", "copy")
)
_REPLACING = frozenset(("aten::set_", "aten::resize_", "aten::resize_as_"))
# they take values out of a tensor past the dispatcher
_ESCAPES = frozenset(("numpy", "tolist", "__array__", "__dlpack__", "data_ptr"))


class _Kind:
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
        self.metadata = _METADATA in tags and self.name not in _REPLACING
        if self.metadata:
            self.written = ()
        # an operator of other people may write or give anything
        self.plain_outputs = all("Tensor" in str(value.type) for value in schema.returns)
        names = [argument.name for argument in schema.arguments]
        # batch normalization writes its statistics, and its schema does not say so
        self.statistics = None
        if "batch_norm" in self.name and {"training", "running_mean"} <= set(names):
            self.statistics = (names.index("training"), names.index("running_mean"))


_KINDS: dict[Any, _Kind] = {}


class _Entry:
    """One operation of a tape."""

    __slots__ = ("args", "frees", "func", "kwargs", "outputs", "refs")

    def __init__(self, func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        # where a random value goes: container, key, its slot, and how it lies in the memory of the slot
        self.refs: list[tuple[Any, Any, int, tuple[Any, ...] | None]] = []
        self.outputs: list[tuple[int | None, int]] = []
        self.frees: list[int] = []

    def run(self, slots: list[Tensor | None]) -> None:
        for container, key, slot, geometry in self.refs:
            base = slots[slot]
            container[key] = base if geometry is None else base.as_strided(*geometry)  # type: ignore[union-attr]
        found = self.func(*self.args, **self.kwargs)
        for position, slot in self.outputs:
            slots[slot] = found if position is None else found[position]
        for container, key, _, _ in self.refs:
            container[key] = None
        for slot in self.frees:
            slots[slot] = None


class Tape:
    """The part of a pass that depends on random draws.

    Attributes:
        problem: why the pass cannot be run again from the tape, as a sentence on the module, or None.
        where: the module in which the problem is, where that is known.
        log: of every operation what it was, what it gave where no draw is behind it, and the module that called it;
            None if that was not asked for.
        drew: whether a generator moved in the pass.
        operations: number of operations in the whole pass.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self.where: nn.Module | None = None
        self.log: list[Logged] | None = None
        self.drew = False
        self.operations = 0
        self._entries: list[_Entry] = []
        self._slots = 0
        self._output: tuple[int, tuple[Any, ...] | None] | Tensor | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def run(self) -> Tensor:
        """What another pass would give; draws from the generators."""
        slots: list[Tensor | None] = [None] * self._slots
        # what autocast has cast is on the tape
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            for entry in self._entries:
                entry.run(slots)
            if isinstance(self._output, tuple):
                slot, geometry = self._output
                base = slots[slot]
                assert base is not None
                return base if geometry is None else base.as_strided(*geometry)
        assert self._output is not None
        return self._output.clone()


class Recorder(TorchDispatchMode):
    """Writes down the operations of one pass, as a context manager around it.

    Args:
        device: whose generator is watched beside the CPU's.
        log: keep a log of all operations.
    """

    def __init__(self, device: torch.device, log: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        if log:
            self.tape.log = []
        self._device = device
        self._state: tuple[Tensor, ...] = ()
        self._slots: dict[int, tuple[int, _Lying]] = {}  # by memory: slot, and how the slot's own tensor lies
        self._made: set[int] = set()
        self._weak: list[StorageWeakRef] = []  # while these are held, no other memory gets the same name
        self._constants: dict[int, list[tuple[Any, Any]]] = {}
        self._escapes = _Escapes(self)

    # ---- around the pass ----

    def __enter__(self) -> Recorder:
        self._state = generator_state(self._device)
        self._escapes.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        self._escapes.__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def finish(self, output: Tensor) -> Tape:
        """The tape, given what the pass gave."""
        tape = self.tape
        if not same_state(self._state, generator_state(self._device)):
            self.stop("draws random numbers by other means than torch's operations")
            tape.drew = True
        if tape.problem is None:
            found = self._slots.get(_memory(output))
            tape._output = output.clone() if found is None else (found[0], _lie(output, found[1]))
            if found is not None and output.dtype != found[1].dtype:
                self.stop("gives memory of another type")
            self._set_free()
        else:
            tape._entries = []
        self._slots, self._made, self._weak, self._constants = {}, set(), [], {}
        return tape

    def stop(self, problem: str) -> None:
        """The pass goes on, but cannot be run again from the tape."""
        if self.tape.problem is None:
            self.tape.problem, self.tape.where = problem, _calling()
            self.tape._entries = []
            self._slots, self._constants = {}, {}

    def depends(self, value: Any) -> bool:
        """Whether a tensor was made of a random draw."""
        return isinstance(value, Tensor) and _memory(value) in self._slots

    def _set_free(self) -> None:
        last: dict[int, int] = {}
        for number, entry in enumerate(self.tape._entries):
            for _, _, slot, _ in entry.refs:
                last[slot] = number
            for _, slot in entry.outputs:
                last[slot] = number
        kept = self.tape._output[0] if isinstance(self.tape._output, tuple) else None
        for slot, number in last.items():
            if slot != kept:
                self.tape._entries[number].frees.append(slot)

    # ---- one operation ----

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tape.problem is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._operation(func, args, kwargs)

    def _operation(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tape = self.tape
        tape.operations += 1
        kind = _KINDS.get(func)
        if kind is None:
            kind = _KINDS[func] = _Kind(func)
        tensors = list(_tensors(args, kwargs))
        try:
            depends = any(_memory(tensor) in self._slots for _, _, tensor in tensors)
        except (NotImplementedError, RuntimeError):
            self.stop(f"calls {kind.name} on a tensor without plain memory")
            return func(*args, **kwargs)
        if kind.statistics is not None and len(args) > max(kind.statistics):
            training, mean = (args[i] for i in kind.statistics)
            if training and mean is not None:
                self.stop("normalizes by the statistics of the batch, and changes its own")
                return func(*args, **kwargs)
        if kind.name in _REPLACING and (depends or any(_memory(t) in self._constants for _, _, t in tensors)):
            self.stop(f"calls {kind.name} on what depends on a random draw")
            return func(*args, **kwargs)
        if kind.may_draw and not same_state(self._state, generator_state(self._device)):
            self.stop("draws random numbers by other means than torch's operations")
            return func(*args, **kwargs)
        if kind.may_draw and any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            self.stop("draws from a generator of its own")
            return func(*args, **kwargs)
        restored = self._before_writing(kind, args, kwargs, depends)
        out = func(*args, **kwargs)
        if tape.problem is not None:
            return out
        random = False
        if kind.may_draw:
            state = generator_state(self._device)
            random = not same_state(self._state, state)
            self._state = state
            tape.drew = tape.drew or random
        if tape.log is not None:
            tape.log.append(_logged(kind, args, kwargs, None if random or depends else out))
        if not random and not depends:
            for tensor in _outputs(out):
                self._note(tensor)
            return out
        self._put_down(func, kind, args, kwargs, tensors, restored, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return
        name = storage._cdata
        if name not in self._made:
            self._made.add(name)
            self._weak.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]

    def _before_writing(
        self, kind: _Kind, args: Sequence[Any], kwargs: dict[str, Any], depends: bool
    ) -> dict[int, Tensor | None]:
        """Save what an operation is about to overwrite; gives by memory what was there, where the tape may need it."""
        restored: dict[int, Tensor | None] = {}
        for position, name in kind.written:
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in target if isinstance(target, (list, tuple)) else (target,):
                if not isinstance(tensor, Tensor):
                    continue
                memory = _memory(tensor)
                if memory in self._slots:
                    continue
                if memory not in self._made and tensor.untyped_storage().nbytes():
                    self.stop("changes in place a tensor that it did not make in the same pass")
                    return restored
                saved = None
                if memory in self._constants:
                    saved = _copy(tensor)
                    for container, key in self._constants.pop(memory):
                        container[key] = _view(saved, container[key])
                if not depends and not kind.may_draw:
                    continue
                whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
                if not (whole and kind.name in _OVERWRITING):
                    saved = _copy(tensor) if saved is None else saved
                restored[memory] = saved
        return restored

    def _put_down(
        self,
        func: Any,
        kind: _Kind,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[tuple[Any, Any, Tensor]],
        restored: dict[int, Tensor | None],
        out: Any,
    ) -> None:
        found = list(_outputs(out))
        by_value = kind.by_value
        if kind.indexes:
            by_value = any(tensor.dtype in (torch.bool, torch.uint8) for _, _, tensor in tensors[1:])
        if by_value or not kind.plain_outputs or (not found and not kind.written):
            self.stop(f"does something else depending on a random draw ({kind.name})")
            return
        new = [tensor for tensor in found if _memory(tensor) not in self._slots and _memory(tensor) not in restored]
        if not new and not kind.written:
            return  # a view
        for tensor in (*found, *(tensor for _, _, tensor in tensors)):
            if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg() or type(tensor) not in _PLAIN:
                self.stop(f"calls {kind.name} on a tensor that is not of the plain kind")
                return
        for position, name in kind.written:
            target = args[position] if position < len(args) else kwargs.get(name)
            for tensor in target if isinstance(target, (list, tuple)) else (target,):
                if isinstance(tensor, Tensor) and _memory(tensor) not in self._slots:
                    self._restore(tensor, restored)
        entry = _Entry(func, [_copied(value) for value in args], {key: _copied(value) for key, value in kwargs.items()})
        for container, key, tensor in _tensors(entry.args, entry.kwargs):
            memory = _memory(tensor)
            slot = self._slots.get(memory)
            if slot is None:
                self._constants.setdefault(memory, []).append((container, key))
                continue
            if tensor.dtype != slot[1].dtype:
                self.stop(f"calls {kind.name} on memory of another type")
                return
            entry.refs.append((container, key, slot[0], _lie(tensor, slot[1])))
            container[key] = None
        several = isinstance(out, (list, tuple))
        for position, tensor in enumerate(out if several else (out,)):
            if not isinstance(tensor, Tensor):
                continue
            memory = _memory(tensor)
            if memory in self._slots:
                continue
            if memory in self._made or memory in self._constants:
                self.stop(f"{kind.name} gave a view of what does not depend on the draw")
                return
            self._note(tensor)
            entry.outputs.append((position if several else None, self._slot(memory, tensor)))
        self.tape._entries.append(entry)

    def _slot(self, memory: int, tensor: Tensor) -> int:
        slot = self.tape._slots
        self.tape._slots += 1
        self._slots[memory] = (slot, _Lying(tensor))
        return slot

    def _restore(self, tensor: Tensor, restored: dict[int, Tensor | None]) -> None:
        """From here on the memory of a tensor depends on random draws: each run begins with what was there."""
        memory = _memory(tensor)
        saved = restored.get(memory)
        slot = self._slot(memory, tensor)
        if memory not in restored:
            self.stop("writes random values where it was not expected")
        elif saved is None:
            size, stride = tuple(tensor.shape), tuple(tensor.stride())
            entry = _Entry(torch.empty_strided, [size, stride], {"dtype": tensor.dtype, "device": tensor.device})
            entry.outputs.append((None, slot))
            self.tape._entries.append(entry)
        else:
            self._slots[memory] = (slot, _Lying(saved))
            entry = _Entry(torch.clone, [saved], {})
            entry.outputs.append((None, slot))
            self.tape._entries.append(entry)


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


def _logged(kind: _Kind, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Logged:
    values = [value for value in (*args, *kwargs.items()) if not isinstance(value, (Tensor, list, tuple))]
    found: list[float] = []
    for tensor in () if "empty" in kind.name else _outputs(out):
        if (
            tensor.layout == torch.strided
            and tensor.numel()
            and (tensor.is_floating_point() or tensor.dtype == torch.long)
        ):
            flat = tensor.detach().reshape(-1)
            found += [float(flat.double().sum()), *flat[:: max(1, len(flat) // 8)].double().tolist()]
    return Logged(kind.name, repr(values), tuple(found), _calling())


def _calling() -> nn.Module | None:
    """The innermost module that is being called."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "seguq.inference.replay":
            return None
        # a look at the names of a function that goes on keeps what they stand for
        if frame.f_code.co_name == "forward" and frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if isinstance(owner, nn.Module):
                return owner
    return None


class _Lying:
    """How a tensor lies in its memory."""

    __slots__ = ("dtype", "offset", "shape", "strides")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.strides = tuple(tensor.shape), tuple(tensor.stride())
        self.offset, self.dtype = tensor.storage_offset(), tensor.dtype


def _lie(tensor: Tensor, base: Any) -> tuple[Any, ...] | None:
    """How a tensor lies in the memory of a slot; None: as the slot's own tensor."""
    shape, strides, offset = tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()
    if (shape, strides, offset) == (base.shape, base.strides, base.offset):
        return None
    return shape, strides, offset


_PLAIN = (Tensor, torch.nn.Parameter)


def _memory(tensor: Tensor) -> int:
    name: int = tensor.untyped_storage()._cdata
    return name


def _copy(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor lies in, in one dimension."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0).clone()


def _view(memory: Tensor, like: Tensor) -> Tensor:
    return memory.view(like.dtype).as_strided(like.shape, like.stride(), like.storage_offset())


def _copied(value: Any) -> Any:
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tensors(args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any, Tensor]]:
    """The tensors among the arguments of an operation, each with the container and the key that it is found by."""
    for key, value in enumerate(args):
        if isinstance(value, Tensor):
            yield args, key, value
        elif isinstance(value, (list, tuple)):
            for inner, item in enumerate(value):
                if isinstance(item, Tensor):
                    yield value, inner, item
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            yield kwargs, name, value
        elif isinstance(value, (list, tuple)):
            for inner, item in enumerate(value):
                if isinstance(item, Tensor):
                    yield value, inner, item


def _outputs(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for item in out:
            if isinstance(item, Tensor):
                yield item


class _Escapes(TorchFunctionMode):
    """Sees values being taken out of tensors past the dispatcher."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ESCAPES and self._recorder.tape.problem is None and self._recorder.depends(args[0]):
            self._recorder.stop(f"takes values that depend on a random draw out of torch ({name})")
        return func(*args, **(kwargs or {}))
