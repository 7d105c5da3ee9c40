"""What windows say, blended: weighted sums over an image, or over a strip of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seguq.inference.running import pooled_logits


class Blend:
    """Sums of the answers for windows, each pixel by its weight, and of the weights.

    Args:
        images: number of images, B.
        size: their spatial size; every pixel is covered by a window in the end.
    """

    def __init__(self, images: int, size: Sequence[int]) -> None:
        self.images, self.size = images, tuple(size)
        self.sums: dict[str, Tensor] = {}
        self.total: Tensor | None = None

    def add(self, answers: Mapping[str, Tensor], number: int, image: int, place: Sequence[int], weight: Tensor) -> None:
        """Take in one window.

        Args:
            answers: by name, ``(windows, ..., *sides)``; ``"probs"`` among them.
            number: of the window in these.
            image: number of its image; weights count once, with image 0.
            place: where it begins.
            weight: of its pixels, ``(*sides)``.
        """
        sides = weight.shape
        if self.total is None:
            self.total = weight.new_zeros(self.size)
        if image == 0:
            part(self.total, place, sides).add_(weight)
        for name, values in answers.items():
            if name not in self.sums:
                layers = values.shape[1 : values.ndim - len(sides)]
                self.sums[name] = values.new_zeros((self.images, *layers, *self.size))
            part(self.sums[name][image], place, sides).add_(values[number] * weight.to(values.dtype))

    def over(self, place: Sequence[int], size: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The pooled class logits and the maps of a part of the image."""
        assert self.total is not None
        total = part(self.total, place, size)
        found = {name: part(values, place, size) / total.to(values.dtype) for name, values in self.sums.items()}
        return pooled_logits(found.pop("probs")), found

    def move_on(self, rows: int) -> None:
        """Let go of so many rows at the top, and make room for as many below."""
        for values in (self.total, *self.sums.values()):
            assert values is not None
            kept = values.shape[-2] - rows
            if kept > 0:
                values[..., :kept, :] = values[..., rows:, :].clone()
            values[..., max(0, kept) :, :] = 0


def weights_like(images: Tensor) -> Tensor:
    """A tensor of the type that weights of windows of these images have."""
    return images.new_zeros((), dtype=torch.promote_types(images.dtype, torch.float32))


def part(values: Tensor, place: Sequence[int], sides: Sequence[int]) -> Tensor:
    """The window of some sides at a place, of the last dimensions; a view."""
    for axis, (start, side) in enumerate(zip(place, sides, strict=True)):
        values = values.narrow(axis - len(sides), start, side)
    return values
