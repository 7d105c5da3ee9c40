"""Where windows lie in an image, and how much each of their pixels counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seguq.core.checks import is_number, is_whole, require_choice
from seguq.core.errors import SeguqError
from seguq.core.log import say_once

_BLENDS = ("gaussian", "constant")
_SIGMA = 1 / 8  # of the window
_LEAST = 1e-3  # weight: every pixel that a window sees counts for something


@dataclass(frozen=True)
class Windows:
    """The windows of `SlidingWindow`, whose arguments these are."""

    window: int | tuple[int, ...]
    overlap: float
    blend: str
    margin: int
    stride: int

    def __post_init__(self) -> None:
        require_choice("blend", self.blend, _BLENDS)
        sides = self.window if isinstance(self.window, tuple) else (self.window,)
        counts = [("window", side, 1) for side in sides]
        for name, value, least in [*counts, ("margin", self.margin, 0), ("stride", self.stride, 1)]:
            if not is_whole(value, least):
                raise SeguqError(f"{name} must be a whole number of at least {least}, but is {value!r}")
        if not is_number(self.overlap) or not 0 <= self.overlap < 1:
            raise SeguqError(f"overlap must be at least 0 and less than 1, but is {self.overlap!r}")
        if not sides or min(sides) <= 2 * self.margin:
            raise SeguqError(f"margin={self.margin} on both sides leaves nothing of a window of {self.window}")

    def __str__(self) -> str:
        side = "x".join(map(str, self.window)) if isinstance(self.window, tuple) else self.window
        settings = f"window={side}, overlap={self.overlap:g}, blend={self.blend}"
        return f"{settings}, margin={self.margin}, stride={self.stride}"

    def sides(self, size: Sequence[int]) -> tuple[int, ...]:
        """The sides of the windows of an image."""
        dims = len(size)
        sides = self.window if isinstance(self.window, tuple) else (self.window,) * dims
        if len(sides) != dims:
            raise SeguqError(f"window={self.window} has {len(sides)} sides, but the images have {dims} dimensions")
        least = (math.ceil(length / self.stride) * self.stride for length in size)
        return tuple(min(side, length) for side, length in zip(sides, least, strict=True))

    def tell_of_small(self, size: Sequence[int]) -> None:
        """Say once that an image is smaller than the window, which then changes nothing."""
        sides = self.window if isinstance(self.window, tuple) else (self.window,) * len(size)
        if all(length < side for length, side in zip(size, sides, strict=True)):
            shape, window = (" x ".join(map(str, item)) for item in (size, sides))
            say_once(f"images of {shape} are smaller than the window of {window}: each is seen as a whole")

    def starts(self, size: int, side: int) -> list[int]:
        """Where windows begin along an axis: at multiples of the stride, and the last one ends with the image."""
        if size <= side:
            return [0]
        most = side - 2 * self.margin  # further apart, margins would leave gaps
        step = max(1, min(round(side * (1 - self.overlap)), most))
        stride = self.stride
        while stride > (most if self.margin else step):
            stride //= 2
        step = max(step, stride)
        starts = [*range(0, size - side, step // stride * stride), size - side]
        if self.margin and any(start % self.stride for start in starts):
            say_once(
                f"windows of {side} pixels do not all begin at a multiple of stride={self.stride} in an image of "
                f"{size}: there the answer is not exactly that of the whole image; where the network works at full "
                "resolution throughout, stride=1 is right"
            )
        return starts

    def places(self, size: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Where the windows of an image begin; it is at least as large as one."""
        axes = zip(size, self.sides(size), strict=True)
        return itertools.product(*(self.starts(length, side) for length, side in axes))

    def weight(self, place: tuple[int, ...], size: Sequence[int], sides: Sequence[int], like: Tensor) -> Tensor:
        """How much each pixel of a window counts."""
        weight = like.new_ones(())
        for start, length, side in zip(place, size, sides, strict=True):
            weight = weight[..., None] * self.weights(start, length, side, like)
        return weight

    def weights(self, start: int, size: int, side: int, like: Tensor) -> Tensor:
        """How much each pixel of a window counts along one axis."""
        place = torch.arange(side, device=like.device, dtype=like.dtype)
        weights = torch.ones_like(place)
        if self.blend == "gaussian":
            weights = torch.exp(-0.5 * ((place - (side - 1) / 2) / (_SIGMA * side)) ** 2).clamp_min(_LEAST)
        if self.margin and start > 0:
            weights[: self.margin] = 0
        if self.margin and start + side < size:
            weights[side - self.margin :] = 0
        return weights
