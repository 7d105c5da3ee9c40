"""Calibration as part of validation."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from typing import Any, ClassVar

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import add_calibrators, carried, carry
from seguq.calibration.streamed import StreamedTemperature
from seguq.calibration.temperature import TemperatureScaling
from seguq.callbacks.base import PREFIX, EstimatorCallback, log_values
from seguq.callbacks.batches import BatchForward
from seguq.callbacks.hooks import listen
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.functional.logits import Task
from seguq.inference import Estimator
from seguq.weights import weights_sha256

_CALIBRATORS = {"global": TemperatureScaling}


class Calibrate(EstimatorCallback):
    """Fits a calibrator in every validation, and puts it into the checkpoints of exactly those weights.

    Logged: ``val/temperature``, ``val/ece_before``, ``val/nll_before``, and out of sample ``val/ece_after`` and
    ``val/nll_after``: each image calibrated by a temperature that was fitted on the other half of the images (even
    and odd index in the data set). With an ``estimator`` its kind is added: ``val/ece_after/mc_dropout``. Any of them
    can be monitored by a ModelCheckpoint. The fit needs no pass of its own where the module's ``validation_step`` calls
    its ``forward``, and one forward a batch otherwise; no logits are kept (see
    `seguq.functional.temperature_curve` for what is).

    The calibrator ends in ``module.calibrators`` under the estimator's tag, and in each checkpoint under the key
    ``seguq`` (also in those of ``save_weights_only``), with the hash of the weights that the validation ran with. A
    checkpoint written between two validations has the last one fitted, which is then not applied. One that is asked
    for after the training, ``trainer.save_checkpoint(path)``, has it as well, but not with ``weights_only=True``:
    Lightning tells callbacks nothing of such a file.

    A validation batch whose logits hold NaN is left out with a warning; where nothing can be fitted, NaN is logged.

    Args:
        calibrator: ``"global"`` (one temperature), or an unfitted `TemperatureScaling` for settings of its own.
        estimator: whose pooled output is calibrated; None: one deterministic pass.
        every_n_epochs: fit in the first validation epoch of a training, in every n-th after it, and in the last.
        dataloader: number of the validation loader to fit on, where there are several: data like the training data.
        batch_forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        ignore_index: value of masks that is left out.

    Raises:
        SeguqError: for an unknown name, or a calibrator that cannot be fitted in one reading.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[Calibrate()], logger=False, enable_checkpointing=False)
    """

    stages: ClassVar[tuple[str, ...]] = ("validate",)

    def __init__(
        self,
        calibrator: str | Calibrator = "global",
        estimator: Estimator | str | None = None,
        every_n_epochs: int = 1,
        dataloader: int = 0,
        batch_forward: BatchForward | None = None,
        task: Task | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(estimator, None, batch_forward, task, every_n_epochs)
        if isinstance(calibrator, str):
            if calibrator not in _CALIBRATORS:
                raise SeguqError(f"there is no calibrator {calibrator!r}: there is {', '.join(_CALIBRATORS)}")
            calibrator = _CALIBRATORS[calibrator](ignore_index=ignore_index)
        if not isinstance(calibrator, Calibrator):
            raise SeguqError(f"calibrator must be {', '.join(_CALIBRATORS)} or a calibrator, but is {calibrator!r}")
        if not isinstance(calibrator, TemperatureScaling):
            raise SeguqError(
                f"Calibrate fits one temperature while validation runs; {type(calibrator).__name__} needs several "
                "readings: fit it after training by estimator.calibrate(calibrator, batches)"
            )
        require_count("dataloader", dataloader, least=0)
        self.fitting = calibrator
        self.dataloader = dataloader
        self.fitted: dict[str, Calibrator] = {}  # by tag: what checkpoints are given

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take part in what is saved."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.fitted = {}  # what an earlier training has left; a checkpoint that is loaded now brings its own
            saved = functools.partial(self._saved, pl_module)
            self._undo.append(listen(pl_module, "on_save_checkpoint", saved))

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take part in what is saved after training, too."""
        self._saved(pl_module, checkpoint)

    def _saved(self, module: Any, checkpoint: dict[str, Any]) -> None:
        known = carried(module)  # one that another module carries is not for this one's file
        fitted = {
            tag: item
            for tag, item in self.fitted.items()
            if tag in known and known[tag].weights_sha256 == item.weights_sha256
        }
        if fitted:
            add_calibrators(checkpoint, fitted)

    def _loaded(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        super()._loaded(trainer, module, checkpoint)
        known = carried(module)
        tag = self.estimator.tag
        self.fitted = {tag: known[tag]} if tag in known else {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Say so if there is nothing to fit on."""
        super().on_train_start(trainer, pl_module)
        batches = trainer.num_val_batches
        if not trainer.enable_validation or (trainer.val_dataloaders is not None and not sum(batches)):
            warnings.warn(
                "Calibrate has nothing to fit on: pass a validation loader to fit() and give the module a "
                "validation_step",
                stacklevel=2,
            )
        elif trainer.val_dataloaders is not None and self.dataloader >= len(batches):
            raise SeguqError(
                f"Calibrate(dataloader={self.dataloader}) does not go with {len(batches)} validation loaders, "
                "which are numbered from 0"
            )

    def start(self, trainer: Any, module: Any, stage: str, passes: Passes) -> Run:
        """A validation begins."""
        return _Fit(self, trainer, module, stage, passes)

    def looks_at(self, dataloader: int) -> bool:
        """Whether this is the loader to fit on."""
        return dataloader == self.dataloader


class _Fit(Run):
    """One validation: sums over its batches, and a calibrator fitted on them."""

    callback: Calibrate

    def __init__(self, *run: Any) -> None:
        super().__init__(*run)
        settings = copy.deepcopy(self.callback.fitting)
        if settings.task == "multiclass":
            settings.task = self.passes.estimator.task
        self.stream = StreamedTemperature(settings)
        self.weights = weights_sha256(self.owner)

    def look(self, step: Step, dataloader: int) -> None:
        if step.mask is None:
            raise SeguqError(
                "Calibrate needs labels, but a validation batch has no mask that it understands: make the loader give "
                "(image, mask), or let batch_forward= return (logits, mask)"
            )
        if len(step.ids):
            self.stream.add(step.pooled, step.mask, step.numbers)

    def close(self) -> None:
        sums = self.stream.sums.to(self.module.device)
        self.stream.sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        tag = self.passes.tag
        fit = self.stream.fit()
        # those that are not known are logged as well: a ModelCheckpoint that misses its figure ends the training
        values = dict.fromkeys(("temperature", "ece_before", "nll_before", "ece_after", "nll_after"), math.nan)
        if fit is None:
            warnings.warn("Calibrate saw no labeled pixel in this validation: nothing was fitted", stacklevel=2)
            self._log(values)
            return
        fit.calibrator.tag, fit.calibrator.weights_sha256 = tag, self.weights
        fit.calibrator.global_step = self.trainer.global_step
        self.callback.fitted = {tag: fit.calibrator}
        carry(self.module, {tag: fit.calibrator})
        values |= {
            "temperature": fit.calibrator.temperature,
            "ece_before": fit.ece_before,
            "nll_before": fit.nll_before,
        }
        if fit.ece_after is None or fit.nll_after is None:
            warnings.warn(
                f"Calibrate saw {fit.images} labeled image{'s' * (fit.images != 1)} in this validation: a temperature "
                "was fitted, but figures out of sample need two images, one with an even and one with an odd index",
                stacklevel=2,
            )
        else:
            values |= {"ece_after": fit.ece_after, "nll_after": fit.nll_after}
        self._log(values)

    def _log(self, values: dict[str, float]) -> None:
        kind = self.callback.kind
        ending = "" if kind == "deterministic" else f"/{kind}"
        prefix = PREFIX[self.stage]
        log_values(self.trainer, self.module, {f"{prefix}/{name}{ending}": value for name, value in values.items()})
