"""What regions are scored by: a map that is there, one made from others, or a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.errors import SeguqError, UsageError
from seguq.core.named import imported
from seguq.functional.impurity import region_impurity, ripu
from seguq.functional.runs import Runs
from seguq.inference import UncertaintyMaps
from seguq.regions.columns import COLUMNS
from seguq.regions.table import SCHEMA


class RegionScore(Protocol):
    """What gives each region of an image a score by itself, as `seguq.regions.MetaScore` does."""

    name: str

    def of_regions(self, one: UncertaintyMaps, runs: Runs) -> npt.NDArray[np.float64]:
        """The score of each region, ``(R,)``."""


By = str | Callable[[UncertaintyMaps], Any] | RegionScore
"""Name of a measure; a function of the maps of one image that gives a map ``(H, W)``; or a `RegionScore`."""


def _impurity(maps: UncertaintyMaps) -> Tensor:
    _require_one_class(maps, "region_impurity")
    return region_impurity(maps.prediction, maps.num_classes)


def _ripu(maps: UncertaintyMaps) -> Tensor:
    _require_one_class(maps, "ripu")
    return ripu(maps["predictive_entropy"], maps.prediction, maps.num_classes)


_TAKEN = {*SCHEMA.names, *COLUMNS, "height", "width", "path"}

MADE: dict[str, tuple[Callable[[UncertaintyMaps], Tensor], tuple[str, ...]]] = {
    "region_impurity": (_impurity, ()),
    "ripu": (_ripu, ("predictive_entropy",)),
}
"""Maps that are made from others, by name; and the maps that each needs."""


@dataclass(frozen=True)
class Score:
    """What regions are scored by.

    Attributes:
        name: of its column.
        given: a function of one's own, or a `RegionScore`; None for a map by its name.
    """

    name: str
    given: Any = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The maps that it reads, as far as that is known."""
        if self.given is not None:
            return ()
        return MADE[self.name][1] if self.name in MADE else (self.name,)

    def of(self, maps: UncertaintyMaps) -> Tensor:
        """The map of one image, of its size; or one number, of a measure of whole images.

        Raises:
            KeyError: if the maps do not have it.
            SeguqError: if a function of one's own gives no map.
        """
        if self.given is not None:
            return _map_of(self.given(maps), self.name, maps.spatial)
        if self.name in MADE and self.name not in maps:
            return MADE[self.name][0](maps)[0]
        of_images = maps.image_scores
        return of_images[self.name][0] if self.name in of_images else maps[self.name][0]


def scores_named(by: By | Sequence[By]) -> tuple[Score, ...]:
    """What to score by: one or several.

    A function of one's own may be named by its import path.

    Raises:
        UsageError: for none, one twice, or what is neither a name nor a function.
    """
    single = isinstance(by, str) or callable(by) or hasattr(by, "of_regions")
    given: list[Any] = [by] if single else list(by)  # type: ignore[arg-type]
    found = tuple(_score(item) for item in given)
    if not found:
        raise UsageError("by names nothing to score regions by, such as by='predictive_entropy'")
    names = [item.name for item in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"by names {twice!r} twice")
    taken = next((name for name in names if name in _TAKEN), None)
    if taken is not None:
        raise UsageError(f"a table of regions has a column {taken!r} of its own: give what scores regions another name")
    return found


def _score(item: Any) -> Score:
    if isinstance(item, str):
        if "." not in item:
            return Score(item)
        found = imported(item)
        # one's own measure is a map by its name
        return Score(found.name) if hasattr(found, "of") and hasattr(found, "name") else _score(found)
    if hasattr(item, "of_regions"):
        return Score(item.name, item)
    if not callable(item):
        raise UsageError(f"regions are scored by the name of a measure, or a function of maps, not by {item!r}")
    return Score(getattr(item, "__name__", type(item).__name__), item)


def _map_of(values: Any, name: str, spatial: tuple[int, ...]) -> Tensor:
    found = torch.as_tensor(values).detach().cpu()
    found = found.float() if found.dtype == torch.bfloat16 else found
    found = found[0] if found.ndim == len(spatial) + 1 and len(found) == 1 else found
    if tuple(found.shape) != spatial:
        raise SeguqError(f"{name} must give a map of the size of the image {spatial}, but gave {tuple(found.shape)}")
    return found if found.is_floating_point() else found.float()


def _require_one_class(maps: UncertaintyMaps, name: str) -> None:
    if maps.multilabel:
        raise SeguqError(f"{name} is of the one predicted class of a pixel, which independent labels do not have")
