"""Heat maps of a folder of images from a checkpoint of your own training.

    python examples/export_heatmaps.py heat-out runs/best.ckpt my/images

A checkpoint that was trained with seguq.callbacks.Calibrate brings its temperature along. Without a checkpoint, a
small network is trained first on the images that ship with seguq, so that there is something to look at.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import seguq
from seguq.callbacks import Calibrate, HeatmapWriter
from seguq.data import SegmentationFolder, nuclei_mini
from seguq.data.transforms import evaluation_transform


class Module(pl.LightningModule):
    """Put your own here: the class that the checkpoint was trained with."""

    def __init__(self):
        super().__init__()
        self.model = smp.FPN("mobilenet_v2", encoder_weights=None, classes=2, decoder_dropout=0.2)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def trained(out, estimator):
    data = seguq.SegmentationData(nuclei_mini(), batch_size=8, crop=96, num_workers=0)
    trainer = pl.Trainer(
        max_epochs=6,
        check_val_every_n_epoch=6,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        callbacks=[Calibrate(estimator=estimator)],
    )
    trainer.fit(Module(), data)
    trainer.save_checkpoint(out / "trained.ckpt")
    return out / "trained.ckpt"


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "heat-out")
    estimator = seguq.MCDropout(samples=5, seed=0)
    checkpoint = sys.argv[2] if len(sys.argv) > 2 else trained(out, estimator)
    images = Path(sys.argv[3]) if len(sys.argv) > 3 else nuclei_mini() / "images" / "ood"

    # the images, normalized as in training
    normalization = seguq.SegmentationData(nuclei_mini()).normalization
    folder = SegmentationFolder(images, transform=evaluation_transform(normalization))
    writer = HeatmapWriter(out, estimator=estimator)
    trainer = pl.Trainer(callbacks=[writer], logger=False, enable_checkpointing=False)
    # batches of one: the images of a folder may differ in size
    trainer.predict(Module(), DataLoader(folder, batch_size=1), ckpt_path=checkpoint, return_predictions=False)
    print(f"maps and pictures of {len(folder)} images: {out / 'predict'}")
