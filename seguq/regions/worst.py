"""From scores of regions to a score of each image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError
from seguq.regions.rle import RLE
from seguq.regions.table import SCHEMA, RegionTable


def worst_regions(table: RegionTable, count: int = 3) -> RegionTable:
    """A score of each image: the mean over its regions of the largest scores, so that a small error is not diluted.

    Args:
        table: scored regions, with the columns ``height`` and ``width`` that `score` gives.
        count: how many regions of each image; of an image with fewer all of them.

    Returns:
        A table with one row an image, whose region is the whole image; ``predicted_class`` is the one of most pixels,
        ``area`` the pixels that are in regions.

    Raises:
        SeguqError: if the table does not say how large the images are.

    Example:
        >>> import torch
        >>> from seguq.inference import UncertaintyMaps
        >>> from seguq.regions import Grid, score
        >>> values = torch.tensor([[[0.0, 0.0, 6.0, 0.0, 3.0, 0.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 6), 0.5), {"variance": values}, ["a"])
        >>> worst_regions(score(maps, Grid(2), by="variance"), 2).column("score").tolist()
        [2.25]
    """
    require_count("count of worst regions", count)
    missing = [name for name in ("height", "width") if name not in table.table.column_names]
    if missing:
        raise SeguqError(
            f"the table does not say how large its images are (no column {missing[0]!r}): score them again"
        )
    numbers, ids = table.image_numbers()
    images = len(ids)
    scores, area = table.column("score"), table.column("area").astype(np.int64)
    order = np.lexsort((-scores, numbers))
    begins = np.searchsorted(numbers[order], np.arange(images))
    rank = np.arange(len(order)) - begins[numbers[order]]
    taken = order[rank < count]
    many = np.maximum(np.bincount(numbers[taken], minlength=images), 1)
    mean = np.bincount(numbers[taken], weights=scores[taken], minlength=images) / many
    first = order[begins] if len(order) else order
    height, width = (table.column(name).astype(np.int64)[first] for name in ("height", "width"))
    zeros = np.zeros(images, np.int64)
    columns = {
        "image_id": ids,
        "region_id": zeros,
        "y0": zeros,
        "x0": zeros,
        "y1": height,
        "x1": width,
        "area": np.bincount(numbers, weights=area, minlength=images).astype(np.int64),
        "score": mean,
        "predicted_class": _largest_class(table, numbers, area, images),
        "rle": pa.nulls(images, RLE),
    }
    made = pa.table([pa.array(column) for column in columns.values()], schema=SCHEMA)
    for name in ("height", "width", "path"):
        if name in table.table.column_names:
            made = made.append_column(name, table.table[name].take(pa.array(first)))
    aggregate = f"{table.meta.get('aggregate')}, mean of the {count} largest of {table.meta.get('partition')}"
    return RegionTable(made, {**table.meta, "aggregate": aggregate, "partition": "WholeImage()"})


def _largest_class(table: RegionTable, numbers: np.ndarray, area: np.ndarray, images: int) -> pa.Array:
    """The class of most pixels of each image, each region counted as its own class; null where there is none."""
    predicted = table.table["predicted_class"]
    if predicted.null_count:
        return pa.nulls(images, pa.int64())
    classes, at = np.unique(predicted.to_numpy(), return_inverse=True)
    if not len(classes):
        return pa.array(np.zeros(0, np.int64))
    pixels = np.bincount(numbers * len(classes) + at, weights=area, minlength=images * len(classes))
    return pa.array(classes[pixels.reshape(images, -1).argmax(1)].astype(np.int64))
