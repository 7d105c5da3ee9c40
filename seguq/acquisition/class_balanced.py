"""The predicted classes in turn."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np

from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import region_noise
from seguq.acquisition.strategy import Labeled, Rows, Strategy, ordered, predicted_classes
from seguq.regions import RegionTable


class ClassBalanced(Strategy):
    """The class with the fewest regions so far is next, with its best-scored region.

    Regions so far are those that are labeled already and those that were chosen before; the class of each is the one
    that the model predicts, or predicted then. Of classes with equally many, the one with the highest score is next.

    Example:
        >>> ClassBalanced()
        ClassBalanced()
    """

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Take turns until the budget is spent."""
        classes, account = predicted_classes(pool), budget.account(pool)
        scores, noise = pool.column("score").astype(np.float64), region_noise(pool, generator)
        order = ordered(scores, noise)
        so_far = Counter(int(row["predicted_class"]) for row in labeled if row["predicted_class"] is not None)
        queues = {number: order[classes[order] == number].tolist()[::-1] for number in np.unique(classes).tolist()}
        turns = [(so_far[number], -scores[queue[-1]], noise[queue[-1]], number) for number, queue in queues.items()]
        heapq.heapify(turns)
        chosen: list[int] = []
        while turns and not account.full:
            count, _, _, number = heapq.heappop(turns)
            row = queues[number].pop()
            if account.take(row):
                chosen.append(row)
                count += 1
            if queues[number]:
                following = queues[number][-1]
                heapq.heappush(turns, (count, -scores[following], noise[following], number))
        return np.array(chosen, np.int64)

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Its class had the fewest regions."""
        return ["best of its class, whose turn it was"] * len(rows)
