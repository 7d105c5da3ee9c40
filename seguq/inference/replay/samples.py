"""Samples of a model for little more than one pass: the first is recorded, the others run from its tape."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from seguq.core.seeds import GENERATOR_LOCK, generator_state, restore_state, same_state
from seguq.inference.replay.pass_log import first_difference, module_of
from seguq.inference.replay.recorder import Recorder
from seguq.inference.replay.tape import Tape

Pass = Callable[[], Tensor]

_VERIFIED = 2  # samples that are compared with those of whole passes, for each way that a model's passes go
_COMPILED = "_torchdynamo_orig_callable"
_NAMES_COMPILED: WeakKeyDictionary[type, bool] = WeakKeyDictionary()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# hooks of theirs do nothing but to the tensors that go through
_WITHOUT_EFFECTS = (
    "torch.",
    "timm.",
    "transformers.utils.output_capturing.",
    "seguq.inference.dropout.",
    "seguq.inference.features.",
)


class Replay:
    """What was found out about models: which of them can be run from a tape, and why the others cannot.

    Args:
        verify: compare the first samples of each model with whole passes.
    """

    def __init__(self, verify: bool = True) -> None:
        self.verify = verify
        self._problems: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._met: WeakSet[nn.Module] = WeakSet()
        self._verified: WeakKeyDictionary[nn.Module, dict[int, int]] = WeakKeyDictionary()  # samples by signature

    def __getstate__(self) -> dict[str, Any]:
        """A copy finds out for itself."""
        return {"verify": self.verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def is_new(self, model: nn.Module) -> bool:
        """Whether this is asked of a model for the first time."""
        new = model not in self._met
        self._met.add(model)
        return new

    def problem(self, model: nn.Module) -> str | None:
        """Why a model cannot be run from a tape, as far as is known."""
        return self._problems.get(model)

    def _judge(self, model: nn.Module, problem: str, where: nn.Module | None = None) -> None:
        if model not in self._problems:
            warnings.warn(
                f"every sample of {type(model).__name__} is a pass through the whole model, as "
                f"{_named(model, where)} {problem}: the result is right, but takes longer",
                stacklevel=4,
            )
        self._problems[model] = problem

    def record(self, model: nn.Module, run: Pass, device: torch.device) -> tuple[Tensor, Tape | None]:
        """Run a pass; gives its output, and the tape that gives others where it can."""
        if model in self._problems:
            return run(), None
        found = seen_at_once(model)
        if found is not None:
            self._judge(model, *found)
            return run(), None
        recorder = Recorder(device, model, log=self.verify and model not in self._verified)
        before = generator_state(device)
        try:
            with recorder:
                output = run()
            tape = recorder.finish(output)
        except Exception as error:
            restore_state(device, before)
            output = run()  # what is not due to the recording is raised again
            self._judge(model, _could_not("recorded", error), module_of(error))
            return output, None
        if tape.problem is not None:
            self._judge(model, tape.problem, tape.where)
            return output, None
        return output, tape

    def can(self, model: nn.Module, run: Pass, device: torch.device) -> bool:
        """Whether a pass can be run again from its tape, as far as one pass shows."""
        return self.record(model, run, device)[1] is not None

    def another(self, model: nn.Module, tape: Tape, run: Pass, device: torch.device) -> tuple[Tensor, bool]:
        """One more sample from a tape; gives whether the tape can be trusted. If not, it was a whole pass."""
        if model in self._problems:
            return run(), False
        counts = self._verified.setdefault(model, {})
        verified = counts.get(tape.signature, 0) if self.verify else _VERIFIED
        before = generator_state(device)
        try:
            found = tape.run()
        except Exception as error:
            restore_state(device, before)
            self._judge(model, _could_not("run from what was recorded", error))
            return run(), False
        if verified >= _VERIFIED:
            return found, True
        after = generator_state(device)
        restore_state(device, before)
        where = None
        if verified == 0 and tape.log is not None:
            recorder = Recorder(device, log=True)
            with recorder:
                expected = run()
            where = first_difference(tape.log, recorder.finish(expected).log or ())
        else:  # bare, as what the recording itself changes would be the same in two recorded passes
            expected = run()
        if same_state(after, generator_state(device)) and _same(found, expected):
            counts[tape.signature] = verified + 1
            return expected, True
        self._judge(model, "does something else in a second pass than in the first", where)
        return expected, False

    def samples(self, model: nn.Module, run: Pass, count: int, device: torch.device) -> Iterator[Tensor]:
        """What so many passes would give, one after another.

        Args:
            model: what the pass is of.
            run: a whole pass.
            count: number of samples.
            device: whose generator is drawn from, beside the CPU's.
        """
        tape: Tape | None = None
        for sample in range(count):
            with GENERATOR_LOCK:  # another thread may have it seeded for a while
                if sample == 0 and count > 1:
                    output, tape = self.record(model, run, device)
                elif tape is None:
                    output = run()
                else:
                    output, trusted = self.another(model, tape, run, device)
                    tape = tape if trusted else None
            yield output


def seen_at_once(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Why a model cannot be recorded, and the part of it that it is due to, as far as that is seen without a pass."""
    hooks = [torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks]
    if any(_with_effects(hook) for found in hooks for hook in found.values()):
        return "has a hook, as all modules have now, which may do more than what is seen of it", model
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            return "is a script, inside of which nothing is seen", part
        if isinstance(part, nn.DataParallel):
            return "runs in several threads, which are not seen", part
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            return "is compiled, inside of which nothing is seen", part
        if _calls_compiled(part):
            return "has a compiled function, inside of which nothing is seen", part
        if any(_with_effects(hook) for kind in _HOOKS for hook in getattr(part, kind).values()):
            return "has a hook, which may do more than what is seen of it", part
    return None


def _calls_compiled(part: nn.Module) -> bool:
    """Whether a function made by torch.compile is among a module's attributes, or those that its forward names."""
    if "torch._dynamo" not in sys.modules:
        return False
    kind = type(part)
    if kind not in _NAMES_COMPILED:
        known = [value for parent in kind.__mro__ if parent is not nn.Module for value in vars(parent).values()]
        known = [value.__func__ if isinstance(value, (staticmethod, classmethod)) else value for value in known]
        code, known_by_name = getattr(kind.forward, "__code__", None), getattr(kind.forward, "__globals__", {})
        named = [] if code is None else [known_by_name.get(name) for name in code.co_names]
        _NAMES_COMPILED[kind] = any(map(_is_compiled, (*known, *named)))
    return _NAMES_COMPILED[kind] or any(map(_is_compiled, vars(part).values()))


def _is_compiled(value: Any) -> bool:
    # of functions alone: there are objects that have an attribute of any name
    return isinstance(value, types.FunctionType) and hasattr(value, _COMPILED)


def _could_not(what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"cannot be {what} ({type(error).__name__}: {lines[0][:200]})"


def _named(model: nn.Module, part: nn.Module | None) -> str:
    name = next((name for name, other in model.named_modules() if other is part and name), None)
    return "it" if name is None else f"its part {name!r} ({type(part).__name__})"


def _with_effects(hook: Any) -> bool:
    function = getattr(hook, "func", hook)  # of a partial
    place = getattr(function, "__module__", None) or type(function).__module__
    return not f"{place}.".startswith(_WITHOUT_EFFECTS)


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit; on a GPU to its rounding, as not all of its kernels add up in one order."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    tolerance = 0.0 if one.device.type == "cpu" else 1e-3
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
