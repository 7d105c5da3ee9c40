"""Regions by chance."""

from __future__ import annotations

import numpy as np

from seguq.acquisition.strategy import Ranked, Rows
from seguq.regions import RegionTable


class Random(Ranked):
    """All regions alike: the baseline that any other strategy has to beat.

    Example:
        >>> Random()
        Random()
    """

    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """Row numbers in random order."""
        return generator.permutation(len(pool))
