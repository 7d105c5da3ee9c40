"""ClaSP: what each class is confused with, by turns, with less and less chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import draw_seed, gumbel, region_noise, uniform_of
from seguq.acquisition.strategy import Labeled, Rows, Strategy, interleaved, matrix, ordered
from seguq.core.checks import is_whole
from seguq.core.errors import UsageError
from seguq.regions import RegionTable

_BY_CLASS = 0.66


class ClaSP(Strategy):
    r"""Two thirds of the budget split evenly over the foreground classes, the rest by the plain score.

    A class's regions are ranked by the mean of :math:`H(p)\, p_c` over their pixels (``class_scores`` of the table),
    with power noise as in `PowerTopK`: :math:`\log s_c + g / \beta_r`, where :math:`\beta_r = 100^{r / (R - 1)}` grows
    from 1 in the first round to 100 in the last. A class takes nothing where its score is 0, and what a class leaves
    goes to those after it. The rest, 34 %, has the highest scores, without noise. No region is taken twice.

    Args:
        round: number of this round, from 0.
        rounds: how many there will be.
        background: the class that is none of the foreground; None: all classes share.

    Raises:
        UsageError: unless ``round`` is one of ``0 .. rounds - 1``; when it chooses, if ``background`` is no class.

    References:
        ClaSP PE, Class-stratified scheduled power predictive entropy, 2026.

    Example:
        >>> ClaSP(round=1, rounds=5).beta
        3.1622776601683795
    """

    needs = ("class_scores",)

    def __init__(self, round: int = 0, rounds: int = 5, background: int | None = 0) -> None:
        if not is_whole(rounds, 1) or not is_whole(round, 0) or round >= rounds:
            raise UsageError(
                f"ClaSP needs whole numbers round= from 0 to rounds= - 1, but has round={round!r}, rounds={rounds!r}"
            )
        if background is not None and not is_whole(background, 0):
            raise UsageError(f"background of ClaSP must be the number of a class or None, but is {background!r}")
        self.round, self.rounds, self.background = round, rounds, background

    @property
    def beta(self) -> float:
        """The exponent of this round."""
        return float(100 ** (self.round / max(1, self.rounds - 1)))

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """A share of the budget for each class, and the rest for the highest scores."""
        by_class = matrix(pool, "class_scores")
        if self.background is not None and self.background >= by_class.shape[1]:
            raise UsageError(
                f"there is no class {self.background}, the background of ClaSP: there are {by_class.shape[1]}"
            )
        classes = [number for number in range(by_class.shape[1]) if number != self.background]
        noise, seed = region_noise(pool, generator), draw_seed(generator)
        left, taken = np.ones(len(pool), dtype=bool), [np.zeros(0, np.int64)]
        rest, whole = budget, budget.room
        for turn, number in enumerate(classes, 1):
            scores = by_class[:, number].astype(np.float64)
            rows = np.flatnonzero(left & (scores > 0))
            chance = uniform_of(pool, seed, number)[rows]
            ranked = rows[ordered(np.log(scores[rows]) + gumbel(chance) / self.beta, chance)]
            may = rest.part(rest.room - whole * (1 - _BY_CLASS * turn / len(classes)))
            taken.append(may.spend(pool, ranked))
            left[taken[-1]] = False
            rest = rest.after(pool, taken[-1])
        rows = np.flatnonzero(left)
        ranked = rows[ordered(pool.column("score")[rows].astype(np.float64), noise[rows])]
        return interleaved([*taken, rest.spend(pool, ranked)])

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """By class, or by score."""
        return ["uncertain for its class or in all"] * len(rows)
