"""Images on disk, with masks or without, as a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError
from seguq.data.classes import Classes
from seguq.data.reading import IMAGE_SUFFIXES, read_image, read_mask

_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp")


def list_images(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The image files below a folder, by id: the path relative to the folder, without its extension.

    Files and folders whose name begins with a dot are left out.

    Raises:
        SeguqError: if the folder is missing or holds no image, or two files have the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SeguqError(f"{folder} is no folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        image_id = relative.with_suffix("").as_posix()
        if image_id in found:
            raise SeguqError(f"{found[image_id]} and {path.name} have the same id {image_id!r}: rename one of them")
        found[image_id] = path
    if not found:
        raise SeguqError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


def find_mask(folder: Path, image_id: str) -> Path | None:
    """The mask file of an image, or None."""
    require_plain_name("the image id", image_id)
    candidates = (folder / f"{image_id}{ending}" for suffix in _MASK_SUFFIXES for ending in (suffix, suffix.upper()))
    return next((path for path in candidates if path.is_file()), None)


class SegmentationFolder(Dataset[dict[str, Any]]):
    """A folder of images, and beside it, where there are labels, a folder of masks of the same names.

    Args:
        images: folder of images, of any depth.
        masks: folder of masks, or None for images without labels (a pool).
        classes: the classes of the masks; needed with ``masks``.
        transform: an albumentations pipeline (see `seguq.data.transforms`), or a function of
            ``image=`` and ``mask=`` that gives a dict of the same keys.
        channels: the number of channels of an image, or None for as the files have them.

    Each item is a dict: ``image`` ``(channels, H, W)`` float32, ``mask`` ``(H, W)`` int64 where there are masks, and
    ``image_id``, the path relative to ``images`` without its extension.

    Raises:
        SeguqError: for a missing or empty folder, two files of one id, or an image without its mask.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        masks: str | os.PathLike[str] | None = None,
        classes: Classes | None = None,
        transform: Callable[..., dict[str, Any]] | None = None,
        channels: int | None = None,
    ) -> None:
        if masks is not None and classes is None:
            raise SeguqError("masks need classes=, to tell what their values mean")
        self.images = list_images(images)
        self.ids = list(self.images)
        self.classes = classes
        self.transform = transform
        self.channels = channels
        self.masks: dict[str, Path] | None = None
        if masks is not None:
            self.masks = {}
            for image_id, path in self.images.items():
                mask = find_mask(Path(masks), image_id)
                if mask is None:
                    raise SeguqError(f"{path} has no mask {Path(masks) / image_id}.png: add it, or move the image away")
                self.masks[image_id] = mask

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id = self.ids[index]
        item: dict[str, Any] = {"image": read_image(self.images[image_id], self.channels)}
        if self.masks is not None and self.classes is not None:
            item["mask"] = read_mask(self.masks[image_id], self.classes)
        if self.transform is not None:
            # OpenCV, behind the pipeline, knows no int64; class indices fit into int32
            item |= {"mask": item["mask"].astype("int32")} if "mask" in item else {}
            item = self.transform(**item)
        out: dict[str, Any] = {"image": torch.from_numpy(item["image"].transpose(2, 0, 1).copy()).float()}
        if "mask" in item:
            out["mask"] = torch.from_numpy(item["mask"]).long()
        out["image_id"] = image_id
        return out
