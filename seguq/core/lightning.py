"""The one place that knows both names of Lightning: `pytorch_lightning`, and `lightning.pytorch` where installed.

The two packages hold the same classes twice, and each Trainer accepts only its own. A class that inherits from both
passes both. Importing this module imports Lightning, so only modules that need a Lightning class import it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytorch_lightning
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger

_packages: list[Any] = [pytorch_lightning]
with contextlib.suppress(ImportError):
    import lightning.pytorch as _lightning_pytorch

    _packages.append(_lightning_pytorch)

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule
else:
    # the docstring and the order of bases are those of pytorch_lightning, which seguq requires
    LightningDataModule = type("LightningDataModule", tuple(p.LightningDataModule for p in _packages), {})


def quiet() -> None:
    """Keep Lightning to warnings: what it says of devices and of itself is not what a command was asked."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


__all__ = [
    "CSVLogger",
    "Callback",
    "LightningArgumentParser",
    "LightningCLI",
    "LightningDataModule",
    "LightningModule",
    "ModelCheckpoint",
    "RichProgressBar",
    "Trainer",
    "quiet",
    "seed_everything",
]
