"""Heat maps of a folder of images from a checkpoint of your own training.

    python examples/export_heatmaps.py heat-out runs/best.ckpt my/images --trained_on my/training/images
    python examples/export_heatmaps.py heat-out runs/best.ckpt my/images --mean 0.5 --std 0.25     # gray: one channel

The images must be normalized as in training: by the mean and deviation given, or by those of a folder of the images
that the network was trained with. The number of channels is that of the means (--channels 1 with --trained_on).

A checkpoint that was trained with seguq.callbacks.Calibrate brings its temperature along. Without a checkpoint, a
small network is trained first on the images that ship with seguq, so that there is something to look at.
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import seguq
from seguq.callbacks import Calibrate, HeatmapWriter
from seguq.data import Normalization, SegmentationFolder, measured_normalization, nuclei_mini
from seguq.data.transforms import evaluation_transform


class Module(pl.LightningModule):
    """Put your own here: the class that the checkpoint was trained with."""

    def __init__(self, channels=3):
        super().__init__()
        self.model = smp.FPN("mobilenet_v2", encoder_weights=None, in_channels=channels, classes=2, decoder_dropout=0.2)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("heat-out"))
    parser.add_argument("checkpoint", nargs="?", help="none: a small network is trained first")
    parser.add_argument("images", nargs="?", type=Path, default=nuclei_mini() / "images" / "ood")
    parser.add_argument("--trained_on", help="folder of the images that the network was trained with")
    parser.add_argument("--channels", type=int, default=3, help="with --trained_on: 1 for gray images")
    parser.add_argument("--mean", type=float, nargs="+", help="one number a channel, of pixels scaled to 0..1")
    parser.add_argument("--std", type=float, nargs="+")
    told = parser.parse_args()
    if (told.mean is None) != (told.std is None):
        parser.error("--mean and --std go together")
    if told.checkpoint and not told.mean and not told.trained_on:
        parser.error("say how the training normalized its images: --trained_on FOLDER, or --mean and --std")
    return told


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
    return out / "trained.ckpt", data.normalization


if __name__ == "__main__":
    told = arguments()
    estimator = seguq.MCDropout(samples=5, seed=0)
    checkpoint = told.checkpoint
    if checkpoint is None:
        checkpoint, normalization = trained(told.out, estimator)
    elif told.mean:
        normalization = Normalization.checked(told.mean, told.std)
    else:
        normalization = measured_normalization(told.trained_on, told.channels)

    channels = len(normalization.mean)
    folder = SegmentationFolder(told.images, transform=evaluation_transform(normalization), channels=channels)
    writer = HeatmapWriter(told.out, estimator=estimator)
    trainer = pl.Trainer(callbacks=[writer], logger=False, enable_checkpointing=False)
    # batches of one: the images of a folder may differ in size
    loader = DataLoader(folder, batch_size=1)
    trainer.predict(Module(channels), loader, ckpt_path=checkpoint, return_predictions=False)
    print(f"maps and pictures of {len(folder)} images: {told.out / 'predict'}")
