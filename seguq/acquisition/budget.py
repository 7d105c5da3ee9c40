"""How much may be labeled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.regions import RegionTable

Ints = npt.NDArray[np.int64]

_CHUNK = 2**16


@dataclass(frozen=True)
class Budget:
    """Exactly one limit: a number of regions, of pixels, or of images that are opened; and how many of one image.

    Args:
        regions: number of regions.
        pixels: number of pixels; a region that no longer fits is passed over.
        images: number of distinct images; regions of further images are passed over.
        per_image: number of regions of one image; further ones are passed over. None: any number.

    Raises:
        UsageError: unless exactly one of the first three is given, and each is a whole number of at least 1.

    Example:
        >>> Budget(regions=50, per_image=3)
        Budget(regions=50, per_image=3)
    """

    regions: int | None = None
    pixels: int | None = None
    images: int | None = None
    per_image: int | None = None

    def __post_init__(self) -> None:
        given = self.as_dict()
        limits = [name for name in given if name != "per_image"]
        if len(limits) != 1:
            raise UsageError(
                "a budget is exactly one of regions=, pixels=, images= (per_image= may stand beside it), such as "
                "Budget(regions=50), or --budget.regions 50 on the command line; given: "
                f"{' and '.join(limits) or 'none'}"
            )
        for name, value in given.items():
            if not is_whole(value, 1):
                raise UsageError(f"the budget {name}= must be a whole number of at least 1, but is {value!r}")

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, int]:
        """What is set, by name."""
        limits = {"regions": self.regions, "pixels": self.pixels, "images": self.images, "per_image": self.per_image}
        return {name: value for name, value in limits.items() if value is not None}

    def spend(self, pool: RegionTable, ranked: Ints) -> Ints:
        """Take regions, best first, as far as the budget reaches.

        Args:
            pool: the regions.
            ranked: row numbers of the pool, each at most once, the best first.

        Returns:
            The row numbers that are taken, in the same order.
        """
        ranked = np.asarray(ranked, dtype=np.int64)
        images = pool.image_numbers()[0][ranked] if self.images or self.per_image else np.zeros(0, np.int64)
        if self.pixels is not None:
            areas = pool.column("area").astype(np.int64)[ranked]
            return ranked[self._fitting(areas, images, self.pixels)]
        taken = np.ones(len(ranked), dtype=bool)
        if self.images is not None:
            numbers, first = np.unique(images, return_index=True)
            taken = np.isin(images, numbers[np.argsort(first)[: self.images]])
        if self.per_image is not None:
            taken &= number_within(images) < self.per_image
        return ranked[taken][: self.regions]

    def _fitting(self, areas: Ints, images: Ints, room: int) -> Ints:
        """Places of what fits into a number of pixels."""
        opened = np.zeros(int(images.max()) + 1 if len(images) else 0, np.int64)  # regions taken, by image
        smallest = np.minimum.accumulate(areas[::-1])[::-1]  # from here on
        found: list[Ints] = []
        for begin in range(0, len(areas), _CHUNK):
            if smallest[begin] > room:
                break
            places = np.arange(begin, min(begin + _CHUNK, len(areas)))
            while len(places):
                places = places[areas[places] <= room]
                if self.per_image is not None:
                    places = places[opened[images[places]] < self.per_image]
                # as long as all of them fit, they are taken; the first that does not changes what may follow
                allowed = places
                if self.per_image is not None:
                    inside = images[places]
                    allowed = places[opened[inside] + number_within(inside) < self.per_image]
                fitting = int(np.searchsorted(np.cumsum(areas[allowed]), room, side="right"))
                taken = allowed[:fitting]
                found.append(taken)
                room -= int(areas[taken].sum())
                if self.per_image is not None:
                    np.add.at(opened, images[taken], 1)
                if fitting == len(allowed):
                    break
                places = places[places > allowed[fitting]]
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def number_within(groups: Ints) -> Ints:
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
