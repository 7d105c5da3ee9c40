"""The one place that knows both names of Lightning: `pytorch_lightning`, and `lightning.pytorch` where installed.

The two packages hold the same classes twice, and each Trainer accepts only its own. A class that inherits from both
passes both Trainers and both command lines; which package was imported first makes no difference. A LightningModule can
have one base only. Importing this module imports Lightning, so only modules that need a Lightning class import it.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytorch_lightning
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from torch import nn

_packages: list[Any] = [pytorch_lightning]
with contextlib.suppress(ImportError):
    import lightning.pytorch as _lightning_pytorch

    _packages.append(_lightning_pytorch)

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningDataModule
else:
    # the order of bases is that of the packages: pytorch_lightning, which seguq requires, comes first
    LightningDataModule = type("LightningDataModule", tuple(p.LightningDataModule for p in _packages), {})
    Callback = type("Callback", tuple(p.Callback for p in _packages), {})


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
    "MisconfigurationException",
    "ModelCheckpoint",
    "RichProgressBar",
    "Trainer",
    "has_own",
    "quiet",
    "seed_everything",
]
