"""Regions that leave none far from what is labeled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.on_features import Nearest, OnFeatures, Vectors
from seguq.acquisition.spending import Account
from seguq.acquisition.strategy import Rows
from seguq.regions import RegionTable


class CoreSet(OnFeatures):
    """The region whose features are furthest from all that is labeled or chosen, again and again (k-center, greedy).

    Without labeled regions that carry features, the one with the highest score is first.

    Args:
        top: the share of the pool that is looked at: the regions with the highest scores.

    Raises:
        UsageError: unless it is a number above 0, up to 1; when it chooses, if features are missing or not finite.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, 2018, algorithm 1.

    Example:
        >>> CoreSet(top=0.05)
        CoreSet(top=0.05)
    """

    def pick(
        self,
        front: Rows,
        vectors: Vectors,
        labeled: Vectors,
        account: Account,
        most: int,
        generator: np.random.Generator,
    ) -> list[int]:
        """The furthest, until none differs from what was taken."""
        nearest, chosen = Nearest(vectors, labeled), list[int]()
        for _ in self.steps(len(front), vectors):
            best = int(np.argmax(nearest.squares))
            if account.full or nearest.squares[best] <= 0:
                break
            if account.take(int(front[best])):
                chosen.append(int(front[best]))
                nearest.add(vectors[best])
            nearest.drop(best)
        return chosen

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """The distance."""
        return ["unlike all that is labeled or chosen"] * len(rows)
