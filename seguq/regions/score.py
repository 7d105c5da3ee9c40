"""From uncertainty maps to a score for each region."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.functional.regions import Aggregate, region_boxes, region_majority, region_scores
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition
from seguq.regions.table import SCHEMA, RegionTable


def score(
    maps: UncertaintyMaps | Iterable[UncertaintyMaps],
    partition: Partition,
    *,
    images: Tensor | Sequence[Any] | None = None,
    by: str,
    aggregate: Aggregate = "mean",
) -> RegionTable:
    """Score every region of every image.

    Args:
        maps: maps of 2-D images, or a stream of them.
        partition: how each image is cut, such as ``Grid(32)``.
        images: the images that the maps belong to, ``(B, channels, H, W)`` or one a map, for partitions that look
            at them; None where the partition does not. Not with a stream.
        by: name of the measure.
        aggregate: ``"mean"``, ``"sum"`` or ``"max"`` of the measure over the region's pixels.

    Returns:
        A table with one row a region; regions without a pixel are left out.

    Raises:
        SeguqError: if the maps are not of 2-D images, hold NaN, or do not go with the images.
        KeyError: if the maps do not have ``by``, or what the partition needs.

    Example:
        >>> from seguq.regions import Grid
        >>> values = torch.tensor([[[0.0, 1.0, 4.0, 4.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 4), 0.5), {"variance": values}, ["a"])
        >>> score(maps, Grid(2), by="variance").column("score").tolist()
        [0.5, 4.0]
    """
    single = isinstance(maps, UncertaintyMaps)
    if images is not None and not single:
        raise SeguqError("images= goes with one UncertaintyMaps, not with a stream of them")
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    estimator = None
    for part in [maps] if isinstance(maps, UncertaintyMaps) else maps:
        estimator = part.estimator
        values = part[by].cpu()
        prediction = part.prediction.cpu()
        if values.ndim != 3:
            raise SeguqError(f"regions are of 2-D images, but the maps have shape {tuple(values.shape)}")
        if images is not None and len(images) != len(part):
            raise SeguqError(f"{len(images)} images do not go with maps of {len(part)}")
        for i, (image_id, one) in enumerate(zip(part.image_ids, part.split(), strict=True)):
            if bool(values[i].isnan().any()):
                raise SeguqError(f"the map {by!r} of image {image_id!r} holds NaN")
            labels = partition(None if images is None else images[i], one).cpu()
            if labels.shape != values[i].shape:
                raise SeguqError(f"image {image_id!r}: regions {tuple(labels.shape)}, map {tuple(values[i].shape)}")
            # several independent labels have no one predicted class
            classes = torch.zeros_like(labels) if part.multilabel else prediction[i]
            _append(columns, image_id, labels, values[i], classes, part.num_classes, aggregate)
    meta = {"by": by, "aggregate": aggregate, "partition": repr(partition), "estimator": estimator}
    return RegionTable(pa.table(columns, schema=SCHEMA), meta)


def _append(
    columns: dict[str, list[Any]],
    image_id: str,
    labels: Tensor,
    values: Tensor,
    classes: Tensor,
    num_classes: int,
    aggregate: Aggregate,
) -> None:
    regions = int(labels.max()) + 1
    scores, area = region_scores(values, labels, regions, aggregate)
    boxes = region_boxes(labels, regions)
    majority = region_majority(classes, labels, regions, num_classes)
    kept = area > 0
    columns["image_id"] += [image_id] * int(kept.sum())
    columns["region_id"] += kept.nonzero().flatten().tolist()
    for name, box in zip(("y0", "x0", "y1", "x1"), boxes.T, strict=True):
        columns[name] += box[kept].tolist()
    columns["area"] += area[kept].tolist()
    columns["score"] += scores[kept].tolist()
    columns["predicted_class"] += majority[kept].tolist()
