"""Images with a few labeled pixels, for the tests of trainings on partial masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seguq.data import Classes, ImageSource, Labeled, LabeledData
from seguq.data.partial_masks import unlabeled, write_mask
from tests.data.builders import Array, random_pixels, write

TWO = Classes.unnamed(2)


def dotted(size: tuple[int, int], dots: Mapping[tuple[int, int], int], ignore_index: int = 255) -> Array:
    """A mask in which the pixels of ``dots`` alone are labeled."""
    mask = unlabeled(size, ignore_index)
    for place, index in dots.items():
        mask[place] = index
    return mask


def make_labeled(
    root: Path, masks: Mapping[str, Array], classes: Classes = TWO, more: tuple[str, ...] = (), seed: int = 0
) -> Labeled:
    """Write an image of noise for each mask, and further ones for the pool."""
    files = {}
    for number, (image_id, mask) in enumerate(masks.items()):
        write(root / "images" / "pool" / f"{image_id}.png", random_pixels(*mask.shape, 3, seed=number))
        files[image_id] = root / "partial" / f"{image_id}.png"
        files[image_id].parent.mkdir(parents=True, exist_ok=True)
        write_mask(files[image_id], mask, classes)
    for image_id in more:
        write(root / "images" / "pool" / f"{image_id}.png", random_pixels(*next(iter(masks.values())).shape, 3))
    pool = ImageSource(root / "images" / "pool")
    return Labeled({image_id: pool.path(image_id) for image_id in masks}, files, classes, pool, seed=seed)


def three(root: Path, seed: int = 0) -> Labeled:
    """Three images of 20 x 24 pixels, one of them without a label."""
    size = (20, 24)
    masks = {
        "a": dotted(size, {(2, 3): 0, (2, 4): 1, (15, 20): 1}),
        "b": dotted(size, {(0, 0): 1}),
        "c": dotted(size, {}),
    }
    return make_labeled(root, masks, more=("d", "e"), seed=seed)


def make_data(labeled: Labeled, **options: Any) -> LabeledData:
    """Small epochs of small crops, as the files are: values of 0 to 1."""
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return LabeledData(labeled, **{"steps": 3, "batch_size": 2, "crop": 8, "num_workers": 0, **plain, **options})
