"""The part of a pass through a model that depends on random draws, and that can be run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seguq.inference.replay.pass_log import Logged


class Entry:
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
        signature: a number that is another one where the pass called other operations.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self.where: nn.Module | None = None
        self.log: list[Logged] | None = None
        self.signature = 0
        self.entries: list[Entry] = []
        self.slots = 0
        self.output: tuple[int, tuple[Any, ...] | None] | Tensor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def run(self) -> Tensor:
        """What another pass would give; draws from the generators."""
        slots: list[Tensor | None] = [None] * self.slots
        # what autocast has cast is on the tape
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            for entry in self.entries:
                entry.run(slots)
            if isinstance(self.output, tuple):
                slot, geometry = self.output
                base = slots[slot]
                assert base is not None
                return base if geometry is None else base.as_strided(*geometry)
        assert self.output is not None
        return self.output.clone()
