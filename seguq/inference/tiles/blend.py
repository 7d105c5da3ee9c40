"""What windows say, blended: weighted sums over an image, or over a strip of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seguq.inference.log_sums import LOWEST, RULED_OUT, add_small, log_of, sum_of


def answers_of(logits: Tensor, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `Blend.add` takes, of class logits ``(windows, C, *sides)`` and maps ``(windows, *sides)``."""
    probs = torch.softmax(logits, 1)
    answers = {"probs": probs, **maps}
    if probs.numel() and float(probs.amin()) < math.exp(LOWEST):
        answers["log_probs"] = torch.log_softmax(logits, 1).clamp_min_(RULED_OUT)
    return answers


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
        self._small = False  # whether some sums of probabilities are kept as logarithms

    def add(self, answers: Mapping[str, Tensor], number: int, image: int, place: Sequence[int], weight: Tensor) -> None:
        """Take in one window.

        Args:
            answers: of `answers_of`.
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
        logs = answers.get("log_probs")
        self._small |= logs is not None
        for name, values in answers.items():
            if name == "log_probs":
                continue
            if name not in self.sums:
                layers = values.shape[1 : values.ndim - len(sides)]
                self.sums[name] = values.new_zeros((self.images, *layers, *self.size))
            sums, new = part(self.sums[name][image], place, sides), values[number] * weight.to(values.dtype)
            if name == "probs" and self._small:
                of_new = new.log() if logs is None else logs[number] + weight.to(values.dtype).log()
                add_small(sums, sum_of(sums) + new, 1, of_new)
            else:
                sums.add_(new)

    def over(self, place: Sequence[int], size: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The pooled class logits and the maps of a part of the image."""
        assert self.total is not None
        total = part(self.total, place, size)
        found = {name: part(values, place, size) / total.to(values.dtype) for name, values in self.sums.items()}
        logits = found.pop("probs").log()
        if self._small:
            logs = log_of(part(self.sums["probs"], place, size))
            logits = torch.where(logs < LOWEST, logs - total.to(logs.dtype).log(), logits)
        return logits, found

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
