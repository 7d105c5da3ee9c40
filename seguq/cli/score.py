"""``seguq score``: from maps to a table of scored regions."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of
from seguq.cli.common import refuse_to_overwrite, require_folder
from seguq.cli.parsing import run_function
from seguq.core.checks import is_whole, require_count, require_text
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, require_replaceable
from seguq.core.log import logger
from seguq.core.out_of_memory import Need, memory_for
from seguq.core.progress import progress
from seguq.core.reading import reading
from seguq.data import ImageSource
from seguq.functional.aggregates import aggregate_named
from seguq.inference import UncertaintyMaps
from seguq.inference.measures import scored_by_default
from seguq.regions import Grid, Partition, RegionTable, WholeImage, cached, worst_regions
from seguq.regions import score as score_maps
from seguq.regions.columns import require_columns
from seguq.regions.rle import region_mask
from seguq.regions.scored_by import scores_named
from seguq.store.folder import predicted_ids, read_run

_PARTITION = {"class_path": "Grid", "init_args": {"size": 32}}


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(score, "score", words, {"partition": _PARTITION})


def score(
    predictions: str,
    partition: Partition | None = None,
    by: str | list[str] | None = None,
    aggregate: str = "mean",
    columns: list[str] | None = None,
    worst: int | None = None,
    out: str | None = None,
    overwrite: bool = False,
    images: str | None = None,
    labeled: list[str] | None = None,
) -> None:
    """Score regions of images from the maps of `seguq predict`, and write them as a Parquet table.

    Args:
        predictions: folder that `seguq predict` has written.
        partition: how images are cut: the name of a class, with its options after a dot (--partition Grid
            --partition.size 32), or the import path of one of your own.
        by: measure to score by; by default smallest_margin where it is there, for whole images pairwise_dice where it
            is; also region_impurity, ripu, or a function of one's own by its import path. Of several, as
            [smallest_margin, ripu], the first is the score, and the others are columns beside it.
        aggregate: how a region's pixels become its score: mean, sum, max, "quantile(0.9)", "top_k_mean(0.1)",
            "threshold_mean(0.5)", "nonborder_mean(2)" (of pixels farther from a border between predicted classes), or
            "foreground_mean(0)" (the sum, over the pixels that are predicted as another class than 0).
        columns: what strategies need beside scores, by default what the predictions hold: class_shares and class_scores
            with --save_probs, features with --features. As [class_shares, clicks]: class_shares, class_probs,
            class_scores (both of predictions with --save_probs), features (of predictions with --features) or clicks
            (to draw the predicted borders in a region; --budget.clicks counts them).
        worst: score whole images instead, each by the mean of so many of its regions, those of the largest scores.
        out: the table; by default regions.parquet in the folder of predictions.
        overwrite: replace the table if it exists.
        images: folder of the images as stored, for partitions that look at them and for pixels without data; by default
            the one that was predicted.
        labeled: earlier selections, as [first.json, second.json]; their pixels are in no region.
    """
    folder = require_folder(predictions, "--predictions")
    run = read_run(folder)
    settings = run["settings"]
    with reading(folder / "run.json"):
        measures = settings["measures"]
    parts = partition if partition is not None else Grid(32)
    whole = isinstance(parts, WholeImage)
    by = by or scored_by_default(measures, of_images=whole)
    scores = scores_named(by)
    for name in dict.fromkeys(need for item in scores for need in item.needs):
        if name not in measures:
            raise UsageError(
                f"{folder} has no maps of {name!r}, but of {', '.join(measures)}: predict with --measures [{name}]"
            )
    named = aggregate_named(aggregate)
    require_columns(columns or ())
    if worst is not None:
        require_count("--worst", worst)
    target = Path(out) if out else folder / "regions.parquet"
    if target.suffix != ".parquet":
        raise UsageError(f"a table of regions is a .parquet file, but --out is {out}")
    refuse_to_overwrite(target, overwrite)
    if target.exists():
        RegionTable.load(target)  # nothing but a table is replaced
    require_replaceable(target)
    ids, there = run["images"], set(predicted_ids(folder))
    if not run["complete"]:
        raise UsageError(
            f"{folder} is not finished, and holds maps of {len(there)} images: start what predicts into it again "
            "(seguq predict goes on where it stopped)"
        )
    lost = [image_id for image_id in ids if image_id not in there]
    if lost:
        raise UsageError(
            f"{folder} holds no maps any more of {len(lost)} of its {len(ids)} images, such as {lost[0]!r}: start what "
            "predicts into it again"
        )
    if not ids:
        raise UsageError(f"{folder} holds no maps: nothing was predicted into it")
    stored = Path(settings.get("images") or folder / "images") if images is None else require_folder(images, "--images")
    source = ImageSource(stored if stored.is_dir() else {})
    missing = sorted(set(source) - set(ids)) if settings.get("images") and images is None else []
    if missing:
        raise UsageError(
            f"{folder} holds no maps yet of {len(missing)} images of {stored}, such as {missing[0]!r}: "
            "start seguq predict again, it goes on where it stopped"
        )
    for image_id in ids:
        require_text("the image id", image_id)
    earlier = [Selection.load(path) for path in labeled or []]
    unseen = [image_id for image_id in ids if image_id not in source]
    if unseen and not parts.needs_image:
        warnings.warn(
            f"{len(unseen)} of the {len(ids)} images are not in {stored} any more: should some of their pixels be "
            "without data, they are scored like others (--images says where they are now)",
            stacklevel=1,
        )
    absent = [name for name in parts.needs if name not in measures]
    if absent:
        raise UsageError(f"{parts!r} reads maps of {absent[0]!r}, but {folder} has those of {', '.join(measures)}")
    if parts.needs_image:
        gone = [image_id for image_id in ids if image_id not in source]
        if gone:
            raise UsageError(
                f"{parts!r} looks at the images, but {gone[0]!r} is not in {stored}: pass as --images the folder of "
                "those that were predicted"
            )
        remove_leftovers(folder / "partitions")
        parts = cached(parts, folder / "partitions")
    if columns is None:
        columns = _columns_of(settings, UncertaintyMaps.load(folder / "maps" / f"{ids[0]}.npz"))
    with (
        memory_for("the maps", "predict with fewer --measures and without --save_probs") as need,
        # closed, so that the progress bar has ended before an error is shown
        closing(_maps_and_images(folder, ids, source if parts.needs_image else None, need)) as stream,
    ):
        table = score_maps(
            stream,
            parts,
            by=by,
            aggregate=aggregate,
            columns=columns,
            paths=source.paths,
            missing=_LeftOut(source, earlier),
        )
    if worst is not None:
        table = worst_regions(table, worst)
    remove_leftovers(target.parent)
    table.save(target)
    logger.info("%d regions of %d images by %s %s: %s", len(table), len(ids), named, scores[0].name, target)


def _maps_and_images(
    folder: Path, ids: Sequence[str], source: ImageSource | None, need: Need
) -> Generator[tuple[UncertaintyMaps, Any], None, None]:
    """The maps of one image after the other, with the image as stored where there is a source of it."""
    for image_id in progress(ids, "scoring"):
        need.what = f"the maps of image {image_id!r}"
        maps = UncertaintyMaps.load(folder / "maps" / f"{image_id}.npz")
        if source is not None:
            source.require_size(image_id, maps.spatial)
        yield maps, None if source is None else source[image_id]


def _columns_of(settings: Mapping[str, Any], first: UncertaintyMaps) -> list[str]:
    """What strategies read that the predictions hold, given the settings that they were made with and the first."""
    of_classes = ["class_shares", "class_scores"] if settings.get("save_probs") and not first.multilabel else []
    return of_classes + (["features"] if settings.get("features") else [])


class _LeftOut:
    """From an image's id to the pixels that are in no region: those without data, and those that are labeled."""

    def __init__(self, source: ImageSource, labeled: Sequence[Selection]) -> None:
        self.source = source
        self.rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in (row for selection in labeled for row in selection.rows):
            self.rows.setdefault(row["image_id"], []).append(row)

    def __call__(self, image_id: str) -> Any:
        """``(H, W)``, true where a pixel is left out; None where all are in."""
        out = self.source.missing(image_id) if image_id in self.source else None
        for row in self.rows.get(image_id, ()):
            if out is None:
                out = np.zeros(self._size(row), dtype=bool)
            y0, x0, y1, x1 = box_of(row)
            if y1 > out.shape[0] or x1 > out.shape[1]:
                raise SeguqError(
                    f"a labeled region of image {image_id!r} reaches to row {y1} and column {x1}, but the image has "
                    f"{out.shape[0]} x {out.shape[1]} pixels: the selection is of another image of this id"
                )
            out[y0:y1, x0:x1] |= region_mask(row)
        return out

    def _size(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of the image of a labeled region."""
        known = row.get("height"), row.get("width")
        if all(is_whole(side, 1) for side in known):
            return int(known[0]), int(known[1])  # type: ignore[arg-type]
        return self.source.size(row["image_id"])
