"""What strategies that look at features share."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import Floats, region_noise
from seguq.acquisition.spending import Account
from seguq.acquisition.strategy import Labeled, Rows, Strategy, matrix, ordered, vectors_of
from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.core.progress import progress
from seguq.regions import RegionTable

if TYPE_CHECKING:
    from typing_extensions import Self

Vectors = npt.NDArray[np.float32]

_ROUNDING = 1e-6
_SLOW = 2e10  # multiplications from which on a person waits


class OnFeatures(Strategy):
    """Chooses by the features of regions, among those with the highest scores.

    Where a budget is larger than that, the others follow by falling score.

    Args:
        top: the share of the pool that is looked at: the regions with the highest scores.

    Raises:
        UsageError: unless it is a number above 0, up to 1.
    """

    needs = ("features",)

    def __init__(self, top: float = 0.1) -> None:
        if not (is_number(top) and 0 < top <= 1):
            raise UsageError(f"top of {type(self).__name__} must be a number above 0, up to 1, but is {top!r}")
        self.top = top
        self._count: int | None = None

    def considered(self, regions: int) -> int:
        """The share that is looked at, at least one."""
        return min(regions, math.ceil(self.top * regions) if self._count is None else self._count)

    def among(self, count: int) -> Self:
        """The same, but so many regions are looked at, whatever the pool is: it may be the front of a larger one."""
        made = copy.copy(self)
        made._count = count
        return made

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Choose among the highest scores, then by score."""
        noise, scores = region_noise(pool, generator), pool.column("score").astype(np.float64)
        order = ordered(scores, noise)
        front = order[: self.considered(len(pool))]
        account = budget.account(pool)
        vectors = matrix(pool.take(front), "features")
        earlier = vectors_of(labeled, "features", vectors.shape[1])
        most = len(budget.spend(pool, order))  # about as many will be taken
        chosen = self.pick(front, vectors, earlier, account, most, generator)
        left = np.ones(len(pool), dtype=bool)
        left[chosen] = False
        rest = order[left[order]]
        return np.concatenate([np.array(chosen, np.int64), account.take_all(rest)])

    @abstractmethod
    def pick(
        self,
        front: Rows,
        vectors: Vectors,
        labeled: Vectors,
        account: Account,
        most: int,
        generator: np.random.Generator,
    ) -> list[int]:
        """Take regions until the account is full, or nothing more is to be gained.

        Args:
            front: the rows that are looked at, by falling score.
            vectors: their features, ``(len(front), D)``.
            labeled: those of labeled regions that carry them, ``(L, D)``.
            account: takes rows.
            most: about as many will be taken.
            generator: for random choices.

        Returns:
            The rows that were taken, in order.
        """

    def steps(self, count: int, vectors: Vectors) -> Iterable[int]:
        """So many steps, each over all vectors, with a bar where that takes long."""
        steps = range(count)
        return progress(steps, self.name, transient=True) if count * vectors.size > _SLOW else steps


class Nearest:
    """The squared distance of each vector to the nearest center so far.

    Args:
        vectors: ``(n, D)``.
        centers: those that there are at first, ``(L, D)``.
    """

    def __init__(self, vectors: Vectors, centers: Vectors) -> None:
        self.vectors, self._lengths = vectors, _squared(vectors)
        self.squares = np.full(len(vectors), np.inf)
        """``(n,)`` float64, infinite where there is no center yet; -1 for a vector that is out."""
        for center in centers:
            self.add(center)

    def add(self, center: Vectors) -> None:
        """One more center, ``(D,)``."""
        sums = self._lengths + _squared(center[None])
        found = sums - 2 * (self.vectors @ center)
        found[found < _ROUNDING * sums] = 0  # what rounding leaves of two that are equal
        np.minimum(self.squares, found, out=self.squares)

    def drop(self, number: int) -> None:
        """Leave one out from here on."""
        self.squares[number] = -1


def _squared(vectors: Vectors) -> Floats:
    found: Floats = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return found
