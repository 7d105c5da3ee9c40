"""First diversity, then uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.on_features import OnFeatures, Vectors
from seguq.acquisition.spending import Account
from seguq.acquisition.strategy import Rows
from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class HerdThenUncertain(OnFeatures):
    """Candidates that stand for the whole pool, several times as many as the budget takes; of these the highest scores.

    Candidates are chosen by herding: the next one brings the mean of what is labeled and chosen closest to the mean of
    the pool, in features of length 1.

    Args:
        times: how many candidates there are for each region that the budget takes.
        top: the share of the pool that is looked at: the regions with the highest scores; 1 is all of it, since
            diversity comes first here.

    Raises:
        UsageError: unless ``times`` is a whole number of at least 1, and ``top`` a number above 0, up to 1; when it
            chooses, if features are missing or not finite.

    References:
        Welling, Herding Dynamical Weights to Learn, 2009. The two stages: eDALD, NeurIPS 2025.

    Example:
        >>> HerdThenUncertain(times=3)
        HerdThenUncertain(times=3)
    """

    def __init__(self, times: int = 5, top: float = 1.0) -> None:
        super().__init__(top)
        if not is_whole(times, 1):
            raise UsageError(f"times of HerdThenUncertain must be a whole number of at least 1, but is {times!r}")
        self.times = times

    def pick(
        self,
        front: Rows,
        vectors: Vectors,
        labeled: Vectors,
        account: Account,
        most: int,
        generator: np.random.Generator,
    ) -> list[int]:
        """Herd the candidates, then take them by score."""
        unit, earlier = _of_length_1(vectors), _of_length_1(labeled)
        mean = unit.mean(0, dtype=np.float64).astype(np.float32)
        weights = mean + (mean - earlier).sum(0)
        left = np.ones(len(front), dtype=bool)
        for _ in self.steps(min(len(front), self.times * most), vectors):
            best = int(np.argmax(np.where(left, unit @ weights, -np.inf)))
            left[best] = False
            weights = weights + mean - unit[best]
        return [int(row) for row in account.take_all(front[~left])]  # by falling score, as all of them

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Both stages."""
        return ["high score among regions that stand for the pool"] * len(rows)


def _of_length_1(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return scaled
