"""The Lightning data module over partial masks, for the trainings of an active-learning loop."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError, UsageError
from seguq.data.check import check_files
from seguq.data.classes import Classes
from seguq.data.folder import SegmentationFiles, SegmentationFolder
from seguq.data.labeled import Labeled
from seguq.data.labeled_items import LabeledItems, RunningNumbers, count_labeled
from seguq.data.module import SegmentationData
from seguq.data.transforms import Augmentation, evaluation_transform, training_transform


class LabeledData(SegmentationData):
    """What is labeled so far, for a Trainer: equally many steps in every round, however much is labeled.

    An epoch is ``steps * batch_size`` items (of all processes together). With ``crop``, each item is a crop around one
    of all labeled pixels, drawn so that each is as likely as any other: an image in proportion to its labeled pixels,
    one of these, and one of the crops that contain it. Without, images come whole, in shuffled turns. The rest of a
    partial mask is ignored, so a loss with ``ignore_index`` is over labeled pixels alone. An item depends on the seed
    of ``labeled`` and its running number, on nothing else: not on the workers or the global generators.

    Validation and test are splits of ``root``, in the layout of `SegmentationData`; where there is none, they have no
    batches. Predicted is the whole pool, in its order, without masks. Images are never resized: what is labeled are
    pixels of files. Every file is checked before the first step.

    Args:
        labeled: what an active-learning loop hands over.
        root: folder of a data set whose ``images/`` may hold splits to judge on.
        steps: batches an epoch, of one process; of several processes each takes its share of them.
        batch_size: images a batch. Evaluation uses 1 where images differ in size.
        crop: pixels, or (height, width), of the crops; None: whole images, of one size. Smaller images are padded.
        augmentation: as in `SegmentationData`.
        num_workers: as in `SegmentationData`.
        mean: as in `SegmentationData`.
        std: as in `SegmentationData`.
        channels: as in `SegmentationData`.
        val_split: folder name of the validation split in ``root``.
        test_split: folder name of the test split in ``root``.
        scale: as in `SegmentationData`.

    Raises:
        SeguqError: for anything that is wrong with the files, naming the file, or if no pixel is labeled.
    """

    def __init__(
        self,
        labeled: Labeled,
        root: str | os.PathLike[str] | None = None,
        steps: int = 500,
        batch_size: int = 8,
        crop: int | tuple[int, int] | None = None,
        augmentation: Augmentation = "flip",
        num_workers: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels: int | None = None,
        val_split: str = "val",
        test_split: str = "test",
        scale: float | None = None,
    ) -> None:
        self.pool_folder = labeled.pool.folder or _common(labeled.pool.paths.values())
        # what the images of the training lie under, for those who ask a checkpoint what it has seen
        name = self.pool_folder.resolve().name or "pool"
        super().__init__(
            self.pool_folder if root is None else root,
            batch_size,
            crop=crop,
            augmentation=augmentation,
            num_workers=num_workers,
            mean=mean,
            std=std,
            channels=channels,
            train_split=name,
            val_split=val_split,
            test_split=test_split,
            pool_split=name,
            scale=scale,
        )
        require_count("steps", steps)
        require_count("batch_size", batch_size)
        if steps * batch_size > sys.maxsize:
            raise UsageError(f"steps={steps} of {batch_size} images are more than can be counted: give fewer")
        self.labeled, self.steps, self.has_root = labeled, steps, root is not None
        self._classes = labeled.classes
        self._counts: dict[str, int] | None = None

    def setup(self, stage: str) -> None:
        """Check the files of a stage before its first step, and count what is labeled."""
        self._sizes.clear()
        self._counts = None
        self.require_one_normalization()
        if stage == "fit":
            self._labeled_pixels()
        for split in {"fit": ("val",), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            if self.has_split(split):
                self.folder(self.splits[split])

    def has_split(self, stage: str) -> bool:
        """Whether there are images of a split, ``"val"`` or ``"test"``, to judge on."""
        if not self.has_root:
            return False
        if not self.root.is_dir():
            raise SeguqError(f"{self.root} is no folder: pass the root of a data set with images/ and masks/, or none")
        return super().has_split(stage)

    def folder(self, split: str, *, masks: bool = True, training: bool = False) -> SegmentationFolder:
        """The data set of a split of ``root``, checked; see `SegmentationData.folder`."""
        if not self.has_root:
            raise SeguqError(
                f"there is no split {split!r} without a root: pass root=, a data set with images/ and masks/"
            )
        path = self.root / "classes.json"
        if masks and path.exists():
            found = Classes.read(path)
            if (found.names, found.ignore_index) != (self.classes.names, self.classes.ignore_index):
                raise SeguqError(
                    f"{path} has the classes {', '.join(found.names)} (ignored: {found.ignore_index}), but what is "
                    f"labeled has {', '.join(self.classes.names)} (ignored: {self.classes.ignore_index}): give both "
                    "the same"
                )
        return super().folder(split, masks=masks, training=training)

    def _labeled_pixels(self) -> dict[str, int]:
        """The number of labeled pixels of each image, after a check of all that training reads."""
        if self._counts is not None:
            return self._counts
        images, masks, classes = self.labeled.images, self.labeled.masks, self.labeled.classes
        self.fitting_normalization()
        if not images:
            raise SeguqError("no image is labeled: label some pixels before training")
        folder = _common(masks.values())
        settings: dict[str, Any] = {"channels": self.channels, "scale": self.scale, "partial": folder}
        sizes = check_files(images, masks, classes, folder=self.pool_folder, **settings)
        counts = count_labeled(images, masks, classes)
        if not any(counts.values()):
            raise SeguqError(f"no pixel is labeled in the {len(masks)} masks in {folder}: label some before training")
        shown = {sizes[image_id] for image_id, count in counts.items() if count}
        self.require_stackable(shown, self.pool_folder, "crop=")
        self._counts = counts
        return counts

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of what is labeled."""
        counts = self._labeled_pixels()
        normalization = self.fitting_normalization()
        transform = training_transform(normalization, augmentation=self.augmentation)
        length = self.steps * self.batch_size
        data = LabeledItems(self.labeled, counts, length, self.crop, transform, self.channels, self.scale)
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=self._numbers(data),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _numbers(self, data: LabeledItems) -> RunningNumbers:
        trainer = getattr(self, "trainer", None)
        if trainer is None:
            return RunningNumbers(data)
        spread = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        # Lightning takes the first batches of a resumed training before it tells the sampler the epoch
        return RunningNumbers(data, spread["num_replicas"], spread["rank"], trainer.current_epoch)

    def val_dataloader(self) -> Any:
        """Batches of the validation split; none where there is no such folder."""
        return self.dataloader(self.splits["val"]) if self.has_split("val") else []

    def test_dataloader(self) -> Any:
        """Batches of the test split; none where there is no such folder."""
        return self.dataloader(self.splits["test"]) if self.has_split("test") else []

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Batches of all images of the pool, without masks."""
        transform = evaluation_transform(self.fitting_normalization())
        files = dict(self.labeled.pool.paths)
        sizes = check_files(files, channels=self.channels, scale=self.scale, folder=self.pool_folder)
        data = SegmentationFiles(files, transform=transform, channels=self.channels, scale=self.scale)
        return self.in_order(data, set(sizes.values()), "images of the pool")


def _common(files: Any) -> Path:
    """The folder that files lie in."""
    folders = {str(Path(path).absolute().parent) for path in files}
    return Path(os.path.commonpath(folders)) if folders else Path()
