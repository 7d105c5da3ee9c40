"""Which regions are labeled next: what every strategy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition.budget import Budget
from seguq.core.errors import SeguqError
from seguq.core.named import Named
from seguq.regions import RegionTable

Rows = npt.NDArray[np.int64]
"""Numbers of rows of a table."""


class Strategy(Named, ABC):
    """Chooses regions within a budget. A subclass in a file of this folder is known by its name.

    Randomness comes from the generator that it is handed, never from elsewhere: the seed is that of
    `seguq.acquisition.select`.
    """

    @abstractmethod
    def choose(
        self,
        pool: RegionTable,
        budget: Budget,
        labeled: Sequence[Mapping[str, Any]],
        generator: np.random.Generator,
    ) -> Rows:
        """Choose from what is not labeled yet.

        Args:
            pool: the regions to choose from, sorted by image and region, at least one; scores are finite.
            budget: how much may be chosen; `Budget.spend` takes rows in an order as far as it reaches.
            labeled: the rows of all earlier selections as in `Selection.rows`, the oldest first: dicts with the
                columns that the pool had then.
            generator: the only source of randomness.

        Returns:
            Row numbers of the pool, the first to be labeled first, none of them twice.
        """


class Ranked(Strategy):
    """A strategy that puts all regions in order; they are taken from the front, as far as the budget reaches.

    Example:
        >>> class FirstImagesFirst(Ranked):
        ...     def rank(self, pool, generator):
        ...         return np.argsort(pool.image_numbers()[0], kind="stable")
        >>> FirstImagesFirst()
        FirstImagesFirst()
    """

    @abstractmethod
    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """All row numbers of the pool, the first to be labeled first."""

    def choose(
        self,
        pool: RegionTable,
        budget: Budget,
        labeled: Sequence[Mapping[str, Any]],
        generator: np.random.Generator,
    ) -> Rows:
        """Spend the budget along the ranks."""
        ranked = np.asarray(self.rank(pool, generator))
        if ranked.ndim != 1 or (len(ranked) and ranked.dtype.kind not in "iu"):
            raise SeguqError(f"{type(self).__name__}.rank must give row numbers, but gave {ranked!r}")
        return budget.spend(pool, ranked)
