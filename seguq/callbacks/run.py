"""One run of a loop, as one callback sees it: made when its epoch opens, thrown away when that ends."""

from __future__ import annotations

import copy
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import carried
from seguq.callbacks.agreement import together
from seguq.callbacks.passes import Passes, Step
from seguq.core.log import say_once
from seguq.weights import weights_sha256


class Run(ABC):
    """What one callback does, and holds, in one run of a loop.

    A subclass says what happens: made when the epoch opens (what can be checked is checked then, and `Passes.want`
    is told which measures are needed), it is asked of each batch whether it `wants` it, given it in `look`, and ended
    by `close`; `abort` comes in the place of that after an error.

    Attributes:
        trainer: the Trainer.
        module: the LightningModule.
        stage: ``"validate"``, ``"test"`` or ``"predict"``.
        passes: those of the callback's estimator, shared with other callbacks that ask for the same.
    """

    callback: Any
    """An `EstimatorCallback`; each subclass of this says which."""

    def __init__(self, callback: Any, trainer: Any, module: Any, stage: str, passes: Passes) -> None:
        self.callback, self.trainer, self.module, self.stage, self.passes = callback, trainer, module, stage, passes
        self._failure: Exception | None = None

    # ---- what a subclass does ----

    def wants(self, dataloader: int) -> bool:
        """Whether the batch in hand is to be looked at; ``self.passes.watch`` knows its images."""
        return True

    @abstractmethod
    def look(self, step: Step, dataloader: int) -> None:
        """One batch."""

    def close(self) -> None:
        """The run has ended without an error, on all processes."""
        return

    def abort(self) -> None:
        """The run has ended with an error: let go of what is held."""
        return

    # ---- what callbacks call ----

    def begin(self, batch: Any, batch_idx: int, dataloader: int) -> None:
        """A batch comes: watch the module's own step."""
        if self.callback.looks_at(dataloader):
            self._try(lambda: self.passes.begin(batch, batch_idx, dataloader))

    def end(self, batch: Any, batch_idx: int, dataloader: int) -> None:
        """The module's own step is done: look at the batch."""
        self.passes.watch.stop()  # for all callbacks, before the first of their passes

        def look() -> None:
            if self.wants(dataloader):
                self.look(self.passes.end(batch, batch_idx, dataloader), dataloader)

        if self.callback.looks_at(dataloader):
            self._try(look)

    def finish(self) -> None:
        """The epoch ends."""
        self.passes.forget()
        together(self.trainer, self.module, self._tell)
        self.close()

    def drop(self) -> None:
        """It is over, whatever has happened."""
        self.passes.forget()
        self.abort()

    def _try(self, function: Callable[[], object]) -> None:
        """Look at a batch. What goes wrong on one of several processes is told when the run ends, to all of them."""
        if self._failure is not None:
            return
        try:
            function()
        except Exception as error:
            if self.trainer.state.fn == "fit" and self.passes.diverged:
                # a training may recover from it, and is not ours to end
                warnings.warn(f"{type(self.callback).__name__} leaves a validation batch out: {error}", stacklevel=2)
            elif self.trainer.world_size == 1:
                raise
            else:
                self._failure = error

    def _tell(self) -> None:
        if self._failure is not None:
            raise self._failure

    # ---- calibrators ----

    @functools.cached_property
    def calibrator(self) -> Calibrator | None:
        """The calibrator in force; says once which."""
        chosen: Calibrator | str | None = self.callback.calibrator
        if chosen == "auto":  # unless the estimator was given one of its own, or None
            chosen = self.passes.estimator.calibrator
        if not isinstance(chosen, str):
            return chosen
        # in the validations of a training none can be there yet: it is fitted on this very run
        return None if self.trainer.state.fn == "fit" else self._matching()

    @property
    def owner(self) -> Any:
        """Whose weights a calibrator is for: the module, or a model from elsewhere that the estimator brought along."""
        network = self.passes.network
        return self.module if any(part is network for part in self.module.modules()) else network

    def _matching(self) -> Calibrator | None:
        tag, known = self.passes.tag, carried(self.module)
        found = known.get(tag)
        if found is None:
            others = f" (there are some for {', '.join(known)})" if known else ""
            say_once(f"{tag}: not calibrated{others}; the callback seguq.callbacks.Calibrate fits a calibrator")
            return None
        weights = weights_sha256(self.owner)
        # by the file itself, whose weights may be held in another precision now
        if found.weights_sha256 not in (None, weights) and weights not in self.callback.verified.get(tag, ()):
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
