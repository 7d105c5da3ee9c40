"""Sliding windows over an image that is larger than memory: read, answered and written strip by strip."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from seguq.core.errors import SeguqError, UsageError
from seguq.core.progress import progress
from seguq.inference.maps import UncertaintyMaps
from seguq.inference.measures import require_maps
from seguq.inference.tiles.blend import Blend, answers_of, weights_like
from seguq.inference.tiles.windows import Windows
from seguq.inference.wrapping import WrappingEstimator
from seguq.weights import weights_sha256

_VALUES_AT_ONCE = 2**22  # probabilities in one piece that is written


class ImageReader(Protocol):
    """Gives windows of one 2-D image: `seguq.data.ArrayReader`, `seguq.data.RasterReader`, or one's own.

    Attributes:
        size: height and width of the image.
    """

    size: tuple[int, int]

    @property
    def name(self) -> str | None:
        """What a run that is resumed knows the image by; None: by some of its pixels alone."""

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """A window inside of the image, ``(channels, height, width)``, normalized as in training."""


class MapWriter(Protocol):
    """Takes the maps of an image from top to bottom: `seguq.store.MapFiles`, or one's own."""

    def begin(self, about: dict[str, Any]) -> int:
        """The run starts; ``about`` are plain values that its result depends on. Gives how many rows are there."""

    def write(self, top: int, maps: UncertaintyMaps) -> None:
        """The rows that begin with ``top``, of full width, as maps of one image."""

    def end(self) -> None:
        """All rows were written."""

    def close(self) -> None:
        """The run is over, with or without an error."""


def stream(
    est: WrappingEstimator, windows: Windows, batch: int, reader: ImageReader, writer: MapWriter, image_id: str
) -> None:
    """See `SlidingWindow.stream`."""
    for what, given, needed in (
        ("reader", reader, ("size", "name", "read")),
        ("writer", writer, ("begin", "write", "end", "close")),
    ):
        missing = [name for name in needed if not hasattr(given, name)]
        if missing:
            raise UsageError(
                f"the {what} must have {', '.join(needed)}, but a {type(given).__name__} has no {missing[0]}"
            )
    require_maps(est.measures, "SlidingWindow.stream, which never sees an image as a whole,")
    height, width = (int(length) for length in reader.size)
    if height < 1 or width < 1:
        raise UsageError(f"the reader's image has {height} rows and {width} columns: there is nothing to look at")
    try:
        done = writer.begin(_about(est, reader, image_id))
        if done < height:
            for top, maps in _Strips(est, windows, batch, reader, image_id).after(done):
                writer.write(top, maps)
        writer.end()
    finally:
        writer.close()


def _about(est: WrappingEstimator, reader: ImageReader, image_id: str) -> dict[str, Any]:
    calibrator = est.calibrator_in_force(est.tag)
    settings = None if calibrator is None else [type(calibrator).__name__, repr(calibrator.arguments())]
    return {
        "image": reader.name,
        "pixels": _fingerprint(reader),
        "image_id": image_id,
        "size": [int(length) for length in reader.size],
        "measures": list(est.measures),
        "estimator": est.identity(),
        "calibrator": None if calibrator is None else [*(settings or ()), weights_sha256(calibrator)],
    }


def _fingerprint(reader: ImageReader) -> str:
    """A hash of windows here and there, as the reader gives them: also of how it normalizes."""
    found = sha256()
    places = [sorted({round(i * (length - 1) / 4) for i in range(5)}) for length in reader.size]
    for top in places[0]:
        for left in places[1]:
            height, width = min(16, reader.size[0] - top), min(16, reader.size[1] - left)
            found.update(_window(reader, top, left, height, width).float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _window(reader: ImageReader, top: int, left: int, height: int, width: int) -> Tensor:
    window = reader.read(top, left, height, width)
    if not isinstance(window, Tensor) or window.ndim != 3 or window.shape[1:] != (height, width):
        shape = tuple(window.shape) if isinstance(window, Tensor) else f"a {type(window).__name__}"
        raise SeguqError(
            f"the reader must give a tensor (channels, {height}, {width}) for read({top}, {left}, {height}, "
            f"{width}), but gave {shape}"
        )
    return window


class _Strips:
    """The answer from top to bottom. What is held are the sums of one row of windows."""

    def __init__(
        self, est: WrappingEstimator, windows: Windows, batch: int, reader: ImageReader, image_id: str
    ) -> None:
        self.est, self.windows, self.batch, self.reader, self.image_id = est, windows, batch, reader, image_id
        self.size = (int(reader.size[0]), int(reader.size[1]))
        self.sides = windows.sides(self.size)
        self.padded = tuple(max(length, side) for length, side in zip(self.size, self.sides, strict=True))
        self.tops, self.lefts = (windows.starts(*axis) for axis in zip(self.padded, self.sides, strict=True))
        self.blend = Blend(1, (self.sides[0], self.padded[1]))  # one row of windows

    def after(self, done: int) -> Iterator[tuple[int, UncertaintyMaps]]:
        """The rows from ``done`` on, in pieces, each with the row that it begins with."""
        ends = [*self.tops[1:], self.size[0]]
        first = next(i for i, end in enumerate(ends) if end > done)
        # rows above add to the first one that is asked for
        begin = next(i for i, top in enumerate(self.tops) if top + self.sides[0] > self.tops[first])
        batches = [
            (i, self.lefts[k : k + self.batch])
            for i in range(begin, len(self.tops))
            for k in range(0, len(self.lefts), self.batch)
        ]
        for (i, lefts), windows in progress(self._read_ahead(batches), self.image_id, total=len(batches)):
            if lefts[0] == 0 and i > begin:
                self.blend.move_on(self.tops[i] - self.tops[i - 1])
            with torch.no_grad():
                self._add(self.tops[i], lefts, windows)
            if lefts[-1] == self.lefts[-1] and i >= first:
                yield from self._finished(self.tops[i], max(done, self.tops[i]), ends[i])

    def _read_ahead(self, batches: list[tuple[int, list[int]]]) -> Iterator[tuple[tuple[int, list[int]], Tensor]]:
        """Each batch with its windows, which are read while the network looks at those before."""
        with ThreadPoolExecutor(1) as pool:
            waiting: Future[Tensor] | None = pool.submit(self._read, *batches[0])
            for number, batch in enumerate(batches):
                assert waiting is not None
                windows = waiting.result()
                more = number + 1 < len(batches)
                waiting = pool.submit(self._read, *batches[number + 1]) if more else None
                yield batch, windows

    def _read(self, i: int, lefts: list[int]) -> Tensor:
        top, found = self.tops[i], []
        for left in lefts:
            height = min(self.sides[0], self.size[0] - top)
            width = min(self.sides[1], self.size[1] - left)
            window = _window(self.reader, top, left, height, width)
            missing = (0, self.sides[1] - width, 0, self.sides[0] - height)
            found.append(
                functional.pad(window[None].float(), missing, mode="replicate") if any(missing) else window[None]
            )
        return torch.cat(found)

    def _add(self, top: int, lefts: list[int], windows: Tensor) -> None:
        names = tuple(f"{self.image_id}\x1fat{top}x{left}" for left in lefts)
        windows, names = self.est.take_in(windows, names)
        logits, maps = self.est.inner.pool(windows, names, self.est.names_inside(self.est.measures))
        answers = answers_of(logits, maps)
        for number, left in enumerate(lefts):
            weight = self.windows.weight((top, left), self.padded, self.sides, weights_like(windows))
            self.blend.add(answers, number, 0, (0, left), weight)

    def _finished(self, origin: int, top: int, end: int) -> Iterator[tuple[int, UncertaintyMaps]]:
        """The rows from ``top`` to ``end``, where the sums begin with row ``origin``."""
        per_row = self.blend.sums["probs"][0].numel() // self.sides[0]
        step = max(1, _VALUES_AT_ONCE // per_row)
        for first in range(top, end, step):
            with torch.no_grad():
                rows = min(first + step, end) - first
                logits, maps = self.blend.over((first - origin, 0), (rows, self.size[1]))
            yield first, self.est.answer(logits, maps, None, (self.image_id,))
