"""Two strategies side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.budget import Budget
from seguq.acquisition.strategy import Labeled, Rows, Strategy, interleaved
from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class Mixed(Strategy):
    """A share of the budget by one strategy, the rest by another, which counts what the first has chosen as labeled.

    Args:
        share: of the first.
        a: the first.
        b: the second.

    Raises:
        UsageError: unless ``share`` is a number from 0 to 1, and the others are strategies.

    Example:
        >>> from seguq.acquisition import Random, TopK
        >>> Mixed(0.75, TopK(), Random())
        Mixed(share=0.75, a=TopK(), b=Random())
    """

    def __init__(self, share: float, a: Strategy, b: Strategy) -> None:
        if not (is_number(share) and 0 <= share <= 1):
            raise UsageError(f"share of Mixed must be a number from 0 to 1, but is {share!r}")
        for name, strategy in (("a", a), ("b", b)):
            if not isinstance(strategy, Strategy):
                raise UsageError(f"{name} of Mixed must be a strategy such as TopK(), but is {strategy!r}")
        self.share, self.a, self.b = share, a, b
        self.needs = tuple(dict.fromkeys((*a.needs, *b.needs)))

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """By the first, then by the second from what is left."""
        first = self.a.choose(pool, budget.part(self.share * budget.room), labeled, generator)
        others = np.setdiff1d(np.arange(len(pool)), first)
        second = np.zeros(0, np.int64)
        if len(others):
            now_labeled = [*labeled, *pool.take(first).rows()]
            rest = budget.after(pool, first)
            second = others[self.b.choose(pool.take(others), rest, now_labeled, generator)]
        return interleaved([first, second])

    def considered(self, regions: int) -> int:
        """What either of them looks at."""
        return max(self.a.considered(regions), self.b.considered(regions))

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Either of them."""
        return [f"by {self.a.name} or {self.b.name}"] * len(rows)
