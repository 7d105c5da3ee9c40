"""What a network's encoder makes of images: its last map, seen by a hook in a pass that runs anyway."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from seguq.core.errors import SeguqError
from seguq.core.seeds import generator_state, same_state

Features = bool | Callable[[nn.Module, Tensor], Tensor]
"""Whether an answer has features, or a function of the model and the images that gives them."""

FEATURES = "features"
"""Under what name `Estimator.look` gives the features among the maps; a measure cannot have it."""

_NAMES = ("encoder", "backbone")
_LARGEST = torch.finfo(torch.float16).max
_MOST_PREFIX_TOKENS = 8  # of transformers: one for the class, and registers
_HELP = "pass features=a function (model, images) -> (B, D, *spatial), such as lambda model, images: model.stem(images)"


def encoder_of(model: nn.Module) -> nn.Module:
    """The outermost submodule named ``encoder`` or ``backbone``, of several the first.

    Where there is none, that of transformers which a head stands on (``base_model_prefix``).

    Raises:
        SeguqError: if there is none.
    """
    modules = sorted(model.named_modules(), key=lambda item: item[0].count("."))
    named = [module for name, module in modules if name.rpartition(".")[2] in _NAMES and _can_be_called(module)]
    bases = (getattr(module, str(getattr(module, "base_model_prefix", None)), None) for _, module in modules)
    found = next((module for module in (*named, *bases) if isinstance(module, nn.Module)), None)
    if found is None:
        raise SeguqError(
            f"features=True takes the last map of the submodule named encoder or backbone, but {type(model).__name__} "
            f"has none: {_HELP}"
        )
    return found


def _can_be_called(module: nn.Module) -> bool:
    """Whether it has a forward, which lists of modules have not."""
    return type(module).forward is not nn.Module.forward


def last_map(output: Any, size: tuple[int, ...]) -> Tensor | None:
    """The last map in what an encoder returned, ``(B, D, *spatial)``; None: there is none.

    Of a list or dict the last one, of an object of Hugging Face its ``last_hidden_state`` or ``feature_maps``. Tokens
    ``(B, N, D)`` are laid out as the patches of an image are, without those before them that are of none.

    Args:
        output: a tensor, or a list, tuple, dict or object that holds some.
        size: of the images.
    """
    if isinstance(output, Tensor):
        if output.ndim == 2 + len(size):
            return output
        return _laid_out(output, size) if output.ndim == 3 else None
    for name in ("last_hidden_state", "feature_maps"):
        if getattr(output, name, None) is not None:
            return last_map(getattr(output, name), size)
    parts = list(output.values()) if isinstance(output, Mapping) else output
    found = (last_map(part, size) for part in reversed(parts)) if isinstance(parts, (list, tuple)) else ()
    return next((one for one in found if one is not None), None)


def _laid_out(tokens: Tensor, size: tuple[int, ...]) -> Tensor | None:
    for prefix in range(min(_MOST_PREFIX_TOKENS + 1, (tokens.shape[1] + 1) // 2)):
        count = tokens.shape[1] - prefix
        patch = max(1, round((math.prod(size) / count) ** (1 / len(size))))
        sides = [length // patch for length in size]
        if math.prod(sides) == count:
            return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), tokens.shape[2], *sides)
    return None


class EncoderWatch:
    """Sees what a model's encoder gives in the first passes over some images, as a context manager around them.

    Of each pass the first call of the encoder counts. Passes may be of the whole batch, or of one image after another.
    What is made by other threads at the same time is not looked at.

    Args:
        model: the model.
        images: ``(B, channels, *spatial)`` that the passes are of.
        even_random: take also what a random draw is behind.

    Raises:
        SeguqError: if the model has no encoder.
    """

    def __init__(self, model: nn.Module, images: Tensor, even_random: bool = False) -> None:
        self._model, self._encoder = model, encoder_of(model)
        self._count, self._size, self._device = len(images), tuple(images.shape[2:]), images.device
        self._even_random = even_random
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []
        self._before: tuple[Tensor, ...] | None = None
        self._taken = False  # in the pass that runs
        self._parts: list[Tensor] = []
        self._done = False

    def __enter__(self) -> EncoderWatch:
        self._handles = [
            self._model.register_forward_pre_hook(self._begin, prepend=True),
            self._encoder.register_forward_pre_hook(self._enter, prepend=True),
            self._encoder.register_forward_hook(self._leave),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def features(self) -> Tensor | None:
        """The features ``(B, D, *spatial)`` float16; None: the encoder was not seen, or draws random numbers.

        Raises:
            SeguqError: if what it gives holds no map.
        """
        if not self._parts or sum(map(len, self._parts)) != self._count:
            return None
        with torch.autocast(self._device.type, enabled=False):  # on a CPU it knows no float16
            return torch.cat(self._parts)

    def _looks(self) -> bool:
        return not self._done and threading.get_ident() == self._thread

    def _begin(self, *_: Any) -> None:
        if self._looks():
            self._before, self._taken = self._state(), False

    def _enter(self, *_: Any) -> None:
        if self._looks() and self._before is None:  # the model itself was not called, but a part of it
            self._before = self._state()

    def _state(self) -> tuple[Tensor, ...]:
        with _disable_current_modes():  # what is done here is no part of the pass, which may be recorded
            return generator_state(self._device)

    def _leave(self, encoder: nn.Module, _: Any, output: Any) -> None:
        if not self._looks() or self._taken:
            return
        self._taken = True
        with _disable_current_modes():
            assert self._before is not None
            random = not same_state(self._before, generator_state(self._device))
            self._before = None
            if random and not self._even_random:
                self._parts, self._done = [], True
                return
            found = last_map(output, self._size)
            if found is None:
                raise SeguqError(
                    f"features=True takes the last map of the encoder ({type(encoder).__name__}), but there is none of "
                    f"{2 + len(self._size)} dimensions in what it returned: {_HELP}"
                )
            self._parts.append(_as_half(found))
            self._done = sum(map(len, self._parts)) >= self._count


def features_of(model: nn.Module, images: Tensor, run: Callable[[], object]) -> Tensor:
    """The features of one pass, which is run for them, ``(B, D, *spatial)`` float16.

    Raises:
        SeguqError: if the model has no encoder, or if it is not seen.
    """
    compiled = "torch._dynamo" in sys.modules  # inside of what is compiled nothing is seen
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with EncoderWatch(model, images, even_random=True) as watch, eager:
        run()
    found = watch.features()
    if found is None:
        raise SeguqError(
            f"features=True takes the last map of the encoder, but the pass of {type(model).__name__} did not call its "
            f"{type(encoder_of(model)).__name__} where that is seen: {_HELP}"
        )
    return found


def checked_features(found: Any, images: Tensor) -> Tensor:
    """What a function gave as features, as float16.

    Raises:
        SeguqError: if it is not ``(B, D, *spatial)``.
    """
    if not isinstance(found, Tensor) or found.ndim != images.ndim or len(found) != len(images):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise SeguqError(
            f"the function that was passed as features= must give (B, D, *spatial) of {len(images)} images with "
            f"{images.ndim - 2} spatial dimensions, but gave {got}"
        )
    return _as_half(found)


def _as_half(values: Tensor) -> Tensor:
    """Float16, what is too large for it as the largest that it has."""
    return values.detach().float().clamp(-_LARGEST, _LARGEST).half()
