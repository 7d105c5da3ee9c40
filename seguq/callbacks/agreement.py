"""What goes wrong on one process goes wrong on all, so that none waits for another that has given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from seguq.core.errors import SeguqError


def together(trainer: Any, module: Any, function: Callable[[], object], *, first_only: bool = False) -> None:
    """Run a function on every process; go on when all have done it, or raise on all of them.

    Args:
        trainer: the Trainer.
        module: the LightningModule.
        function: called without arguments.
        first_only: run it on the first process, while the others wait.

    Raises:
        SeguqError: on a process that did its part, if another has failed; that one raises its own error.
    """
    error = None
    if trainer.is_global_zero or not first_only:
        try:
            function()
        except Exception as failure:
            error = failure
    if trainer.world_size > 1:
        failed = torch.tensor(float(error is not None), device=module.device)
        failed = trainer.strategy.reduce(failed, reduce_op="sum")
        if error is None and bool(failed):
            raise SeguqError("another process has failed, and says why")
    if error is not None:
        raise error
