"""Regions kept on disk, for partitions that look at nothing but the image: cut once, read from then on."""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.core.files import whole_file
from seguq.core.log import say_once
from seguq.core.out_of_memory import ran_out_of_memory
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, stored_pixels

_SCHEMA_VERSION = 1
_PACKAGES = ("scikit-image", "numpy", "opencv-python-headless")  # what a partition may be made of
_LABELS = "labels.npy"


def cached(partition: Partition, folder: str | os.PathLike[str]) -> Partition:
    """A partition that keeps its regions in a folder, where they follow from the image alone; else the same as before.

    A file is known by a hash of the image's pixels, of the partition's class, code and arguments, and of the packages
    that it may use: whatever changes one of them cuts anew. Files are written whole, so any number of processes may
    share the folder; one that is damaged, or cannot be read or written, costs the time to cut again, and nothing else.

    Args:
        partition: one whose `of_image_alone` is true, made from numbers, texts and lists of these, is kept.
        folder: it is made when the first file is.

    Example:
        >>> from seguq.regions import Grid, Superpixels
        >>> cached(Grid(32), "partitions"), cached(Superpixels(200), "partitions")
        (Grid(size=32), Superpixels(count=200))
    """
    of_image_alone = partition.of_image_alone and partition.needs_image and not partition.needs
    made_of = _made_of(partition) if of_image_alone else None
    return partition if made_of is None or isinstance(partition, _Cached) else _Cached(partition, Path(folder), made_of)


class _Cached(Partition):
    """What `cached` gives; it goes by the name and the arguments of the partition that it stands for."""

    def __init__(self, partition: Partition, folder: Path, made_of: str) -> None:
        self._partition, self._folder, self._made_of = partition, folder, made_of
        self.needs_image = True
        self.of_image_alone = True
        self.fills_boxes = partition.fills_boxes

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The region of each pixel, from the file where there is one."""
        pixels = np.ascontiguousarray(stored_pixels(image))
        key = sha256(f"{self._made_of} {pixels.shape} {pixels.dtype.str}".encode())
        key.update(pixels.data)
        path = self._folder / f"{key.hexdigest()}.npz"
        found = _read(path, pixels.shape[:2])
        if found is None:
            found = self._partition(image, None).cpu()
            if found.shape == pixels.shape[:2]:  # else it is no partition, which is said where it is used
                _write(path, found.numpy())
        return found

    def arguments(self) -> dict[str, Any]:
        """Those of the partition that it stands for."""
        return self._partition.arguments()

    def __repr__(self) -> str:
        return repr(self._partition)


def _made_of(partition: Partition) -> str | None:
    """All that the regions of an image follow from, save the image; None where that cannot be told."""
    kind = type(partition)
    if not _is_plain(partition.arguments()):
        return None  # a network, a function: its repr does not say what it does
    own = [base for base in kind.__mro__ if issubclass(base, Partition) and base is not Partition]
    code = [_code(base.__module__) for base in own]
    if None in code:
        return None
    content = (_SCHEMA_VERSION, f"{kind.__module__}.{kind.__qualname__}", sorted(partition.arguments().items()))
    return repr((*content, code, [_version(package) for package in _PACKAGES]))


def _is_plain(value: Any) -> bool:
    """Whether a value is all in its repr."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return type(value) is dict and all(_is_plain(item) for pair in value.items() for item in pair)
    return value is None or type(value) in (bool, int, float, str)


@functools.cache
def _code(module: str) -> str | None:
    """A hash of the source of a module; None where there is none, as in a console."""
    try:
        return sha256(inspect.getsource(sys.modules[module]).encode(errors="replace")).hexdigest()
    except (KeyError, OSError, TypeError):
        return None


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _read(path: Path, size: tuple[int, ...]) -> Tensor | None:
    """The regions in a file; None where it is not there, or is not what was written."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.getinfo(_LABELS).file_size > 4 * size[0] * size[1] + 1024:
                return None
            # the whole entry at once, so that its check sum is looked at
            labels = np.load(io.BytesIO(file.read(_LABELS)), allow_pickle=False)
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        return None
    if labels.dtype != np.int32 or labels.shape != size or labels.min(initial=0) < -1:
        return None
    return torch.from_numpy(labels)


def _write(path: Path, labels: npt.NDArray[Any]) -> None:
    array = io.BytesIO()
    np.save(array, labels.astype(np.int32))
    try:
        # what `np.savez_compressed` writes, in a quarter of the time
        with (
            whole_file(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        ):
            file.writestr(_LABELS, array.getvalue())
    except (OSError, SeguqError) as error:
        say_once(f"regions are cut anew each time, as they cannot be kept in {path.parent}: {error}")
