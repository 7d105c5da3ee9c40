"""Sums of probabilities, each kept as its logarithm where it is too small for a float.

What is below 0 is the logarithm of a sum, what is not is the sum. A class that every sample rules out so keeps its
likelihood: float32 ends at 1e-38, where a class is 87 nats behind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RULED_OUT = -1e4  # a class so far below the first has no share in any precision, and its product with 0 must be 0
LOWEST = -60.0
"""The logarithm below which a sum is kept as one: far above where digits are lost, far below what matters as a sum."""


def add_small(sums: Tensor, new: Tensor, shrink: float, logs: Tensor) -> None:
    """Set sums to new ones, in place, of which those that are or were small are found from logarithms.

    Args:
        sums: as they were.
        new: ``shrink`` times the old ones, and what is added, as floats.
        shrink: from 0 to 1.
        logs: the logarithms of what is added.
    """
    logs = torch.logaddexp(log_of(sums).add_(math.log(shrink) if shrink else -math.inf), logs)
    new = torch.where(sums < 0, logs.exp(), new)
    sums.copy_(torch.where(logs < LOWEST, logs, new))


def sum_of(sums: Tensor) -> Tensor:
    """The sums as such: 0 for those that are kept as logarithms."""
    return sums.clamp_min(0)


def log_of(sums: Tensor) -> Tensor:
    """The logarithms of the sums."""
    return torch.where(sums < 0, sums, sums.log())
