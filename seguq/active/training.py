"""What of a round a Trainer does: train, calibrate, judge, and score the pool."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seguq.calibration import Calibrator
from seguq.calibration.checkpoint import carried, save_calibrator
from seguq.callbacks import Calibrate
from seguq.callbacks.agreement import together
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file
from seguq.core.lightning import Callback, CSVLogger, RichProgressBar, Trainer, has_own, whole_checkpoints

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


def checked_trainer(trainer: Any) -> Any:
    """A Trainer, if a loop can stand around it.

    Raises:
        UsageError: for one that starts the script anew in each process, and with it the loop.
    """
    if not all(hasattr(trainer, name) for name in ("fit", "validate", "test", "predict")):
        raise UsageError(f"trainer() must return a Trainer, but returned {trainer!r}")
    launcher = type(getattr(trainer.strategy, "launcher", None)).__name__
    if trainer.world_size > 1 and "Multi" not in launcher and "Spawn" not in launcher:
        raise UsageError(
            "this Trainer runs the whole script once in each process, and the loop with it: pass "
            "strategy='ddp_spawn' (or 'ddp_fork'), by which one process runs the loop, and starts the others for each "
            "training and prediction"
        )
    return trainer


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
    """
    trainer.callbacks.append(_SaveAtEnd(out))
    trainer.fit(task, datamodule=data)
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = trainer.checkpoint_callback
    if best is not None and getattr(best, "monitor", None) and getattr(best, "best_model_path", ""):
        with whole_file(out) as temporary:
            shutil.copyfile(best.best_model_path, temporary)


def calibrate(trainer: Any, task: Any, data: Any, checkpoint: Path, method: str | Calibrator, **settings: Any) -> None:
    """Fit a calibrator on the validation images, and put it into the checkpoint."""
    trainer.callbacks.append(_KeptCalibrate(checkpoint, method, **settings))
    trainer.validate(task, datamodule=data, verbose=False)


def judge(trainer: Any, task: Any, data: Any, split: str, callback: Any) -> None:
    """Measure on the test or the validation images."""
    trainer.callbacks.append(callback)
    run = trainer.test if split == "test" else trainer.validate
    run(task, datamodule=data, verbose=False)


def predict(trainer: Any, task: Any, data: Any, callbacks: Sequence[Any]) -> None:
    """Run over the pool."""
    trainer.callbacks.extend(callbacks)
    if not _gives(data, "predict_dataloader"):
        raise SeguqError(
            f"{type(data).__name__} has no predict_dataloader, but the pool is scored by it: give one of all images of "
            "labeled.pool, with their ids"
        )
    trainer.predict(task, datamodule=data, return_predictions=False)


def judged_split(task: Any, data: Any) -> str | None:
    """The labeled images that a round is judged on: those of the test, or else of the validation; None: there are none.

    A data module says by ``has_split("test")`` whether it has them, where giving the loader does not.
    """
    for split, loader, step in (
        ("test", "test_dataloader", "test_step"),
        ("val", "val_dataloader", "validation_step"),
    ):
        if _gives(data, loader) and has_own(task, step) and _has_split(data, split):
            return split
    return None


def can_calibrate(task: Any, data: Any) -> bool:
    """Whether there are validation images to fit a calibrator on."""
    return _gives(data, "val_dataloader") and has_own(task, "validation_step") and _has_split(data, "val")


def _has_split(data: Any, split: str) -> bool:
    told = getattr(data, "has_split", None)
    return bool(told(split)) if callable(told) else True


def _gives(data: Any, name: str) -> bool:
    """Whether a data module has a loader of its own, beyond what the base class has."""
    method = getattr(type(data), name, None)
    if method is None:
        return False
    module = getattr(inspect.unwrap(method), "__module__", "")
    return not module.startswith(("pytorch_lightning.", "lightning."))
