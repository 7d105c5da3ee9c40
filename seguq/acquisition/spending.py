"""What regions cost, and what is left of a budget while they are taken one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.regions import RegionTable
from seguq.regions.polygons import BOX_CLICKS, LEAST_CLICKS, PIXEL_CLICKS, outline_clicks

Ints = npt.NDArray[np.int64]

_AHEAD = 256


class Prices:
    """What regions of a pool cost in the unit of a budget's limit; images have no price by region.

    Args:
        pool: the regions.
        kind: of the limit.
        cost: what a region costs by its row, for the kind of that name.

    Attributes:
        lazy: whether a price takes a look at the region, so that only those that are considered should be asked for.
        least: no price is below it.
    """

    def __init__(self, pool: RegionTable, kind: str, cost: Callable[[Mapping[str, Any]], float] | None) -> None:
        self.pool, self._cost = pool, cost
        self.lazy = cost is not None
        self.least = math.ulp(0.0) if self.lazy else 1.0
        self._known: Any = np.ones(len(pool), np.int64)
        self._content: dict[int, Mapping[str, Any]] = {}
        if kind == "pixels":
            self._known = pool.column("area").astype(np.int64)
        elif kind == "clicks":
            self._known, self.lazy = known_clicks(pool)
        if not self.lazy and len(pool):
            self.least = float(self._known.min())

    def of(self, rows: Ints) -> Any:
        """The prices of some rows, ``(rows,)``."""
        if not self.lazy:
            return self._known[rows]
        self.ahead(rows)
        return np.array([self.of_one(row) for row in rows.tolist()], np.float64 if self._cost else np.int64)

    def ahead(self, rows: Ints) -> None:
        """Read the rows that are likely to be asked for next: together that is quicker than one by one."""
        if self.lazy:
            self._content = dict(zip(rows.tolist(), self.pool.take(rows).rows(), strict=True))

    def _row(self, row: int) -> Mapping[str, Any]:
        if row not in self._content:
            (self._content[row],) = self.pool.take([row]).rows()
        return self._content[row]

    def of_one(self, row: int) -> float:
        """The price of one row."""
        if self._cost is None:
            found = int(self._known[row])
            return found if found or not self.lazy else outline_clicks(self._row(row))
        content = self._row(row)
        try:
            price = self._cost(content)
        except Exception as error:  # it is somebody's own
            raise UsageError(
                f"cost= failed for region {content['region_id']} of image {content['image_id']!r} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not (is_number(price) and math.isfinite(price) and price > 0):
            raise UsageError(
                f"cost= must give a number above 0, but gave {price!r} for region {content['region_id']} of image "
                f"{content['image_id']!r}"
            )
        return float(price)


class Account:
    """What is left of a budget while regions of a pool are taken one after the other.

    Args:
        prices: what regions cost; None: what counts are the images that are opened.
        room: how much may be spent.
        images: the image of each region as a number.
        opened: how many regions of each image were taken before.
        per_image: how many of one image may be taken; None: any number.
        fill: whether what does not fit is passed over; otherwise nothing is taken after it.

    Attributes:
        full: whether nothing further will be taken.
    """

    def __init__(
        self, prices: Prices | None, room: float, images: Ints, opened: Ints, per_image: int | None, fill: bool
    ) -> None:
        self._prices, self._room, self._images, self._opened = prices, room, images, opened.copy()
        self._most, self._fill = per_image, fill
        self._spent: float = 0
        self._least = 0.0 if prices is None else prices.least
        self.full = room < self._least

    def take(self, row: int) -> bool:
        """Take a region if it fits; whether it did."""
        image = self._images[row]
        if self.full or (self._most is not None and self._opened[image] >= self._most):
            return False
        price = float(self._opened[image] == 0) if self._prices is None else self._prices.of_one(row)
        fits = self._spent + price <= self._room
        if fits:
            self._spent += price
            self._opened[image] += 1
        self.full = self._room - self._spent < self._least or not (fits or self._fill)
        return fits

    def take_all(self, ranked: Ints) -> Ints:
        """Take regions in an order, as far as the budget reaches; gives those that were taken."""
        taken = []
        for begin in range(0, len(ranked), _AHEAD):
            part = ranked[begin : begin + _AHEAD]
            if self.full:
                break
            if self._prices is not None:
                self._prices.ahead(part)
            taken += [row for row in part.tolist() if self.take(row)]
        return np.array(taken, np.int64)


def known_clicks(pool: RegionTable) -> tuple[Ints, bool]:
    """The clicks of regions whose outline need not be looked at, 0 for others; and whether there are others."""
    if "clicks" in pool.table.column_names:
        column = pool.table["clicks"]
        clicks = pool.column("clicks")
        if column.null_count or clicks.dtype.kind not in "iu" or (len(clicks) and clicks.min() < 1):
            raise UsageError("the column 'clicks' of the table of regions must hold whole numbers of at least 1")
        return clicks.astype(np.int64), False
    single = pool.column("area") == 1
    ragged = np.zeros(len(pool), dtype=bool)
    if "rle" in pool.table.column_names:
        ragged = pool.table["rle"].is_valid().to_numpy() & ~single
    return np.where(single, PIXEL_CLICKS, np.where(ragged, 0, BOX_CLICKS)), bool(ragged.any())


def priced_by(kind: str, names: Sequence[str]) -> set[str]:
    """The columns of a table that `least_price` reads for a limit of some kind."""
    if kind == "pixels":
        return {"area"}
    if kind == "clicks":
        return {"clicks"} & set(names) or {"rle", "area"} & set(names)
    return set()


def least_price(kind: str, table: Any) -> float:
    """A price that no region is below, by the columns of `priced_by`; infinite where there is none.

    Args:
        kind: of the limit; not images.
        table: the regions, as a pyarrow table or a batch of one.
    """
    names = table.schema.names
    if not table.num_rows:
        return math.inf
    if kind == "cost":
        return math.ulp(0.0)
    if kind == "clicks" and "clicks" not in names:
        if pc.any(pc.equal(table["area"], 1)).as_py():
            return PIXEL_CLICKS
        return LEAST_CLICKS if "rle" in names and table["rle"].null_count < table.num_rows else BOX_CLICKS
    if kind in ("pixels", "clicks"):
        least = pc.min(table["area" if kind == "pixels" else "clicks"]).as_py()
        return -math.inf if least is None else float(least)
    return 1.0
