"""What every callback shares: when it looks, what it looks with, and how it leaves the module as it was found."""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import carry, section, unpack
from seguq.callbacks.agreement import together
from seguq.callbacks.batches import BatchForward, taken_in
from seguq.callbacks.hooks import listen, stand_in
from seguq.callbacks.passes import Passes
from seguq.callbacks.run import Run
from seguq.callbacks.watch import Watch
from seguq.core.checks import require_choice, require_count
from seguq.core.errors import SeguqError, UsageError
from seguq.core.lightning import Callback, has_own
from seguq.core.locks import Lock
from seguq.functional.logits import TASKS, Task
from seguq.inference import Deterministic, Estimator
from seguq.store.writer import writing
from seguq.weights import weights_sha256

PREFIX = {"validate": "val", "test": "test", "predict": "predict"}
_EPOCH_STARTS = {
    "validate": "on_validation_epoch_start",
    "test": "on_test_epoch_start",
    "predict": "on_predict_epoch_start",
}
_PRECISIONS = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


class EstimatorCallback(Callback):
    """A callback that looks at batches through an estimator.

    It keeps its settings; what belongs to one run of a loop is in a `Run`. In each epoch that it is to look at,
    Lightning's hooks call `start`, which makes the run; then ``run.begin`` and ``run.end`` around each step of the
    module; then ``run.finish``. After an error, and when the Trainer is done, ``run.drop``.

    Args:
        estimator: an estimator, without a model (it is bound to the module in hand) or with one; its name, or the
            import path of one's own (``"mc_dropout"``, ``"my_package.MyEstimator"``); None: one deterministic pass,
            which costs nothing where the module's own step calls its forward. Callbacks whose estimators have equal
            settings share their passes.
        calibrator: ``"auto"``: the one that was fitted for this estimator and for exactly the weights in hand, by
            `Calibrate` beside it or from the checkpoint; None: none; or a fitted calibrator.
        batch_forward: for batches and outputs that are not understood by themselves: a function of the module and the
            batch as the loader gave it, that returns logits ``(B, C, *spatial)`` or ``(logits, mask)``. Where there is
            a mask, its size is that of the maps, whatever that of the images: logits of another are resized to it.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``; None: what the module says in its attribute ``task``,
            otherwise multiclass, or binary where there is one logit a pixel.
        every_n_epochs: look at the first validation epoch of a training, at every n-th after it, and at its last.

    Attributes:
        run: the run of a loop in hand, or None.
        logged: the values that it has logged, by name.
        verified: by estimator's tag, hashes of the weights that a loaded calibrator is for, in each precision.
    """

    stages: ClassVar[tuple[str, ...]] = ("validate", "test", "predict")

    def __init__(
        self,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__()
        if task is not None:
            require_choice("task", task, TASKS)
        if not (calibrator is None or calibrator == "auto" or isinstance(calibrator, Calibrator)):
            raise SeguqError(f"calibrator must be a calibrator, 'auto' or None, but is {calibrator!r}")
        if batch_forward is not None and not callable(batch_forward):
            raise SeguqError(f"batch_forward must be a function of the module and the batch, but is {batch_forward!r}")
        require_count("every_n_epochs", every_n_epochs)
        if isinstance(estimator, str):
            estimator = Estimator.make(estimator)
        if not (estimator is None or isinstance(estimator, Estimator)):
            raise SeguqError(
                "estimator must be an estimator such as seguq.MCDropout(samples=10), the name of one, or None for one "
                f"deterministic pass, but is {estimator!r}"
            )
        if estimator is not None:
            estimator.require_complete()
        if batch_forward is not None and estimator is not None and estimator.looks_around:
            raise SeguqError(
                f"{estimator!r} shows its model other images than the batch (views, windows, or with seed= one image "
                "at a time), which batch_forward= with a whole batch cannot: make the loader give (image, mask) and "
                "leave batch_forward= out, or give another estimator"
            )
        self.estimator: Estimator = estimator or Deterministic()
        self.calibrator = calibrator
        self.batch_forward = batch_forward
        self.task = task
        self.every_n_epochs = every_n_epochs
        self._rest()

    def _rest(self) -> None:
        """What it knows where no Trainer is at work."""
        self.run: Run | None = None
        self.verified: dict[str, set[str]] = {}
        self._undo: list[Any] = []
        self.logged: dict[str, float] = {}
        self._met_first = False  # of the validations of a training
        self._held: set[Path] = set()  # folders

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or not, takes part in no run."""
        kept: dict[str, Any] = {
            "run": None,
            "verified": {},
            "logged": {},
            "_undo": [],
            "_met_first": False,
            "_held": set(),
        }
        state = {**vars(self), **kept}
        for name in ("log", "log_dict"):  # methods of the module, which a Trainer puts here; they hold all of it
            state.pop(name, None)
        return state

    # ---- what a subclass does ----

    @abstractmethod
    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """An epoch opens: make its run."""

    def looks_at(self, dataloader: int) -> bool:
        """Whether the batches of a loader concern it at all."""
        return True

    @property
    def kind(self) -> str:
        """The kind of its estimator: the tag without the settings."""
        return self.estimator.tag.partition("(")[0]

    # ---- Lightning's hooks: a Trainer begins and ends ----

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Listen to what is loaded, and to the start of epochs; stand in for a missing ``predict_step``."""
        self._end()

        def loaded(checkpoint: dict[str, Any]) -> None:
            self._loaded(trainer, pl_module, checkpoint)

        self._undo.append(listen(pl_module, "on_load_checkpoint", loaded))
        for each in self.stages:  # the module's own hooks come after those of all callbacks, which may swap weights
            opened = functools.partial(self._open, trainer, pl_module, each)
            self._undo.append(listen(pl_module, _EPOCH_STARTS[each], opened))
        if stage == "predict" and "predict" in self.stages and not has_own(pl_module, "predict_step"):

            def ids(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[str]:
                """The ids of the images; what is known of them the callbacks write down."""
                return [] if self.run is None else list(self.run.passes.begin(batch, batch_idx, dataloader_idx))

            self._undo.append(stand_in(pl_module, "predict_step", ids))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Fail now, and not after an epoch, where it is not clear what to call."""
        if "validate" in self.stages and trainer.enable_validation:
            self._passes(trainer, pl_module, "validate")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was found."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was found."""
        self._end()

    def _end(self) -> None:
        self._drop_run()
        for undo in self._undo:
            undo()
        self._rest()

    def hold(self, trainer: Any, module: Any, folder: Path) -> bool:
        """Keep other runs out of a folder until the Trainer is done; the first process does, and makes the folder.

        Returns:
            Whether it was free before, and not held by this very callback already.
        """
        if folder in self._held:
            return False

        def take() -> None:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is a file, not a folder")
            with writing(type(self).__name__):
                folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder)
            lock.take()
            self._undo.append(lock.release)

        together(trainer, module, take, first_only=True)
        self._held.add(folder)
        return True

    def _drop_run(self) -> None:
        run, self.run = self.run, None
        if run is not None:
            run.drop()

    def _loaded(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        packed = section(checkpoint).get("calibrators", {})
        if not packed:
            return
        weights = weights_sha256(checkpoint["state_dict"])
        found = {tag: unpack(tag, item) for tag, item in packed.items()}
        carry(module, found)
        if trainer.state.fn != "fit":
            other = {weights} | _hashes_once_loaded(trainer, module, checkpoint["state_dict"])
            self.verified = {tag: other for tag, item in found.items() if item.weights_sha256 == weights}

    # ---- Lightning's hooks: an epoch, and its batches ----

    def _open(self, trainer: Any, module: Any, stage: str) -> None:
        self._drop_run()
        if self._due(trainer, stage):
            self.run = self.start(trainer, module, stage, self._passes(trainer, module, stage))

    def _due(self, trainer: Any, stage: str) -> bool:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return not trainer.sanity_checking
        every = trainer.check_val_every_n_epoch or 1
        epoch = trainer.current_epoch + 1
        last = trainer.max_epochs not in (None, -1) and epoch + every > trainer.max_epochs
        last = last or 0 <= trainer.max_steps <= trainer.global_step
        # the first, also after a resume: a ModelCheckpoint that monitors our values ends a training that has none
        first, self._met_first = not self._met_first, True
        return bool(first or last or (epoch // every - 1) % self.every_n_epochs == 0)

    def _passes(self, trainer: Any, module: Any, stage: str) -> Passes:
        """The passes of a callback before this one that asks for the same, or others that watch the same step."""
        before = itertools.takewhile(lambda other: other is not self, trainer.callbacks)
        runs = [other.run for other in before if isinstance(other, EstimatorCallback)]
        opened = [run.passes for run in runs if run is not None and run.stage == stage]
        for passes in opened:
            if passes.serves(self.estimator, self.batch_forward, self.task):
                return passes
        watch = opened[0].watch if opened else Watch(trainer, stage)
        return Passes(trainer, module, stage, self.estimator, self.batch_forward, self.task, watch)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the module's own step."""
        if trainer.sanity_checking and "validate" in self.stages and self.looks_at(dataloader_idx):
            taken_in(batch, self.batch_forward)  # what is not understood is said now, not after the first epoch
        if self.run is not None:
            self.run.begin(batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        if self.run is not None:
            self.run.end(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the run; after an error in it, `on_exception` does."""
        if self.run is not None:
            self.run.finish()
            self.run = None

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Raise if the module has logged one of the names after this callback did."""
        for name, value in self.logged.items():
            found = float(trainer.callback_metrics.get(name, value))
            if not (
                math.isclose(found, value, rel_tol=1e-5, abs_tol=1e-9) or (math.isnan(found) and math.isnan(value))
            ):
                raise _taken(self, name)

    on_test_end = on_validation_end
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end


def _hashes_once_loaded(trainer: Any, module: Any, state: dict[str, Any]) -> set[str]:
    """Hashes that weights may have in a module: they take its precision first, then that of the Trainer."""
    target = _PRECISIONS.get(str(trainer.precision))
    chains = {(dtype, target or dtype) for dtype in {p.dtype for p in module.parameters() if p.is_floating_point()}}
    floating = {name: value for name, value in state.items() if torch.is_tensor(value) and value.is_floating_point()}
    found = {value.dtype for value in floating.values()}
    return {
        weights_sha256({name: value.to(first).to(last) for name, value in floating.items()})
        for first, last in chains
        if found != {first} or first != last
    }


def log_values(callback: EstimatorCallback, trainer: Any, module: Any, values: dict[str, float]) -> None:
    """Hand values that are the same on all processes to the loggers.

    Raises:
        SeguqError: if somebody else has logged one of these names in this epoch, whose value would be lost.
    """
    taken = [name for name in values if name in trainer.callback_metrics and name not in callback.logged]
    if taken:
        raise _taken(callback, taken[0])
    callback.logged.update(values)
    # a mean over processes changes nothing, and spares the advice that one should be taken
    module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)


def _taken(callback: EstimatorCallback, name: str) -> SeguqError:
    return SeguqError(
        f"{name!r} is logged by the module itself, or by another callback, and by {type(callback).__name__}: pass "
        f"{type(callback).__name__}(prefix='seguq/'), which is put before all of its names"
    )


def require_own_names(callback: Any, trainer: Any) -> None:
    """Raise if another callback of the same class has an estimator of the same kind, whose values have those names."""
    others = [(other.prefix, other.kind) for other in trainer.callbacks if type(other) is type(callback)]
    if others.count((callback.prefix, callback.kind)) > 1:
        raise SeguqError(
            f"two {type(callback).__name__} of one kind of estimator ({callback.kind}) would log under the same names: "
            "leave one out, or give one of them prefix="
        )


def require_own_folder(callback: Any, trainer: Any) -> None:
    """Raise if another callback of the same class writes into its folder."""
    for other in trainer.callbacks:
        if type(other) is type(callback) and other is not callback and other.dir.resolve() == callback.dir.resolve():
            raise SeguqError(f"two {type(callback).__name__}s write into {callback.dir}: give each a folder of its own")
