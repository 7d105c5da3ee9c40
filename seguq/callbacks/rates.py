"""Learning rates that a callback sets in the place of the module's own schedulers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from seguq.core.checks import is_number
from seguq.core.errors import UsageError
from seguq.core.lightning import Callback


class RateCallback(Callback):
    """A callback that sets the learning rates; there can be one of them in a Trainer.

    Args:
        lr: the rate that it starts from, or one for each group of parameters; None: those of the optimizer, where a
            scheduler has begun already those that it comes from (`initial_lr`) or goes up to (`max_lr`).
    """

    def __init__(self, lr: float | Sequence[float] | None) -> None:
        super().__init__()
        rates = [lr] if is_number(lr) or isinstance(lr, str) or lr is None else list(lr)
        if lr is not None and not (rates and all(is_number(rate) and 0 < rate < math.inf for rate in rates)):
            raise UsageError(f"lr must be a number above 0, or one for each group of parameters, but is {lr!r}")
        self.lr = lr

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse another one beside it."""
        others = [
            type(other).__name__
            for other in trainer.callbacks
            if isinstance(other, RateCallback) or type(other).__name__ == "StochasticWeightAveraging"
        ]
        if stage == "fit" and len(others) > 1:
            raise UsageError(f"{' and '.join(others)} each set the learning rate: give the Trainer one of them")

    def _starting_rates(self, trainer: Any) -> list[float]:
        """The rates to start from, one for each group of parameters.

        Raises:
            UsageError: for another number of them.
        """
        groups = _groups(trainer)
        if self.lr is None:
            if trainer.global_step:
                return [float(group["lr"]) for group in groups]
            # a scheduler has set the rate of the first step by now: a warm-up some small part of what was asked for
            return [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]
        if is_number(self.lr):
            return [float(self.lr)] * len(groups)
        if len(self.lr) != len(groups):
            raise UsageError(f"lr has {len(self.lr)} rates, but the optimizers have {len(groups)} groups of parameters")
        return [float(rate) for rate in self.lr]

    def _warn_of_schedulers(self, trainer: Any, when: str) -> None:
        if trainer.lr_scheduler_configs:
            name = type(self).__name__
            warnings.warn(
                f"{name} sets the learning rate{when}: the module's own schedulers change nothing", stacklevel=3
            )


def _groups(trainer: Any) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def with_new_groups(trainer: Any, rates: Sequence[float]) -> list[float]:
    """The rates, and those of groups of parameters that were added since."""
    return [*rates, *(float(group["lr"]) for group in _groups(trainer)[len(rates) :])]


def set_rates(trainer: Any, rates: Sequence[float]) -> None:
    """Set the learning rate of each group of parameters."""
    for group, rate in zip(_groups(trainer), rates, strict=False):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)  # a compiled optimizer holds on to its tensor
        else:
            group["lr"] = rate
