"""The Lightning data module over a folder of images and masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, get_worker_info

from seguq.core.checks import is_whole, require_choice, require_plain_name
from seguq.core.errors import SeguqError
from seguq.core.lightning import LightningDataModule
from seguq.core.log import say_once
from seguq.core.reading import listing, reading, text
from seguq.data.check import check_files
from seguq.data.classes import Classes
from seguq.data.folder import SegmentationFiles, SegmentationFolder
from seguq.data.normalization import Normalization, imagenet_normalization
from seguq.data.reading import require_scale
from seguq.data.transforms import AUGMENTATIONS, Augmentation, evaluation_transform, training_transform


def size_of(value: int | Sequence[int] | None, name: str) -> tuple[int, int] | None:
    """A number of pixels, or (height, width), as the latter; None stays None.

    Raises:
        SeguqError: for anything else.
    """
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(is_whole(item, 1) for item in pair):
        raise SeguqError(f"{name} must be a number of pixels or (height, width), but is {value}")
    return pair[0], pair[1]


class DataSettings(NamedTuple):
    """What a checkpoint knows of the data of its training.

    Attributes:
        size: (height, width) that images were resized to, or None for images as they are.
        normalization: mean and deviation of each channel.
        train_split: name of the split that was trained on.
        scale: value of 16-bit and float files that stands for 1, or None for what their type can hold.
    """

    size: tuple[int, int] | None
    normalization: Normalization
    train_split: str
    scale: float | None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> DataSettings | None:
        """Those in a Lightning checkpoint of a training with `SegmentationData`; None where there are none.

        Raises:
            SeguqError: if they are damaged.
        """
        for kept in checkpoint.values():  # under the name of the class, which may be one derived from it
            if isinstance(kept, Mapping) and set(kept) == _KEPT:
                with reading("what the checkpoint holds of its data"):
                    size = None if kept["size"] is None else listing(kept["size"], "'size'")
                    return cls(
                        size_of(size, "'size'"),
                        Normalization.checked(listing(kept["mean"], "'mean'"), listing(kept["std"], "'std'")),
                        text(kept["train_split"], "'train_split'"),
                        require_scale(kept["scale"]),
                    )
        return None


_KEPT = {"size", "mean", "std", "train_split", "scale"}


class SegmentationData(LightningDataModule):
    """Images and masks in folders, for a Trainer of ``pytorch_lightning`` or of ``lightning``.

    The layout: ``images/SPLIT/NAME.jpg``, ``masks/SPLIT/NAME.png`` and ``classes.json``. Every file is checked before
    the first step. Images are normalized as the model says (its attribute ``normalization``, a pair), or as ``mean``
    and ``std`` say, or else with ImageNet's.

    Args:
        root: folder of the data set.
        batch_size: images a batch. Evaluation uses 1 where images differ in size and no ``size`` is given.
        size: pixels, or (height, width), that every image is resized to; None: as they are.
        crop: pixels, or (height, width), of the random crops in training; None: whole images. Crops much smaller than
            the images that are predicted cost accuracy: more of them lies near the network's zero padding.
        augmentation: ``flip``, ``d4`` (all symmetries of the square) or ``none``, in training.
        num_workers: processes that load data; None: one a core less one, 8 at the most.
        mean: mean of each channel, of pixels scaled to 0..1.
        std: deviation of each channel.
        channels: channels of an image; None: as many as ``mean`` has, or as the model takes, or 3.
        scale: value of 16-bit and float files that stands for 1, as in `read_image`: 4095 for 12 bits in files of 16.
            None: as the model says (its attribute ``scale``), or else by the type of the file.
        train_split: folder name of the training split.
        val_split: folder name of the validation split.
        test_split: folder name of the test split.
        pool_split: folder name of the images to predict; they need no masks.

    Raises:
        SeguqError: for anything that is wrong with the files, naming the file.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        batch_size: int = 8,
        size: int | tuple[int, int] | None = None,
        crop: int | tuple[int, int] | None = None,
        augmentation: Augmentation = "flip",
        num_workers: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels: int | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        pool_split: str = "pool",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise SeguqError(f"batch_size must be at least 1, but is {batch_size}")
        if (mean is None) != (std is None):
            raise SeguqError("mean and std go together: give both or neither")
        if num_workers is not None and num_workers < 0:
            raise SeguqError(f"num_workers must be at least 0, but is {num_workers}")
        if channels is not None and channels < 1:
            raise SeguqError(f"channels must be at least 1, but is {channels}")
        require_choice("augmentation", augmentation, AUGMENTATIONS)
        self.root = Path(root)
        self.batch_size = batch_size
        self.size = size_of(size, "size")
        self.crop = size_of(crop, "crop")
        self.augmentation: Augmentation = augmentation
        self.num_workers = min(8, (os.cpu_count() or 1) - 1) if num_workers is None else num_workers
        self.own_normalization = None if mean is None or std is None else Normalization.checked(mean, std)
        self.own_channels = channels
        self.own_scale = require_scale(scale)
        self.splits = {"train": train_split, "val": val_split, "test": test_split, "pool": pool_split}
        self._sizes: dict[tuple[str, bool], set[tuple[int, int]]] = {}
        self._classes: Classes | None = None

    @property
    def classes(self) -> Classes:
        """The classes of the data set, from ``classes.json``."""
        if self._classes is None:
            if not self.root.is_dir():
                raise SeguqError(
                    f"{self.root} is no folder: pass the root of a data set with images/, masks/, classes.json"
                )
            self._classes = Classes.read(self.root / "classes.json")
        return self._classes

    def _module(self) -> Any:
        trainer = getattr(self, "trainer", None)
        return None if trainer is None else trainer.lightning_module

    def _model_normalization(self) -> Normalization | None:
        told = getattr(self._module(), "normalization", None)
        # a module of one's own may hold a layer of that name
        return Normalization.checked(*told) if isinstance(told, (tuple, list)) and len(told) == 2 else None

    @property
    def normalization(self) -> Normalization:
        """Mean and deviation in force."""
        if self.own_normalization is not None:
            return self.own_normalization
        return self._model_normalization() or imagenet_normalization(self.own_channels or 3)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.own_channels or len(self.normalization.mean)

    def fitting_normalization(self) -> Normalization:
        """The mean and deviation in force, of as many channels as the images are to have.

        Raises:
            SeguqError: if they are of another number.
        """
        normalization = self.normalization
        if self.channels != len(normalization.mean):
            raise SeguqError(
                f"channels={self.channels}, but mean and std are for {len(normalization.mean)} channels: "
                "give one number a channel"
            )
        return normalization

    @property
    def scale(self) -> float | None:
        """The value of 16-bit and float files that stands for 1; None: by the type of the file."""
        told = getattr(self._module(), "scale", None)
        if self.own_scale is not None or isinstance(told, bool) or not isinstance(told, (int, float)):
            return self.own_scale
        return float(told)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data (`DataSettings`), so that evaluation treats images as training did."""
        mean, std = self.normalization
        size = None if self.size is None else list(self.size)
        return {
            "size": size,
            "mean": list(mean),
            "std": list(std),
            "train_split": self.splits["train"],
            "scale": self.scale,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with a training on images of another size."""
        told = DataSettings.of({"data": state_dict})
        fitting = getattr(getattr(self.trainer, "state", None), "fn", None) == "fit"
        if told is not None and fitting and told.size != self.size:
            raise SeguqError(
                f"the training that is resumed had images {size_in_words(told.size)}, but now they are "
                f"{size_in_words(self.size)}: set size= as it was"
            )

    def setup(self, stage: str) -> None:
        """Check the files of a stage before its first step."""
        self._sizes.clear()  # the folders may have changed since the last run of this data module
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self.folder(self.splits[split])
        self.require_one_normalization()
        if stage == "fit":
            where = self.root / "images" / self.splits["train"]
            self.require_stackable(self._sizes[self.splits["train"], True], where, "crop= or size=")

    def require_one_normalization(self) -> None:
        """Raise where the images would be normalized otherwise than the model says."""
        told = self._model_normalization()
        if self.own_normalization is not None and told is not None and told != self.own_normalization:
            raise SeguqError(
                f"the data are normalized with {tuple(self.own_normalization)}, but the model with "
                f"{tuple(told)}: give mean and std in one place"
            )

    def require_stackable(self, sizes: Set[tuple[int, int]], where: Path, way_out: str) -> None:
        """Raise where images of these sizes cannot be made batches of in training.

        Args:
            sizes: (height, width) of the images as stored.
            where: the folder that they lie in.
            way_out: the arguments that would help, for the message.
        """
        fixed = self.crop or self.size
        final = sizes if fixed is None else {fixed}
        if self.augmentation == "d4" and any(height != width for height, width in final):
            raise SeguqError(
                "augmentation='d4' turns images by a quarter, so they must be square: "
                f"pass a square {way_out}, or augmentation='flip'"
            )
        if len(final) > 1:
            raise SeguqError(
                f"the images in {where} have different sizes, which cannot be stacked into a batch: pass {way_out}"
            )

    def folder(self, split: str, *, masks: bool = True, training: bool = False) -> SegmentationFolder:
        """The data set of a split, checked.

        Args:
            split: name of the folder below ``images/`` (and ``masks/``).
            masks: whether the images have masks.
            training: whether images are cropped and flipped.

        Raises:
            SeguqError: for a name that is no folder's, such as an empty one, by which all splits would be taken as one.
        """
        require_plain_name("the split", split)
        normalization = self.fitting_normalization()
        if training:
            transform = training_transform(
                normalization, self.size, self.crop, self.augmentation, self.classes.ignore_index
            )
            # the flips and crops follow torch's seed (seed_everything), as shuffling does
            transform.set_random_seed(torch.initial_seed() % 2**32)
        else:
            transform = evaluation_transform(normalization, self.size)
        images = self.root / "images" / split
        masks_folder, classes = (self.root / "masks" / split, self.classes) if masks else (None, None)
        data = SegmentationFolder(images, masks_folder, classes, transform, self.channels, self.scale)
        if (split, masks) not in self._sizes:
            sizes = check_files(
                data.images, data.masks, data.classes, channels=self.channels, scale=self.scale, folder=self.root
            )
            self._sizes[split, masks] = set(sizes.values())
        return data

    def has_split(self, stage: str) -> bool:
        """Whether there is a folder of the images of a split: ``"train"``, ``"val"``, ``"test"`` or ``"pool"``."""
        require_plain_name("the split", self.splits[stage])
        return (self.root / "images" / self.splits[stage]).is_dir()

    def dataloader(self, split: str, *, masks: bool = True) -> DataLoader[dict[str, Any]]:
        """Batches of any split, in the order of its image ids, without augmentation."""
        data = self.folder(split, masks=masks)
        return self.in_order(data, self._sizes[split, masks], f"images of split {split!r}")

    def in_order(self, data: SegmentationFiles, sizes: Set[tuple[int, int]], what: str) -> DataLoader[dict[str, Any]]:
        """Batches of a data set in its order, of one image each where images differ in size.

        Args:
            data: the data set.
            sizes: (height, width) of its images as stored.
            what: what it holds, for a message.
        """
        batch_size = self.batch_size
        if self.size is None and len(sizes) > 1 and batch_size > 1:
            say_once(f"{what} differ in size: evaluated one at a time")
            batch_size = 1
        # by keyword: Lightning makes the loader anew (in predict, in several processes) and trips over a positional one
        return DataLoader(
            data, batch_size=batch_size, num_workers=self.num_workers, pin_memory=torch.cuda.is_available()
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled, augmented batches of the training split."""
        data = self.folder(self.splits["train"], training=True)
        return DataLoader(
            data,
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            worker_init_fn=_seed_worker,
            # a last batch of one image breaks batch normalization
            drop_last=len(data) >= self.batch_size,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the validation split."""
        return self.dataloader(self.splits["val"])

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the test split."""
        return self.dataloader(self.splits["test"])

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of the pool, without masks."""
        return self.dataloader(self.splits["pool"], masks=False)


def size_in_words(size: tuple[int, int] | None) -> str:
    """What happens to the size of images.

    Example:
        >>> size_in_words((96, 128)), size_in_words(None)
        ('resized to 96 x 128 pixels', 'as they are')
    """
    return "as they are" if size is None else f"resized to {size[0]} x {size[1]} pixels"


def _seed_worker(_: int) -> None:
    # workers start anew each epoch, each with a torch seed of its own; albumentations keeps another generator
    info: Any = get_worker_info()
    if info is not None:
        info.dataset.transform.set_random_seed(torch.initial_seed() % 2**32)
