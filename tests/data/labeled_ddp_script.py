"""What each of two processes does in the tests of trainings on partial masks under DDP.

``python -m tests.data.labeled_ddp_script FOLDER``; Lightning starts the second process. Each leaves ``FOLDER/RANK.pt``
with the batches it has seen. The partial masks in ``FOLDER`` are there already.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch

from seguq.data import ImageSource, Labeled
from tests.data.labeled_builders import TWO, make_data
from tests.data.test_module import make_module

STEPS = 5  # which two processes cannot share evenly


def labeled_in(folder: Path) -> Labeled:
    """What the builder of partial masks has written there."""
    pool = ImageSource(folder / "images" / "pool")
    masks = {path.stem: path for path in sorted((folder / "partial").iterdir())}
    return Labeled({name: pool.path(name) for name in masks}, masks, TWO, pool, seed=2)


def run(folder: Path, devices: int) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Train for two epochs, then predict: the number of this process, and the batches that it saw, by stage."""
    module = make_module(pytorch_lightning)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = make_data(labeled_in(folder), steps=STEPS)
    trainer.fit(module, datamodule=data)
    trainer.predict(module, datamodule=data)
    return trainer.global_rank, module.seen


if __name__ == "__main__":
    rank, seen = run(Path(sys.argv[1]), 2)
    torch.save(seen, Path(sys.argv[1]) / f"{rank}.pt")
