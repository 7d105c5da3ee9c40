"""What regions cost, and what is left of a budget while they are taken one by one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.regions import RegionTable
from seguq.regions.polygons import BOX_CLICKS, outline_clicks

if TYPE_CHECKING:
    from seguq.acquisition.budget import Budget

Ints = npt.NDArray[np.int64]


class Prices:
    """What regions of a pool cost in the unit of a budget's limit; images have no price by region.

    Attributes:
        lazy: whether a price takes a look at the region, so that only those that are considered should be asked for.
        least: no price is below it.
    """

    def __init__(self, budget: Budget, pool: RegionTable) -> None:
        self.budget, self.pool = budget, pool
        self.lazy = budget.cost is not None
        self.least = math.ulp(0.0) if self.lazy else 1.0
        self._known: Any = np.ones(len(pool), np.int64)
        if budget.pixels is not None:
            self._known = pool.column("area").astype(np.int64)
        elif budget.clicks is not None:
            self._known, self.lazy = known_clicks(pool)
        if not self.lazy and len(pool):
            self.least = float(self._known.min())

    def of(self, rows: Ints) -> Any:
        """The prices of some rows, ``(rows,)``."""
        if not self.lazy:
            return self._known[rows]
        return np.array([self.of_one(row) for row in rows.tolist()], np.float64 if self.budget.cost else np.int64)

    def of_one(self, row: int) -> float:
        """The price of one row."""
        if self.budget.cost is None:
            found = int(self._known[row])
            return found if found or not self.lazy else outline_clicks(self.pool.take([row]).rows()[0])
        (content,) = self.pool.take([row]).rows()
        price = self.budget.cost(content)
        if not (is_number(price) and math.isfinite(price) and price > 0):
            raise UsageError(
                f"cost= must give a number above 0, but gave {price!r} for region {content['region_id']} of image "
                f"{content['image_id']!r}"
            )
        return float(price)


class Account:
    """What is left of a budget while regions of a pool are taken one after the other.

    Attributes:
        full: whether nothing further will be taken.
    """

    def __init__(self, budget: Budget, pool: RegionTable) -> None:
        self._budget, self._prices = budget, Prices(budget, pool)
        self._images, self._opened = budget.images_of(pool)
        self._spent: float = 0
        self.full = budget.room < self._prices.least and budget.images is None

    def take(self, row: int) -> bool:
        """Take a region if it fits; whether it did."""
        if self.full:
            return False
        budget, image = self._budget, self._images[row]
        if budget.per_image is not None and self._opened[image] >= budget.per_image:
            return False
        opened = self._opened[image] > 0
        price = float(not opened) if budget.images is not None else self._prices.of_one(row)
        fits = self._spent + price <= budget.room
        if fits:
            self._spent += price
            self._opened[image] += 1
        nothing_fits = budget.images is None and budget.room - self._spent < self._prices.least
        self.full = nothing_fits or not (fits or budget.fill)
        return fits

    def take_all(self, ranked: Ints) -> Ints:
        """Take regions in an order, as far as the budget reaches; gives those that were taken."""
        taken = []
        for row in ranked.tolist():
            if self.full:
                break
            if self.take(row):
                taken.append(row)
        return np.array(taken, np.int64)


def known_clicks(pool: RegionTable) -> tuple[Ints, bool]:
    """The clicks of regions whose outline need not be looked at, 0 for others; and whether there are others."""
    if "clicks" in pool.table.column_names:
        column = pool.table["clicks"]
        clicks = pool.column("clicks")
        if column.null_count or clicks.dtype.kind not in "iu" or (len(clicks) and clicks.min() < 1):
            raise UsageError("the column 'clicks' of the table of regions must hold whole numbers of at least 1")
        return clicks.astype(np.int64), False
    if "rle" not in pool.table.column_names:
        return np.full(len(pool), BOX_CLICKS), False
    ragged = pool.table["rle"].is_valid().to_numpy()
    return np.where(ragged, 0, BOX_CLICKS), bool(ragged.any())
