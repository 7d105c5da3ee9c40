"""Single pixels, for labels by clicks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seguq.core.checks import require_count
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, map_of
from seguq.regions.peaks import peaks
from seguq.regions.scored_by import scores_named


class Pixels(Partition):
    """The most uncertain pixels, each a region of its own, at a distance from one another.

    The largest value is taken first (of equal ones the first, row by row), then the largest of the pixels that are far
    enough from it, and so on. They are numbered by their place, row by row; all other pixels are in no region.

    Args:
        count: how many there are at most in an image.
        min_distance: between two of them, in pixels, by rows or by columns, whichever is more (Chebyshev's).
        by: the map that says how uncertain a pixel is: as `seguq.regions.score` takes it, by name or import path.

    Raises:
        UsageError: unless ``count`` and ``min_distance`` are whole numbers of at least 1.

    References:
        Shin et al., All You Need Are a Few Pixels: Semantic Segmentation with PixelPick, 2021.

    Example:
        >>> values = torch.tensor([[[0.7, 0.9, 0.8, 0.1, 0.3]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 5), 0.5), {"variance": values}, ["a"])
        >>> Pixels(2, min_distance=2, by="variance")(None, maps).tolist()
        [[-1, 0, -1, -1, 1]]
    """

    fills_boxes = True

    def __init__(self, count: int, min_distance: int = 10, by: str = "predictive_entropy") -> None:
        require_count("count of Pixels", count)
        require_count("min_distance of Pixels", min_distance)
        self.count = count
        self.min_distance = min_distance
        self.by = by
        (self._by,) = scores_named(by)
        self.needs = self._by.needs

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The number of each pixel that was taken, ``(H, W)`` int32, and -1 of all others.

        Raises:
            SeguqError: if there are no maps, they are of a volume, or not finite.
            KeyError: if they do not have the one to choose by.
        """
        values = map_of(maps, self._by, self)
        taken = peaks(values, self.count, self.min_distance, self.min_distance)
        labels = torch.full((values.size,), -1, dtype=torch.int32)
        places = torch.from_numpy(taken[:, 0] * values.shape[1] + taken[:, 1]).sort().values
        labels[places] = torch.arange(len(places), dtype=torch.int32)
        return labels.view(values.shape)
