"""One pass through a model, written down so that only what depends on a random draw has to be run again.

While a pass runs, every operation comes by `Recorder`. One during which the generator moved is random, and one that
reads what a random one has made depends on it; these are put on a `Tape` with what they read. Running the tape gives
what another pass would give, to the bit, as the same kernels are called on the same values in the same order, and draws
come in the same order from the same generator.

What is made of a random draw is known by the memory that it lies in: tensors are views of one memory or another, and
an operation that writes in place changes all views of it at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from seguq.core.seeds import generator_state, other_generators, own_generators, same_state, states_of
from seguq.inference.replay.operations import (
    KINDS,
    OVERWRITING,
    PLAIN,
    REPLACING,
    Kind,
    Lying,
    copy_of_memory,
    geometry_of,
    memory_of,
    outputs_of,
    tensors_of,
    view_of,
)
from seguq.inference.replay.pass_log import calling_module, logged
from seguq.inference.replay.tape import Entry, Tape

_OTHER_MEANS = "draws random numbers by other means than torch's operations"
OWN_GENERATOR = "draws from a generator of its own"
_OTHERS = "draws random numbers by Python's or numpy's generator"
# they take values out of a tensor past the dispatcher
_ESCAPES = frozenset(("numpy", "tolist", "__array__", "__dlpack__", "data_ptr"))


class Recorder(TorchDispatchMode):
    """Writes down the operations of one pass, as a context manager around it.

    Args:
        device: whose generator is watched beside the CPU's.
        model: whose own generators are watched, too.
        log: keep a log of all operations.
    """

    def __init__(self, device: torch.device, model: torch.nn.Module | None = None, log: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        if log:
            self.tape.log = []
        self._device = device
        self._own = [] if model is None else own_generators(model)
        self._own_states: list[bytes] = []
        self._state: tuple[Tensor, ...] = ()
        self._others: tuple[Any, ...] = ()
        self._slots: dict[int, tuple[int, Lying]] = {}  # by memory: slot, and how the slot's own tensor lies
        self._made: set[int] = set()
        self._weak: list[StorageWeakRef] = []  # while these are held, no other memory gets the same name
        self._constants: dict[int, list[tuple[Any, Any]]] = {}
        self._escapes = _Escapes(self)

    # ---- around the pass ----

    def __enter__(self) -> Recorder:
        self._state, self._others = generator_state(self._device), other_generators()
        self._own_states = states_of(self._own)
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
        unseen = self._unseen_draw()
        if unseen is not None:
            self.stop(unseen)
        if tape.problem is None:
            found = self._slots.get(memory_of(output))
            tape.output = output.clone() if found is None else (found[0], geometry_of(output, found[1]))
            if found is not None and output.dtype != found[1].dtype:
                self.stop("gives memory of another type")
            self._set_free()
        else:
            tape.entries = []
        self._slots, self._made, self._weak, self._constants = {}, set(), [], {}
        return tape

    def stop(self, problem: str) -> None:
        """The pass goes on, but cannot be run again from the tape."""
        if self.tape.problem is None:
            self.tape.problem, self.tape.where = problem, calling_module()
            self.tape.entries = []
            self._slots, self._constants = {}, {}

    def depends(self, value: Any) -> bool:
        """Whether a tensor was made of a random draw."""
        return isinstance(value, Tensor) and memory_of(value) in self._slots

    def _set_free(self) -> None:
        last: dict[int, int] = {}
        for number, entry in enumerate(self.tape.entries):
            read, made = (slot for _, _, slot, _ in entry.refs), (slot for _, slot in entry.outputs)
            last.update(dict.fromkeys((*read, *made), number))
        kept = self.tape.output[0] if isinstance(self.tape.output, tuple) else None
        for slot, number in last.items():
            if slot != kept:
                self.tape.entries[number].frees.append(slot)

    # ---- one operation ----

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.tape.problem is not None:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._operation(func, args, kwargs)

    def _unseen_draw(self) -> str | None:
        """Whose generator moved otherwise than by the operations that were written down."""
        if not same_state(self._state, generator_state(self._device)):
            return _OTHER_MEANS
        if self._others != other_generators():
            return _OTHERS
        return OWN_GENERATOR if self._own_states != states_of(self._own) else None

    def _operation(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tape = self.tape
        tape.signature = hash((tape.signature, func))
        kind = KINDS.get(func)
        if kind is None:
            kind = KINDS[func] = Kind(func)
        tensors = list(tensors_of(args, kwargs))
        try:
            depends = any(memory_of(tensor) in self._slots for _, _, tensor in tensors)
        except (NotImplementedError, RuntimeError):
            self.stop(f"calls {kind.name} on a tensor without plain memory")
            return func(*args, **kwargs)
        if kind.statistics is not None and len(args) > max(kind.statistics):
            training, mean = (args[i] for i in kind.statistics)
            if training and mean is not None:
                self.stop("normalizes by the statistics of the batch, and changes its own")
                return func(*args, **kwargs)
        if kind.name in REPLACING and (depends or any(memory_of(t) in self._constants for _, _, t in tensors)):
            self.stop(f"calls {kind.name} on what depends on a random draw")
            return func(*args, **kwargs)
        unseen = self._unseen_draw() if kind.may_draw else None
        if unseen is not None:
            self.stop(unseen)
            return func(*args, **kwargs)
        if kind.may_draw and any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            self.stop(OWN_GENERATOR)
            return func(*args, **kwargs)
        restored = self._before_writing(kind, args, kwargs, depends)
        sizes = [tensor.untyped_storage().nbytes() for tensor in kind.targets(args, kwargs)]
        out = func(*args, **kwargs)
        if tape.problem is not None:
            return out
        if sizes != [tensor.untyped_storage().nbytes() for tensor in kind.targets(args, kwargs)]:
            self.stop(f"calls {kind.name}, which changes the size of what it writes into")
            return out
        random = False
        if kind.may_draw:
            state = generator_state(self._device)
            random = not same_state(self._state, state)
            self._state = state
        if tape.log is not None:
            tape.log.append(logged(kind, args, kwargs, None if random or depends else out))
        if not random and not depends:
            # a view of what came from elsewhere was not made in this pass; new constants come by lift_fresh
            given = set() if kind.name == "aten::lift_fresh" else {memory_of(tensor) for _, _, tensor in tensors}
            for tensor in outputs_of(out):
                self._note(tensor, given)
            return out
        self._put_down(func, kind, args, kwargs, tensors, restored, out)
        return out

    def _note(self, tensor: Tensor, given: AbstractSet[int] = frozenset()) -> None:
        """Remember that a memory was made in this pass, where it is none of those that were given."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return
        name = storage._cdata
        if name not in self._made and name not in given:
            self._made.add(name)
            self._weak.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]

    def _before_writing(
        self, kind: Kind, args: Sequence[Any], kwargs: dict[str, Any], depends: bool
    ) -> dict[int, Tensor | None]:
        """Save what an operation is about to overwrite; gives by memory what was there, where the tape may need it."""
        restored: dict[int, Tensor | None] = {}
        for tensor in kind.targets(args, kwargs):
            memory = memory_of(tensor)
            if memory in self._slots:
                continue
            if memory not in self._made and tensor.untyped_storage().nbytes():
                self.stop("changes in place a tensor that it did not make in the same pass")
                return restored
            saved = None
            if memory in self._constants:
                saved = copy_of_memory(tensor)
                for container, key in self._constants.pop(memory):
                    container[key] = view_of(saved, container[key])
            if not depends and not kind.may_draw:
                continue
            whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
            if not (whole and kind.name in OVERWRITING):
                saved = copy_of_memory(tensor) if saved is None else saved
            restored[memory] = saved
        return restored

    def _put_down(
        self,
        func: Any,
        kind: Kind,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[tuple[Any, Any, Tensor]],
        restored: dict[int, Tensor | None],
        out: Any,
    ) -> None:
        found = list(outputs_of(out))
        if not all(_has_memory(tensor) for tensor in found):
            self.stop(f"makes a tensor without plain memory of a random draw ({kind.name})")
            return
        by_value = kind.by_value
        if kind.indexes:
            by_value = any(tensor.dtype in (torch.bool, torch.uint8) for _, _, tensor in tensors[1:])
        if by_value or not kind.plain_outputs or (not found and not kind.written):
            self.stop(f"does something else depending on a random draw ({kind.name})")
            return
        new = [tensor for tensor in found if memory_of(tensor) not in self._slots and memory_of(tensor) not in restored]
        if not new and not kind.written:
            return  # a view
        for tensor in (*found, *(tensor for _, _, tensor in tensors)):
            if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg() or type(tensor) not in PLAIN:
                self.stop(f"calls {kind.name} on a tensor that is not of the plain kind")
                return
        for tensor in kind.targets(args, kwargs):
            if memory_of(tensor) not in self._slots:
                self._restore(tensor, restored)
        entry = Entry(func, [_copied(value) for value in args], {key: _copied(value) for key, value in kwargs.items()})
        for container, key, tensor in tensors_of(entry.args, entry.kwargs):
            memory = memory_of(tensor)
            slot = self._slots.get(memory)
            if slot is None:
                self._constants.setdefault(memory, []).append((container, key))
                continue
            if tensor.dtype != slot[1].dtype:
                self.stop(f"calls {kind.name} on memory of another type")
                return
            entry.refs.append((container, key, slot[0], geometry_of(tensor, slot[1])))
            container[key] = None
        several = isinstance(out, (list, tuple))
        for position, tensor in enumerate(out if several else (out,)):
            if not isinstance(tensor, Tensor):
                continue
            memory = memory_of(tensor)
            if memory in self._slots:
                continue
            if memory in self._made or memory in self._constants:
                self.stop(f"{kind.name} gave a view of what does not depend on the draw")
                return
            self._note(tensor)
            entry.outputs.append((position if several else None, self._slot(memory, tensor)))
        self.tape.entries.append(entry)

    def _slot(self, memory: int, tensor: Tensor) -> int:
        """A new slot for a memory that depends on random draws, whose own tensor lies as the one given."""
        slot = self.tape.slots
        self.tape.slots += 1
        self._slots[memory] = (slot, Lying(tensor))
        return slot

    def _restore(self, tensor: Tensor, restored: dict[int, Tensor | None]) -> None:
        """From here on the memory of a tensor depends on random draws: each run begins with what was there."""
        memory = memory_of(tensor)
        if memory not in restored:
            self.stop("writes random values where it was not expected")
            return
        saved = restored[memory]
        if saved is None:  # all of it is about to be overwritten
            lying = [tuple(tensor.shape), tuple(tensor.stride())]
            entry = Entry(torch.empty_strided, lying, {"dtype": tensor.dtype, "device": tensor.device})
        else:
            entry = Entry(torch.clone, [saved], {})
        entry.outputs.append((None, self._slot(memory, tensor if saved is None else saved)))
        self.tape.entries.append(entry)


def _has_memory(tensor: Tensor) -> bool:
    try:
        memory_of(tensor)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _copied(value: Any) -> Any:
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Escapes(TorchFunctionMode):
    """Sees values being taken out of tensors past the dispatcher."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        # no circle of the two: what a pass has made is to be freed with the last use of it
        self._of_recorder = weakref.ref(recorder)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        recorder = self._of_recorder() if name in _ESCAPES else None
        if recorder is not None and recorder.tape.problem is None and recorder.depends(args[0]):
            recorder.stop(f"takes values that depend on a random draw out of torch ({name})")
        return func(*args, **(kwargs or {}))
