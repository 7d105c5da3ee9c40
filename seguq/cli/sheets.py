"""Pictures of a selection: its images with the regions outlined and numbered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seguq.acquisition import Selection
from seguq.acquisition.selection import outlines
from seguq.core.errors import SeguqError
from seguq.core.log import logger
from seguq.core.progress import progress
from seguq.data import read_image
from seguq.export import Tile, contact_sheet, outline_regions, to_rgb
from seguq.export.images import encode
from seguq.export.sheet import PER_PAGE
from seguq.store.listing import OwnFiles

_READABLE, _LONGEST = 768, 4096  # pixels: of the shorter and of the longer side of an enlarged image


def draw_selection(selection: Selection, files: Mapping[str, Path], out: Path) -> None:
    """Draw the selected regions, with their ranks, on their images: ``OUT/ID.png``."""
    pictures = OwnFiles(out)
    for image_id in progress(selection.image_ids, "drawing"):
        rows = selection.in_image(image_id)
        image = to_rgb(read_image(_file(image_id, files)))
        # ranks cannot be read in the cells of a small image; a strip of one is not enlarged beyond all measure
        times = max(1, min(-(-_READABLE // min(image.shape[:2])), _LONGEST // max(image.shape[:2])))
        shown = outline_regions(image, [outlines(row) for row in rows], [str(row["rank"]) for row in rows], times)
        pictures.write(f"{image_id}.png", encode(shown))
    logger.info("pictures: %s", out)


def sheet_names(path: Path, images: int) -> list[Path]:
    """The files of a contact sheet of so many images: ``sheet.png``, ``sheet-2.png`` ..."""
    return [sheet_name(path, page) for page in range(1, -(-images // PER_PAGE) + 1)]


def sheet_name(path: Path, page: int) -> Path:
    """The file of a page of a contact sheet."""
    return path if page == 1 else path.with_name(f"{path.stem}-{page}{path.suffix}")


def tiles_of(selection: Selection, image_of: Callable[[str], Any], most: int | None = None) -> Iterator[Tile]:
    """The images of a selection, in order of their best region, for a contact sheet.

    Args:
        selection: the regions.
        image_of: an image as `seguq.data.read_image` gives it, by its id.
        most: how many images; None: all.
    """
    for image_id in selection.image_ids[:most]:
        rows = selection.in_image(image_id)
        first = rows[0]
        words, _, numbers = (first.get("reason") or "selected").partition(": ")
        more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
        note = f"{first['rank']}: {words}{more}\n{numbers}"
        labels = [str(row["rank"]) for row in rows]
        yield Tile(to_rgb(image_of(image_id)), image_id, note, [outlines(row) for row in rows], labels)


def sheet_pages(selection: Selection, files: Mapping[str, Path], title: str) -> list[bytes]:
    """The pages of a selection's contact sheet, as PNG."""
    tiles = tiles_of(selection, lambda image_id: read_image(_file(image_id, files)))
    shown = progress(tiles, "contact sheet", total=len(selection.image_ids))
    return [encode(page) for page in contact_sheet(shown, title)]


def _file(image_id: str, files: Mapping[str, Path]) -> Path:
    if image_id not in files:
        raise SeguqError(f"image {image_id!r} of the selection is not there any more")
    return files[image_id]
