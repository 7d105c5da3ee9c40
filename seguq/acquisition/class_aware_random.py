"""Regions by chance, but no class is forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import Floats, draw_seed, uniform_of
from seguq.acquisition.strategy import Labeled, Rows, Strategy, matrix
from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.regions import RegionTable

_UNIFORM, _TURNS = 4, 6


class ClassAwareRandom(Strategy):
    """Four in six regions by chance, one of a random class, one at the border of a random class.

    The first are drawn by their area, as a random pixel would; the second hold a random pixel that is predicted as a
    random foreground class (drawn by ``class_shares`` times area); the third are some, but not all, of that class.
    It takes no notice of scores: a strategy that does has to beat this one, too.

    Args:
        background: the class that is none of the foreground; None: all classes are.

    Raises:
        UsageError: unless that is the number of a class or None.

    References:
        nnActive, 2025.

    Example:
        >>> ClassAwareRandom(background=None)
        ClassAwareRandom(background=None)
    """

    needs = ("class_shares",)

    def __init__(self, background: int | None = 0) -> None:
        if background is not None and not is_whole(background, 0):
            raise UsageError(
                f"background of ClassAwareRandom must be the number of a class or None, but is {background!r}"
            )
        self.background = background

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Draw one after the other."""
        shares, area, seed = matrix(pool, "class_shares"), pool.column("area").astype(np.float64), draw_seed(generator)
        classes = [c for c in range(shares.shape[1]) if c != self.background and (shares[:, c] > 0).any()]
        account, taken = budget.account(pool), np.zeros(len(pool), dtype=bool)
        queues: dict[tuple[str, int], Iterator[int]] = {}
        chosen: list[int] = []

        def following(kind: str, number: int) -> int | None:
            """The next region of a kind that was not drawn by another."""
            if (kind, number) not in queues:
                share = shares[:, number].astype(np.float64)
                weights = {"any": area, "class": area * share, "border": area * ((share > 0) & (share < 1))}[kind]
                noise = uniform_of(pool, seed, 3 * number + ("any", "class", "border").index(kind))
                queues[kind, number] = iter(_drawn(weights, noise).tolist())
            return next((row for row in queues[kind, number] if not taken[row]), None)

        while not account.full:
            turn = int(generator.integers(_TURNS))
            row = None
            if turn >= _UNIFORM and classes:
                number = classes[int(generator.integers(len(classes)))]
                row = following("class" if turn == _UNIFORM else "border", number)
            row = following("any", 0) if row is None else row
            if row is None:
                break
            taken[row] = True
            if account.take(row):
                chosen.append(row)
        return np.array(chosen, np.int64)

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """There is none."""
        return ["by chance, with an eye on classes"] * len(rows)


def _drawn(weights: Floats, noise: Floats) -> Rows:
    """Rows as they are drawn without replacement, each with a probability of its weight; those of none are left out."""
    rows = np.flatnonzero(weights > 0)
    return rows[np.argsort(-np.log(noise[rows]) / weights[rows], kind="stable")]
