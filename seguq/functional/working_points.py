"""Where to draw the line: what is accepted at a threshold of uncertainty, and what risk is left in it."""

from __future__ import annotations

from typing import SupportsFloat

import torch
from torch import Tensor

from seguq.core.errors import SeguqError


def risk_coverage_points(negatives: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and risk for each threshold: all that scores up to a bin is accepted, equal scores together.

    Args:
        negatives: counts of what is right by score, ``(..., n_bins)``, lowest score first; for errors between 0 and 1
            the sum of what they lack to 1.
        positives: counts of what is wrong, or the sum of the errors, the same shape.

    Returns:
        The accepted share of all, and the error rate in it, each ``(..., n_bins)`` from 0 to 1; the risk is NaN before
        the first bin that holds anything.

    Example:
        >>> risk_coverage_points(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0]))
        (tensor([0.5000, 0.7500, 1.0000]), tensor([0.2500, 0.3333, 0.5000]))
    """
    accepted, wrong = (negatives + positives).cumsum(-1), positives.cumsum(-1)
    return accepted / accepted[..., -1:], wrong / accepted


def working_bin(
    negatives: Tensor, positives: Tensor, *, coverage: float | None = None, risk: float | None = None
) -> int | None:
    """The bin up to which scores are accepted, for a coverage or for a risk.

    Args:
        negatives: as in `risk_coverage_points`, ``(n_bins,)``.
        positives: the same.
        coverage: the least threshold at which at least this share is accepted.
        risk: the greatest threshold at which the error rate among what is accepted is at most this. The risk need not
            grow with the threshold: smaller ones may not keep to it.

    Returns:
        A bin that is not empty, or None where none keeps to it.

    Raises:
        SeguqError: unless one of the two is given, from 0 to 1.

    Example:
        >>> right, wrong = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 2.0])
        >>> [working_bin(right, wrong, risk=most) for most in (0, 0.3)], working_bin(right, wrong, coverage=0.6)
        ([None, 0], 1)
    """
    wanted = risk if coverage is None else coverage
    if (coverage is None) == (risk is None) or not isinstance(wanted, SupportsFloat) or not 0 <= wanted <= 1:
        raise SeguqError(f"give coverage= or risk=, from 0 to 1, not coverage={coverage!r} and risk={risk!r}")
    covered, left = risk_coverage_points(negatives, positives)
    filled = negatives + positives > 0
    # one part in 1e12 for rounding
    kept = covered >= wanted - 1e-12 if coverage is not None else left <= wanted + 1e-12
    found = torch.nonzero(kept & filled).flatten()
    if not len(found):
        return None
    return int(found[0] if coverage is not None else found[-1])
