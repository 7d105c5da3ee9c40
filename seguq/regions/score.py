"""From uncertainty maps to a score for each region."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from seguq.core.checks import require_text
from seguq.core.errors import SeguqError
from seguq.functional.aggregates import Aggregate, aggregate_named
from seguq.functional.runs import Runs
from seguq.inference import UncertaintyMaps
from seguq.regions.columns import further_columns, require_columns
from seguq.regions.partition import Partition, without
from seguq.regions.rle import RLE, encode_regions
from seguq.regions.scored_by import By, Score, scores_named
from seguq.regions.table import SCHEMA, RegionTable

_NUMBERS = 2**16  # numbers may have gaps, but what is computed of regions grows with the largest

Missing = Callable[[str], npt.NDArray[np.bool_] | None]


def score(
    maps: UncertaintyMaps | Iterable[UncertaintyMaps | tuple[UncertaintyMaps, Any]],
    partition: Partition,
    *,
    images: Tensor | Sequence[Any] | None = None,
    by: By | Sequence[By],
    aggregate: str = "mean",
    columns: Sequence[str] = (),
    paths: Mapping[str, Any] | None = None,
    missing: Missing | None = None,
) -> RegionTable:
    """Score every region of every image.

    Args:
        maps: maps of images; or a stream of them, or of pairs: the maps of one image, and the image as stored, an
            array ``(H, W, channels)`` or a tensor ``(channels, H, W)``. Volumes ``(D, H, W)`` are one region each,
            whose box is that of a slice and whose area is its number of voxels: `WholeImage` cuts them so.
        partition: how each image is cut, such as ``Grid(32)``.
        images: the images that the maps belong to, ``(B, channels, H, W)`` or one a map, for partitions that look
            at them; None where the partition does not. Not with a stream.
        by: name of the measure; ``"region_impurity"`` or ``"ripu"``, which are made from other maps (see
            `seguq.functional`); a function of the maps of one image that gives a map ``(H, W)``; or what scores regions
            by itself, such as `MetaScore`. Of several the first is the column ``score``, the others are columns of
            their own names.
        aggregate: how the values of a region's pixels become its score: ``"mean"``, ``"sum"``, ``"max"``,
            ``"quantile(q)"``, ``"top_k_mean(fraction)"``, ``"threshold_mean(t)"``, ``"nonborder_mean(width)"`` or
            ``"foreground_mean(background)"``, as in `seguq.functional.aggregates.Aggregate`. A measure of whole images
            (``"pairwise_dice"``) is taken as it is, for regions that are whole images.
        columns: what strategies need beside scores: ``"class_shares"`` (the share of a region's pixels that is
            predicted as each class), ``"class_probs"`` (the mean probability of each), ``"class_scores"`` (the mean of
            the predictive entropy times the probability of each; see `seguq.acquisition`'s ``ClaSP``), ``"features"``
            (the mean of the encoder's last map, where the maps carry it): one list a region, float32 (features:
            float16); ``"clicks"``, what it takes to draw the predicted borders in a region and to name a class, which a
            budget of clicks then counts instead of those of the region's own outline.
        paths: the file of each image, by its id, for the column ``path``.
        missing: from an image's id to the pixels ``(H, W)`` that are in no region, whatever the partition, such as
            those without data; None: there are none.

    Returns:
        A table with one row a region, also of the columns ``height`` and ``width``, the size of the image; regions
        without a pixel are left out. Of maps of independent labels, which have no one predicted class,
        ``predicted_class`` is null.

    Raises:
        SeguqError: if the maps hold NaN in a region, or do not go with the images; if the partition looks at images,
            and there are none; if it is for 2-D images only, and they are volumes; or for maps that lack what a column
            is made from.
        UsageError: for an unknown aggregate or column.
        KeyError: if the maps do not have ``by``, or what the partition needs.

    Example:
        >>> import torch
        >>> from seguq.regions import Grid
        >>> values = torch.tensor([[[0.0, 1.0, 4.0, 4.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 4), 0.5), {"variance": values}, ["a"])
        >>> score(maps, Grid(2), by="variance").column("score").tolist()
        [0.5, 4.0]
    """
    if not isinstance(partition, Partition):
        raise SeguqError(f"partition must be one such as seguq.regions.Grid(32), but is {partition!r}")
    aggregated, scores = aggregate_named(aggregate), scores_named(by)
    require_columns(columns)
    for item in scores:
        fitted = getattr(item.given, "partition", None)
        if isinstance(fitted, Partition) and repr(fitted) != repr(partition):
            raise SeguqError(f"{item.name} was learned from regions of {fitted!r}, not of {partition!r}")
    way = _Way(partition, scores, aggregated, tuple(columns), paths, missing)
    meta: dict[str, Any] = {
        "by": scores[0].name,
        "aggregate": str(aggregated),
        "partition": repr(partition),
        "estimator": None,
    }
    batches: list[Any] = []
    for part, image in _single(maps, images):
        meta["estimator"] = part.estimator
        batches.append(way.rows(part, image))
    table = pa.Table.from_batches(batches) if batches else SCHEMA.empty_table()
    return RegionTable(table.combine_chunks(), meta)


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


@dataclass(frozen=True)
class _Way:
    """How images are scored."""

    partition: Partition
    scores: tuple[Score, ...]
    aggregate: Aggregate
    columns: tuple[str, ...]
    paths: Mapping[str, Any] | None
    missing: Missing | None

    def rows(self, one: UncertaintyMaps, image: Any) -> Any:
        """The rows of one image, as a pyarrow batch."""
        (image_id,) = one.image_ids
        require_text("the image id", image_id)
        one = one.cpu()
        labels = self._labels(one, image, image_id)
        volume = labels.ndim != 2
        count = int(labels.max()) + 1 if labels.size else 0
        if volume and (count != 1 or bool((labels < 0).any())):
            raise SeguqError(
                f"{self.partition!r} cuts the volume {image_id!r} into {count} regions: volumes are one region each"
            )
        runs = Runs(labels, count)
        classes = None if one.multilabel else one.prediction[0].numpy()
        kept = np.flatnonzero(runs.area)
        # a volume's box is that of a slice
        boxes = np.array([[0, 0, *labels.shape[-2:]]]) if volume else runs.boxes
        counts = None if classes is None else runs.counts(classes, one.num_classes)
        majority = None if counts is None else counts.argmax(1)[kept]
        found = [self._score(item, one, runs, classes, image_id)[kept] for item in self.scores]
        fixed = [
            pa.array(np.full(len(kept), image_id, dtype=object), pa.string()),
            *(pa.array(np.ascontiguousarray(column)) for column in (kept, *boxes[kept].T, runs.area[kept], found[0])),
            pa.nulls(len(kept), pa.int64()) if majority is None else pa.array(majority),
            self._shapes(labels, boxes, runs.area, kept, volume),
        ]
        more = {item.name: pa.array(values) for item, values in zip(self.scores[1:], found[1:], strict=True)}
        more |= further_columns(self.columns, one, runs, counts, kept)
        size = dict(zip(("height", "width"), labels.shape[-2:], strict=True))
        more |= {name: pa.array(np.full(len(kept), side, np.int32)) for name, side in size.items()}
        if self.paths is not None:
            path = self.paths.get(image_id)
            more["path"] = pa.array([None if path is None else str(path)] * len(kept), pa.string())
        return pa.RecordBatch.from_arrays([*fixed, *more.values()], names=[*SCHEMA.names, *more])

    def _labels(self, one: UncertaintyMaps, image: Any, image_id: str) -> npt.NDArray[np.integer[Any]]:
        """The region of each pixel, -1 where there is no data."""
        if image is None and self.partition.needs_image:
            raise SeguqError(
                f"{self.partition!r} looks at the image, but there is none of {image_id!r}: pass images= or pairs"
            )
        if len(one.spatial) != 2 and not self.partition.takes_volumes:
            raise SeguqError(
                f"{self.partition!r} cuts 2-D images only, but {image_id!r} is a volume {one.spatial}: score volumes "
                "as wholes, by seguq.regions.WholeImage()"
            )
        gone = None if self.missing is None else self.missing(image_id)
        if gone is not None and gone.shape != one.spatial:
            raise SeguqError(f"image {image_id!r}: pixels without data {gone.shape}, map {one.spatial}")
        labels = self.partition(image, one if gone is None else _without_data(one, torch.from_numpy(gone)))
        if not isinstance(labels, Tensor) or labels.is_floating_point() or tuple(labels.shape) != one.spatial:
            found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise SeguqError(
                f"image {image_id!r}: {self.partition!r} gave {found} for the regions, not a tensor of whole numbers "
                f"of the size of the map {one.spatial}"
            )
        labels = labels.cpu().clamp_min(-1)
        if labels.numel() and int(labels.max()) >= max(labels.numel(), _NUMBERS):
            raise SeguqError(
                f"image {image_id!r}: {self.partition!r} numbers its regions up to {int(labels.max())}, but the image "
                f"has {labels.numel()} pixels: regions are numbered from 0 on"
            )
        return labels.numpy() if gone is None else without(labels, gone).numpy()

    def _score(
        self, item: Score, one: UncertaintyMaps, runs: Runs, classes: npt.NDArray[Any] | None, image_id: str
    ) -> npt.NDArray[np.float64]:
        """The score of each region, ``(R,)`` float64."""
        if self.aggregate.reads_classes and classes is None:
            raise SeguqError(
                f"{self.aggregate} reads the predicted class of each pixel, and independent labels (multilabel) have "
                f"none: image {image_id!r}"
            )
        if hasattr(item.given, "of_regions"):
            found: npt.NDArray[np.float64] = item.given.of_regions(one, runs)
            return found
        values = item.of(one)
        if values.ndim == 0:  # of the whole image
            if runs.num_regions != 1 or int(runs.area[0]) != runs.labels.size:
                raise SeguqError(
                    f"{item.name} is a measure of whole images: score them as such, by seguq.regions.WholeImage() "
                    "(--partition WholeImage)"
                )
            return np.full(1, float(values))
        array = values.numpy()
        finite = np.isfinite(array)
        if not finite.all() and not finite[runs.labels >= 0].all():
            raise SeguqError(f"the map {item.name!r} of image {image_id!r} holds NaN or infinite values")
        return self.aggregate(array, runs, classes)

    def _shapes(self, labels: Any, boxes: Any, area: Any, kept: Any, volume: bool) -> Any:
        """The run lengths of regions that are not all of their boxes."""
        sides = boxes[kept, 2:] - boxes[kept, :2]
        if volume or bool((sides.prod(1) == area[kept]).all()):
            return pa.nulls(len(kept), RLE)
        return encode_regions(labels, boxes, area).take(pa.array(kept))


def _without_data(one: UncertaintyMaps, gone: Tensor) -> UncertaintyMaps:
    """Maps as a partition sees them where there are pixels without data: nothing is uncertain, or predicted, there."""
    maps = {}
    for name in one.names:
        values = one[name].clone()
        there = values[0][~gone]
        values[0][gone] = there.min() if there.numel() else 0
        maps[name] = values
    prediction = one.prediction.masked_fill(gone, -1)
    try:
        probs = one.probs
    except SeguqError:  # saved without
        probs = None
    return UncertaintyMaps(
        probs,
        maps,
        one.image_ids,
        one.estimator,
        prediction=prediction,
        num_classes=one.num_classes,
        multilabel=one.multilabel,
    )
