"""Masks that people have painted: where they are, and what they say."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seguq.core.errors import SeguqError
from seguq.core.out_of_memory import memory_for
from seguq.data import Classes
from seguq.data.decoding import decode_mask
from seguq.data.raster import Raster
from seguq.data.reading import indices_of

STEM = "mask"
_READ = (".png", ".tif", ".tiff", ".bmp", ".webp")
_LOSSY = (".jpg", ".jpeg", ".gif")
_SAVING = 10  # seconds
_ADVICE = "paint in the colors of the legend with a hard brush, without smoothing, and save it again"


def answer_file(folder: Path) -> Path | None:
    """The mask that a person has put into the folder of a task; None where there is none.

    Raises:
        SeguqError: for two of them, one of a type that changes classes, what is no file (a link to nothing), or a
            folder that cannot be read.
    """
    found = [folder / name for name in files_in(folder) if Path(name).stem.lower() == STEM]
    masks = [path for path in found if path.suffix.lower() in _READ]
    if len(masks) > 1:
        raise SeguqError(f"{masks[0]} and {masks[1].name} are two answers to one task: remove one of them")
    if masks:
        if masks[0].is_file():
            return masks[0]
        if os.path.lexists(masks[0]):
            raise SeguqError(f"{masks[0]} is no file, or a link to what is not there: remove it")
        return None  # a program replaces it at this moment
    lossy = [path for path in found if path.suffix.lower() in _LOSSY]
    if lossy:
        raise SeguqError(f"{lossy[0]} is of a type that changes colors: save it as {STEM}.png, and remove it")
    return None


def files_in(folder: Path) -> list[str]:
    """The names of what is no folder in a folder, sorted; none where that is missing.

    Raises:
        SeguqError: if it cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SeguqError(f"{folder} cannot be read, so that answers would be missed: {error.strerror}") from error


def read_answer(path: Path, classes: Classes) -> npt.NDArray[np.int64] | None:
    """What a painted mask says, ``(H, W)``.

    As `seguq.data.read_mask` has it, with rules for what paint programs make of a mask:

    - what is more transparent than not is not labeled: it is the ground of a layer;
    - a palette counts by its colors, where each that is used is the color of a class: programs sort palettes anew;
    - so do grays, which programs save where all colors are gray, unless they could be meant as class indices, too.

    Returns:
        None for what cannot be read and was changed in the last seconds: it is being saved.

    Raises:
        SeguqError: for what cannot be read, holds a color of no class, or grays that mean one class as color and
            another one as index.
    """
    with memory_for(f"the mask {path}", "cut the image into tiles"):
        try:
            raster = decode_mask(path)
        except SeguqError:
            if _is_being_saved(path):
                return None
            raise
        try:
            return _classes_in(path, raster, classes)
        except SeguqError as error:
            raise SeguqError(f"{error}: {_ADVICE}") from error


def _is_being_saved(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < _SAVING
    except OSError:  # a program replaces it at this moment
        return True


def _classes_in(path: Path, raster: Raster, classes: Classes) -> npt.NDArray[np.int64]:
    transparent = None
    if raster.alpha:
        alpha = raster.pixels[..., -1]
        transparent = alpha < np.iinfo(alpha.dtype).max / 2
    raster = _by_color(path, raster, classes)
    if transparent is not None:
        # whatever the color is that nobody sees, it must be one that can be looked up
        pixels = np.array(raster.colors)
        pixels[transparent] = classes.colors[0] if pixels.shape[2] == 3 else 0
        raster = replace(raster, pixels=pixels, alpha=False)
    found = indices_of(path, raster, classes).astype(np.int64)
    if transparent is not None:
        found[transparent] = classes.ignore_index
    return found


def _by_color(path: Path, raster: Raster, classes: Classes) -> Raster:
    """A palette, or grays, as colors, where that is what they are."""
    values = raster.colors
    if values.shape[2] != 1 or values.dtype != np.uint8:
        return raster
    palette = (
        np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1) if raster.palette is None else raster.palette
    )
    used = np.flatnonzero(np.bincount(values.ravel()))
    known = dict(zip(classes.colors, range(len(classes)), strict=True))
    known |= dict.fromkeys(classes.ignore_colors, classes.ignore_index)
    colors = [tuple(color) for color in palette[used].tolist()] if used.max(initial=0) < len(palette) else [()]
    if not known.keys() >= set(colors):
        return raster
    meant = [known[color] for color in colors]
    indices = {*range(len(classes)), classes.ignore_index}
    if raster.palette is None and indices.issuperset(used.tolist()) and meant != used.tolist():
        value = next(value for value, index in zip(used.tolist(), meant, strict=True) if value != index)
        raise SeguqError(
            f"{path} is gray, and its {value} may be a color of the legend or a class number, which are not the same "
            "class: save it in colors (RGB)"
        )
    alpha = raster.pixels[..., 1:]
    return replace(raster, pixels=np.concatenate([palette[values[..., 0]], alpha], axis=-1), palette=None, rgb=True)
