# ruff: noqa: NPY002 - models may draw from numpy's global generator
"""Seeds derived from names, and a seeded stretch of code that leaves the global generators as they were."""

from __future__ import annotations

import hashlib
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy.random as numpy_random  # numpy loads it late: it must not appear between two looks at its state
import torch

GENERATOR_LOCK = threading.RLock()


def derive_seed(*parts: int | str) -> int:
    """Give a seed in ``0 .. 2**63 - 1`` that depends on every part, and on nothing else.

    Example:
        >>> derive_seed(0, "image", 3) == derive_seed(0, "image", 3)
        True
        >>> derive_seed(0, "image", 3) == derive_seed(0, "image", 4)
        False
    """
    # the type and length of each part are hashed too: (1, "23") and (12, "3") must differ
    named = [("str", str(part)) if isinstance(part, str) else ("int", str(int(part))) for part in parts]
    text = "\x1f".join(f"{kind}:{len(value)}:{value}" for kind, value in named)
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block with the global generators of torch, Python and numpy set to ``seed``, and put them back afterwards.

    Threads that meet here wait for each other: the global generators are one thing for the whole process.

    Args:
        seed: the seed.
        device: where the block draws; its generator is guarded beside the CPU's.
    """
    devices = [device] if device.type == "cuda" else []
    with GENERATOR_LOCK, torch.random.fork_rng(devices=devices), _others_seeded(seed):
        # torch.manual_seed would seed the generators of every device, and only those named here are put back
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _others_seeded(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), numpy_random.get_state()
    try:
        random.seed(seed)
        numpy_random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(python_state)
        numpy_random.set_state(numpy_state)


def other_generators() -> tuple[Any, ...]:
    """The states of the global generators of Python and numpy, to see by ``==`` whether they moved."""
    state: Any = numpy_random.get_state()
    name, keys, *rest = state
    return (random.getstate(), name, keys.tobytes(), *rest)


_Generator = numpy_random.Generator | numpy_random.RandomState | random.Random


def own_generators(model: torch.nn.Module) -> list[_Generator]:
    """The generators of numpy and Python that modules hold as attributes."""
    return [value for part in model.modules() for value in vars(part).values() if isinstance(value, _Generator)]


def states_of(generators: Sequence[_Generator]) -> list[bytes]:
    """Their states, to see by ``==`` whether they moved."""
    return [pickle.dumps(_state_of(one)) for one in generators]


def _state_of(generator: _Generator) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state() if isinstance(generator, numpy_random.RandomState) else generator.bit_generator.state


def device_of(model: torch.nn.Module) -> torch.device:
    """The device whose generator a model draws from: that of its weights."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def generator_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The state of the global generators that code on ``device`` may draw from, to see whether it moved."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def restore_state(device: torch.device, state: tuple[torch.Tensor, ...]) -> None:
    """Put the global generators back to what `generator_state` gave."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def same_state(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> bool:
    """Whether no generator moved between two calls of `generator_state`."""
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
