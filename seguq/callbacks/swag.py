"""Collecting the weights of the last part of a training, for `seguq.SWAG`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from seguq.calibration.checkpoint import KEY, section
from seguq.callbacks.hooks import listen
from seguq.callbacks.rates import RateCallback, set_rates, with_new_groups
from seguq.core.checks import is_number, require_count
from seguq.core.errors import SeguqError, UsageError
from seguq.core.log import logger
from seguq.core.reading import listing, mapping, number, reading, text, whole
from seguq.inference.moments import WeightMoments, with_statistics

_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class SWAG(RateCallback):
    """Collects mean, variance and last deviations of the weights along a training, and puts them into checkpoints.

    From ``start`` on the learning rate is held constant, and the weights at the end of each epoch (before its
    validation) are taken in. Every checkpoint that the training writes from then on, those of ``save_weights_only``
    too, has what was collected until then, for `seguq.SWAG`; the weights in it stay those of the training. One that is
    asked for after the training, ``trainer.save_checkpoint(path)``, has it as well, but not with ``weights_only=True``.
    A training that is resumed goes on collecting.

    In memory, and in each checkpoint, this is (2 + ``rank``) times the parameters in training: a ``rank`` of 20 makes a
    checkpoint of 50 MB one of a gigabyte. Parameters that never move, as those of a frozen encoder, are held once.

    Args:
        start: a part of the training between 0 and 1 (0.75: the last quarter), or an epoch, counted from 0.
        rank: the number of last deviations, K, at least 2; 0 for a diagonal covariance.
        lr: the constant learning rate, or one for each group of parameters; it should be high enough for the weights
            to move about, for SGD usually 0.01 to 0.05. None: the rates at ``start``; where that is the first step,
            those that the optimizer was made with.
        every_n_steps: collect after so many optimizer steps, in place of the end of each epoch: for few long epochs.

    Raises:
        UsageError: for wrong arguments, beside another callback that sets the rate, or with a strategy that shards
            the parameters.

    References:
        Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, 2019, section 3.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(max_epochs=40, callbacks=[SWAG()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        start: int | float = 0.75,
        rank: int = 20,
        lr: float | Sequence[float] | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(lr)
        if not is_number(start) or start < 0 or (isinstance(start, float) and start >= 1):
            raise UsageError(
                "start must be a part of the training, from 0. to below 1., or the number of an epoch, "
                f"but is {start!r}"
            )
        if every_n_steps is not None:
            require_count("every_n_steps", every_n_steps)
        self.start = start
        self.rank = rank
        self.every_n_steps = every_n_steps
        self.moments = WeightMoments(rank)
        """What was collected so far, on the first process; `WeightMoments`."""
        self._rates: list[float] | None = None
        self._step_collected = 0
        self._statistics: set[str] = set()
        self._restored = False
        self._undo: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or not, takes part in no run."""
        return {**vars(self), "_undo": None}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take part in what is saved."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        found = {parent.__name__ for parent in type(trainer.strategy).__mro__}
        if any(name in found for name in _SHARDING):
            raise UsageError(
                f"SWAG needs all weights on each process, but {type(trainer.strategy).__name__} shards them: "
                "train with strategy='ddp' or on one device"
            )
        self._end()
        self._restored = False
        self._undo = listen(pl_module, "on_save_checkpoint", self._save)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was found."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was found."""
        self._end()

    def _end(self) -> None:
        if self._undo is not None:
            self._undo()
        self._undo = None

    # ---- what is saved ----

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take part in what is saved after training, too."""
        self._save(checkpoint)

    def _save(self, checkpoint: dict[str, Any]) -> None:
        if self._rates is None:
            return
        held = {**self.moments.state(), "lr": list(self._rates), "step": self._step_collected}
        held["statistics"] = sorted(self._statistics)
        checkpoint[KEY] = {**section(checkpoint), "swag": held}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on where a training was cut off."""
        held = section(checkpoint).get("swag")
        if held is None or trainer.state.fn != "fit":
            return
        with reading("what the checkpoint holds for SWAG"):
            moments = WeightMoments.from_state(mapping(held, "its content"))
            rates = [number(rate, "a learning rate", 0) for rate in listing(held["lr"], "'lr'")]
            step = whole(held["step"], "'step'", 0)
            statistics = {text(name, "a layer") for name in listing(held["statistics"], "'statistics'")}
        if moments.rank != self.rank:
            raise UsageError(
                f"the checkpoint was written by SWAG(rank={moments.rank}): resume with that rank, not {self.rank}"
            )
        self.moments = moments if trainer.is_global_zero else WeightMoments(self.rank)
        self._rates, self._step_collected, self._statistics = rates, step, statistics
        self._restored = True

    # ---- training ----

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew in a new training; fail now where it is not known when to begin, or how fast to go."""
        if not self._restored and not trainer.global_step:  # a Trainer that fits again goes on
            self.moments, self._rates, self._step_collected = WeightMoments(self.rank), None, 0
            self._statistics = set()
        if isinstance(self.start, float) and not any(math.isfinite(end) for end in _ends(trainer)):
            raise UsageError(
                f"SWAG(start={self.start}) is a part of a training whose end is not known: give the Trainer max_epochs "
                "or max_steps, or give SWAG the number of an epoch, such as start=20"
            )
        self._starting_rates(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Hold the learning rate, once it is time."""
        if self._rates is None:
            if not self._is_time(trainer, batch_idx):
                return
            self._rates = self._starting_rates(trainer)
            self._step_collected = trainer.global_step
            self._warn_of_schedulers(trainer, " from here on")
        self._rates = with_new_groups(trainer, self._rates)
        set_rates(trainer, self._rates)

    def _is_time(self, trainer: Any, batch_idx: int) -> bool:
        if not isinstance(self.start, float):
            return bool(trainer.current_epoch >= self.start)
        epochs, steps = _ends(trainer)
        inside = batch_idx / trainer.num_training_batches
        return bool(max((trainer.current_epoch + inside) / epochs, trainer.global_step / steps) >= self.start)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the weights in, where it is their turn."""
        if self._rates is None:
            return
        since = trainer.global_step - self._step_collected
        due = trainer.is_last_batch if self.every_n_steps is None else since >= self.every_n_steps
        if not due or not since:
            return
        self._step_collected = trainer.global_step
        # those of a part that is frozen in evaluation mode belong to its weights, and are not to be renewed
        self._statistics |= {
            name.replace("_orig_mod.", "") for name, layer in with_statistics(pl_module) if layer.training
        }
        if trainer.is_global_zero:
            try:
                self.moments.add(pl_module)
            except SeguqError as error:
                warnings.warn(f"SWAG leaves out the weights of step {trainer.global_step}: {error}", stacklevel=2)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what there is."""
        if not trainer.is_global_zero:
            return
        if self.moments.count < 2:
            warnings.warn(
                f"SWAG collected the weights of {self.moments.count} moments of this training, but needs 2 at least, "
                "and better 20: train for longer, begin earlier (start=) or collect more often (every_n_steps=)",
                stacklevel=2,
            )
        else:
            logger.info("SWAG: the weights of %d moments of this training were collected", self.moments.count)


def _ends(trainer: Any) -> tuple[float, float]:
    """Epochs and optimizer steps of a training, one of them at least infinite where it is not known."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return (math.inf if epochs in (None, -1) else epochs), (math.inf if steps in (None, -1) else steps)
