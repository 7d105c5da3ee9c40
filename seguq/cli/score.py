"""``seguq score``: from maps to a table of scored regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seguq.cli.common import refuse_to_overwrite, require_folder
from seguq.cli.parsing import run_function
from seguq.core.errors import UsageError
from seguq.core.log import logger
from seguq.core.progress import progress
from seguq.data import list_images
from seguq.functional.regions import Aggregate
from seguq.inference import UncertaintyMaps
from seguq.regions import Grid, WholeImage
from seguq.regions import score as score_maps
from seguq.store.folder import predicted_ids, read_run


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(score, "score", words)


def score(
    predictions: str,
    partition: Literal["grid", "whole_image"] = "grid",
    cell: int = 32,
    by: str | None = None,
    aggregate: Aggregate = "mean",
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Score regions of images from the maps of `seguq predict`, and write them as a Parquet table.

    Args:
        predictions: folder that `seguq predict` has written.
        partition: grid (square cells) or whole_image.
        cell: side of a grid cell in pixels.
        by: measure to score by; by default mutual_information where it is there, else predictive_entropy.
        aggregate: mean, sum or max over the pixels of a region.
        out: the table; by default regions.parquet in the folder of predictions.
        overwrite: replace the table if it exists.
    """
    folder = require_folder(predictions, "--predictions")
    measures = read_run(folder)["settings"]["measures"]
    if by is None:
        by = "mutual_information" if "mutual_information" in measures else measures[0]
    if by not in measures:
        raise UsageError(
            f"{folder} has no maps of {by!r}, but of {', '.join(measures)}: predict with --measures [{by}]"
        )
    target = Path(out) if out else folder / "regions.parquet"
    refuse_to_overwrite(target, overwrite)
    ids = predicted_ids(folder)
    if not ids:
        raise UsageError(f"{folder} holds no maps yet: seguq predict has not finished")
    images = Path(read_run(folder)["settings"].get("images") or folder / "no images")
    missing = sorted(set(list_images(images)) - set(ids)) if images.is_dir() else []
    if missing:
        raise UsageError(
            f"{folder} holds no maps yet of {len(missing)} images of {images}, such as {missing[0]!r}: "
            "start seguq predict again, it goes on where it stopped"
        )
    parts: Grid | WholeImage = Grid(cell) if partition == "grid" else WholeImage()
    stream = (UncertaintyMaps.load(folder / "maps" / f"{image_id}.npz") for image_id in progress(ids, "scoring"))
    table = score_maps(stream, parts, by=by, aggregate=aggregate)
    table.save(target)
    logger.info("%d regions of %d images by %s %s: %s", len(table), len(ids), aggregate, by, target)
