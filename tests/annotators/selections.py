"""Selections to send."""

import cv2
import numpy as np

from seguq.acquisition import Selection
from seguq.data import Classes, ImageSource
from seguq.regions.rle import encode

CLASSES = Classes(("ground", "house", "tree"), ((0, 0, 0), (255, 0, 0), (0, 128, 0)))
SIZE = (40, 60)


def row(rank, image_id, box, inside=None):
    """A region: all of its box (y0, x0, y1, x1), or what is true within it."""
    y0, x0, y1, x1 = box
    area = (y1 - y0) * (x1 - x0) if inside is None else int(np.sum(inside))
    found = dict(zip(("y0", "x0", "y1", "x1"), box, strict=True))
    rle = None if inside is None else encode(inside)
    return {"rank": rank, "image_id": image_id, "region_id": rank, **found, "area": area, "score": 1.0,
            "predicted_class": 0, "rle": rle}  # fmt: skip


def selection(number, *regions):
    """The regions ``(image_id, box)`` of a round."""
    rows = [row(rank, *region) for rank, region in enumerate(regions, 1)]
    return Selection(rows, {"round": number, "strategy": "Random()"})


def truth_of(image_id):
    """A mask with all classes, another one for each image."""
    rng = np.random.default_rng(sum(image_id.encode()))
    coarse = rng.integers(0, len(CLASSES), (SIZE[0] // 5, SIZE[1] // 5))
    return np.kron(coarse, np.ones((5, 5), int)).astype(np.uint8)


def write_pool(folder, ids=("a", "b", "deep/c")):
    """Images, their masks, and the classes of these; the images are given."""
    rng = np.random.default_rng(0)
    for image_id in ids:
        for kind, pixels in (("images", rng.integers(0, 255, (*SIZE, 3), np.uint8)), ("masks", truth_of(image_id))):
            path = folder / kind / f"{image_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return ImageSource(folder / "images")
