"""Images of any size through a network that sees a window of fixed size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError
from seguq.inference.estimator import Estimator
from seguq.inference.running import pooled_logits
from seguq.inference.wrapping import WrappingEstimator

_BLENDS = ("gaussian", "constant")
_SIGMA = 1 / 8  # of the window
_LEAST = 1e-3  # weight: every pixel that a window sees counts for something


class SlidingWindow(WrappingEstimator):
    """The answer of an estimator for each window of an image, blended where windows overlap.

    Probabilities are blended, and so are the measures of samples, which are those of each window. Measures of the
    probabilities alone (``predictive_entropy``, ...) are computed from the blend. An image that is smaller than the
    window has a smaller one: of its own size, extended by its border pixels to a multiple of ``stride``.

    Near the edges of a window a network sees the zeros of its padding in place of the image. With ``margin`` the edges
    that lie inside the image weigh nothing: where the network looks no further than that, the answer is the one of the
    whole image at once. A network that works at a coarser resolution inside gives another answer where the window does
    not begin on its grid, so windows begin at multiples of ``stride``; the last one ends with the image, and is off
    the grid where the image's side less the window's is no multiple.

    Args:
        inner: an estimator, or a model, which is asked by one pass.
        window: side of the window in pixels, or one for each spatial dimension.
        overlap: share of a window that the next one covers again, 0 up to less than 1. Where it leaves gaps between
            margins, windows come closer.
        blend: ``"gaussian"``: a bell over the window, with a standard deviation of an eighth of it; ``"constant"``: all
            pixels alike.
        margin: pixels at the inner edges of windows that weigh nothing.
        stride: pixels of the image to one of the network's coarsest feature map, 32 for most; 1 for a network that
            works at full resolution throughout. Where windows would lie further apart than ``overlap`` and ``margin``
            say, the half of it is taken, and so on.
        batch: windows that go through the network at once.
        **settings: ``measures``, ``calibrator``; where ``inner`` is a model also ``task`` and ``forward``.

    Raises:
        SeguqError: for a wrong argument, or a window that its margins leave nothing of.

    References:
        Isensee et al., nnU-Net, 2021 (sliding window with a Gaussian).

    Example:
        >>> est = SlidingWindow(nn.Conv2d(3, 2, 3, padding=1), window=8, margin=1, calibrator=None)
        >>> est(torch.rand(1, 3, 20, 13)).probs.shape
        torch.Size([1, 2, 20, 13])
    """

    def __init__(
        self,
        inner: Estimator | nn.Module | None = None,
        window: int | Sequence[int] = 512,
        overlap: float = 0.5,
        blend: Literal["gaussian", "constant"] = "gaussian",
        margin: int = 0,
        stride: int = 32,
        batch: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(inner, **settings)
        require_choice("blend", blend, _BLENDS)
        sides = tuple(window) if isinstance(window, (list, tuple)) else (window,)
        counts = [("window", side, 1) for side in sides] + [
            ("margin", margin, 0),
            ("stride", stride, 1),
            ("batch", batch, 1),
        ]
        for name, value, least in counts:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SeguqError(f"{name} must be a whole number of at least {least}, but is {value!r}")
        if not 0 <= overlap < 1:
            raise SeguqError(f"overlap must be at least 0 and less than 1, but is {overlap!r}")
        if not sides or min(sides) <= 2 * margin:
            raise SeguqError(f"margin={margin} on both sides leaves nothing of a window of {window}")
        self.window = window
        self.overlap = overlap
        self.blend = blend
        self.margin = margin
        self.stride = stride
        self.batch = batch

    @property
    def tag(self) -> str:
        """``sliding_window(window=..., overlap=..., blend=..., margin=..., stride=..., of=...)``."""
        side = self.window if isinstance(self.window, int) else "x".join(map(str, self.window))
        settings = f"window={side}, overlap={self.overlap:g}, blend={self.blend}, margin={self.margin}"
        settings = f"{settings}, stride={self.stride}"
        return f"sliding_window({settings}, of={self.inner.tag})"

    def _sides(self, size: Sequence[int]) -> tuple[int, ...]:
        """The sides of the windows of images of a size."""
        dims = len(size)
        sides = (self.window,) * dims if isinstance(self.window, int) else tuple(self.window)
        if len(sides) != dims:
            raise SeguqError(f"window={self.window} has {len(sides)} sides, but the images have {dims} dimensions")
        least = (math.ceil(length / self.stride) * self.stride for length in size)
        return tuple(min(side, length) for side, length in zip(sides, least, strict=True))

    def _starts(self, size: int, side: int) -> list[int]:
        """Where windows begin along an axis: at multiples of the stride, and the last one ends with the image."""
        if size <= side:
            return [0]
        step = max(1, min(round(side * (1 - self.overlap)), side - 2 * self.margin))
        stride = self.stride
        while stride > step:
            stride //= 2
        return [*range(0, size - side, step // stride * stride), size - side]

    def _weights(self, start: int, size: int, side: int, like: Tensor) -> Tensor:
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

    def _windows(self, size: Sequence[int]) -> Iterator[tuple[int, ...]]:
        axes = zip(size, self._sides(size), strict=True)
        return itertools.product(*(self._starts(length, side) for length, side in axes))

    def _pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        size = tuple(images.shape[2:])
        sides, inside = self._sides(size), self._names_inside(names)
        images = _extended(images, sides)
        padded = tuple(images.shape[2:])
        sums: dict[str, Tensor] = {}
        total = images.new_zeros(padded, dtype=torch.promote_types(images.dtype, torch.float32))
        places = [(row, place) for place in self._windows(padded) for row in range(len(images))]
        for first in range(0, len(places), self.batch):
            some = places[first : first + self.batch]
            cut = torch.stack([_part(images[row], place, sides) for row, place in some])
            named = tuple(f"{ids[row]}\x1fat{'x'.join(map(str, place))}" for row, place in some)
            logits, maps = self.inner._pool(cut, named, inside)
            answers = {"probs": torch.softmax(logits, 1), **maps}
            for number, (row, place) in enumerate(some):
                if row == 0:  # the images of one place follow each other
                    weight = self._weight(place, padded, sides, total)
                    _part(total, place, sides).add_(weight)
                for name, values in answers.items():
                    if name not in sums:
                        shape = (len(images), *values.shape[1 : values.ndim - len(sides)], *padded)
                        sums[name] = values.new_zeros(shape)
                    _part(sums[name][row], place, sides).add_(values[number] * weight.to(values.dtype))
        if not places:  # no image: nothing to blend
            return self.inner._pool(images, ids, inside)
        origin = (0,) * len(size)
        blended = {name: _part(values / total.to(values.dtype), origin, size) for name, values in sums.items()}
        probs = blended.pop("probs")
        return pooled_logits(probs), blended

    def _weight(self, place: tuple[int, ...], size: Sequence[int], sides: Sequence[int], like: Tensor) -> Tensor:
        weight = like.new_ones(())
        for start, length, side in zip(place, size, sides, strict=True):
            weight = weight[..., None] * self._weights(start, length, side, like)
        return weight

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The blended probabilities as the one sample, ``(B, C, *spatial)``: windows have no samples in common."""
        yield self._sample_view(torch.softmax(self.pooled_logits(images, image_ids), dim=1))

    def _details(self) -> dict[str, Any]:
        return {**self.inner._details(), "window": self.window, "overlap": self.overlap, "margin": self.margin}

    def _forwards(self, images: Tensor) -> int:
        sides = self._sides(images.shape[2:])
        images = _extended(images, sides)
        window = _part(images[:1], (0,) * len(sides), sides)

        def of_batch(size: int) -> int:
            return self.inner._forwards(torch.cat([window] * size)) if size else 0

        full, rest = divmod(len(list(self._windows(images.shape[2:]))) * len(images), self.batch)
        return (full * of_batch(self.batch) if full else 0) + of_batch(rest)


def _part(values: Tensor, place: Sequence[int], sides: Sequence[int]) -> Tensor:
    """The window of some sides at a place, of the last dimensions; a view."""
    for axis, (start, side) in enumerate(zip(place, sides, strict=True)):
        values = values.narrow(axis - len(sides), start, side)
    return values


def _extended(images: Tensor, sides: Sequence[int]) -> Tensor:
    """Images that are at least as large as the window, extended by their border pixels at the far ends."""
    missing = [max(0, side - length) for length, side in zip(images.shape[2:], sides, strict=True)]
    if not any(missing):
        return images
    padding = [amount for more in reversed(missing) for amount in (0, more)]
    return functional.pad(images, padding, mode="replicate")
