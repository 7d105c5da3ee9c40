"""The best boxes of one size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.checks import require_count
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, map_of
from seguq.regions.peaks import peaks
from seguq.regions.scored_by import scores_named

_BITS = 34  # of a value, so that the sum over a box of 2^28 pixels fits into 64


class Boxes(Partition):
    """Square boxes of one size that hold the most uncertainty, none of which overlaps another.

    The box with the largest mean is taken first (of equal ones the first, row by row), then the best of those that do
    not touch its pixels, and so on; a pixel in none of them is in no region. All lie inside the image; where that is
    smaller than a box, they are as high or as wide as it is. They are numbered by their place, row by row, and not by
    their mean, so that a number changes as seldom as it can from round to round.

    Args:
        size: side of a box in pixels.
        count: how many there are at most in an image.
        by: the map whose mean they are chosen by: as `seguq.regions.score` takes it, by name or import path.

    Raises:
        UsageError: unless ``size`` and ``count`` are whole numbers of at least 1.

    Example:
        >>> values = torch.tensor([[[0.0, 0.1, 0.9, 0.8, 0.0, 0.2]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 6), 0.5), {"variance": values}, ["a"])
        >>> Boxes(2, count=2, by="variance")(None, maps).tolist()
        [[-1, -1, 0, 0, 1, 1]]
    """

    fills_boxes = True

    def __init__(self, size: int, count: int, by: str = "predictive_entropy") -> None:
        require_count("size of Boxes", size)
        require_count("count of Boxes", count)
        self.size = size
        self.count = count
        self.by = by
        (self._by,) = scores_named(by)
        self.needs = self._by.needs

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The box of each pixel, ``(H, W)`` int32, or -1.

        Raises:
            SeguqError: if there are no maps, they are of a volume, or not finite.
            KeyError: if they do not have the one to choose by.
        """
        values = map_of(maps, self._by, self)
        height, width = (min(self.size, side) for side in values.shape)
        labels = torch.full(values.shape, -1, dtype=torch.int32)
        if not values.size:
            return labels
        corners = peaks(_box_sums(values, height, width), self.count, height, width)
        for number, (y, x) in enumerate(sorted(corners.tolist())):
            labels[y : y + height, x : x + width] = number
        return labels


def _box_sums(values: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[np.int64]:
    """Sums over all boxes, by their upper left corner, ``(H - height + 1, W - width + 1)``.

    In whole numbers, whose integral image is exact: in floating point, which of two equal boxes comes first would be up
    to rounding errors. The largest value has 34 bits, where float32 has 24.
    """
    largest = float(np.abs(values).max(initial=0.0))
    exponent = _BITS - math.frexp(largest)[1] if largest else 0
    whole = np.rint(np.ldexp(values.astype(np.float64), exponent)).astype(np.int64)
    integral = np.pad(whole.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = integral[height:] - integral[:-height]
    sums: npt.NDArray[np.int64] = rows[:, width:] - rows[:, :-width]
    return sums
