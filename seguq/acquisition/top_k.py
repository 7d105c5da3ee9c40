"""The most uncertain regions."""

from __future__ import annotations

import numpy as np

from seguq.acquisition.strategy import Ranked, Rows
from seguq.regions import RegionTable


class TopK(Ranked):
    """The highest scores first; ties in random order.

    Example:
        >>> TopK()
        TopK()
    """

    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """Row numbers by falling score."""
        return np.lexsort((generator.random(len(pool)), -pool.column("score")))
