"""Regions by chance."""

from __future__ import annotations

from collections.abc import Sequence

from seguq.acquisition.noise import Floats
from seguq.acquisition.strategy import Keyed, Rows
from seguq.regions import RegionTable


class Random(Keyed):
    """All regions alike: the baseline that any other strategy has to beat.

    Example:
        >>> Random()
        Random()
    """

    def key(self, scores: Floats, noise: Floats) -> Floats:
        """The noise."""
        return -noise

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """There is none."""
        return ["by chance"] * len(rows)
