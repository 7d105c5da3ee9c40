"""The one place that knows both names of Lightning: `pytorch_lightning`, and `lightning.pytorch` where installed.

The two packages hold the same classes twice, and each Trainer accepts only its own. A class that inherits from both
passes both Trainers and both command lines; which package was imported first makes no difference. A LightningModule can
have one base only. Importing this module imports Lightning, so only modules that need a Lightning class import it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytorch_lightning
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.plugins.io import TorchCheckpointIO as _TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from seguq.core.files import write_torch

_packages: list[Any] = [pytorch_lightning]
_checkpoint_ios: list[Any] = [_TorchCheckpointIO]
with contextlib.suppress(ImportError):
    import lightning.pytorch as _lightning_pytorch

    _packages.append(_lightning_pytorch)
    from lightning.pytorch.plugins.io import TorchCheckpointIO as _OtherCheckpointIO

    _checkpoint_ios.append(_OtherCheckpointIO)

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule

    _AnyCheckpointIO = _TorchCheckpointIO
else:
    # the order of bases is that of the packages: pytorch_lightning, which seguq requires, comes first
    LightningDataModule = type("LightningDataModule", tuple(p.LightningDataModule for p in _packages), {})
    Callback = type("Callback", tuple(p.Callback for p in _packages), {})
    _AnyCheckpointIO = type("_AnyCheckpointIO", tuple(dict.fromkeys(_checkpoint_ios)), {})


class WholeCheckpointIO(_AnyCheckpointIO):
    """Writes checkpoints whole, for a Trainer's ``plugins`` of either package.

    Lightning itself writes to the folder for temporary files, and where that is on another file system copies the file
    to its name: a kill or a full disk in the meantime leaves a part of it there, in the place of an earlier whole one.

    Args:
        load: what reads a checkpoint file in Lightning's place; it is given the path alone. Lightning would ask torch,
            which the environment can tell to run what is in a file.
    """

    def __init__(self, load: Callable[[str], Any] | None = None) -> None:
        super().__init__()
        self.load = load

    def load_checkpoint(self, path: Any, *settings: Any, **more: Any) -> Any:
        """Read a checkpoint as ``load`` does, or without it as Lightning does."""
        if self.load is None:
            return super().load_checkpoint(path, *settings, **more)
        return self.load(path)

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; one that does not go into a local file as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_torch(path, checkpoint)


@contextlib.contextmanager
def whole_checkpoints(trainer: Any) -> Iterator[None]:
    """What a Trainer saves in the block is written whole, unless it was given a plugin of its own for that."""
    strategy = trainer.strategy
    found = strategy.checkpoint_io
    if type(found) in _checkpoint_ios:
        strategy.checkpoint_io = WholeCheckpointIO()
    try:
        yield
    finally:
        strategy.checkpoint_io = found


def has_own(module: Any, name: str) -> bool:
    """Whether a LightningModule of either package defines a method itself, beyond what the base class has."""
    found = getattr(type(module), name, None)
    bases = [getattr(package.LightningModule, name, None) for package in _packages]
    bases += [getattr(nn.Module, name, None)]
    # on a compiled module Lightning puts compiled copies of all steps, those of the base class too
    compiled = getattr(module, "_compiler_ctx", None) is not None
    own = vars(module).get(name)
    copied = getattr(own, "__func__", None) is found  # a copy of a module that had a stand-in
    return (own is not None and not copied and not compiled) or not any(found is base for base in bases)


def is_first_process() -> bool:
    """Whether this is the only process of a training, or the first of several, which starts the others."""
    return not getattr(rank_zero_only, "rank", None)


def quiet() -> None:
    """Keep Lightning to warnings: what it says of devices and of itself is not what a command was asked."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


__all__ = [
    "CSVLogger",
    "Callback",
    "CheckpointIO",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "MisconfigurationException",
    "ModelCheckpoint",
    "RichProgressBar",
    "Trainer",
    "WholeCheckpointIO",
    "has_own",
    "is_first_process",
    "quiet",
    "seed_everything",
    "whole_checkpoints",
]
