"""What of a round a Trainer does: train, calibrate, judge, and score the pool."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seguq.active.judge import Judge
from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import carried, save_calibrator
from seguq.callbacks import Calibrate
from seguq.callbacks.agreement import together
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file
from seguq.core.lightning import Callback, CSVLogger, RichProgressBar, Trainer, has_own, whole_checkpoints
from seguq.core.log import say_once
from seguq.data import SegmentationData

MakeTrainer = Callable[[], Any]


def default_trainer(folder: Path | None, **options: Any) -> Any:
    """A Trainer for those who have none: one epoch, as long as the data say, with its log in the folder.

    Args:
        folder: where the log goes; None: there is none.
        **options: of the Trainer, in place of these.
    """
    found: dict[str, Any] = {
        "max_epochs": 1,
        "logger": False if folder is None else CSVLogger(str(folder), name="logs"),
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        **options,
    }
    if found.get("enable_progress_bar") is not False:
        found["callbacks"] = [*(found.get("callbacks") or []), RichProgressBar()]
    return Trainer(**found)


def checked_trainer(trainer: Any, task: Any) -> Any:
    """A Trainer, if a loop can stand around it.

    Raises:
        UsageError: for one that starts the script anew in each process, and with it the loop, and for one of the other
            name of Lightning than the module.
    """
    if not all(hasattr(trainer, name) for name in ("fit", "validate", "test", "predict")):
        raise UsageError(f"trainer() must return a Trainer, but returned {trainer!r}")
    package, packages = _package(type(trainer)), {_package(kind) for kind in type(task).__mro__} & _PACKAGES
    if package in _PACKAGES and packages and package not in packages:
        raise UsageError(
            f"make_task() makes a module of {packages.pop()}, which a Trainer of {package} does not take: pass "
            "trainer=, a function that makes a Trainer of the same package"
        )
    launcher = type(getattr(trainer.strategy, "launcher", None)).__name__
    if trainer.world_size > 1 and "Multi" not in launcher and "Spawn" not in launcher:
        raise UsageError(
            "this Trainer runs the whole script once in each process, and the loop with it: pass "
            "strategy='ddp_spawn' (or 'ddp_fork'), by which one process runs the loop, and starts the others for each "
            "training and prediction"
        )
    return trainer


_PACKAGES = {"pytorch_lightning", "lightning"}


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


class _SaveAtEnd(Callback):
    """Writes the last weights of a training into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, on all processes."""
        with whole_checkpoints(trainer):
            trainer.save_checkpoint(self.path, weights_only=True)  # nothing is trained on from it


class _KeptCalibrate(Calibrate):
    """Fits a calibrator in a validation, and puts it into a checkpoint file."""

    def __init__(self, path: Path, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save."""
        super().on_validation_end(trainer, pl_module)

        def save() -> None:
            for tag, fitted in carried(pl_module).items():
                save_calibrator(self.path, fitted, tag)

        together(trainer, pl_module, save, first_only=True)


def train(trainer: Any, task: Any, data: Any, out: Path) -> None:
    """Train, and write the checkpoint: the last weights, or where the Trainer watches for the best, these.

    Raises:
        KeyboardInterrupt: if the training was stopped by hand.
        SeguqError: if it has ended without having begun.
    """
    out.unlink(missing_ok=True)  # of a training that was killed
    _add(trainer, _SaveAtEnd(out))
    trainer.fit(task, datamodule=data)
    _require_end(trainer)
    if not out.exists():
        raise SeguqError(
            f"the training has ended without {out}, as if it had no step to do: let trainer() make a Trainer that "
            "trains, for one epoch at least"
        )
    best = trainer.checkpoint_callback
    if best is not None and getattr(best, "monitor", None) and getattr(best, "best_model_path", ""):
        with whole_file(out) as temporary:
            shutil.copyfile(best.best_model_path, temporary)


def calibrate(trainer: Any, task: Any, data: Any, checkpoint: Path, method: str | Calibrator, **settings: Any) -> None:
    """Fit a calibrator on the validation images, and put it into the checkpoint."""
    _add(trainer, _KeptCalibrate(checkpoint, method, **settings))
    trainer.validate(task, datamodule=data, verbose=False)
    _require_end(trainer)


def judge(trainer: Any, task: Any, data: Any, split: str, callback: Judge) -> None:
    """Measure on the test or the validation images; where there are none, the file of figures is not written."""
    callback.out.unlink(missing_ok=True)
    _add(trainer, callback)
    run = trainer.test if split == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)
    _require_end(trainer)


def predict(trainer: Any, task: Any, data: Any, callbacks: Sequence[Any]) -> None:
    """Run over the pool."""
    _add(trainer, *callbacks)
    if not _gives(data, "predict_dataloader"):
        raise SeguqError(
            f"{type(data).__name__} has no predict_dataloader, but the pool is scored by it: give one of all images of "
            "labeled.pool, with their ids"
        )
    trainer.predict(task, datamodule=data, return_predictions=False)
    _require_end(trainer)


def _add(trainer: Any, *callbacks: Any) -> None:
    """Give a Trainer further callbacks; the list may be a user's own."""
    trainer.callbacks = [*trainer.callbacks, *callbacks]


def _require_end(trainer: Any) -> None:
    if trainer.interrupted:
        raise KeyboardInterrupt


def judged_splits(task: Any, data: Any) -> list[str]:
    """Where labeled images to judge on may be: in the test, or else in the validation.

    Images that the data give, but the module has no step for, are told of.
    """
    steps, found = {"test": "test_step", "val": "validation_step"}, []
    for split, step in steps.items():
        if not _gives(data, f"{split}_dataloader"):
            continue
        if has_own(task, step):
            found.append(split)
        elif not isinstance(data, SegmentationData) or data.has_split(split):
            say_once(
                f"{type(data).__name__} gives labeled images for {split}, but {type(task).__name__} has no {step}: "
                "rounds are not judged on them"
            )
    return found


def can_calibrate(task: Any, data: Any) -> bool:
    """Whether there may be validation images to fit a calibrator on."""
    return "val" in judged_splits(task, data)


def _gives(data: Any, name: str) -> bool:
    """Whether a data module has a loader of its own, beyond what the base class has."""
    method = getattr(type(data), name, None)
    if method is None:
        return False
    module = getattr(inspect.unwrap(method), "__module__", "")
    return not module.startswith(("pytorch_lightning.", "lightning."))
