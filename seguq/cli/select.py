"""``seguq select``: from scores to the list of regions to label next."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seguq.acquisition import Budget, Selection, Strategy
from seguq.acquisition import select as select_regions
from seguq.cli.common import print_table, require_folder, require_free
from seguq.cli.parsing import run_function
from seguq.cli.sheets import draw_selection, sheet_name, sheet_names, sheet_pages
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import remove_leftovers, write_bytes
from seguq.core.log import logger
from seguq.data import Classes, list_images
from seguq.store.folder import read_run
from seguq.store.listing import OwnFiles
from seguq.store.stored_table import StoredTable

_SHOWN = 10


def run(words: Sequence[str]) -> None:
    """Run the command."""
    run_function(select, "select", words, {"strategy": {"class_path": "BestOfEachImage"}})


def select(
    scores: str,
    budget: Budget,
    strategy: Strategy | None = None,
    labeled: list[str] | None = None,
    seed: int = 0,
    out: str = "selection.json",
    csv: str | None = None,
    sheet: str | None = None,
    predictions: str | None = None,
    images: str | None = None,
    classes: str | None = None,
    overwrite: bool = False,
) -> None:
    """Select regions to label next, within a budget of regions, pixels, images, clicks or a cost of one's own.

    Args:
        scores: table of `seguq score`, a .parquet file, or a folder of them; it may be larger than memory where the
            strategy ranks by the score (BestOfEachImage, TopK, PowerTopK, Random).
        budget: how much may be labeled (one limit; per_image may stand beside it).
        strategy: which regions are taken: the name of a class, with its options after a dot (--strategy PowerTopK
            --strategy.beta 2), or the import path of one of your own.
        labeled: earlier selections, as first.json second.json; their regions are left out.
        seed: for random choices, and for ties.
        out: the selection, a JSON file.
        csv: the selection as a table for spreadsheets, a CSV file.
        sheet: contact sheet, a PNG file: the images with the selected regions outlined; further pages go beside it.
        predictions: folder of `seguq predict`; with it, the selected regions are drawn on their images, beside OUT.
        images: folder of the images, for the contact sheet; by default that of the predictions, or where the table
            says that they were.
        classes: classes.json of the data, for the names of the classes.
        overwrite: replace the selection, CSV and sheet if they exist.
    """
    target = Path(out)
    require_free(target, "a selection", "--out", (".json",), overwrite)
    if csv is not None:
        require_free(Path(csv), "a table for spreadsheets", "--csv", (".csv",), overwrite)
    if sheet is not None:
        require_free(Path(sheet), "a contact sheet", "--sheet", (".png",), overwrite)
    drawings = target.with_suffix("")
    pictures = OwnFiles(drawings)
    if predictions is not None and not overwrite and drawings.is_dir() and any(drawings.iterdir()):
        raise UsageError(f"pictures would go into {drawings}, which holds files: pass --overwrite, or another --out")
    if target.exists():
        Selection.load(target)  # nothing but a selection is replaced
    names = None if classes is None else Classes.read(Path(classes)).names
    columns = StoredTable(scores).schema.names
    earlier = [Selection.load(path) for path in labeled or []]
    drawn = _images_of(predictions)
    shown = drawn if images is None else list_images(require_folder(images, "--images"))
    if sheet is not None and shown is None and "path" not in columns:
        raise UsageError("--sheet shows images: pass --images FOLDER, or --predictions FOLDER of seguq predict")
    selection = select_regions(scores, budget=budget, strategy=strategy, labeled=earlier, seed=seed, classes=names)
    if not len(selection):
        raise SeguqError(
            f"nothing was selected: no region fits into {budget!r}"
            if not earlier
            else f"nothing was selected: no region that is not labeled yet fits into {budget!r}"
        )
    title = f"to label next: {len(selection)} regions in {len(selection.image_ids)} images"
    pages: dict[Path, bytes] = {}
    if sheet is not None:
        paths = sheet_names(Path(sheet), len(selection.image_ids))
        for path in paths[1:]:
            require_free(path, "a contact sheet", "--sheet", (".png",), overwrite)
        files = _as_found(selection) if shown is None else shown
        pages = dict(zip(paths, sheet_pages(selection, files, title), strict=True))
    if drawn is not None:
        for image_id in selection.image_ids:
            pictures.require_free(f"{image_id}.png")
    remove_leftovers(target.parent)
    selection.save(target)
    for name in pictures.clear():
        warnings.warn(f"{drawings / name} was drawn by an earlier run and changed since: it stays", stacklevel=1)
    if csv is not None:
        selection.save_csv(csv)
    for path, content in pages.items():
        write_bytes(path, content)
    stale = sheet_name(Path(sheet), len(pages) + 1) if sheet is not None else None
    if stale is not None and stale.exists():
        warnings.warn(f"{stale} is no page of this contact sheet: it was there before, and stays", stacklevel=1)
    _print(selection, title)
    logger.info("selection: %s", target)
    if csv is not None:
        logger.info("for spreadsheets: %s", csv)
    if pages:
        logger.info("contact sheet: %s", ", ".join(map(str, pages)))
    if drawn is not None:
        draw_selection(selection, drawn, drawings)


def _images_of(predictions: str | None) -> Mapping[str, Path] | None:
    """The images that were predicted, by their ids."""
    if predictions is None:
        return None
    run = require_folder(predictions, "--predictions")
    return list_images(Path(read_run(run)["settings"].get("images") or run / "images"))


def _as_found(selection: Selection) -> Mapping[str, Path]:
    """The images where the table says that they were."""
    return {row["image_id"]: Path(row["path"]) for row in selection.rows if row.get("path")}


def _print(selection: Selection, title: str) -> None:
    """What was selected: the first regions, and how many of each class and image."""
    by, names = selection.why.get("by", "score"), selection.why.get("classes")
    rows = [
        [str(row["rank"]), row["image_id"], f"{row['y0']}:{row['y1']}, {row['x0']}:{row['x1']}", f"{row['score']:.4f}"]
        for row in selection.rows[:_SHOWN]
    ]
    left = len(selection) - _SHOWN
    print_table(title, ["rank", "image", "rows, columns", str(by)], rows, None if left <= 0 else f"... and {left} more")
    if all(row["predicted_class"] is not None for row in selection.rows):

        def name(row: Mapping[str, Any]) -> str:
            number = row["predicted_class"]
            known = isinstance(names, list) and 0 <= number < len(names)
            return str(names[number]) if known and names else f"class {number}"

        _print_counts("by predicted class", "class", selection, name)
    _print_counts("by image", "image", selection, lambda row: str(row["image_id"]))


def _print_counts(title: str, what: str, selection: Selection, name: Callable[[Mapping[str, Any]], str]) -> None:
    """Regions and pixels of each class, or of each image."""
    regions, pixels, images = Counter[str](), Counter[str](), dict[str, set[str]]()
    for row in selection.rows:
        key = name(row)
        regions[key] += 1
        pixels[key] += row["area"]
        images.setdefault(key, set()).add(row["image_id"])
    several = what != "image"
    rows = [
        [key, str(count), str(pixels[key]), *([str(len(images[key]))] if several else [])]
        for key, count in regions.most_common(_SHOWN)
    ]
    left = len(regions) - _SHOWN
    columns = [what, "regions", "pixels", *(["images"] if several else [])]
    print_table(title, columns, rows, None if left <= 0 else f"... and {left} more")
