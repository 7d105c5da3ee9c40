"""Snapshot ensembles: several models from one training, by a learning rate that comes down and is set up again."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from seguq.callbacks.agreement import together
from seguq.callbacks.rates import RateCallback, set_rates, with_new_groups
from seguq.core.checks import require_choice, require_count
from seguq.core.errors import UsageError
from seguq.core.files import file_sha256, remove_leftovers
from seguq.core.lightning import whole_checkpoints
from seguq.core.locks import Lock
from seguq.core.log import logger
from seguq.core.reading import listing, mapping, number, reading, text, whole
from seguq.store.writer import writing


class Snapshots(RateCallback):
    r"""Trains in cycles, and keeps the model at the end of each: the members of an ensemble for the price of one.

    In each cycle the learning rate comes down from its first value by a half cosine, step by step, and is then set up
    again, so that the next cycle leaves for another minimum:

    .. math:: \alpha(t) = \tfrac{\alpha_0}{2} \left(\cos(\pi p) + 1\right), \qquad
              p = \frac{\text{steps done in the cycle}}{\text{steps of the cycle}}

    In a ``fast_dev_run`` it does nothing. The files hold weights only (and the calibrator of a `Calibrate` beside it;
    not the average that an ``EMAWeightAveraging`` keeps), each those of another cycle::

        snapshots = Snapshots("snapshots", cycles=5, keep=3, monitor="val/loss")
        Trainer(max_epochs=100, callbacks=[snapshots]).fit(module, data)
        estimator = seguq.DeepEnsemble(snapshots.paths, model=module)

    Args:
        dir: where the files go, ``snapshot-1.ckpt`` and so on; files that are there stay, and the new ones get
            other names then. The files of cycles that are not among the best are removed.
        cycles: number of cycles, M, of equally many epochs; the Trainer's ``max_epochs`` ends the last one.
        keep: how many to keep, k, the best ones; None: all.
        monitor: name of a logged value that tells which are the best; None: the last ones are.
        mode: whether a small (``"min"``) or a large (``"max"``) value is good.
        lr: the rate that each cycle begins with, or one for each group of parameters: well above what one would train
            with otherwise (the authors take 0.2 for SGD). None: the rates that the optimizer was made with, or the
            highest ones of a one-cycle schedule.

    Raises:
        UsageError: for wrong arguments, a training without ``max_epochs``, with fewer epochs than cycles, or a value
            that is not logged.

    References:
        Huang et al., Snapshot Ensembles: Train 1, Get M for Free, 2017, eq. 2.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> callbacks = [Snapshots("snapshots", cycles=4)]
        >>> trainer = Trainer(max_epochs=40, callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        dir: str | os.PathLike[str],
        cycles: int = 5,
        keep: int | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        lr: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(lr)
        require_count("cycles", cycles)
        if keep is not None:
            require_count("keep", keep)
        require_choice("mode", mode, ("min", "max"))
        self.dir = Path(dir)
        self.cycles = cycles
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self._lock: Lock | None = None
        self._at_rest()

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or not, holds no folder."""
        return {**vars(self), "_lock": None}

    def _at_rest(self) -> None:
        self._rates: list[float] | None = None
        self._kept: list[tuple[str, int, float]] = []  # file in the folder, number of the cycle from 1, value
        self._hashes: dict[str, str] = {}  # of their contents: what has another is somebody else's
        self._ended: list[int] = []  # the cycles whose end was seen, also of those that are not kept
        self._epochs: int | None = None
        self._value: float | None = None
        self._validated = False
        self._restored = False

    @property
    def paths(self) -> list[Path]:
        """The files that are kept, the best one first; without ``monitor`` the last one first."""
        return [self.dir / name for name, _, _ in self._ranked()]

    def _ranked(self) -> list[tuple[str, int, float]]:
        def rank(item: tuple[str, int, float]) -> tuple[bool, float, int]:
            _, cycle, value = item
            return math.isnan(value), value if self.mode == "min" else -value, -cycle

        return sorted(self._kept, key=rank)

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed has to know."""
        kept = [list(item) for item in self._kept]
        return {
            "rates": self._rates,
            "kept": kept,
            "hashes": {name: self._hashes.get(name, "") for name, _, _ in self._kept},
            "ended": list(self._ended),
            "epochs": self._epochs,
            "value": self._value,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a training was cut off."""
        with reading("what the checkpoint holds for Snapshots"):
            rates, epochs, value = (state_dict[name] for name in ("rates", "epochs", "value"))
            ended = [whole(cycle, "a cycle", 0) for cycle in listing(state_dict["ended"], "'ended'")]
            if rates is not None:
                rates = [number(rate, "a learning rate", 0) for rate in listing(rates, "'rates'")]
            # names alone: what a file says must not lead out of the folder
            kept = [
                (Path(text(name, "a name")).name, whole(cycle, "a cycle", 0), number(found, "a value"))
                for name, cycle, found in listing(state_dict["kept"], "'kept'")
            ]
            hashes = {
                text(name, "a name"): text(value, "a hash")
                for name, value in mapping(state_dict["hashes"], "'hashes'").items()
            }
            epochs = None if epochs is None else whole(epochs, "'epochs'", 1)
            value = None if value is None else number(value, "'value'")
        self._restored = True
        self._epochs, self._value, self._ended, self._rates = epochs, value, ended, rates
        self._hashes = hashes
        self._kept = [item for item in kept if self._is_own(item[0])]
        for item in kept:
            if item not in self._kept:
                warnings.warn(
                    f"{self.dir / item[0]} is gone: it will not be in the ensemble"
                    if not (self.dir / item[0]).is_file()
                    else f"{self.dir / item[0]} is not the file that this training wrote: it stays, and will not be in "
                    "the ensemble",
                    stacklevel=2,
                )

    def _is_own(self, name: str) -> bool:
        path = self.dir / name
        return path.is_file() and file_sha256(path) == self._hashes.get(name)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Fail now where the training cannot be cut into cycles."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:
            return
        epochs = trainer.max_epochs
        if epochs in (None, -1) or epochs < self.cycles:
            found = "has no end" if epochs in (None, -1) else f"has {epochs}"
            raise UsageError(
                f"Snapshots(cycles={self.cycles}) needs at least one epoch a cycle, but the training {found}: give the "
                f"Trainer max_epochs={10 * self.cycles}, say"
            )
        if self.dir.exists() and not self.dir.is_dir():
            raise UsageError(f"{self.dir} is a file: give Snapshots a folder")
        self._restored = False

    def _hold(self) -> None:
        """Keep other trainings out of the folder: they would find the same names free."""
        with writing("Snapshots"):
            self.dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.dir)
        self._lock = Lock(self.dir)
        self._lock.take()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let others into the folder."""
        self._let_go()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let others into the folder."""
        self._let_go()

    def _bounds(self, trainer: Any) -> list[int]:
        """The epochs, counted from 0, that cycles begin with, and the end."""
        return [round(trainer.max_epochs * i / self.cycles) for i in range(self.cycles + 1)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the rates that each cycle begins with; fail now where the steps of a cycle are not known."""
        if trainer.fast_dev_run:
            return
        together(trainer, pl_module, self._hold, first_only=True)
        if not self._restored and not trainer.global_step:  # a Trainer that fits again goes on
            self._at_rest()
        if self._epochs not in (None, trainer.max_epochs):
            raise UsageError(
                f"the training was cut into {self.cycles} cycles of {self._epochs} epochs: resume with "
                f"max_epochs={self._epochs}, or begin another training from its weights"
            )
        if not math.isfinite(trainer.num_training_batches):
            raise UsageError(
                "Snapshots needs to know the batches of an epoch, but the training loader has no length: give the "
                "Trainer limit_train_batches, a whole number"
            )
        self._epochs = trainer.max_epochs
        self._rates = self._starting_rates(trainer) if self._rates is None else self._rates
        ended = [cycle for cycle, end in enumerate(self._bounds(trainer)) if cycle and end <= trainer.current_epoch]
        for cycle in sorted(set(ended) - set(self._ended)):
            warnings.warn(
                f"the snapshot of cycle {cycle} is not in the ensemble, as the checkpoint was written just before it "
                f"was taken: add its file in {self.dir} by hand, if it is there",
                stacklevel=2,
            )
        self._warn_of_schedulers(trainer, "")
        every = trainer.check_val_every_n_epoch
        if self.monitor is not None and trainer.enable_validation and every and every > 1:
            unseen = [end for end in self._bounds(trainer)[1:] if end % every]
            if unseen:
                warnings.warn(
                    f"{self.monitor!r} is that of an earlier epoch where a cycle ends without a validation, as after "
                    f"{unseen[0]} epochs: make the epochs of a cycle a multiple of check_val_every_n_epoch={every}",
                    stacklevel=2,
                )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this step."""
        if trainer.fast_dev_run:
            return
        bounds, epoch = self._bounds(trainer), trainer.current_epoch
        cycle = next((i for i in range(self.cycles) if epoch < bounds[i + 1]), self.cycles - 1)
        epochs = bounds[cycle + 1] - bounds[cycle]
        part = (epoch - bounds[cycle] + batch_idx / trainer.num_training_batches) / epochs
        assert self._rates is not None
        self._rates = with_new_groups(trainer, self._rates)
        set_rates(trainer, [rate / 2 * (math.cos(math.pi * part) + 1) for rate in self._rates])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note the value, before a checkpoint of this validation is written; from now on it must be there."""
        if not (trainer.sanity_checking or trainer.fast_dev_run):
            self._validated = True
            if self.monitor in trainer.callback_metrics:
                self._value = float(trainer.callback_metrics[self.monitor])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the model where a cycle ends."""
        if trainer.fast_dev_run:
            return
        if self.monitor is not None:
            self._look_at_value(trainer, self.monitor)
        bounds, epochs = self._bounds(trainer), trainer.current_epoch + 1
        if epochs in bounds and bounds.index(epochs) not in self._ended:
            self._keep(trainer, bounds.index(epochs))

    def _look_at_value(self, trainer: Any, monitor: str) -> None:
        if monitor in trainer.callback_metrics:
            self._value = float(trainer.callback_metrics[monitor])
        elif self._value is None and (self._validated or not trainer.enable_validation):
            names = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UsageError(f"Snapshots(monitor={monitor!r}) is not among the logged values: {names}")

    def _keep(self, trainer: Any, cycle: int) -> None:
        value = float(-cycle) if self.mode == "min" else float(cycle)
        if self.monitor is not None:
            value = math.nan if self._value is None else self._value
            if self._value is None:
                warnings.warn(
                    f"{self.monitor!r} was not logged before cycle {cycle} ended, as there was no validation yet: its "
                    "snapshot counts as the worst",
                    stacklevel=2,
                )
        self._ended.append(cycle)
        name, value = trainer.strategy.broadcast((self._free(cycle), value))
        with whole_checkpoints(trainer):
            trainer.save_checkpoint(self.dir / name, weights_only=True)
        self._kept.append((name, cycle, value))
        if trainer.is_global_zero:  # which alone removes files, and whose state is kept
            self._hashes[name] = file_sha256(self.dir / name)
        for dropped in [] if self.keep is None else self._ranked()[self.keep :]:  # now that the new file is there
            self._kept.remove(dropped)
            if trainer.is_global_zero and self._is_own(dropped[0]):
                (self.dir / dropped[0]).unlink()

    def _free(self, cycle: int) -> str:
        name, version = f"snapshot-{cycle}.ckpt", 0
        while (self.dir / name).exists():
            version += 1
            name = f"snapshot-{cycle}-v{version}.ckpt"
        return name

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what there is."""
        if trainer.fast_dev_run:
            return
        if len(self._ended) < self.cycles:
            warnings.warn(
                f"the training ended in cycle {len(self._ended) + 1} of {self.cycles}, whose model is not kept: "
                f"the ensemble has {len(self._kept)} models",
                stacklevel=2,
            )
        if trainer.is_global_zero:
            logger.info("Snapshots: %d models in %s", len(self._kept), self.dir)
