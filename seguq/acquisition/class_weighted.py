"""Scores that count more in rare classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from seguq.acquisition.best_of_each_image import BestOfEachImage
from seguq.acquisition.budget import Budget
from seguq.acquisition.noise import Floats
from seguq.acquisition.power_top_k import require_not_negative
from seguq.acquisition.strategy import Labeled, Rows, Strategy, matrix, predicted_classes
from seguq.core.checks import is_number, require_choice
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class ClassWeighted(Strategy):
    r"""Another strategy on scores that are multiplied by a weight of the region's class.

    ``"share"``: :math:`\exp(-s_c)` for a region that is mostly predicted as :math:`c`, with :math:`s_c` the share of
    such regions in the pool. ``"probability"``: the mean over a region's pixels of :math:`(\nu \bar p_c + 1)^{-2}`,
    with c the class that is predicted there, and :math:`\bar p_c` its mean probability over all pixels of the pool
    (columns ``class_shares`` and ``class_probs``); with scores that are margins, the acquisition of PixBal.

    Args:
        form: of the weight.
        nu: how strong the second form is.
        strategy: what chooses by the weighted scores; None: the best of each image.

    Raises:
        UsageError: for another form, a ``nu`` that is no number of at least 0, or what is no strategy; when it chooses,
            if a score is negative.

    References:
        Cai et al., Revisiting Superpixels for Active Learning in Semantic Segmentation, 2021, for the first form;
        PixBal, 2023, for the second.

    Example:
        >>> ClassWeighted("probability", nu=12.0)
        ClassWeighted(form='probability', nu=12.0)
    """

    def __init__(
        self, form: Literal["share", "probability"] = "share", nu: float = 6.0, strategy: Strategy | None = None
    ) -> None:
        require_choice("form of ClassWeighted", form, ("share", "probability"))
        if not (is_number(nu) and math.isfinite(nu) and nu >= 0):
            raise UsageError(f"nu of ClassWeighted must be a number of at least 0, but is {nu!r}")
        if not (strategy is None or isinstance(strategy, Strategy)):
            raise UsageError(f"strategy of ClassWeighted must be one such as TopK(), but is {strategy!r}")
        self.form, self.nu, self.strategy = form, nu, strategy
        own = ("class_shares", "class_probs") if form == "probability" else ()
        self.needs = tuple(dict.fromkeys((*own, *self._inner.needs)))

    @property
    def _inner(self) -> Strategy:
        return BestOfEachImage() if self.strategy is None else self.strategy

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """By the other strategy, on weighted scores."""
        return self._inner.choose(self._weighted(pool), budget, labeled, generator)

    def considered(self, regions: int) -> int:
        """What the other looks at."""
        return self._inner.considered(regions)

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Those of the other."""
        return [f"{reason}, by class weights" for reason in self._inner.reasons(self._weighted(pool), rows)]

    def weights(self, pool: RegionTable) -> Floats:
        """The weight of each region, ``(rows,)``."""
        if self.form == "share":
            classes = predicted_classes(pool)
            _, of_row, counts = np.unique(classes, return_inverse=True, return_counts=True)
            found: Floats = np.exp(-counts / len(pool))[of_row]
            return found
        shares, probs = (matrix(pool, name).astype(np.float64) for name in ("class_shares", "class_probs"))
        area = pool.column("area").astype(np.float64)
        of_pool = area @ probs / max(float(area.sum()), 1.0)
        weighted: Floats = shares @ (self.nu * of_pool + 1) ** -2
        return weighted

    def _weighted(self, pool: RegionTable) -> RegionTable:
        scores = pool.column("score").astype(np.float64)
        require_not_negative("ClassWeighted", scores)
        place = pool.table.column_names.index("score")
        table = pool.table.set_column(place, "score", pa.array(scores * self.weights(pool)))
        return RegionTable(table, pool.meta)
