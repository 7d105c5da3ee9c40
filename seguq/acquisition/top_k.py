"""The most uncertain regions."""

from __future__ import annotations

from collections.abc import Sequence

from seguq.acquisition.noise import Floats
from seguq.acquisition.strategy import Keyed, Rows
from seguq.regions import RegionTable


class TopK(Keyed):
    """The highest scores first; ties in random order.

    The highest scores of a pool are often neighbors in a few images: `BestOfEachImage` spreads them.

    Example:
        >>> TopK()
        TopK()
    """

    def key(self, scores: Floats, noise: Floats) -> Floats:
        """The scores."""
        return scores

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """The score is the reason."""
        return ["among the highest scores"] * len(rows)
