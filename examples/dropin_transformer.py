"""A transformer whose output is an object with .logits at a quarter of the mask's size, and dictionaries as batches.

That is what Hugging Face's segmentation models look like; this one is small and built here, so nothing is downloaded.
Run it with a folder for what it writes: python examples/dropin_transformer.py transformer-out
It trains with dropout, calibrates its MC dropout in validation, and at the end writes heat maps of unseen images and
the list of regions to label next.
"""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import seguq
from seguq.acquisition import Budget, Selection
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.data import nuclei_mini
from seguq.regions import Grid


class SmallTransformer(nn.Module):
    """Convolutions down to an eighth, a transformer there, and back to a quarter of the image's size."""

    def __init__(self, channels=48, layers=2, classes=2):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, channels, 7, stride=4, padding=3), nn.GroupNorm(8, channels), nn.GELU())
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        layer = nn.TransformerEncoderLayer(channels, 4, 2 * channels, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, classes, 1)
        )

    def forward(self, pixel_values):
        quarter = self.embed(pixel_values)
        eighth = self.down(quarter)
        tokens = self.blocks(eighth.flatten(2).transpose(1, 2))
        mixed = tokens.transpose(1, 2).unflatten(2, eighth.shape[2:])
        return SimpleNamespace(logits=self.head(quarter + F.interpolate(mixed, scale_factor=2, mode="bilinear")))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = SmallTransformer()

    def forward(self, pixel_values):
        return self.model(pixel_values)

    def loss(self, batch):
        logits = self(batch["pixel_values"]).logits
        logits = F.interpolate(logits, size=batch["labels"].shape[1:], mode="bilinear")
        return F.cross_entropy(logits, batch["labels"], ignore_index=255)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def as_hugging_face_has_it(items):
    images = torch.stack([item["image"] for item in items])
    return {"pixel_values": images, "labels": torch.stack([item["mask"] for item in items])}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")  # its advice on workers and batch sizes
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "transformer-out")
    pl.seed_everything(0)
    data = seguq.SegmentationData(nuclei_mini(), size=128)
    train = DataLoader(data.folder("train", training=True), 8, shuffle=True, collate_fn=as_hugging_face_has_it)
    val = DataLoader(data.folder("val"), batch_size=4, collate_fn=as_hugging_face_has_it)
    test = DataLoader(data.folder("test"), batch_size=4, collate_fn=as_hugging_face_has_it)

    estimator = seguq.MCDropout(samples=5)  # without a model: the callbacks bind it to the module in training
    callbacks = [
        Calibrate(estimator=estimator),
        UncertaintyMetrics(estimator=estimator),
        HeatmapWriter(out / "heatmaps", estimator=estimator),
        RegionScorer(out / "regions", partition=Grid(32), estimator=estimator, budget=Budget(regions=20)),
    ]
    trainer = pl.Trainer(max_epochs=10, check_val_every_n_epoch=5, default_root_dir=out, callbacks=callbacks)
    module = Module()
    trainer.fit(module, train, val)
    trainer.test(module, test, verbose=False)
    values = trainer.callback_metrics
    print(f"\ntest: calibration error {values['test/ece']:.4f}, calibrated; the mutual information finds")
    print(f"the wrong pixels with an AUROC of {values['test/auroc_error/mutual_information']:.3f}")

    trainer.predict(module, test, return_predictions=False)  # (image, mask) batches, and no predict_step: it works
    selection = Selection.load(out / "regions" / "selection.json")
    print(f"{len(selection)} regions in {len(selection.image_ids)} images to label next: {out / 'regions'}")
    print(f"heat maps: {out / 'heatmaps' / 'predict'}")
