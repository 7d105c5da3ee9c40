"""``seguq select``: from scores to the list of regions to label next."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from seguq.acquisition import Budget, Selection, Strategy, TopK
from seguq.acquisition import select as select_regions
from seguq.acquisition.selection import box_of
from seguq.cli.common import print_table, refuse_to_overwrite, require_folder
from seguq.cli.parsing import run_function
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, require_replaceable
from seguq.core.log import logger
from seguq.core.progress import progress
from seguq.data import list_images, read_image
from seguq.export import outline, to_rgb
from seguq.export.images import encode
from seguq.regions import RegionTable
from seguq.store.folder import read_run
from seguq.store.listing import OwnFiles

_SHOWN = 10
_READABLE = 768


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(select, "select", words, {"strategy": {"class_path": "TopK"}})


def select(
    scores: str,
    budget: Budget,
    strategy: Strategy | None = None,
    labeled: list[str] | None = None,
    seed: int = 0,
    out: str = "selection.json",
    predictions: str | None = None,
    overwrite: bool = False,
) -> None:
    """Select regions to label next, within a budget of regions, pixels or images.

    Args:
        scores: table of `seguq score`.
        budget: how much may be labeled (one limit; per_image may stand beside it).
        strategy: which regions are taken: the name of a class, with its options after a dot (--strategy PowerTopK
            --strategy.beta 2), or the import path of one of your own.
        labeled: earlier selections, as [first.json, second.json]; their regions are left out.
        seed: for random choices, and for ties.
        out: the selection, a JSON file.
        predictions: folder of `seguq predict`; with it, the selected regions are drawn on their images, beside OUT.
        overwrite: replace the selection if it exists.
    """
    target = Path(out)
    if target.suffix != ".json":
        raise UsageError(f"a selection is a .json file, but --out is {out}")
    refuse_to_overwrite(target, overwrite)
    drawings = target.with_suffix("")
    pictures = OwnFiles(drawings)
    if predictions is not None and not overwrite and drawings.is_dir() and any(drawings.iterdir()):
        raise UsageError(f"pictures would go into {drawings}, which holds files: pass --overwrite, or another --out")
    if target.exists():
        Selection.load(target)  # nothing but a selection is replaced
    require_replaceable(target)
    table = RegionTable.load(scores)
    earlier = [Selection.load(path) for path in labeled or []]
    files = None
    if predictions is not None:
        run = require_folder(predictions, "--predictions")
        folder = Path(read_run(run)["settings"].get("images") or run / "images")
        files = list_images(folder)
    selection = select_regions(table, budget=budget, strategy=strategy or TopK(), labeled=earlier, seed=seed)
    if not len(selection):
        raise SeguqError(
            f"nothing was selected: no region fits into {budget!r}"
            if not earlier
            else f"nothing was selected: no region that is not labeled yet fits into {budget!r}"
        )
    if files is not None:
        for image_id in selection.image_ids:
            pictures.require_free(f"{image_id}.png")
    remove_leftovers(target.parent)
    selection.save(target)
    for name in pictures.clear():
        warnings.warn(f"{drawings / name} was drawn by an earlier run and changed since: it stays", stacklevel=1)

    rows = [
        [str(row["rank"]), row["image_id"], f"{row['y0']}:{row['y1']}, {row['x0']}:{row['x1']}", f"{row['score']:.4f}"]
        for row in selection.rows[:_SHOWN]
    ]
    caption = None if len(selection) <= _SHOWN else f"... and {len(selection) - _SHOWN} more"
    title = f"to label next: {len(selection)} regions in {len(selection.image_ids)} images"
    print_table(title, ["rank", "image", "rows, columns", str(table.meta.get("by", "score"))], rows, caption)
    logger.info("selection: %s", target)
    if files is not None:
        draw_selection(selection, files, drawings)


def draw_selection(selection: Selection, files: Mapping[str, Path], out: Path) -> None:
    """Draw the selected regions, with their ranks, on their images: ``OUT/ID.png``."""
    pictures = OwnFiles(out)
    for image_id in progress(selection.image_ids, "drawing"):
        if image_id not in files:
            raise SeguqError(f"image {image_id!r} of the selection is not there any more")
        rows = selection.in_image(image_id)
        image = to_rgb(read_image(files[image_id]))
        times = max(1, -(-_READABLE // min(image.shape[:2])))  # ranks cannot be read in the cells of a small image
        image = image.repeat(times, axis=0).repeat(times, axis=1)
        shown = outline(
            image, [[times * v for v in box_of(row)] for row in rows], labels=[str(row["rank"]) for row in rows]
        )
        pictures.write(f"{image_id}.png", encode(shown))
    logger.info("pictures: %s", out)
