"""From uncertainty maps to a score for each region."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from seguq.core.checks import require_choice, require_text
from seguq.core.errors import SeguqError
from seguq.functional.regions import AGGREGATES, Aggregate, region_boxes, region_majority, region_scores
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition
from seguq.regions.rle import RLE, encode_regions
from seguq.regions.table import SCHEMA, RegionTable


def score(
    maps: UncertaintyMaps | Iterable[UncertaintyMaps | tuple[UncertaintyMaps, Any]],
    partition: Partition,
    *,
    images: Tensor | Sequence[Any] | None = None,
    by: str,
    aggregate: Aggregate = "mean",
) -> RegionTable:
    """Score every region of every image.

    Args:
        maps: maps of images; or a stream of them, or of pairs: the maps of one image, and the image as stored, an
            array ``(H, W, channels)`` or a tensor ``(channels, H, W)``. Volumes ``(D, H, W)`` are one region each,
            whose box is that of a slice and whose area is its number of voxels: `WholeImage` cuts them so.
        partition: how each image is cut, such as ``Grid(32)``.
        images: the images that the maps belong to, ``(B, channels, H, W)`` or one a map, for partitions that look
            at them; None where the partition does not. Not with a stream.
        by: name of the measure.
        aggregate: ``"mean"``, ``"sum"`` or ``"max"`` of the measure over the region's pixels.

    Returns:
        A table with one row a region; regions without a pixel are left out.

    Raises:
        SeguqError: if the maps hold NaN, or do not go with the images; if the partition looks at images, and there
            are none; or if it is for 2-D images only, and they are volumes.
        KeyError: if the maps do not have ``by``, or what the partition needs.

    Example:
        >>> from seguq.regions import Grid
        >>> values = torch.tensor([[[0.0, 1.0, 4.0, 4.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 4), 0.5), {"variance": values}, ["a"])
        >>> score(maps, Grid(2), by="variance").column("score").tolist()
        [0.5, 4.0]
    """
    if not isinstance(partition, Partition):
        raise SeguqError(f"partition must be one such as seguq.regions.Grid(32), but is {partition!r}")
    require_choice("aggregate", aggregate, AGGREGATES)
    batches: list[Any] = []
    meta: dict[str, Any] = {"by": by, "aggregate": aggregate, "partition": repr(partition), "estimator": None}
    for part, image in _single(maps, images):
        meta["estimator"] = part.estimator
        batches.append(_regions(part, image, partition, by, aggregate))
    return RegionTable(pa.Table.from_batches(batches, SCHEMA).combine_chunks(), meta)


def _single(
    maps: UncertaintyMaps | Iterable[UncertaintyMaps | tuple[UncertaintyMaps, Any]],
    images: Tensor | Sequence[Any] | None,
) -> Iterator[tuple[UncertaintyMaps, Any]]:
    """The maps of one image after the other, with the image or None."""
    if isinstance(maps, UncertaintyMaps):
        if images is not None and len(images) != len(maps):
            raise SeguqError(f"{len(images)} images do not go with maps of {len(maps)}")
        yield from zip(maps.split(), [None] * len(maps) if images is None else images, strict=True)
        return
    if images is not None:
        raise SeguqError("images= goes with one UncertaintyMaps, not with a stream of them: give pairs (maps, image)")
    for item in maps:
        if isinstance(item, UncertaintyMaps):
            yield from ((one, None) for one in item.split())
        else:
            one, image = item
            if len(one) != 1:
                raise SeguqError(
                    f"in a stream of pairs each has the maps of one image, but one has those of {len(one)}"
                )
            yield one, image


def _regions(one: UncertaintyMaps, image: Any, partition: Partition, by: str, aggregate: Aggregate) -> Any:
    """The rows of one image, as a pyarrow batch."""
    (image_id,) = one.image_ids
    require_text("the image id", image_id)
    if image is None and partition.needs_image:
        raise SeguqError(f"{partition!r} looks at the image, but there is none of {image_id!r}: pass images= or pairs")
    values = one[by].cpu()[0]
    volume = values.ndim != 2
    if volume and not partition.takes_volumes:
        raise SeguqError(
            f"{partition!r} cuts 2-D images only, but {image_id!r} is a volume {tuple(values.shape)}: score volumes as "
            "wholes, by seguq.regions.WholeImage()"
        )
    if bool(values.isnan().any()):
        raise SeguqError(f"the map {by!r} of image {image_id!r} holds NaN")
    labels = partition(image, one).cpu().clamp_min(-1)
    if labels.shape != values.shape:
        raise SeguqError(f"image {image_id!r}: regions {tuple(labels.shape)}, map {tuple(values.shape)}")
    count = int(labels.max()) + 1 if labels.numel() else 0
    scores, area = region_scores(values, labels, count, aggregate)
    if volume and (count != 1 or bool((labels < 0).any())):
        raise SeguqError(
            f"{partition!r} cuts the volume {image_id!r} into {count} regions: volumes are one region each"
        )
    # a volume's box is that of a slice
    boxes = torch.tensor([[0, 0, *values.shape[-2:]]]) if volume else region_boxes(labels, count)
    # several independent labels have no one predicted class
    classes = torch.zeros_like(labels) if one.multilabel else one.prediction[0].cpu()
    majority = region_majority(classes, labels, count, one.num_classes)
    kept = (area > 0).nonzero().flatten()
    columns = [kept, *boxes[kept].T, area[kept], scores[kept], majority[kept]]
    sides = boxes[kept, 2:] - boxes[kept, :2]
    # a class derived from Grid may not fill its boxes
    if volume or (partition.fills_boxes and bool((sides.prod(1) == area[kept]).all())):
        shapes = pa.nulls(len(kept), RLE)
    else:
        shapes = encode_regions(labels.numpy(), boxes.numpy(), area.numpy()).take(pa.array(kept.numpy()))
    arrays = [pa.array(np.full(len(kept), image_id, dtype=object), pa.string())]
    arrays += [pa.array(np.ascontiguousarray(column.numpy())) for column in columns]
    return pa.RecordBatch.from_arrays([*arrays, shapes], schema=SCHEMA)
