"""How much may be labeled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from seguq.core.checks import is_whole
from seguq.core.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Exactly one limit: a number of regions, of pixels, or of images that are opened.

    Args:
        regions: number of regions.
        pixels: number of pixels; a region that no longer fits is passed over.
        images: number of distinct images; regions of further images are passed over.

    Raises:
        UsageError: unless exactly one is given, a whole number of at least 1.

    Example:
        >>> Budget(regions=50)
        Budget(regions=50)
    """

    regions: int | None = None
    pixels: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        given = self.as_dict()
        if len(given) != 1:
            raise UsageError(
                f"a budget is exactly one of regions=, pixels=, images=, but {list(given) or 'none'} given"
            )
        ((name, value),) = given.items()
        if not is_whole(value, 1):
            raise UsageError(f"the budget {name}= must be a whole number of at least 1, but is {value!r}")

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value}' for name, value in self.as_dict().items())})"

    def as_dict(self) -> dict[str, int]:
        """The limit that is set, by name."""
        limits = {"regions": self.regions, "pixels": self.pixels, "images": self.images}
        return {name: value for name, value in limits.items() if value is not None}

    def spend(self, ranked: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Take regions, best first, as far as the budget reaches."""
        taken, area = 0, 0
        opened: set[str] = set()
        for row in ranked:
            if self.regions is not None and taken >= self.regions:
                return
            if self.pixels is not None and area + row["area"] > self.pixels:
                continue
            if self.images is not None and len(opened) >= self.images and row["image_id"] not in opened:
                continue
            taken += 1
            area += row["area"]
            opened.add(row["image_id"])
            yield row
