"""Calibration as part of validation."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, ClassVar

import torch

from seguq.calibration import Calibrator
from seguq.calibration.base import Stream
from seguq.calibration.by_name import AUTO, Kind, require_known, stream_for
from seguq.calibration.checkpoint import add_calibrators, carried, carry
from seguq.callbacks.base import PREFIX, EstimatorCallback, log_values, require_own_names
from seguq.callbacks.batches import BatchForward
from seguq.callbacks.gather import gathered
from seguq.callbacks.hooks import listen
from seguq.callbacks.passes import Passes, Step
from seguq.callbacks.run import Run
from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.core.groups import GroupOf, Groups
from seguq.functional.logits import Task
from seguq.inference import Estimator
from seguq.weights import weights_sha256


class Calibrate(EstimatorCallback):
    """Fits a calibrator in every validation, and puts it into the checkpoints of exactly those weights.

    Logged: ``val/temperature`` (where the calibrator has one), ``val/ece_before``, ``val/nll_before``, and out of
    sample ``val/ece_after`` and ``val/nll_after``: each of two folds calibrated by what was fitted on the other. Whole
    groups of images go to a fold: those of a video or a patient where ``group`` tells them, and contiguous blocks
    otherwise, the first and the second half of the data set (see `seguq.calibration.folds`). With an ``estimator`` its
    kind is added: ``val/ece_after/mc_dropout``. Any of them can be monitored by a ModelCheckpoint. The fit needs no
    pass of its own where the module's ``validation_step`` calls its ``forward``, and one forward a batch otherwise; no
    logits are kept for one temperature (see `seguq.functional.temperature_curve` for what is), and for other
    calibrators those of at most 262,144 pixels (12 MB of 11 classes) that are drawn evenly by their images' ids: single
    pixels, or crops of 32 x 32 for what looks at more than a pixel.

    The calibrator ends in ``module.calibrators`` under the estimator's tag, and in each checkpoint under the key
    ``seguq`` (also in those of ``save_weights_only``), with the hash of the weights that the validation ran with. A
    checkpoint written between two validations has the last one fitted, which is then not applied. One that is asked
    for after the training, ``trainer.save_checkpoint(path)``, has it as well, but not with ``weights_only=True``:
    Lightning tells callbacks nothing of such a file.

    A validation batch whose logits hold NaN is left out with a warning; where nothing can be fitted, NaN is logged.

    Args:
        calibrator: name of a calibrator, such as ``"global"`` (one temperature) or ``"local"`` (one a pixel);
            ``"auto"``, the best of several on groups that they were not fitted on; the import path of one of your own;
            or an unfitted one, for settings of its own.
        estimator: whose pooled output is calibrated; None: one deterministic pass.
        every_n_epochs: fit in the first validation epoch of a training, in every n-th after it, and in the last.
        dataloader: number of the validation loader to fit on, where there are several: data like the training data.
        batch_forward: as in `EstimatorCallback`.
        task: as in `EstimatorCallback`.
        ignore_index: value of masks that is left out.
        group: from an image's id to its group: a function or a regular expression, as in `seguq.core.groups.Groups`.
        prefix: put before the names of all that is logged, as ``"seguq/"``, where the module logs one of these itself.

    Raises:
        SeguqError: for an unknown name of a calibrator, or a name that the module logs itself.

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
        group: GroupOf = None,
        prefix: str = "",
    ) -> None:
        super().__init__(estimator, None, batch_forward, task, every_n_epochs)
        require_known(calibrator)
        Groups(group)
        require_count("dataloader", dataloader, least=0)
        self.fitting, self.ignore_index = calibrator, ignore_index
        self.prefix = prefix
        self.dataloader = dataloader
        self.group = group
        self.fitted: dict[str, Calibrator] = {}  # by tag: what checkpoints are given

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take part in what is saved."""
        super().setup(trainer, pl_module, stage)
        require_own_names(self, trainer)
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
        self.stream: Stream | None = None
        self.weights = weights_sha256(self.owner)

    def look(self, step: Step, dataloader: int) -> None:
        if step.mask is None:
            raise SeguqError(
                "Calibrate needs labels, but a validation batch has no mask that it understands: make the loader give "
                "(image, mask), or let batch_forward= return (logits, mask)"
            )
        if not len(step.ids):
            return
        if self.stream is None:
            self.stream = self._begun(Kind.of(step.pooled, step.mask, self.passes.estimator.task))
            self.stream.buckets.groups.require_ids(self.passes.watch.numbered)
        self.stream.add(step.pooled, step.mask, step.ids, step.numbers, step.image)

    def _begun(self, kind: Kind) -> Stream:
        self.kind = kind
        return stream_for(self.callback.fitting, kind, self.callback.ignore_index, self.callback.group)

    def _fitted(self) -> Calibrator | None:
        """By what all processes have seen; some of them may have seen nothing."""
        own = {} if self.stream is None else {"kind": torch.tensor(self.kind[:2]), **self.stream.state()}
        states = [state for state in gathered(own) if state]
        if not states:
            return None
        if self.stream is None:
            classes, dims = states[0]["kind"].tolist()
            self.stream = self._begun(Kind(classes, dims, self.passes.estimator.task))
        self.stream.combine([{name: state[name] for name in state if name != "kind"} for state in states])
        return self.stream.fit()

    def close(self) -> None:
        tag = self.passes.tag
        fitted = self._fitted()
        # those that are not known are logged as well: a ModelCheckpoint that misses what it monitors ends the training
        asked = self.callback.fitting
        kind = type(asked) if isinstance(asked, Calibrator) else None if asked == AUTO else Calibrator.named(asked)
        own = ["temperature"] if hasattr(kind, "temperature") else []
        names = (*own, "ece_before", "nll_before", "ece_after", "nll_after")
        values = dict.fromkeys(names, math.nan)
        if fitted is None:
            warnings.warn("Calibrate saw no labeled pixel in this validation: nothing was fitted", stacklevel=2)
            self._log(values)
            return
        fitted.tag, fitted.weights_sha256, fitted.global_step = tag, self.weights, self.trainer.global_step
        self.callback.fitted = {tag: fitted}
        carry(self.module, {tag: fitted})
        found = fitted.summary()
        values |= {
            **{name: getattr(fitted, name) for name in own},
            "ece_before": found.ece_before,
            "nll_before": found.nll_before,
        }
        if found.ece_after is None or found.nll_after is None:
            several = f"{found.images} labeled image{'s' * (found.images != 1)}"
            warnings.warn(
                f"Calibrate saw {several} {'of one group ' * (found.images > 1)}in this validation: a calibrator was "
                "fitted, but what it is worth out of sample takes images of two groups (of 240 pairs of groups one "
                "counts as a single group)",
                stacklevel=2,
            )
        else:
            values |= {"ece_after": found.ece_after, "nll_after": found.nll_after}
        self._log(values)

    def _log(self, values: dict[str, float]) -> None:
        kind = self.callback.kind
        ending = "" if kind == "deterministic" else f"/{kind}"
        prefix = self.callback.prefix + PREFIX[self.stage]
        log_values(
            self.callback,
            self.trainer,
            self.module,
            {f"{prefix}/{name}{ending}": value for name, value in values.items()},
        )
