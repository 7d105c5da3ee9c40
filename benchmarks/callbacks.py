"""What the callbacks add to a validation epoch, and what importing costs.

python benchmarks/callbacks.py            # FPN/resnet18, 19 classes, 512 x 512, batches of 4

Each variant runs one validation of the same module over the same images in memory, in turn, several times; given is
the median time, how much it is more than that of the plain validation, and the median of the ratios to the plain
validation of the same round: where the two differ, the machine was not idle.
"""

import argparse
import functools
import logging
import platform
import statistics
import subprocess
import sys
import warnings

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from in_turn import in_turn, wall_seconds
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from seguq.callbacks import Calibrate, UncertaintyMetrics


class Module(pl.LightningModule):
    def __init__(self, classes):
        super().__init__()
        self.net = smp.FPN("resnet18", encoder_weights=None, classes=classes)

    def forward(self, images):
        return self.net(images)

    def validation_step(self, batch, batch_idx):
        images, masks = batch
        self.log("val/loss", F.cross_entropy(self(images), masks, ignore_index=255))


class OtherCall(Module):
    """Its step does not call its forward, so a callback has to."""

    def validation_step(self, batch, batch_idx):
        images, masks = batch
        self.log("val/loss", F.cross_entropy(self.net(images), masks, ignore_index=255))


def trained_a_little(classes, size):
    """A network whose logits are spread as those of a trained one: it has learned smooth masks for some steps."""
    torch.manual_seed(0)
    module = Module(classes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    module.train()
    for _ in range(30):
        images, masks = images_and_masks(4, classes, 128)
        loss = F.cross_entropy(module(images), masks, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def images_and_masks(count, classes, size):
    """Smooth random images whose gray levels, cut into as many steps as there are classes, are the masks."""
    coarse = torch.randn(count, 1, size // 32 + 1, size // 32 + 1)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic")
    masks = (torch.sigmoid(1.5 * smooth[:, 0]) * classes).long().clamp(0, classes - 1)
    return smooth.repeat(1, 3, 1, 1) + 0.3 * torch.randn(count, 3, size, size), masks


def validate(module, loader, callbacks):
    """Seconds of one validation, without the making of its Trainer."""
    trainer = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks(),
    )
    return wall_seconds(lambda: trainer.validate(module, loader, verbose=False))


def import_seconds(statement):
    """Of the fastest of five processes, without the start of Python."""
    code = f"import time; a = time.perf_counter(); {statement}; print(time.perf_counter() - a)"
    return min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(5)
    )


def main():
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    statements = ("import torch", "import seguq", "import seguq.functional", "import pytorch_lightning")
    more = ("import pytorch_lightning, lightning.pytorch", "from seguq.callbacks import Calibrate")
    for statement in (*statements, *more):
        print(f"{statement:45s} {import_seconds(statement):.2f} s")

    module = trained_a_little(options.classes, options.size)
    other = OtherCall(options.classes)
    other.load_state_dict(module.state_dict())
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(*images_and_masks(options.images, options.classes, options.size)), batch_size=4)
    variants = {
        "plain": (module, list),
        "Calibrate": (module, lambda: [Calibrate()]),
        "Calibrate, step without forward": (other, lambda: [Calibrate()]),
        "UncertaintyMetrics": (module, lambda: [UncertaintyMetrics()]),
        "UncertaintyMetrics, one measure": (module, lambda: [UncertaintyMetrics(measures=["predictive_entropy"])]),
        "both": (module, lambda: [Calibrate(), UncertaintyMetrics()]),
    }
    ways = {
        name: functools.partial(validate, which, loader, callbacks) for name, (which, callbacks) in variants.items()
    }
    times = in_turn(ways, options.rounds, warm_up=1, clock=lambda way: way())
    print(f"\n{options.images} images of {options.size} x {options.size}, {options.classes} classes, FPN/resnet18")
    for name, spent in times.items():
        of_medians = statistics.median(spent) / statistics.median(times["plain"])
        of_ratios = statistics.median(a / b for a, b in zip(spent, times["plain"], strict=True))
        figures = f"{100 * (of_medians - 1):+6.1f} %   {100 * (of_ratios - 1):+6.1f} %"
        print(f"{name:35s} {statistics.median(spent):6.2f} s   {figures}")


if __name__ == "__main__":
    main()
