"""Regions drawn by how unlike what is labeled they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.on_features import Nearest, OnFeatures, Vectors
from seguq.acquisition.spending import Account
from seguq.acquisition.strategy import Rows
from seguq.regions import RegionTable


class KMeansPlusPlus(OnFeatures):
    """Each next region is drawn with a probability of its squared distance to the nearest that is labeled or chosen.

    So regions are spread over the features as the starting centers of k-means++ are, and single odd ones are taken
    less surely than by `CoreSet`. Without labeled regions that carry features, the one with the highest score is first.

    Args:
        top: the share of the pool that is looked at: the regions with the highest scores.

    Raises:
        UsageError: unless it is a number above 0, up to 1; when it chooses, if features are missing or not finite.

    References:
        Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007.

    Example:
        >>> KMeansPlusPlus(top=0.05)
        KMeansPlusPlus(top=0.05)
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
        """Draw one after the other, until none differs from what was taken."""
        nearest, chosen = Nearest(vectors, labeled), list[int]()
        for step in self.steps(len(front), vectors):
            drawn = 0
            if np.isfinite(nearest.squares).all():
                sums = np.maximum(nearest.squares, 0).cumsum()
                if sums[-1] <= 0:
                    break
                drawn = min(int(np.searchsorted(sums, generator.random() * sums[-1], side="right")), len(front) - 1)
            elif step:  # nothing was taken yet: by score
                drawn = int(np.argmax(nearest.squares))
            if account.full:
                break
            if account.take(int(front[drawn])):
                chosen.append(int(front[drawn]))
                nearest.add(vectors[drawn])
            nearest.drop(drawn)
        return chosen

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """The distance, and chance."""
        return ["drawn by its distance to all that is labeled or chosen"] * len(rows)
