"""``seguq fit``: Lightning's command line over `seguq.SegmentationTask` and `seguq.SegmentationData`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seguq.cli.common import require_folder
from seguq.cli.parsing import config_first, underscored
from seguq.core.errors import UsageError
from seguq.core.lightning import (
    CSVLogger,
    LightningArgumentParser,
    LightningCLI,
    ModelCheckpoint,
    RichProgressBar,
    quiet,
)
from seguq.data import SegmentationData
from seguq.task import SegmentationTask

_DESCRIPTION = """Train a segmentation model on a folder of images and masks.

The folder holds images/SPLIT/NAME.jpg, masks/SPLIT/NAME.png and classes.json. Everything of the model, the data and
Lightning's Trainer can be set here or in a file: seguq fit --config configs/fit.yaml --data.root DATA --model.classes 2
"""


class FitCLI(LightningCLI):
    """LightningCLI with a folder for the results, the best and the last checkpoint, and a progress bar."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options beside those of model, data and trainer."""
        parser.add_argument("--out", type=str, default="runs/fit", help="folder for checkpoints, logs and settings")
        parser.add_argument("--resume", type=str | None, default=None, help="checkpoint of a training to go on with")

    def before_instantiate_classes(self) -> None:
        """Refuse to write over another training."""
        out, resume = Path(self.config.out), self.config.resume
        require_folder(str(self.config.data.root), "--data.root")  # before weights are downloaded
        if resume is not None and not Path(resume).is_file():
            raise UsageError(f"--resume {resume} does not exist")
        if resume is None and (out / "last.ckpt").exists():
            raise UsageError(
                f"{out} holds a training already: go on with it by --resume {out / 'last.ckpt'}, or pass another --out"
            )

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
        callbacks = [*(self.config_init.trainer.callbacks or []), best, last]
        if self.config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        self.config_init.trainer.callbacks = callbacks
        return super().instantiate_trainer(**kwargs)


def run(words: Sequence[str]) -> None:
    """Train."""
    quiet()
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
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.config.resume)
    if cli.trainer.interrupted:
        raise KeyboardInterrupt
    best = cli.trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    if best.best_model_path and best.best_model_score is not None:
        print(f"best checkpoint: {best.best_model_path} (val/miou {float(best.best_model_score):.3f})")
