"""By chance among the most uncertain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.budget import number_within
from seguq.acquisition.noise import region_noise
from seguq.acquisition.strategy import Ranked, Rows, ordered
from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class TopThenRandom(Ranked):
    """Regions by chance, among the share of each image that has its highest scores; then the others by score.

    With ``per_image=`` of the budget these are so many random ones of the most uncertain of every image.

    Args:
        share: of the regions of an image, at least one.

    Raises:
        UsageError: unless it is a number above 0, up to 1.

    References:
        Shin et al., All you need are a few pixels: semantic segmentation with PixelPick, 2021.

    Example:
        >>> TopThenRandom()
        TopThenRandom()
    """

    def __init__(self, share: float = 0.05) -> None:
        if not (is_number(share) and 0 < share <= 1):
            raise UsageError(f"share of TopThenRandom must be a number above 0, up to 1, but is {share!r}")
        self.share = share

    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """Row numbers: the top of each image by chance, then the others."""
        noise, chance = region_noise(pool, generator), region_noise(pool, generator)
        order = ordered(pool.column("score").astype(np.float64), noise)
        images = pool.image_numbers()[0]
        most = np.ceil(self.share * np.bincount(images))
        top = number_within(images[order]) < most[images[order]]
        first = order[top]
        return np.concatenate([first[np.argsort(chance[first], kind="stable")], order[~top]])

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Chance, and the score."""
        return ["by chance among the highest scores of its image"] * len(rows)
