"""The most uncertain regions that are not close to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import region_noise
from seguq.acquisition.selection import box_of
from seguq.acquisition.strategy import Labeled, Rows, Strategy, ordered
from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class SpatialSpread(Strategy):
    """The highest scores first, but none whose center is within a distance of one that was taken in the same image.

    Regions that are labeled already count as taken. Where all that is left is too close, the budget is not spent.

    Args:
        min_distance: the smallest distance between the centers of two boxes, in pixels.

    Raises:
        UsageError: unless it is a number above 0.

    Example:
        >>> SpatialSpread(64)
        SpatialSpread(min_distance=64)
    """

    def __init__(self, min_distance: float) -> None:
        if not (is_number(min_distance) and math.isfinite(min_distance) and min_distance > 0):
            raise UsageError(f"min_distance of SpatialSpread must be a number above 0, but is {min_distance!r}")
        self.min_distance = min_distance

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Take the best that is far enough from all that was taken, again and again."""
        account, noise = budget.account(pool), region_noise(pool, generator)
        boxes = pool.boxes()
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        images, ids = pool.image_numbers()
        by_image = np.argsort(images, kind="stable")
        begins = np.searchsorted(images[by_image], np.arange(len(ids) + 1))
        close = np.zeros(len(pool), dtype=bool)

        def take_in(image: int, center: npt.NDArray[np.float64]) -> None:
            rows = by_image[begins[image] : begins[image + 1]]
            close[rows] |= ((centers[rows] - center) ** 2).sum(1) < self.min_distance**2

        numbers = {name: number for number, name in enumerate(ids.to_pylist())}
        for row in labeled:
            if row["image_id"] in numbers:
                y0, x0, y1, x1 = box_of(row)
                take_in(numbers[row["image_id"]], np.array([(y0 + y1) / 2, (x0 + x1) / 2]))
        chosen: list[int] = []
        for row in ordered(pool.column("score").astype(np.float64), noise).tolist():
            if account.full:
                break
            if not close[row] and account.take(row):
                chosen.append(row)
                take_in(int(images[row]), centers[row])
        return np.array(chosen, np.int64)

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """The score, and the distance."""
        return [f"high score, {self.min_distance:g} pixels from all others"] * len(rows)
