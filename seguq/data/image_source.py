"""Images as they are stored, by their ids."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from seguq.core.errors import SeguqError, UsageError
from seguq.data.decoding import size_in_header
from seguq.data.folder import list_images
from seguq.data.reading import read_picture

_RASTERS = (".tif", ".tiff")


class ImageSource:
    """From the id of an image to its file, its size, and its pixels as they are stored.

    A batch holds images as a network wants them: normalized, and maybe resized. What looks at the images of people, or
    shows them, asks here.

    Args:
        images: a folder, whose images go by their paths below it without the endings; or the files by id, as
            ``SegmentationFolder(...).images`` has them.

    Raises:
        SeguqError: for a folder that is missing or holds no image, or two files of one id.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> import cv2, numpy as np
        >>> cv2.imwrite(str(folder / "a.png"), np.zeros((4, 6, 3), np.uint8))
        True
        >>> source = ImageSource(folder)
        >>> source.ids, source.size("a"), source["a"].shape, "b" in source
        (('a',), (4, 6), (4, 6, 3), False)
    """

    def __init__(self, images: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]) -> None:
        self.folder: Path | None = None
        if isinstance(images, Mapping):
            self._files = {image_id: Path(path) for image_id, path in images.items()}
        elif isinstance(images, (str, os.PathLike)):
            self.folder = Path(images)
            self._files = list_images(self.folder)
        else:
            raise UsageError(f"images must be a folder, or files by id, but is {images!r}")
        self._sizes: dict[str, tuple[int, int]] = {}
        self._last_missing: tuple[str | None, npt.NDArray[Any] | None] = (None, None)

    @classmethod
    def of(cls, images: ImageSource | str | os.PathLike[str] | Mapping[str, Any]) -> ImageSource:
        """One of what may be one already."""
        return images if isinstance(images, ImageSource) else cls(images)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all images."""
        return tuple(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._files

    def __repr__(self) -> str:
        return f"ImageSource({len(self)} images{'' if self.folder is None else f' in {self.folder}'})"

    def __getitem__(self, image_id: str) -> npt.NDArray[Any]:
        """The image as stored, ``(H, W, channels)`` uint8 or float32 (see `seguq.data.read_image`).

        Raises:
            SeguqError: for an unknown id, or a file that cannot be read.
        """
        picture = read_picture(self.path(image_id))
        self._sizes[image_id] = (picture.pixels.shape[0], picture.pixels.shape[1])
        self._last_missing = image_id, picture.missing  # which is asked for next, as a rule
        return picture.pixels

    @property
    def paths(self) -> Mapping[str, Path]:
        """The files by id."""
        return MappingProxyType(self._files)

    def missing(self, image_id: str) -> npt.NDArray[Any] | None:
        """Where an image has no data, ``(H, W)``; None where its file says nothing, as all but rasters do.

        Raises:
            SeguqError: for an unknown id, or a file that cannot be read.
        """
        path = self.path(image_id)
        if self._last_missing[0] == image_id:
            return self._last_missing[1]
        return read_picture(path).missing if path.suffix.lower() in _RASTERS else None

    def path(self, image_id: str) -> Path:
        """The file of an image.

        Raises:
            SeguqError: for an unknown id, naming the folder.
        """
        found = self._files.get(image_id)
        if found is None:
            where = "the files given" if self.folder is None else str(self.folder)
            some = f" ({len(self)} images, such as {next(iter(self._files))!r})" if self._files else ""
            raise SeguqError(
                f"there is no image {image_id!r} in {where}{some}: give the folder of the images that are predicted, "
                "by whose names they have to go"
            )
        return found

    def size(self, image_id: str) -> tuple[int, int]:
        """Height and width of an image, as it is shown upright; of most files from their header alone.

        Raises:
            SeguqError: for an unknown id, or a file that cannot be read.
        """
        if image_id not in self._sizes:
            path = self.path(image_id)
            size = size_in_header(path)
            self._sizes[image_id] = self[image_id].shape[:2] if size is None else size
        return self._sizes[image_id]

    def require_size(self, image_id: str, size: tuple[int, ...]) -> None:
        """Raise where maps are of another size than their image as stored, as after a resizing.

        Raises:
            SeguqError: with both sizes.
        """
        stored = self.size(image_id)
        if stored != tuple(size):
            raise SeguqError(
                f"{self.path(image_id)} is stored with {stored[0]} x {stored[1]} pixels (height x width), but the maps "
                f"of {image_id!r} have {' x '.join(map(str, size))}: predict images at the size of their files, not "
                "resized"
            )
