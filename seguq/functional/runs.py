"""The regions of an image as runs of pixels: what is computed of regions looks at runs, not at pixels."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from seguq.core.errors import SeguqError

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Runs:
    """Where each region's pixels lie: stretches of a row that are of one region.

    Of pixels of no region nothing is computed.

    Args:
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. num_regions - 1``; -1 is in no region. Of volumes
            ``(D, H, W)`` all but `boxes` is there.
        num_regions: R.

    Raises:
        SeguqError: for a region that there is not.

    Example:
        >>> runs = Runs(np.array([[0, 0, 1], [0, -1, 1]]), 2)
        >>> runs.area.tolist(), runs.boxes.tolist()
        ([3, 2], [[0, 0, 2, 2], [0, 2, 2, 3]])
        >>> runs.sums(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
        [7.0, 9.0]
    """

    def __init__(self, labels: Array, num_regions: int) -> None:
        if labels.size and int(labels.max()) >= num_regions:
            raise SeguqError(f"labels hold region {int(labels.max())}, but there are {num_regions} regions (from 0)")
        self.labels, self.num_regions = labels, num_regions
        self._ordered: tuple[Array, tuple[Floats, Ints]] | None = None
        self._begins = _begins(labels)
        self.start: Ints = np.flatnonzero(self._begins)
        """The first pixel of each run, in the order of rows."""
        self.length: Ints = np.diff(self.start, append=labels.size)
        found = labels.ravel()[self.start].astype(np.int64)
        self.region: Ints = np.where(found < 0, num_regions, found)
        """The region of each run; R for none."""

    @cached_property
    def area(self) -> Ints:
        """Pixels of each region, ``(R,)``."""
        return self._summed(self.length).astype(np.int64)

    @cached_property
    def boxes(self) -> Ints:
        """The bounding box of each region, ``(R, 4)``: y0, x0, y1, x1, half-open; zeros for one without a pixel."""
        height, width = self.labels.shape
        y, x0 = np.divmod(self.start, max(1, width))
        low, high = np.full((2, self.num_regions + 1), max(height, width)), np.zeros((2, self.num_regions + 1), int)
        for axis, (first, last) in enumerate(((y, y + 1), (x0, x0 + self.length))):
            np.minimum.at(low[axis], self.region, first)
            np.maximum.at(high[axis], self.region, last)
        boxes = np.concatenate((low, high)).T[:-1]
        return np.where(self.area[:, None] > 0, boxes, 0)

    def sums(self, values: Array) -> Floats:
        """The sum of each map over each region, ``(..., R)``, of values ``(..., H, W)``."""
        flat = values.reshape(*values.shape[: values.ndim - self.labels.ndim], self.labels.size)
        if not len(self.start):
            return np.zeros((*flat.shape[:-1], self.num_regions))
        parts = np.add.reduceat(flat, self.start, axis=-1, dtype=np.float64)
        rows = [self._summed(row) for row in parts.reshape(-1, len(self.start))]
        return np.stack(rows).reshape(*flat.shape[:-1], self.num_regions)

    def maxima(self, values: Array) -> Floats:
        """The largest value of each region, ``(R,)``, of values ``(H, W)``; minus infinity for one without a pixel."""
        out = np.full(self.num_regions + 1, -np.inf)
        if len(self.start):
            np.maximum.at(out, self.region, np.maximum.reduceat(values.ravel(), self.start).astype(np.float64))
        return out[:-1]

    def ordered(self, values: Array) -> tuple[Floats, Ints]:
        """The values of each region from the smallest on, region by region, and where each region begins, ``(R + 1,)``.

        Args:
            values: ``(H, W)``, without NaN. Asked for the same again, it is not sorted again.
        """
        if self._ordered is None or self._ordered[0] is not values:
            self._ordered = values, self._sorted(values)
        return self._ordered[1]

    def _sorted(self, values: Array) -> tuple[Floats, Ints]:
        inside = self.labels.ravel() >= 0
        region, flat = self.labels.ravel()[inside], values.ravel()[inside]
        bounds = np.append(0, np.cumsum(self.area))
        if flat.dtype != np.float32:
            return flat[np.lexsort((flat, region))].astype(np.float64), bounds
        # as whole numbers in the order of the values, below the region: one sort of integers
        bits = (flat + np.float32(0)).view(np.uint32)  # -0 as 0
        bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        keys = region.astype(np.int64) << 32 | bits
        keys = torch.from_numpy(keys).sort().values.numpy()  # by radix, twice as fast as NumPy's
        bits = keys.astype(np.uint32)
        bits = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits)
        return bits.view(np.float32).astype(np.float64), bounds

    def counts(self, classes: Array, num_classes: int) -> Ints:
        """Pixels of each class in each region, ``(R, num_classes)``, of class indices ``(H, W)``; below 0 is none."""
        both = np.flatnonzero(self._begins | _begins(classes))
        region, of_class = self.labels.ravel()[both].astype(np.int64), classes.ravel()[both].astype(np.int64)
        counted = (region >= 0) & (of_class >= 0)
        key = np.where(counted, region * num_classes + of_class, self.num_regions * num_classes)
        length = np.diff(both, append=self.labels.size)
        counts = np.bincount(key, weights=length, minlength=(self.num_regions + 1) * num_classes)
        return counts.reshape(-1, num_classes)[:-1].astype(np.int64)

    def _summed(self, of_runs: Array) -> Floats:
        sums: Floats = np.bincount(self.region, weights=of_runs, minlength=self.num_regions + 1)[:-1].astype(np.float64)
        return sums


def _begins(labels: Array) -> npt.NDArray[np.bool_]:
    """Where a run begins: at the first pixel of a row, and where a pixel differs from the one before."""
    flat = labels.ravel()
    out = np.ones(flat.size, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=out[1:])
    out[:: max(1, labels.shape[-1])] = True
    return out
