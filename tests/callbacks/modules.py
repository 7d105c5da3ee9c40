"""Lightning modules of the kinds that people have, written without a look at seguq, of either name of Lightning.

Each class says in ``form`` what its data set gives for one image, in ``class_logits`` how its author would get class
logits at the size of the masks for the images of a batch, and in ``extra`` how many more forwards a batch one
deterministic pass of a callback costs.
"""

from types import SimpleNamespace

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from seguq.calibration import TemperatureScaling

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning.pytorch": lightning.pytorch}
both_names = pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)

CLASSES, SIZE = 3, (8, 12)


class Net(nn.Module):
    """Two convolutions with dropout and batch normalization; large weights make it overconfident."""

    def __init__(self, outputs=CLASSES, dropout=0.3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, outputs, 1)
        self.head.weight.data.mul_(6)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.stem(x)))))


class Scenes(Dataset):
    """Images of noise around three shades, and masks of the shades with errors; image i is always the same.

    Args:
        count: number of images.
        form: from image ``(3, H, W)``, mask ``(H, W)`` and index to what the data set gives.
        seed: of the pixels.
        ignored: share of pixels with the value ``ignore_index``.
    """

    def __init__(self, count, form=lambda image, mask, index: (image, mask), seed=0, ignored=0.1, ignore_index=255):
        self.count, self.form, self.seed = count, form, seed
        self.ignored, self.ignore_index = ignored, ignore_index

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        truth = torch.randint(CLASSES, SIZE, generator=generator)
        image = truth / 2 + 0.6 * torch.randn(3, *SIZE, generator=generator)
        wrong = torch.rand(SIZE, generator=generator) < 0.15
        mask = torch.where(wrong, torch.randint(CLASSES, SIZE, generator=generator), truth)
        mask[torch.rand(SIZE, generator=generator) < self.ignored] = self.ignore_index
        return self.form(image, mask, index)


class Stream(IterableDataset):
    """A data set that can only be gone through."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (self.data[i] for i in range(len(self.data)))


def loader(data, batch_size=3, **settings):
    return DataLoader(data, batch_size=batch_size, num_workers=0, **settings)


def _kinds(package):
    class Plain(package.LightningModule):
        """Tuples, and a forward that the steps call."""

        extra = 0
        outputs = CLASSES

        @staticmethod
        def form(image, mask, index):
            return image, mask

        def __init__(self, seed=0, net=None):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.net = Net(self.outputs) if net is None else net

        def forward(self, x):
            return self.net(x)

        def class_logits(self, batch):
            return self(batch[0])

        def evaluate(self, batch):
            image, mask = batch[:2]
            return F.cross_entropy(self(image), mask, ignore_index=255)

        def training_step(self, batch, batch_idx):
            return self.evaluate(batch)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val/loss", self.evaluate(batch), add_dataloader_idx=dataloader_idx > 0)

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.evaluate(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    class WithoutForward(Plain):
        """No forward: the steps call the network."""

        extra = 0
        forward = package.LightningModule.forward

        def class_logits(self, batch):
            return self.net(batch[0])

        def evaluate(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1], ignore_index=255)

    class PastForward(Plain):
        """A forward, but the steps call the network past it."""

        extra = 1

        def evaluate(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1], ignore_index=255)

    class Normalizing(Plain):
        """The steps normalize the batch."""

        @staticmethod
        def normalized(image):
            return (image - 0.4) / 0.5

        def class_logits(self, batch):
            return self(self.normalized(batch[0]))

        def evaluate(self, batch):
            return F.cross_entropy(self(self.normalized(batch[0])), batch[1], ignore_index=255)

    class Flipping(Plain):
        """Validation averages over the image and its mirror image."""

        def evaluate(self, batch):
            image, mask = batch
            both = self(image) + self(image.flip(-1)).flip(-1)
            return F.cross_entropy(both / 2, mask, ignore_index=255)

    class Torchvision(Plain):
        """Dict batches, and ``{"out": ..., "aux": ...}``."""

        @staticmethod
        def form(image, mask, index):
            return {"image": image, "mask": mask, "name": f"scene {index}"}

        def forward(self, x):
            logits = self.net(x)
            return {"out": logits, "aux": torch.zeros_like(logits)}

        def class_logits(self, batch):
            return self(batch["image"])["out"]

        def evaluate(self, batch):
            return F.cross_entropy(self(batch["image"])["out"], batch["mask"], ignore_index=255)

    class Transformer(Plain):
        """Hugging Face's keys and keywords, the loss in the output, and logits at a quarter of the size."""

        @staticmethod
        def form(image, mask, index):
            return {"labels": mask, "pixel_values": image}

        def forward(self, pixel_values, labels=None):
            logits = self.net(F.avg_pool2d(pixel_values, 4))
            loss = None
            if labels is not None:
                full = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
                loss = F.cross_entropy(full, labels, ignore_index=255)
            return SimpleNamespace(loss=loss, logits=logits)

        def class_logits(self, batch):
            logits = self(batch["pixel_values"]).logits
            return F.interpolate(logits, batch["labels"].shape[-2:], mode="bilinear", align_corners=False)

        def evaluate(self, batch):
            return self(**batch).loss

    class Binary(Plain):
        """One logit, and masks ``(B, 1, H, W)`` of 0. and 1. as the binary cross-entropy wants them."""

        outputs = 1

        @staticmethod
        def form(image, mask, index):
            return image, (mask > 0).float()[None]

        def class_logits(self, batch):
            return self(batch[0])

        def evaluate(self, batch):
            return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    class BinaryKeywords(Binary):
        """One logit, and a forward that is given the mask, first, by keyword."""

        @staticmethod
        def form(image, mask, index):
            return {"y": (mask > 0).float()[None], "x": image}

        def forward(self, x, y=None):
            return self.net(x)

        def class_logits(self, batch):
            return self(batch["x"])

        def evaluate(self, batch):
            return F.binary_cross_entropy_with_logits(self(**batch), batch["y"])

    class Multilabel(Plain):
        """Three independent labels; the module says so."""

        def __init__(self, **settings):
            super().__init__(**settings)
            self.task = "multilabel"

        @staticmethod
        def form(image, mask, index):
            return image, torch.stack([(mask == label).long() for label in range(CLASSES)])

        def evaluate(self, batch):
            return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    return {
        kind.__name__: kind
        for kind in (
            Plain, WithoutForward, PastForward, Normalizing, Flipping, Torchvision, Transformer, Binary,
            BinaryKeywords, Multilabel,
        )
    }  # fmt: skip


_CLASSES = {package: _kinds(package) for package in PACKAGES.values()}
KINDS = tuple(_CLASSES[pytorch_lightning])


def kind(package, name="Plain"):
    """A class of a package."""
    return _CLASSES[package][name]


def make(package, name="Plain", **settings):
    """A module of a kind; its weights depend on ``seed`` alone."""
    return kind(package, name)(**settings)


def data_for(module, count=5, **settings):
    """A data set of the form that a module takes."""
    return Scenes(count, getattr(module, "form", Scenes(0).form), **settings)


def trainer_of(package, folder, *callbacks, **settings):
    settings = {"logger": False, "enable_checkpointing": False, "max_epochs": 1, **settings}
    return package.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=settings.pop("num_sanity_val_steps", 0),
        **settings,
    )


def fit(package, folder, module, *callbacks, train=None, val=None, ckpt_path=None, **settings):
    """Train a module; gives the Trainer. By default on 6 images in batches of 2, and validated on 5 others."""
    trainer = trainer_of(package, folder, *callbacks, **settings)
    train = loader(data_for(module, 6, seed=1), 2) if train is None else train
    val = loader(data_for(module)) if val is None else val
    trainer.fit(module, train, val, ckpt_path=ckpt_path)
    return trainer


def reference_batches(module, data):
    """What the module's author would calibrate: logits and masks of a data set in evaluation mode, in one batch."""
    (batch,) = loader(data, batch_size=len(data))
    dtype = next(module.parameters()).dtype
    batch = _cast(batch, dtype)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    with torch.no_grad():
        logits = module.class_logits(batch)
    for part, mode in modes:
        part.training = mode
    mask = (
        batch[1]
        if isinstance(batch, (tuple, list))
        else next(batch[key] for key in ("mask", "labels", "y") if key in batch)
    )
    return [(logits, mask)]


def _cast(batch, dtype):
    if isinstance(batch, torch.Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _cast(value, dtype) for key, value in batch.items()}
    return [_cast(value, dtype) for value in batch] if isinstance(batch, (tuple, list)) else batch


def fitted_by_hand(module, data, **settings):
    """The temperature that `TemperatureScaling.fit` finds for a module as it is."""
    task = getattr(module, "task", "multiclass")
    return TemperatureScaling(task=task, **settings).fit(reference_batches(module, data)).temperature


class Forwards:
    """Counts the forwards of a network."""

    def __init__(self, net):
        self.count = 0
        net.register_forward_pre_hook(self._see)

    def _see(self, *_):
        self.count += 1


def state_of(module):
    """Everything of a module and its parts that a callback could leave changed, but what Lightning keeps there."""
    return {
        name: (
            {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "calibrators"},
            {key: list(value.values()) for key, value in vars(part).items() if key.endswith("_hooks")},
            [None if p.grad is None else p.grad.tolist() for p in part.parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    }
