"""Tiny images, masks and data sets on disk for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]
Corrupt = Callable[[Path], None]

HEIGHT, WIDTH = 40, 48


def random_pixels(*shape: int, seed: int = 0) -> Array:
    """Noise: every pixel and channel differs, so that a swap, a shift or a loss is seen."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_pixels(height: int = HEIGHT, width: int = WIDTH) -> Array:
    """An RGB image that JPEG and WebP keep almost as it is, with no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 40 + 200 * y / height, 40 + 200 * x / width, 230 - 150 * x * y / (height * width)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def random_mask(*shape: int, classes: int = 2, seed: int = 0) -> Array:
    """Class indices 0 .. classes - 1."""
    return np.random.default_rng(seed).integers(0, classes, shape, dtype=np.uint8)


def write(path: Path, pixels: Array, **options: Any) -> Path:
    """Write pixels by Pillow, and the folders that are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_classes(root: Path, names: tuple[str, ...] = ("background", "thing"), **more: Any) -> Path:
    """Write a ``classes.json`` with a color for each class."""
    entries = [{"index": i, "name": name, "color": [10 * i, 20 * i, 30 * i]} for i, name in enumerate(names)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"ignore_index": 255, "classes": entries, **more}))
    return root / "classes.json"


def build_dataset(
    root: Path,
    splits: Mapping[str, int] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    unlabeled: tuple[str, ...] = ("pool",),
) -> Path:
    """Write a data set of ``splits`` (images by split), no two images alike, with masks save for ``unlabeled``."""
    write_classes(root)
    splits = {"train": 4, "val": 2, "test": 2, "pool": 3} if splits is None else splits
    seed = 0
    for split, count in splits.items():
        for i in range(count):
            seed += 1
            write(root / "images" / split / f"{i}.png", random_pixels(*size, 3, seed=seed))
            if split not in unlabeled:
                write(root / "masks" / split / f"{i}.png", random_mask(*size, seed=seed))
    return root
