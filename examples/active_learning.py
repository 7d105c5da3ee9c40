"""An active-learning loop around a module of your own: which regions to label next, round after round.

    python examples/active_learning.py loop-out          # stopped at any moment, it goes on when started again

Labels come from an oracle here, the masks that ship with seguq. With people, put `annotators.Folder("tasks", classes)`
in its place: it writes tasks and a page that says how to answer them, the loop ends with what it waits for, and goes on
when it is started again. Out come a folder a round with its page, and the learning curve.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

import seguq
from seguq import annotators, regions
from seguq.acquisition import Budget
from seguq.active import plot_runs
from seguq.data import nuclei_mini


class Module(pl.LightningModule):
    """Put your own here. It needs a forward, and what a training needs; a validation_step, so that it can be judged."""

    def __init__(self):
        super().__init__()
        self.model = smp.FPN("mobilenet_v2", encoder_weights=None, classes=2)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        images, masks, _ = batch  # the rest of a partial mask is 255
        return F.cross_entropy(self(images), masks, ignore_index=255)

    def validation_step(self, batch, batch_idx):
        images, masks, _ = batch
        self.log("val/loss", F.cross_entropy(self(images), masks, ignore_index=255))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class Data(seguq.LabeledData):
    """Crops around what is labeled, in batches as the module above takes them."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch["image"], batch["mask"], batch["image_id"]) if "mask" in batch else batch


def trainer():
    return pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False)


if __name__ == "__main__":
    out, root = Path(sys.argv[1] if len(sys.argv) > 1 else "loop-out"), nuclei_mini()
    loop = seguq.ActiveLearningLoop(
        Module,
        lambda labeled: Data(labeled, root, steps=12, batch_size=8, crop=64, num_workers=0),
        pool=root / "images" / "train",
        annotator=annotators.Oracle(root / "masks" / "train"),
        partition=regions.Grid(32),
        budget=Budget(regions=30),
        rounds=2,
        run_dir=out / "run",
        calibrator="global",
        trainer=trainer,
    )
    print(*loop.run().lines(), sep="\n")
    plot_runs([out / "run"], by="clicks").savefig(out / "curve.png", dpi=150, bbox_inches="tight")
    print(f"curve: {out / 'curve.png'}; page of the last round: {out / 'run' / 'round-01' / 'page.html'}")
