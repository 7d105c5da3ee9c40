"""The most uncertain regions, with chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seguq.acquisition.noise import Floats, gumbel
from seguq.acquisition.strategy import Keyed, Rows
from seguq.core.errors import UsageError
from seguq.regions import RegionTable


class PowerTopK(Keyed):
    r"""Regions drawn without replacement, each with a probability that grows with a power of its score.

    The highest scores of a pool are often alike, and one of them says what the others would: a bit of chance spreads
    the labels. Regions are taken by falling :math:`\log s + g`, with :math:`g` from a Gumbel distribution of scale
    :math:`1/\beta`; each next one is then :math:`i` with probability :math:`s_i^\beta / \sum_j s_j^\beta` over those
    that are left. Scores of 0 come last, in random order.

    Args:
        beta: a large one is close to `TopK`, a small one to `Random`.

    Raises:
        UsageError: unless it is a number above 0; when it ranks, if a score is negative.

    References:
        Kirsch et al., Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning, 2023 (the power
        acquisition of 2021), sec. 3.

    Example:
        >>> PowerTopK(beta=8.0)
        PowerTopK(beta=8.0)
    """

    def __init__(self, beta: float = 1.0) -> None:
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not (math.isfinite(beta) and beta > 0):
            raise UsageError(f"beta of PowerTopK must be a number above 0, but is {beta!r}")
        self.beta = beta

    def key(self, scores: Floats, noise: Floats) -> Floats:
        """Log-scores with noise."""
        require_not_negative("PowerTopK", scores)
        with np.errstate(divide="ignore"):  # of scores of 0
            return np.log(scores) + gumbel(noise) / self.beta

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """The score, and chance."""
        return ["drawn by its score"] * len(rows)


def require_not_negative(strategy: str, scores: Floats) -> None:
    """Raise for negative scores, of which there are no powers, and which a weight below 1 would raise."""
    if len(scores) and scores.min() < 0:
        raise UsageError(
            f"{strategy} multiplies scores, but there is one of {scores.min():.4g}: score by a measure that is never "
            "negative, such as predictive_entropy, or select by TopK"
        )
