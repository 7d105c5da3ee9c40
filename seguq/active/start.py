"""What is labeled first, by chance or by features; and every class twice where labels are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Budget, Strategy
from seguq.acquisition.noise import image_hashes, region_noise, uniform
from seguq.acquisition.selection import box_of
from seguq.acquisition.strategy import Labeled, Rows
from seguq.regions import RegionTable
from seguq.regions.rle import region_mask

Truth = Callable[[str], npt.NDArray[Any]]

_EACH = 2
_LEAST = 0.1  # share of a region's pixels


class _EveryClassTwice(Strategy):
    """Two regions of each class where the labels are known beforehand, then what another strategy takes.

    A region is of a class that has at least a tenth of its pixels. Images are gone through by chance until every class
    has two.

    Args:
        then: takes the rest of the budget.
        truth: the mask of an image.
        classes: how many classes there are.

    References:
        nnActive, 2025: a start set with every class at least twice.
    """

    def __init__(self, then: Strategy, truth: Truth, classes: int) -> None:
        self.then, self.truth, self.classes = then, truth, classes
        self.needs = then.needs

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Two of each class, and the rest."""
        noise, (numbers, ids) = region_noise(pool, generator), pool.image_numbers()
        seed = int(generator.integers(0, 2**63))
        chance = uniform(image_hashes(ids.to_pylist()), np.zeros(len(ids), np.int64), seed)
        account, found, chosen = budget.account(pool), np.zeros(self.classes, np.int64), []
        order = np.argsort(numbers, kind="stable")
        begins = np.searchsorted(numbers[order], np.arange(len(ids) + 1))
        for image in np.argsort(chance).tolist():
            rows = order[begins[image] : begins[image + 1]]
            rows = rows[np.argsort(noise[rows])]
            truth = np.asarray(self.truth(ids[image].as_py()))
            for row, content in zip(rows.tolist(), pool.take(rows).rows(), strict=True):
                y0, x0, y1, x1 = box_of(content)
                inside = truth[y0:y1, x0:x1][region_mask(content)]
                shares = np.bincount(inside[(inside >= 0) & (inside < self.classes)], minlength=self.classes)
                has = shares >= _LEAST * max(len(inside), 1)
                if (has & (found < _EACH)).any() and account.take(row):
                    found += has
                    chosen.append(row)
            if (found >= _EACH).all() or account.full:
                break
        first = np.array(chosen, np.int64)
        rest = np.setdiff1d(np.arange(len(pool)), first)
        if not len(rest):
            return first
        others = self.then.choose(pool.take(rest), budget.after(pool, first), labeled, generator)
        return np.concatenate([first, rest[others]])

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Those of the first labels."""
        return ["first labels"] * len(rows)

    def __repr__(self) -> str:
        return f"two of each class, then {self.then!r}"
