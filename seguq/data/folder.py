"""Images on disk, with masks or without, as a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError
from seguq.core.log import say_once
from seguq.core.out_of_memory import memory_for
from seguq.data.classes import Classes
from seguq.data.reading import IMAGE_SUFFIXES, Picture, read_mask, read_picture, require_scale

SMALLER = "cut it into tiles, make it smaller (size), or load fewer at a time (batch_size, num_workers)"
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".webp")
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".gif")
# pictures that are not read: left out of a folder, they are named
_OTHER_SUFFIXES = (".gif", ".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".dcm", ".ppm", ".pgm", ".npy")


def list_images(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The image files below a folder, by id: the path relative to the folder, without its extension.

    Links to files and folders are followed. Files and folders whose name begins with a dot are left out.

    Raises:
        SeguqError: if the folder is missing or holds no image, or two files have the same id; if a folder below cannot
            be read or links to one that it lies in, or what has an image's name is a broken link or no file.
    """
    with _readable(Path(folder), "so that its images would be left out"):
        return _images(Path(folder))


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    """Name what the system does not let us look at."""
    try:
        yield
    except OSError as error:
        raise SeguqError(f"{error.filename or folder} cannot be read, {what}: {error.strerror or error}") from error


def _images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SeguqError(f"{folder} is no folder")
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(_files_below(folder)):
        suffix = path.suffix.lower()
        if suffix in _OTHER_SUFFIXES:
            others.append(path)
        if suffix not in IMAGE_SUFFIXES:
            continue
        if not path.is_file():
            what = "a link to what is not there" if path.is_symlink() else "no file"
            raise SeguqError(f"{path} has the name of an image, but is {what}: remove it")
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        if image_id in found:
            raise SeguqError(f"{found[image_id]} and {path.name} have the same id {image_id!r}: rename one of them")
        found[image_id] = path
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        say_once(f"{others[0]}{more} in {folder} left out: images are read from {', '.join(IMAGE_SUFFIXES)}")
    if not found:
        raise SeguqError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """All that is no folder, at any depth, and has no dot at the beginning of its name."""
    stat = folder.stat()
    entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    place = (stat.st_dev, stat.st_ino)
    if place in above:
        raise SeguqError(f"{folder} is a link to a folder that it lies in, so that its images never end: remove it")
    for name, is_folder in entries:
        if is_folder:
            yield from _files_below(folder / name, (*above, place))
        else:
            yield folder / name


def find_masks(folder: Path, images: Mapping[str, Path]) -> dict[str, Path]:
    """The mask file of each image.

    Args:
        folder: where they lie, under the names of the images and in any case of their endings.
        images: files by image id.

    Raises:
        SeguqError: for an image without a mask, with two, or with one in a format that changes indices.
    """
    names: dict[Path, dict[str, list[Path]]] = {}  # by folder and name without ending: a folder is read once
    found: dict[str, Path] = {}
    for image_id, image in images.items():
        require_plain_name("the image id", image_id)
        place = folder / image_id
        if place.parent not in names:
            by_name = names.setdefault(place.parent, {})
            with _readable(place.parent, "so that its masks are missing"):
                for path in sorted(place.parent.iterdir()) if place.parent.is_dir() else []:
                    by_name.setdefault(path.stem, []).append(path)
        files = names[place.parent].get(place.name, [])
        with _readable(place.parent, "so that its masks are missing"):
            masks = [path for path in files if path.suffix.lower() in _MASK_SUFFIXES and path.is_file()]
        if len(masks) > 1:
            raise SeguqError(f"{image} has two masks, {masks[0]} and {masks[1].name}: remove one of them")
        if not masks:
            raise SeguqError(_no_mask(image, place, names[place.parent]))
        found[image_id] = masks[0]
    return found


def _no_mask(image: Path, place: Path, names: Mapping[str, list[Path]]) -> str:
    lossy = [path for path in names.get(place.name, ()) if path.suffix.lower() in _LOSSY_SUFFIXES]
    if lossy:
        kind = "GIF" if lossy[0].suffix.lower() == ".gif" else "JPEG, which changes class indices"
        return f"{lossy[0]} is a mask stored as {kind}: masks are read from PNG, TIFF, BMP and WebP; save it as PNG"
    missing = f"{image} has no mask {place}.png"
    near = min((path for name in names for path in names[name] if name.startswith(place.name)), default=None)
    if near is not None:
        return f"{missing}, but there is {near.name}: rename it, or move the image away"
    return f"{missing}: add it, or move the image away"


class SegmentationFiles(Dataset[dict[str, Any]]):
    """Images, and where there are labels their masks, by their ids.

    Args:
        images: files by image id.
        masks: mask files by the same ids, or None for images without labels (a pool).
        classes: the classes of the masks; needed with ``masks``.
        transform: an albumentations pipeline (see `seguq.data.transforms`), or a function of
            ``image=`` and ``mask=`` that gives a dict of the same keys.
        channels: the number of channels of an image, or None for as the files have them.
        scale: what the values of 16-bit and float files are divided by, as in `read_image`.

    Pixels that a file says are without data (see `read_image`) are ignored in the mask.

    Each item is a dict: ``image`` ``(channels, H, W)`` float32, ``mask`` ``(H, W)`` int64 where there are masks, and
    ``image_id``.
    """

    def __init__(
        self,
        images: Mapping[str, Path],
        masks: Mapping[str, Path] | None = None,
        classes: Classes | None = None,
        transform: Callable[..., dict[str, Any]] | None = None,
        channels: int | None = None,
        scale: float | None = None,
    ) -> None:
        if masks is not None and classes is None:
            raise SeguqError("masks need classes=, to tell what their values mean")
        self.images = dict(images)
        self.masks = None if masks is None else dict(masks)
        self.ids = list(self.images)
        self.classes = classes
        self.transform = transform
        self.channels = channels
        self.scale = require_scale(scale)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image_id = self.ids[index]
        picture = read_picture(self.images[image_id], self.channels, self.scale)
        height, width = picture.pixels.shape[:2]
        with memory_for(f"image {image_id!r} ({height} x {width})", SMALLER):
            return self.item(image_id, picture.pixels, self.mask(image_id, picture))

    def mask(self, image_id: str, picture: Picture) -> npt.NDArray[Any] | None:
        """The mask of an image, ``(H, W)`` int64, without the pixels that have no data; None without masks."""
        if self.masks is None or self.classes is None:
            return None
        mask = read_mask(self.masks[image_id], self.classes)
        if picture.missing is not None and picture.missing.shape == mask.shape:
            mask[picture.missing] = self.classes.ignore_index
        return mask

    def item(self, image_id: str, pixels: npt.NDArray[Any], mask: npt.NDArray[Any] | None) -> dict[str, Any]:
        """Pixels ``(H, W, channels)`` and their mask as an item of the data set."""
        item: dict[str, Any] = {"image": pixels} if mask is None else {"image": pixels, "mask": mask}
        if self.transform is not None:
            # OpenCV, behind the pipeline, knows no int64; class indices fit into int32
            item |= {} if mask is None else {"mask": mask.astype("int32")}
            item = self.transform(**item)
        out: dict[str, Any] = {"image": torch.from_numpy(item["image"].transpose(2, 0, 1).copy()).float()}
        if "mask" in item:
            out["mask"] = torch.from_numpy(item["mask"]).long()
        out["image_id"] = image_id
        return out


class SegmentationFolder(SegmentationFiles):
    """A folder of images, and beside it, where there are labels, a folder of masks of the same names.

    Args:
        images: folder of images, of any depth.
        masks: folder of masks, or None for images without labels (a pool).
        classes: the classes of the masks; needed with ``masks``.
        transform: an albumentations pipeline (see `seguq.data.transforms`), or a function of
            ``image=`` and ``mask=`` that gives a dict of the same keys.
        channels: the number of channels of an image, or None for as the files have them.
        scale: what the values of 16-bit and float files are divided by, as in `read_image`.

    Pixels that a file says are without data (see `read_image`) are ignored in the mask.

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
        scale: float | None = None,
    ) -> None:
        found = list_images(images)
        beside = None if masks is None else find_masks(Path(masks), found)
        super().__init__(found, beside, classes, transform, channels, scale)
