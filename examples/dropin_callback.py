"""Uncertainty for a training that runs already: three lines more, nothing else changed.

Run it with a folder for what it writes: python examples/dropin_callback.py dropin-out
It prints the lines that differ, and trains torchvision's DeepLabV3 on the images that ship with seguq. Run it with a
second word, python examples/dropin_callback.py plain-out before, and it trains without them: to the same loss, for the
callbacks leave a training as it is to the last bit.
"""

import difflib
import inspect
import sys
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from seguq.data import nuclei_mini

# ---- what people have: a data set of (image, mask), a LightningModule, a Trainer ----


class Nuclei(Dataset):
    def __init__(self, split, count, size):
        self.images = sorted((nuclei_mini() / "images" / split).glob("*"))[:count]
        self.size = size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        path = self.images[index]
        mask_path = nuclei_mini() / "masks" / path.parent.name / f"{path.stem}.png"
        image = np.array(Image.open(path).convert("RGB"))[: self.size, : self.size]
        mask = np.array(Image.open(mask_path))[: self.size, : self.size]
        image = torch.from_numpy(image).permute(2, 0, 1).float()
        return (image - image.mean()) / (image.std() + 1), torch.from_numpy(mask).long()


class Segmenter(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
        for module in self.net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.1  # torchvision's .01 is for longer trainings than this one

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, masks = batch
        return F.cross_entropy(self(images)["out"], masks, ignore_index=255)

    def validation_step(self, batch, batch_idx):
        images, masks = batch
        self.log("val/loss", F.cross_entropy(self(images)["out"], masks, ignore_index=255))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def before(module, train, val, out):
    trainer = pl.Trainer(max_epochs=8, check_val_every_n_epoch=4, default_root_dir=out)
    trainer.fit(module, train, val)
    return trainer


# ---- the same with seguq ----


def after(module, train, val, out):
    from seguq.callbacks import Calibrate, HeatmapWriter, UncertaintyMetrics

    callbacks = [Calibrate(), UncertaintyMetrics(), HeatmapWriter(out / "heatmaps")]
    trainer = pl.Trainer(max_epochs=8, check_val_every_n_epoch=4, default_root_dir=out, callbacks=callbacks)
    trainer.fit(module, train, val)
    return trainer


def run(training, out):
    pl.seed_everything(0)
    module = Segmenter()
    train = DataLoader(Nuclei("train", 60, 128), batch_size=8, shuffle=True, drop_last=True)
    val = DataLoader(Nuclei("val", 16, 256), batch_size=4)
    return training(module, train, val, out)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")  # its advice on workers and batch sizes
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "dropin-out")
    training = before if sys.argv[2:] == ["before"] else after
    lines = [inspect.getsource(function).splitlines()[1:] for function in (before, after)]
    diff = difflib.unified_diff(*lines, n=0, lineterm="")
    changed = [line for line in diff if line[0] in "+-" and line[1:].strip() and line[:3] not in ("+++", "---")]
    print("What is changed:", *changed, "", sep="\n    ")

    values = run(training, out).callback_metrics
    print(f"\nvalidation loss {values['val/loss']:.6f}")
    if training is after:
        print(f"calibration error {values['val/ece_before']:.4f}; with one temperature, out of sample,", end=" ")
        print(f"{values['val/ece_after']:.4f} (T = {values['val/temperature']:.2f})")
        auroc = values["val/auroc_error/predictive_entropy"]
        print(f"the predictive entropy finds the wrong pixels with an AUROC of {auroc:.3f}")
        print(f"values with their intervals are in {out / 'lightning_logs'},")
        print(f"heat maps of 8 validation images, epoch by epoch, in {out / 'heatmaps' / 'val'}")
