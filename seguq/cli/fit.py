"""``seguq fit``: Lightning's command line over `seguq.SegmentationTask` and `seguq.SegmentationData`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from seguq.cli.common import require_folder
from seguq.cli.config import require_configs
from seguq.cli.parsing import config_first, require_no_nul, underscored
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, require_replaceable, write_json
from seguq.core.lightning import (
    Callback,
    CheckpointIO,
    CSVLogger,
    LightningArgumentParser,
    LightningCLI,
    MisconfigurationException,
    ModelCheckpoint,
    RichProgressBar,
    WholeCheckpointIO,
    is_first_process,
    quiet,
)
from seguq.core.locks import Lock
from seguq.core.out_of_memory import ran_out_of_memory
from seguq.core.reading import listing, mapping, read_json, reading
from seguq.data import SegmentationData
from seguq.store.writer import writing
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint

_MARKER = "fit.json"
_FILES = ["best.ckpt", "last.ckpt", "config.yaml"]  # that a training replaces; its logs are new ones each time
_DESCRIPTION = """Train a segmentation model on a folder of images and masks.

The folder holds images/SPLIT/NAME.jpg, masks/SPLIT/NAME.png and classes.json. Everything of the model, the data and
Lightning's Trainer can be set here or in a file: seguq fit --config configs/fit.yaml --data.root DATA --model.classes 2
"""


class FitCLI(LightningCLI):
    """LightningCLI with a folder for the results, the best and the last checkpoint, and a progress bar."""

    lock: Lock | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of model, data and trainer."""
        parser.add_argument("--out", type=str, default="runs/fit", help="folder for checkpoints, logs and settings")
        parser.add_argument("--resume", type=str | None, default=None, help="checkpoint of a training to go on with")

    def before_instantiate_classes(self) -> None:
        """Refuse to write over another training."""
        require_no_nul(self.config.as_dict())
        if not self.config.out:
            raise UsageError("--out is empty: name a folder")
        out, resume = Path(self.config.out), self.config.resume
        require_folder(str(self.config.data.root), "--data.root")  # before weights are downloaded
        self.resumed = None if resume is None else _training_in(resume)
        if is_first_process():  # the others of a training are started by it
            with writing("seguq fit"):
                out.mkdir(parents=True, exist_ok=True)
            self.lock = Lock(out)
            self.lock.take()
            _require_free(out, None if resume is None else Path(resume))
            remove_leftovers(out)
            with writing("seguq fit"):
                write_json(out / _MARKER, {"written_by": "seguq fit", "files": _FILES})

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with seguq's callbacks."""
        out = Path(self.config.out)
        self.config_init.trainer.default_root_dir = str(out)
        if self.config.trainer.logger is None:
            self.config_init.trainer.logger = CSVLogger(str(out), name="logs")
        best = ModelCheckpoint(
            dirpath=out, filename="best", monitor="val/miou", mode="max", enable_version_counter=False
        )
        # save_last=True would write the last checkpoint only when the best one changes
        last = ModelCheckpoint(dirpath=out, filename="last", enable_version_counter=False)
        plugins = self.config_init.trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            self.config_init.trainer.plugins = [*plugins, WholeCheckpointIO(load=read_checkpoint)]
        callbacks = [*(self.config_init.trainer.callbacks or []), best, last]
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        self.config_init.trainer.callbacks = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:  # Lightning's, for an accelerator or devices that there are not
            if isinstance(error, SeguqError):
                raise
            raise UsageError(f"--trainer: {' '.join(str(error).split())}") from error


def _training_in(resume: str) -> dict[str, Any]:
    """The checkpoint to go on from, read as every file that may be anybody's."""
    if "\0" not in resume and not Path(resume).exists():
        raise UsageError(f"--resume {resume} does not exist")
    content = read_checkpoint(resume)
    missing = [name for name in _OF_A_TRAINING if name not in content]
    if missing:
        raise UsageError(
            f"--resume {resume} holds no training to go on with (no {missing[0]}), but weights alone, perhaps: pass "
            "the last.ckpt of a training"
        )
    return content


_OF_A_TRAINING = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
_OF_A_NETWORK = ("architecture", "encoder", "classes", "in_channels")


def _require_same_network(task: SegmentationTask, content: Mapping[str, Any], resume: str) -> None:
    """Raise where a checkpoint is of another network than the one that was asked for."""
    with reading(resume):
        told = mapping(content.get("hyper_parameters", {}), "'hyper_parameters'")
        for name in _OF_A_NETWORK:
            if name in told and told[name] != task.settings[name]:
                raise UsageError(
                    f"--resume {resume} is of a network with {name}={told[name]!r}, but now {name} is "
                    f"{task.settings[name]!r}: set --model.{name} as it was"
                )
        state, own = mapping(content["state_dict"], "'state_dict'"), task.state_dict()
        differing = sorted(set(state) ^ set(own)) or [
            name for name in own if getattr(state[name], "shape", None) != own[name].shape
        ]
        if differing:
            raise UsageError(
                f"--resume {resume} is of another network: {differing[0]!r} is not the same there and here; set "
                "--model.* as it was"
            )


class _Restored(Callback):
    """Whether a training that is resumed has taken up what its checkpoint holds."""

    done = False

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """The checkpoint was taken up."""
        self.done = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The checkpoint was taken up."""
        self.done = True


def _fit(cli: FitCLI) -> None:
    """Train, from the beginning or from a checkpoint."""
    resume, trainer = cli.config.resume, cast(Any, cli.trainer)
    if resume is None:
        trainer.fit(cli.model, cli.datamodule)
        return
    assert cli.resumed is not None
    _require_same_network(cli.model, cli.resumed, resume)
    cli.resumed = None  # as large as the model and its optimizer
    safely = {"weights_only": True} if "weights_only" in inspect.signature(trainer.fit).parameters else {}
    restored = _Restored()
    trainer.callbacks.insert(0, restored)
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, **safely)
    except (SeguqError, MisconfigurationException):
        raise
    except Exception as error:
        if restored.done or ran_out_of_memory(error):
            raise
        with reading(resume):  # what it holds is of the wrong kind somewhere
            raise


def _require_free(out: Path, resume: Path | None) -> None:
    """Raise where a training would replace files that are not its own.

    Args:
        out: the folder of the training.
        resume: the checkpoint that it goes on from; None: it begins anew.
    """
    there = [name for name in _FILES if os.path.lexists(out / name)]
    trained = [name for name in there if name.endswith(".ckpt")]
    goes_on = resume is not None and resume.resolve().parent == out.resolve()
    if trained and resume is None:
        from_last = f"go on with it by --resume {out / 'last.ckpt'}, or " if "last.ckpt" in trained else ""
        raise UsageError(f"{out} holds a training already: {from_last}pass another --out")
    if trained and not goes_on:
        raise UsageError(f"{out} holds another training than that of --resume {resume}: pass another --out")
    try:
        marker = mapping(read_json(out / _MARKER), "its content")
        listed = listing(marker["files"], "'files'") if marker["written_by"] == "seguq fit" else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        listed = []
    others = [name for name in there if name not in listed]
    if others or (not listed and os.path.lexists(out / _MARKER)):
        raise UsageError(f"{out / (others or [_MARKER])[0]} was not written by seguq fit: pass another --out")
    for name in there:
        require_replaceable(out / name)


def run(words: Sequence[str]) -> None:
    """Train."""
    quiet()
    require_configs(words)
    try:
        cli = FitCLI(
            SegmentationTask,
            SegmentationData,
            args=[underscored(word) for word in config_first(words)],
            run=False,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 50, "log_every_n_steps": 10},
            parser_kwargs={"prog": "seguq fit", "description": _DESCRIPTION, "exit_on_error": False},
        )
    except ValueError as error:
        if "not in bounds" not in str(error):  # what NumPy says of a seed
            raise
        raise UsageError(f"--seed_everything: {error}") from error
    try:
        _fit(cli)
    finally:
        if cli.lock is not None:
            cli.lock.release()
    if cli.trainer.interrupted:
        raise KeyboardInterrupt
    best = cli.trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    if best.best_model_path and best.best_model_score is not None:
        print(f"best checkpoint: {best.best_model_path} (val/miou {float(best.best_model_score):.3f})")
