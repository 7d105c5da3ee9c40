"""Running sums over samples, from which their measures are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from seguq.core.memory import Workspace
from seguq.functional.uncertainty import predictive_entropy
from seguq.inference.log_sums import LOWEST, RULED_OUT, add_small, log_of, sum_of

_ENTROPIES = frozenset(("expected_entropy", "mutual_information", "total_entropy"))
_VALUES = 1 << 19  # logits at once on a CPU: what is made of them stays in the cache


class RunningMeasures:
    """Running sums over samples: memory does not grow with their number, and no sample is kept.

    On a CPU each sample is gone through in parts that stay in the cache, elsewhere as a whole, with one exponential a
    logit: with the distances d of the logits below the first, s = sum exp(d), the entropy is
    log s - sum exp(d) d / s. Where a class is far behind in the first sample and all since, logarithms are added up
    instead (`log_sums`); to see it, the first sample waits for the device, and the others do only if there is one.

    Args:
        names: the measures that will be asked for; sums that none of them needs are not made, and those that are not
            `known` are left out.

    References:
        The update of mean and sum of squares: Welford, Note on a Method for Calculating Corrected Sums of Squares
        and Products, 1962.
    """

    known: ClassVar[frozenset[str]] = _ENTROPIES | {"variance", "variation_ratio"}
    """The measures that it has."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.count = 0
        self._shape: torch.Size | None = None
        self._sums: dict[str, Tensor] = {}  # (B, C or 1, pixels)
        self._small = False  # whether some of the mean are kept as logarithms
        self._memory: Workspace | None = None

    @property
    def mean(self) -> Tensor:
        """The mean probabilities, ``(B, C, *spatial)``."""
        assert self._shape is not None, "no sample was added"
        mean = self._sums["mean"].view(self._shape)
        return sum_of(mean) if self._small else mean

    @property
    def pooled_logits(self) -> Tensor:
        """The logarithm of the mean, ``(B, C, *spatial)``, finite also where the mean is 0 in a float."""
        assert self._shape is not None, "no sample was added"
        return log_of(self._sums["mean"]).view(self._shape)

    def add(self, logits: Tensor) -> None:
        """Take in one sample: class logits ``(B, C, *spatial)``, at least float32. They are not kept, and not changed.

        Args:
            logits: finite, or minus infinity for a class that is ruled out.
        """
        self.count += 1
        flat = logits.flatten(2)
        if self._shape is None:
            self._begin(logits.shape, flat)
        if not self._in_parts(flat):
            self._add(flat, self._sums)
            return
        for image, part in self._parts(flat):
            self._add(flat[image, :, part], {name: values[image, :, part] for name, values in self._sums.items()})

    def _in_parts(self, flat: Tensor) -> bool:
        return flat.device.type == "cpu"

    def _begin(self, shape: torch.Size, flat: Tensor) -> None:
        self._shape = shape
        one = flat[:, :1]
        self._sums["mean"] = torch.zeros_like(flat, memory_format=torch.contiguous_format)
        if _ENTROPIES & set(self.names):
            self._sums["entropy"] = torch.zeros_like(one, memory_format=torch.contiguous_format)
        if "variance" in self.names:
            self._sums["squares"] = torch.zeros_like(one, memory_format=torch.contiguous_format)
        if "variation_ratio" in self.names:
            self._sums["losses"] = torch.zeros_like(self._sums["mean"])

    def _parts(self, flat: Tensor) -> Iterator[tuple[int, slice]]:
        images, classes, pixels = flat.shape
        most = max(1, _VALUES // max(1, classes))
        if self._memory is None:
            self._memory = Workspace(flat, min(most, pixels))
        for image in range(images):
            for start in range(0, pixels, most):
                yield image, slice(start, start + most)

    def _add(self, logits: Tensor, sums: dict[str, Tensor]) -> None:
        """Take in logits, ``(..., C, pixels)``."""

        def memory(name: str) -> Tensor | None:
            return None if self._memory is None else self._memory(name, *logits.shape)

        below = torch.sub(logits, logits.amax(-2, keepdim=True), out=memory("below"))
        if "losses" in sums:
            _count_losses(sums["losses"], logits, below, memory("probs"))
        below.clamp_min_(RULED_OUT)
        mean = sums["mean"]
        # a mean with one sample that is not small is not either
        small = _least(below) < LOWEST if self.count == 1 else self._small and _least(mean) < 0
        behind = below.clone() if small else below
        probs = torch.exp(below, out=memory("probs"))
        total = probs.sum(-2, keepdim=True)
        if "entropy" in sums:
            sums["entropy"].add_(total.log()).sub_(below.mul_(probs).sum(-2, keepdim=True).div_(total))
        probs.div_(total)
        if small:
            self._small = True
            before, shrink = sum_of(mean), (self.count - 1) / self.count
            delta = probs.sub_(before)
            logs = behind.sub_(total.log()).sub_(math.log(self.count))
            add_small(mean, before.add_(delta, alpha=1 / self.count), shrink, logs)
        else:
            delta = probs.sub_(mean)
            mean.add_(delta, alpha=1 / self.count)
        if "squares" in sums and self.count > 1:
            sums["squares"].add_(delta.square_().sum(-2, keepdim=True), alpha=(self.count - 1) / self.count)

    def maps(self) -> dict[str, Tensor]:
        """The measures of the samples taken in so far, ``(B, *spatial)`` each, by name."""
        mean, out = self.mean, {}
        like = mean[:, 0]
        if "entropy" in self._sums:
            expected = (self._sums["entropy"] / self.count).view_as(like)
            information = (predictive_entropy(mean) - expected).clamp_min(0)
            out = {
                "expected_entropy": expected,
                "mutual_information": information,
                "total_entropy": expected + information,
            }
        if "squares" in self._sums:
            out["variance"] = (self._sums["squares"] / self.count).view_as(like)
        if "losses" in self._sums:
            out["variation_ratio"] = (self._sums["losses"].amax(1) / -self.count).view_as(like)
        return {name: out[name] for name in self.names if name in out}


def _least(values: Tensor) -> float:
    return float(values.amin()) if values.numel() else math.inf


def _count_losses(losses: Tensor, logits: Tensor, below: Tensor, memory: Tensor | None) -> None:
    """Take 1 from each class of a pixel, ``(..., C, P)``, but from the predicted one.

    Of several largest logits the first is predicted, as argmax has it. That kernel is slow on a CPU, so there it is
    asked only where there are ties.
    """
    if memory is not None:
        classes, pixels = below.shape
        lost = torch.sign(below, out=memory)
        if float(lost.sum()) == -(classes - 1) * pixels:  # exact: whole numbers below 2^24
            losses.add_(lost)
            return
    winner = logits.argmax(-2, keepdim=True)
    losses.sub_(1).scatter_add_(-2, winner, torch.ones_like(winner, dtype=losses.dtype))
