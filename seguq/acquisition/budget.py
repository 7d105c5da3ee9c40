"""How much may be labeled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seguq.acquisition.spending import Account, Prices
from seguq.core.checks import is_number, is_whole
from seguq.core.errors import UsageError
from seguq.regions import RegionTable

Ints = npt.NDArray[np.int64]

_CHUNK = 2**16
_LIMITS = ("regions", "pixels", "images", "clicks", "cost")


@dataclass(frozen=True)
class Budget:
    """Exactly one limit, and how many regions of one image.

    Args:
        regions: number of regions.
        pixels: number of pixels.
        images: number of distinct images that are opened.
        clicks: number of clicks that outline and name the regions: the corners that Douglas and Peucker keep of a
            region's outline, to a pixel, plus one for its class (5 for a box, 1 for a single pixel);
            where the table has a column ``clicks``, what stands there.
        cost: what a region costs, a function of its row (a mapping of the table's columns) that gives a number above
            0; with ``limit=``. It is called for the regions that are considered only, one after the other.
        limit: of the sum of costs; only with ``cost=``.
        per_image: number of regions of one image; further ones are passed over. None: any number.
        fill: pass over what does not fit any more, and go on with what does. False: stop there. What a larger
            budget of the same kind takes then begins with what a smaller one does, if the strategy takes regions in an
            order of its own; `ClaSP`, `HerdThenUncertain` and `Mixed` divide the budget or multiply it, so that with
            a larger one they may choose otherwise.

    Raises:
        UsageError: unless exactly one of the first five is given, and each number is a whole one of at least 1.

    Example:
        >>> Budget(regions=50, per_image=3)
        Budget(regions=50, per_image=3)
        >>> Budget(cost=lambda row: 0.1 * row["area"], limit=8.5).limit
        8.5
    """

    regions: int | None = None
    pixels: int | None = None
    images: int | None = None
    clicks: int | None = None
    cost: Callable[[Mapping[str, Any]], float] | None = None
    limit: float | None = None
    per_image: int | None = None
    fill: bool = True
    _room: float | None = field(default=None, init=False, repr=False, compare=False)
    """What of the limit is left, where it is not all of it."""
    _taken: Mapping[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Regions of each image that were taken."""

    def __post_init__(self) -> None:
        if self.cost is None and self.limit is not None:
            raise UsageError("the budget limit= is that of cost=, which says what a region costs; cost= is not given")
        limits = [name for name in _LIMITS if getattr(self, name) is not None]
        if len(limits) != 1:
            raise UsageError(
                "a budget is exactly one of regions=, pixels=, images=, clicks=, cost= (per_image= may stand beside "
                "it), such as Budget(regions=50), or --budget.regions 50 on the command line; given: "
                f"{' and '.join(limits) or 'none'}"
            )
        for name in ("regions", "pixels", "images", "clicks", "per_image"):
            value = getattr(self, name)
            if isinstance(value, np.integer):
                value = int(value)
                object.__setattr__(self, name, value)
            if value is not None and not is_whole(value, 1):
                raise UsageError(f"the budget {name}= must be a whole number of at least 1, but is {value!r}")
        if not isinstance(self.fill, bool):
            raise UsageError(f"the budget fill= must be True or False, but is {self.fill!r}")
        if self.cost is None:
            return
        if not callable(self.cost):
            raise UsageError(f"the budget cost= must be a function of a region's row, but is {self.cost!r}")
        limit: Any = self.limit
        if isinstance(limit, (np.integer, np.floating)):
            object.__setattr__(self, "limit", limit.item())
        if not (is_number(self.limit) and math.isfinite(self.limit) and self.limit > 0):
            raise UsageError(f"the budget cost= needs limit=, a number above 0, but it is {self.limit!r}")

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, Any]:
        """What is set, by name; a function by its own."""
        found: dict[str, Any] = {name: getattr(self, name) for name in (*_LIMITS, "limit", "per_image")}
        if self.cost is not None:
            found["cost"] = getattr(self.cost, "__qualname__", type(self.cost).__name__)
        return {name: value for name, value in found.items() if value is not None} | (
            {} if self.fill else {"fill": False}
        )

    @property
    def kind(self) -> str:
        """Which limit it is."""
        return next(name for name in _LIMITS if getattr(self, name) is not None)

    @property
    def room(self) -> float:
        """How much of the limit is left."""
        if self._room is not None:
            return self._room
        whole = self.limit if self.cost is not None else getattr(self, self.kind)
        assert whole is not None
        return whole

    def part(self, room: float) -> Budget:
        """The same with at most so much of the limit; it may be 0."""
        return self._with(max(0, min(room, self.room)), self._taken)

    def after(self, pool: RegionTable, rows: npt.ArrayLike) -> Budget:
        """What is left of it once some regions of a pool are taken."""
        rows = np.asarray(rows, dtype=np.int64)
        taken = dict(self._taken)
        for pair in pool.table["image_id"].take(pa.array(rows)).value_counts().to_pylist():
            taken[pair["values"]] = taken.get(pair["values"], 0) + pair["counts"]
        return self._with(self.room - self.spent(pool, rows), taken)

    def _with(self, room: float, taken: Mapping[str, int]) -> Budget:
        made = replace(self)
        object.__setattr__(made, "_room", room)
        object.__setattr__(made, "_taken", taken)
        return made

    def spent(self, pool: RegionTable, rows: npt.ArrayLike) -> float:
        """What some regions of a pool cost together, in the unit of the limit."""
        chosen = pool.take(rows)
        if self.images is not None:
            return sum(image_id not in self._taken for image_id in chosen.image_numbers()[1].to_pylist())
        total = self._prices(chosen).of(np.arange(len(chosen))).sum()
        return float(total) if self.cost is not None else int(total)

    def allows(self, pool: RegionTable, rows: npt.ArrayLike) -> bool:
        """Whether so many and so large regions may be taken together."""
        rows = np.asarray(rows, dtype=np.int64)
        numbers, opened = self._images_of(pool)
        most = int((opened + np.bincount(numbers[rows], minlength=len(opened))).max(initial=0))
        # sums of numbers that are no whole ones depend on their order a little
        return (self.per_image is None or most <= self.per_image) and self.spent(pool, rows) <= self.room * (1 + 1e-9)

    def account(self, pool: RegionTable) -> Account:
        """To take regions of a pool one by one, where what is taken next depends on what was taken."""
        prices = None if self.images is not None else self._prices(pool)
        return Account(prices, self.room, *self._images_of(pool), self.per_image, self.fill)

    def _prices(self, pool: RegionTable) -> Prices:
        return Prices(pool, self.kind, self.cost)

    def spend(self, pool: RegionTable, ranked: npt.ArrayLike) -> Ints:
        """Take regions, best first, as far as the budget reaches.

        Args:
            pool: the regions.
            ranked: row numbers of the pool, each at most once, the best first.

        Returns:
            The row numbers that are taken, in the same order.
        """
        ranked = np.asarray(ranked, dtype=np.int64)
        if self.regions is not None and self.per_image is None:
            return ranked[: int(self.room)]
        prices = self._prices(pool)
        if prices.lazy:
            return self.account(pool).take_all(ranked)
        images, opened = self._images_of(pool)
        images = images[ranked]
        if self.images is not None:
            return ranked[self._opening(images, opened)]
        return ranked[self._fitting(prices.of(ranked), images, opened)]

    def _images_of(self, pool: RegionTable) -> tuple[Ints, Ints]:
        """The image of each region as a number, and how many regions of each were taken before."""
        if self.images is None and self.per_image is None:
            return np.zeros(len(pool), np.int64), np.zeros(1, np.int64)
        numbers, ids = pool.image_numbers()
        opened = np.zeros(len(ids), np.int64)
        if self._taken:
            opened[:] = [self._taken.get(name, 0) for name in ids.to_pylist()]
        return numbers, opened

    def _opening(self, images: Ints, opened: Ints) -> npt.NDArray[np.bool_]:
        """Which regions lie in images that are, or may be, opened."""
        numbers, first = np.unique(images, return_index=True)
        by_turn = numbers[np.argsort(first)]
        may = opened > 0
        may[by_turn[~may[by_turn]][: int(self.room)]] = True
        taken: npt.NDArray[np.bool_] = may[images]
        if not self.fill and not taken.all():
            taken[int(np.argmin(taken)) :] = False
        if self.per_image is not None:
            taken &= number_within(images) + opened[images] < self.per_image
        return taken

    def _fitting(self, prices: Ints, images: Ints, opened: Ints) -> Ints:
        """Places of what fits into the limit."""
        opened, room, most = opened.copy(), int(self.room), self.per_image  # opened: regions taken, by image
        smallest = np.minimum.accumulate(prices[::-1])[::-1]  # from here on
        found: list[Ints] = []
        for begin in range(0, len(prices), _CHUNK):
            if smallest[begin] > room:
                break
            places = np.arange(begin, min(begin + _CHUNK, len(prices)))
            while len(places):
                if self.fill:
                    places = places[prices[places] <= room]
                # as long as all of them fit, they are taken; the first that does not changes what may follow
                allowed = places
                if most is not None:
                    inside = images[places]
                    allowed = places[opened[inside] + number_within(inside) < most]
                fitting = int(np.searchsorted(np.cumsum(prices[allowed]), room, side="right"))
                taken = allowed[:fitting]
                found.append(taken)
                room -= int(prices[taken].sum())
                if most is not None:
                    np.add.at(opened, images[taken], 1)
                if fitting == len(allowed):
                    break
                if not self.fill:
                    return np.concatenate(found)
                places = places[places > allowed[fitting]]
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def number_within(groups: npt.NDArray[Any]) -> Ints:
    """How many of the same number came before each.

    Example:
        >>> number_within(np.array([7, 3, 7, 7, 3])).tolist()
        [0, 0, 1, 2, 1]
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    out = np.empty(len(groups), np.int64)
    out[order] = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    return out
