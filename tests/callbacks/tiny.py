"""A small module of either name of Lightning, data of a few pixels, and a Trainer that is quiet."""

import threading

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning": lightning.pytorch}
both_names = pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)


class Images(Dataset):
    """Images and masks of random pixels, the same for the same index and seed.

    Args:
        count: number of images.
        size: height and width, or one such pair an image.
        classes: number of classes; 1 for the masks (1, H, W) of one logit, which are 0. and 1.
        ids: one an image; None: the batches have none.
        form: ``"dict"`` or ``"tuple"``.
        seed: of the pixels.
        labels: number of independent labels, for masks (L, H, W).
        brightness: the images are multiplied by it.
    """

    def __init__(self, count, size=(8, 12), classes=3, ids=None, form="dict", seed=0, labels=None, brightness=1.0):
        self.count, self.classes, self.ids, self.form = count, classes, ids, form
        self.seed, self.labels, self.brightness = seed, labels, brightness
        self.sizes = [size] * count if isinstance(size[0], int) else list(size)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        size = self.sizes[index]
        image = torch.rand(3, *size, generator=generator) * self.brightness
        shape = size if self.labels is None else (self.labels, *size)
        mask = torch.randint(max(2, self.classes), shape, generator=generator)
        mask[torch.rand(shape, generator=generator) < 0.1] = 255
        if self.classes == 1:
            mask = mask.clamp(max=1)[None].float()
        if self.form == "tuple":
            return image, mask
        return {"image": image, "mask": mask} | ({} if self.ids is None else {"image_id": self.ids[index]})


def loader(data, batch_size=3, **settings):
    return DataLoader(data, batch_size=batch_size, num_workers=0, **settings)


def make_module(package, classes=3, seed=0, **attributes):
    """A LightningModule without a predict_step; ``module.forwards`` counts the passes through it."""

    class Tiny(package.LightningModule):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.stem, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout2d(0.3)
                self.head = nn.Conv2d(8, classes, 1)
            self.head.weight.data.mul_(8)
            self.forwards = 0

        def forward(self, x):
            self.forwards += 1
            return self.head(self.drop(torch.relu(self.stem(x))))

        def _loss(self, batch):
            image, mask = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch[:2]
            logits = self(image)
            if logits.shape[1] == 1 or mask.ndim == 4:
                return nn.functional.binary_cross_entropy_with_logits(logits, mask.float().clamp(0, 1))
            return nn.functional.cross_entropy(logits, mask, ignore_index=255)

        def training_step(self, batch, batch_idx):
            return self._loss(batch)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self._loss(batch)

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self._loss(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Tiny()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def with_predict_step(package):
    """The same module with a predict_step of its own, that notes its ``steps``."""

    class Own(type(make_module(package))):
        def predict_step(self, batch, batch_idx):
            vars(self).setdefault("steps", []).append(batch_idx)
            return {"sum": float(self(batch["image"]).sum()), "batch": batch_idx}

    return Own()


def make_trainer(package, folder, *callbacks, **settings):
    settings = {"logger": False, "devices": 1, "max_epochs": 1, "enable_checkpointing": False, **settings}
    return package.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def runs_of(callback):
    """The runs that a callback will make, in a list that fills."""
    runs, start = [], callback.start
    callback.start = lambda *words: runs.append(start(*words)) or runs[-1]
    return runs


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def traces(module):
    """What a callback could leave: attributes, hooks, and the mode of each part of a module, and threads."""
    hooks = [
        (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks)) for part in module.modules()
    ]
    own = {name for name in vars(module) if not name.startswith("_")}  # the others are Lightning's and torch's
    threads = {thread.name for thread in threading.enumerate() if thread.name == "HeatmapWriter"}
    return own, hooks, [part.training for part in module.modules()], threads
