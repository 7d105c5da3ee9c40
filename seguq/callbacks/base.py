"""What every callback shares: when it looks, what it looks with, and how it leaves the module as it was found."""

from __future__ import annotations

import copy
import functools
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import carried, carry, section, unpack
from seguq.callbacks.agreement import together
from seguq.callbacks.batches import BatchForward, taken_in
from seguq.callbacks.hooks import listen, stand_in
from seguq.callbacks.passes import Passes, Step, estimator_from
from seguq.core.checks import require_choice, require_count
from seguq.core.errors import SeguqError
from seguq.core.lightning import Callback, has_own
from seguq.core.log import say_once
from seguq.functional.logits import TASKS, Task
from seguq.inference import Estimator
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

    Args:
        estimator: an estimator, without a model (it is bound to the module in hand) or with one; its name
            (``"deterministic"``, ``"mc_dropout"``); None: one deterministic pass, which costs nothing where the
            module's own step calls its forward.
        calibrator: ``"auto"``: the one that was fitted for this estimator and for exactly the weights in hand, by
            `Calibrate` beside it or from the checkpoint; None: none; or a fitted calibrator.
        forward: for batches and outputs that are not understood by themselves: a function of the module and the batch
            as the loader gave it, that returns logits ``(B, C, *spatial)`` or ``(logits, mask)``.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``; None: what the module says in its attribute ``task``,
            otherwise multiclass, or binary where there is one logit a pixel.
        every_n_epochs: look at the first validation epoch of a training, at every n-th after it, and at its last.
    """

    stages: ClassVar[tuple[str, ...]] = ("validate", "test", "predict")

    def __init__(
        self,
        estimator: Estimator | str | None = None,
        calibrator: Calibrator | Literal["auto"] | None = "auto",
        forward: BatchForward | None = None,
        task: Task | None = None,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__()
        if task is not None:
            require_choice("task", task, TASKS)
        if not (calibrator is None or calibrator == "auto" or isinstance(calibrator, Calibrator)):
            raise SeguqError(f"calibrator must be a calibrator, 'auto' or None, but is {calibrator!r}")
        if forward is not None and not callable(forward):
            raise SeguqError(f"forward must be a function of the module and the batch, but is {forward!r}")
        require_count("every_n_epochs", every_n_epochs)
        self.estimator = estimator
        self._checked = estimator_from(estimator)
        self.calibrator = calibrator
        self.forward = forward
        self.task = task
        self.every_n_epochs = every_n_epochs
        self._passes: Passes | None = None
        self._undo: list[Any] = []
        self._verified: dict[str, set[str]] = {}  # by tag: hashes of the loaded weights in each precision
        self._applied: Calibrator | None = None
        self._looked_up = False
        self._met_first = False  # of the validations of a training
        self._failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or not, takes part in no run."""
        state = {**vars(self), **self._at_rest()}
        for name in ("log", "log_dict"):  # methods of the module, which a Trainer puts here; they hold all of it
            state.pop(name, None)
        return state

    # ---- what a subclass does ----

    @abstractmethod
    def _opened(self, trainer: Any, module: Any, stage: str, passes: Passes) -> None:
        """A run begins: say which measures are wanted, check what can be checked."""

    @abstractmethod
    def _batch(self, trainer: Any, module: Any, stage: str, step: Step, dataloader: int) -> None:
        """One batch."""

    def _looks_at(self, dataloader: int) -> bool:
        """Whether the batches of a loader concern it at all."""
        return True

    def _wants(self, batch: Any, batch_idx: int, dataloader: int) -> bool:
        """Whether a batch is to be looked at."""
        return True

    def _closed(self, trainer: Any, module: Any, stage: str) -> None:
        """The run has ended without an error."""

    def _abandoned(self) -> None:
        """The run has ended with an error, or everything is over: let go of what is held."""

    def _at_rest(self) -> dict[str, Any]:
        """What its attributes of a run are outside of one."""
        of_a_run = {"_passes": None, "_applied": None, "_looked_up": False, "_failure": None}
        return {**of_a_run, "_undo": [], "_verified": {}, "_met_first": False}

    @property
    def _kind(self) -> str:
        """The kind of its estimator: the tag without the settings."""
        return self._checked.tag.partition("(")[0]

    # ---- calibrators ----

    def _calibrator_for(self, trainer: Any, module: Any) -> Calibrator | None:
        """The calibrator to apply in this run."""
        if self._looked_up:
            return self._applied
        self._looked_up, self._applied = True, None
        assert self._passes is not None
        chosen = self.calibrator
        if chosen == "auto" and self._passes.estimator.calibrator != "auto":
            chosen = self._passes.estimator.calibrator  # the estimator was given one of its own, or None
        if not isinstance(chosen, str):
            self._applied = chosen
        elif trainer.state.fn != "fit":
            self._applied = self._matching(module, self._passes.tag)
        # in the validations of a training none can be there yet: it is fitted on this very run
        return self._applied

    def _weights_owner(self, module: Any) -> Any:
        """Whose weights a calibrator is for: the module, or a model from elsewhere that the estimator brought along."""
        assert self._passes is not None
        network = self._passes.network
        return module if any(part is network for part in module.modules()) else network

    def _matching(self, module: Any, tag: str) -> Calibrator | None:
        known = carried(module)
        found = known.get(tag)
        if found is None:
            others = f" (there are some for {', '.join(known)})" if known else ""
            say_once(f"{tag}: not calibrated{others}; the callback seguq.callbacks.Calibrate fits a calibrator")
            return None
        weights = weights_sha256(self._weights_owner(module))
        # by the file itself, whose weights may be held in another precision now
        if found.weights_sha256 not in (None, weights) and weights not in self._verified.get(tag, ()):
            warnings.warn(
                f"the calibrator {tag!r} is not applied: it was fitted for other weights (those of step "
                f"{found.global_step}) than the module has now; validate with seguq.callbacks.Calibrate to fit another",
                stacklevel=2,
            )
            return None
        say_once(f"{tag}: calibrated by {type(found).__name__}, fitted for these weights")
        applied = copy.copy(found)
        applied.weights_sha256 = None  # checked already, for the module as a whole
        return applied

    def _loaded(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        packed = section(checkpoint).get("calibrators", {})
        if not packed:
            return
        weights = weights_sha256(checkpoint["state_dict"])
        found = {tag: unpack(tag, item) for tag, item in packed.items()}
        carry(module, found)
        if trainer.state.fn != "fit":
            other = {weights} | _hashes_once_loaded(trainer, module, checkpoint["state_dict"])
            self._verified = {tag: other for tag, item in found.items() if item.weights_sha256 == weights}

    # ---- Lightning's hooks ----

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
                passes = self._passes
                return [] if passes is None else list(passes.begin(batch, batch_idx, dataloader_idx))

            self._undo.append(stand_in(pl_module, "predict_step", ids))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was found."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was found."""
        self._end()

    def _end(self) -> None:
        self._drop_passes()
        self._abandoned()
        for undo in self._undo:
            undo()
        vars(self).update(self._at_rest())

    def _drop_passes(self) -> None:
        if self._passes is not None:
            self._passes.forget()
        self._passes = None
        self._looked_up, self._applied, self._failure = False, None, None

    def _due(self, trainer: Any, stage: str) -> bool:
        if stage not in self.stages or trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit":
            return True
        every = trainer.check_val_every_n_epoch or 1
        epoch = trainer.current_epoch + 1
        last = trainer.max_epochs not in (None, -1) and epoch + every > trainer.max_epochs
        last = last or 0 <= trainer.max_steps <= trainer.global_step
        # the first, also after a resume: a ModelCheckpoint that monitors our figures ends a training that has none
        first, self._met_first = not self._met_first, True
        return bool(first or last or (epoch // every - 1) % self.every_n_epochs == 0)

    def _open(self, trainer: Any, module: Any, stage: str) -> None:
        self._drop_passes()
        if not self._due(trainer, stage):
            return
        self._passes = self._shared(trainer, stage) or Passes(
            trainer, module, stage, self._checked, self.forward, self.task
        )
        self._opened(trainer, module, stage, self._passes)

    def _shared(self, trainer: Any, stage: str) -> Passes | None:
        """The passes of a callback before this one that asks the same of the module."""
        for other in trainer.callbacks:
            if other is self:
                return None
            if isinstance(other, EstimatorCallback) and other._passes is not None and other._passes.stage == stage:
                same = other.estimator is self.estimator or (
                    isinstance(self.estimator, str) and other.estimator == self.estimator
                )
                if same and other.forward is self.forward and other.task == self.task:
                    return other._passes
        return None

    def _before(self, trainer: Any, batch: Any, batch_idx: int, dataloader: int) -> None:
        if trainer.sanity_checking and "validate" in self.stages and self._looks_at(dataloader):
            taken_in(batch, self.forward)  # what is not understood is said now, not after the first epoch
        passes = self._passes
        if passes is not None and self._looks_at(dataloader):
            self._try(trainer, lambda: passes.begin(batch, batch_idx, dataloader))

    def _after(self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader: int) -> None:
        passes = self._passes
        if passes is None or not self._looks_at(dataloader):
            return

        def look() -> None:
            if self._wants(batch, batch_idx, dataloader):
                self._batch(trainer, module, passes.stage, passes.end(batch, batch_idx, dataloader), dataloader)

        self._try(trainer, look)

    def _try(self, trainer: Any, function: Callable[[], object]) -> None:
        """Look at a batch. What goes wrong on one of several processes is told when the run ends, to all of them."""
        if self._failure is not None:
            return
        try:
            function()
        except Exception as error:
            if trainer.state.fn == "fit" and self._passes is not None and self._passes.diverged:
                # a training may recover from it, and is not ours to end
                warnings.warn(f"{type(self).__name__} leaves a validation batch out: {error}", stacklevel=2)
            elif trainer.world_size == 1:
                raise
            else:
                self._failure = error

    def _finish(self, trainer: Any, module: Any) -> None:
        if self._passes is not None:
            stage = self._passes.stage
            self._passes.forget()
            together(trainer, module, self._tell)
            self._closed(trainer, module, stage)
        self._drop_passes()

    def _tell(self) -> None:
        if self._failure is not None:
            raise self._failure

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Fail now, and not after an epoch, where it is not clear what to call."""
        if "validate" in self.stages and trainer.enable_validation:
            Passes(trainer, pl_module, "validate", self._checked, self.forward, self.task)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the module's own step."""
        self._before(trainer, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        self._after(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._finish(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the module's own step."""
        self._before(trainer, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        self._after(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._finish(trainer, pl_module)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the module's own step."""
        self._before(trainer, batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch."""
        self._after(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self._finish(trainer, pl_module)


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


def log_values(trainer: Any, module: Any, values: dict[str, float]) -> None:
    """Hand figures that are the same on all processes to the loggers."""
    # a mean over processes changes nothing, and spares the advice that one should be taken
    module.log_dict(values, on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)
