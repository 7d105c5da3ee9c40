"""In what order regions are taken."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from seguq.regions import RegionTable


@runtime_checkable
class Strategy(Protocol):
    """Anything that ranks regions. Randomness comes from the generator that it is handed, never from elsewhere."""

    def rank(self, table: RegionTable, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Row numbers of the table, the first to be labeled first."""


class TopK:
    """The highest scores first; ties in random order.

    Example:
        >>> TopK()
        TopK()
    """

    def __repr__(self) -> str:
        return "TopK()"

    def rank(self, table: RegionTable, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Row numbers by falling score."""
        return np.lexsort((generator.random(len(table)), -table.column("score")))


class Random:
    """All regions alike: the baseline that any other strategy has to beat.

    Example:
        >>> Random()
        Random()
    """

    def __repr__(self) -> str:
        return "Random()"

    def rank(self, table: RegionTable, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Row numbers in random order."""
        return generator.permutation(len(table))
