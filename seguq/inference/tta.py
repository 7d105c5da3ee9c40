"""Test-time augmentation: the same images seen in several ways."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from seguq.core.checks import is_number, require_choice
from seguq.core.errors import SeguqError
from seguq.inference.estimator import Estimator
from seguq.inference.measures import Source, computed, own_measures_of
from seguq.inference.running import RunningMeasures
from seguq.inference.wrapping import WrappingEstimator

_LARGEST_DIVISOR = 32  # networks halve their input some five times


@dataclass(frozen=True)
class View:
    """One way to see an image; what is seen can be put back.

    Attributes:
        flips: spatial dimensions that are reversed, counted from the last: -1 is the width.
        turns: quarter turns after that, of the last two dimensions.
        scale: factor of the size, last.
    """

    flips: tuple[int, ...] = ()
    turns: int = 0
    scale: float = 1.0

    def apply(self, images: Tensor) -> Tensor:
        """Images ``(B, channels, *spatial)`` as this view shows them."""
        if self.flips:
            images = images.flip(self.flips)
        if self.turns:
            images = torch.rot90(images, self.turns, (-2, -1))
        if self.scale == 1.0:
            return images
        if not images.is_floating_point():  # bytes would be rounded, and between class indices there is nothing
            raise SeguqError(f"scales= resizes images, which those of {images.dtype} cannot be: pass floats")
        return _resized(images, [_scaled(size, self.scale) for size in images.shape[2:]])

    def undo(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """What was made of `apply`'s images, ``(B, ..., *spatial)``, as it lies in the images of a size."""
        if self.scale != 1.0:
            turned = (*size[:-2], *reversed(size[-2:])) if self.turns % 2 else tuple(size)
            layers = math.prod(values.shape[1 : values.ndim - len(size)])  # -1 would not do for no image
            flat = values.reshape(len(values), layers, *values.shape[-len(size) :])
            values = _resized(flat, turned).reshape(*values.shape[: -len(size)], *turned)
        if self.turns:
            values = torch.rot90(values, -self.turns, (-2, -1))
        return values.flip(self.flips) if self.flips else values


def _all_flips(dims: int) -> list[View]:
    axes = range(-1, -dims - 1, -1)
    return [View(flips) for count in range(dims + 1) for flips in itertools.combinations(axes, count)]


def _symmetries_of_the_square(dims: int) -> list[View]:
    if dims != 2:
        raise SeguqError(f"views='d4' is for 2-D images, but the images have {dims} dimensions")
    return [View(flips, turns) for flips in ((), (-1,)) for turns in range(4)]


VIEWS: Mapping[str, Callable[[int], list[View]]] = MappingProxyType(
    {
        "none": lambda dims: [View()],
        "hflip": lambda dims: [View(), View((-1,))],
        "flips": _all_flips,
        "d4": _symmetries_of_the_square,
    }
)
"""The sets of views by name: from the number of spatial dimensions to the views, the image as it is first."""


class TestTimeAugmentation(WrappingEstimator):
    """The mean over flips, or the eight symmetries of the square, and over scales; each is undone in the answer.

    Flips and turns are undone exactly: a model that is equivariant to them gives the same to the bit in each view (the
    pooled samples of such models to rounding, 1e-14). What the views disagree in is the measure
    ``augmentation_variance``, the variance over the views of the probabilities, summed over the classes. It tells how
    much the model depends on things that should not matter, and is no posterior: mutual information and the other
    measures of samples are those of the inner estimator in each view, averaged.

    Args:
        inner: an estimator, or the name of one; or a model, which is asked by one pass.
        views: ``"hflip"``: the image and its mirror image, left and right changed, for the price of one more pass;
            ``"flips"``: all combinations of flipped axes (4 of 2-D images, 8 of volumes); ``"d4"``: the eight
            symmetries of the square, for 2-D images of any size; ``"none"``: the images as they are.
        scales: factors of the size; each view is seen in each of them. Sizes are rounded so that they can be halved as
            often as those of the images, five times at most; the answer is resampled (linearly).
        **settings: ``measures``, ``calibrator``; where ``inner`` is a model also ``task`` and ``forward``.

    Raises:
        SeguqError: for unknown views, a scale that is not above 0, or, on a call, ``"d4"`` of volumes.

    References:
        Ayhan and Berens, Test-time Data Augmentation for Estimation of Heteroscedastic Aleatoric Uncertainty in Deep
        Neural Networks, 2018.

    Example:
        >>> est = TestTimeAugmentation(nn.Conv2d(3, 2, 1), "d4", calibrator=None)
        >>> maps = est(torch.rand(1, 3, 4, 6))              # one pixel at a time: equivariant
        >>> float(maps["augmentation_variance"].max())
        0.0
    """

    name: ClassVar[str] = "test_time_augmentation"
    __test__ = False  # its name looks like that of a test
    gives: ClassVar[tuple[Source, ...]] = ("probs", "views")

    def __init__(
        self,
        inner: Estimator | nn.Module | str | None = None,
        views: str = "flips",
        scales: Sequence[float] = (1.0,),
        **settings: Any,
    ) -> None:
        super().__init__(inner, **settings)
        require_choice("views", views, tuple(VIEWS))
        scales = tuple(scales) if isinstance(scales, Iterable) else (scales,)
        if not scales or not all(is_number(scale) and 0 < scale < math.inf for scale in scales):
            raise SeguqError(f"scales must be at least one number above 0, but are {scales!r}")
        self.views = views
        self.scales = tuple(float(scale) for scale in scales)

    @property
    def tag(self) -> str:
        """``test_time_augmentation(views=..., scales=..., of=...)``."""
        scales = "" if self.scales == (1.0,) else f"scales={'/'.join(f'{scale:g}' for scale in self.scales)}, "
        return f"test_time_augmentation(views={self.views}, {scales}of={self.inner.tag})"

    def _views(self, images: Tensor) -> list[View]:
        found = VIEWS[self.views](images.ndim - 2)
        return [View(view.flips, view.turns, scale) for scale in self.scales for view in found]

    def _seen(self, images: Tensor, ids: tuple[str, ...]) -> Iterator[tuple[View, Tensor, tuple[str, ...]]]:
        for number, view in enumerate(self._views(images)):
            # a seeded estimator draws other masks in each view, and in the first those that it draws alone
            named = ids if number == 0 else tuple(f"{image_id}\x1fview{number}" for image_id in ids)
            yield view, view.apply(images), named

    def pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        size, inside = images.shape[2:], self.names_inside(names)
        running = RunningMeasures(("variance",) if "augmentation_variance" in names else ())
        sums: dict[str, Tensor] = {}
        own = [name for name in names if name in own_measures_of("views")]  # that need all views at once
        kept: list[Tensor] = []
        for view, seen, named in self._seen(images, ids):
            logits, maps = self.inner.pool(seen, named, inside)
            logits = view.undo(logits, size)
            running.add(logits)
            if own:
                kept.append(torch.softmax(logits, dim=1))
            for name, values in maps.items():
                values = view.undo(values, size)
                sums[name] = values if name not in sums else sums[name] + values
        maps = {name: values / running.count for name, values in sums.items()}
        if "augmentation_variance" in names:
            maps["augmentation_variance"] = running.maps()["variance"]
        if own:
            maps |= computed("views", torch.stack(kept), own)
        return running.pooled_logits, maps

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The samples of the inner estimator in each view, put back, ``(B, C, *spatial)``, raw."""
        images, ids = self.take_in(images, image_ids)
        for view, seen, named in self._seen(images, ids):
            for probs in self.inner.samples(seen, named):
                yield view.undo(probs, images.shape[2:])

    def details(self) -> dict[str, Any]:
        return {**self.inner.details(), "views": self.views, "scales": self.scales}

    def forwards(self, images: Tensor) -> int:
        return sum(self.inner.forwards(view.apply(images)) for view in self._views(images))


def _scaled(size: int, scale: float) -> int:
    divisor = 1
    while divisor < _LARGEST_DIVISOR and size % (2 * divisor) == 0:
        divisor *= 2
    return max(1, round(size * scale / divisor)) * divisor


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return functional.interpolate(values, size=tuple(size), mode=mode, align_corners=False)
