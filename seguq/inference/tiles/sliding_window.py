"""Images of any size through a network that sees a window of fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError
from seguq.inference.estimator import Estimator
from seguq.inference.tiles.blend import Blend, answers_of, part, weights_like
from seguq.inference.tiles.streaming import ImageReader, MapWriter, stream
from seguq.inference.tiles.windows import Windows
from seguq.inference.wrapping import WrappingEstimator


class SlidingWindow(WrappingEstimator):
    """The answer of an estimator for each window of an image, blended where windows overlap.

    Probabilities are blended, and so are the measures of samples, which are those of each window. Measures of the
    probabilities alone (``predictive_entropy``, ...) are computed from the blend. An image that is smaller than the
    window has a smaller one: of its own size, extended by its border pixels to a multiple of ``stride``; this is said
    once.

    Near the edges of a window a network sees the zeros of its padding in place of the image. With ``margin`` the edges
    that lie inside the image weigh nothing: where the network looks no further than that, the answer is the one of the
    whole image at once, but for an image smaller than a window, where the border that it is extended by is seen. A
    network that works at a coarser resolution inside gives another answer where the window does not begin on its grid,
    so windows begin at multiples of ``stride``; the last one ends with the image, and is off the grid where the image's
    side less the window's is no multiple.

    Args:
        inner: an estimator, or the name of one; or a model, which is asked by one pass.
        window: side of the window in pixels, or one for each spatial dimension.
        overlap: share of a window that the next one covers again, 0 up to less than 1. Where it leaves gaps between
            margins, windows come closer.
        blend: ``"gaussian"``: a bell over the window, with a standard deviation of an eighth of it; ``"constant"``: all
            pixels alike.
        margin: pixels at the inner edges of windows that weigh nothing.
        stride: pixels of the image to one of the network's coarsest feature map, 32 for most; 1 for a network that
            works at full resolution throughout. Where windows would lie further apart than ``overlap`` says, or with a
            ``margin`` leave gaps, the half of it is taken, and so on.
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

    name: ClassVar[str] = "sliding_window"
    stored_as: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: f"windows.{name}" for name in ("window", "overlap", "blend", "margin", "stride")}
    )

    def __init__(
        self,
        inner: Estimator | nn.Module | str | None = None,
        window: int | Sequence[int] = 512,
        overlap: float = 0.5,
        blend: Literal["gaussian", "constant"] = "gaussian",
        margin: int = 0,
        stride: int = 32,
        batch: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(inner, **settings)
        sides = tuple(window) if isinstance(window, (list, tuple)) else window
        self.windows = Windows(sides, overlap, blend, margin, stride)  # type: ignore[arg-type]
        if not is_whole(batch, 1):
            raise SeguqError(f"batch must be a whole number of at least 1, but is {batch!r}")
        self.batch = batch

    @property
    def tag(self) -> str:
        """``sliding_window(window=..., overlap=..., blend=..., margin=..., stride=..., of=...)``."""
        return f"sliding_window({self.windows}, of={self.inner.tag})"

    def pool(self, images: Tensor, ids: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        size = tuple(images.shape[2:])
        sides, inside = self.windows.sides(size), self.names_inside(names)
        self.windows.tell_of_small(size)
        images = _extended(images, sides)
        padded = tuple(images.shape[2:])
        blend, like = Blend(len(images), padded), weights_like(images)
        places = [(row, place) for place in self.windows.places(padded) for row in range(len(images))]
        for first in range(0, len(places), self.batch):
            some = places[first : first + self.batch]
            cut = torch.stack([part(images[row], place, sides) for row, place in some])
            named = tuple(f"{ids[row]}\x1fat{'x'.join(map(str, place))}" for row, place in some)
            logits, maps = self.inner.pool(cut, named, inside)
            answers = answers_of(logits, maps)
            for number, (row, place) in enumerate(some):
                blend.add(answers, number, row, place, self.windows.weight(place, padded, sides, like))
        if not places:  # no image: nothing to blend
            return self.inner.pool(images, ids, inside)
        return blend.over((0,) * len(size), size)

    def samples(self, images: Tensor, image_ids: Sequence[str] | None = None) -> Iterator[Tensor]:
        """The blended probabilities as the one sample, ``(B, C, *spatial)``: windows have no samples in common."""
        yield self._sample_view(torch.softmax(self.pooled_logits(images, image_ids), dim=1))

    def stream(self, reader: ImageReader, writer: MapWriter, image_id: str = "0") -> None:
        """The answer for one 2-D image that is larger than memory, written from top to bottom as it comes.

        A calibrator is given logits alone, without the image.

        What is held are the sums of one row of windows over the width of the image, and a few windows. A writer that
        says at the start how many rows it has already, as `seguq.store.MapFiles` does, is given the others: a run
        that was killed goes on, to the same values where the inner estimator has a seed or no randomness.

        Args:
            reader: gives windows of the image, normalized; `seguq.data.ArrayReader`, `seguq.data.RasterReader`.
            writer: takes the maps; `seguq.store.MapFiles`.
            image_id: id of the image, as in a call; masks of a seeded estimator depend on it.

        Raises:
            SeguqError: for a reader that gives other windows than it was asked for; and what the writer raises.
        """
        stream(self, self.windows, self.batch, reader, writer, image_id)

    def details(self) -> dict[str, Any]:
        windows = {name: getattr(self.windows, name) for name in ("window", "overlap", "margin", "stride")}
        return {**self.inner.details(), **windows}

    def forwards(self, images: Tensor) -> int:
        sides = self.windows.sides(images.shape[2:])
        images = _extended(images, sides)
        window = part(images[:1], (0,) * len(sides), sides)

        def of_batch(size: int) -> int:
            return self.inner.forwards(torch.cat([window] * size)) if size else 0

        full, rest = divmod(len(list(self.windows.places(images.shape[2:]))) * len(images), self.batch)
        return (full * of_batch(self.batch) if full else 0) + of_batch(rest)


def _extended(images: Tensor, sides: Sequence[int]) -> Tensor:
    """Images that are at least as large as the window, extended by their border pixels at the far ends."""
    missing = [max(0, side - length) for length, side in zip(images.shape[2:], sides, strict=True)]
    if not any(missing):
        return images
    padding = [amount for more in reversed(missing) for amount in (0, more)]
    return functional.pad(images, padding, mode="replicate")
