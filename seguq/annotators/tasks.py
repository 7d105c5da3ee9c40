"""A task for a person: a folder with an image, what is asked of it, and a template to paint on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seguq.acquisition.selection import outlines, region_key
from seguq.annotators.answers import STEM, files_in
from seguq.annotators.asked import Row, regions_of
from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import file_sha256, write_bytes, write_json
from seguq.core.reading import listing, mapping, read_json, reading, text, whole
from seguq.data import Classes, ImageSource
from seguq.export import outline_regions, to_rgb
from seguq.export.images import encode

TASK, TEMPLATE, REGIONS, ASKED = "task.json", "template.png", "regions.jpg", "asked.png"
_IMAGES = ("image.png", "image.jpg")
_OURS = (TASK, TEMPLATE, REGIONS, ASKED, *_IMAGES)
_VERSION = 1
_READABLE, _LONGEST = 1024, 4096  # pixels: of the shorter and of the longer side of the picture of the regions
_DARK = 170  # of 255: how dark the layer is over what is not asked
_BYTE = 255


@dataclass(frozen=True)
class Task:
    """What is asked of one image in one round.

    Attributes:
        folder: where its files lie.
        round: the number of its round.
        image_id: the image.
        size: height and width of the image.
        image: the name of the file with the image.
        regions: region_id, y0, x0, y1, x1, and area of each region, in order of rank.
        template: SHA-256 of the template as it was written; empty before.
    """

    folder: Path
    round: int
    image_id: str
    size: tuple[int, int]
    image: str
    regions: tuple[tuple[int, ...], ...]
    template: str = ""

    @classmethod
    def of(cls, folder: Path, number: int, image_id: str, rows: Sequence[Row], images: ImageSource) -> Task:
        """The task of some rows of a selection, in the folder of all tasks.

        Raises:
            SeguqError: for an image whose id is taken by the files of a task.
        """
        taken = [part for part in image_id.lower().split("/")[1:] if part in _OURS or Path(part).stem == STEM]
        if taken:
            raise SeguqError(
                f"the image id {image_id!r} holds {taken[0]!r}, which is a file of each task: rename the image's folder"
            )
        place = place_of(folder, number, image_id)
        is_photo = images.path(image_id).suffix.lower() in (".jpg", ".jpeg")
        regions = tuple((*map(int, region_key(row)[1:]), int(row["area"])) for row in rows)
        return cls(place, number, image_id, images.size(image_id), _IMAGES[is_photo], regions)

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task that a ``task.json`` describes.

        Raises:
            SeguqError: if it is damaged.
        """
        with reading(path, advice=f"remove the folder {path.parent}, and send the round again"):
            content = mapping(read_json(path), "its content")
            if content["version"] != _VERSION:
                raise SeguqError(f"{path} was written by another version of seguq (schema {content['version']})")
            height, width = (whole(side, "size", 1) for side in listing(content["size"], "size"))
            regions = tuple(
                tuple(whole(value, "a region") for value in listing(region, "a region"))
                for region in listing(content["regions"], "regions")
            )
            image_id, image, template = (text(content[name], name) for name in ("image_id", "image", "template"))
            number = whole(content["round"], "round", 0)
        return cls(path.parent, number, image_id, (height, width), image, regions, template)

    def is_asked_alike(self, other: Task) -> bool:
        """Whether another one asks for the same."""
        return replace(self, template="") == replace(other, template="")

    @property
    def file(self) -> Path:
        """The file that describes it, which is written last."""
        return self.folder / TASK

    @property
    def pixels(self) -> int:
        """How many pixels are asked for."""
        return sum(region[-1] for region in self.regions)

    @property
    def is_painted_over(self) -> bool:
        """Whether somebody has painted on the template, and saved it under its own name."""
        template = self.folder / TEMPLATE
        return template.is_file() and file_sha256(template) != self.template

    def other_files(self) -> list[str]:
        """The names of files in its folder that are not its own, sorted."""
        return [name for name in files_in(self.folder) if name not in _OURS and not name.startswith(".")]

    def is_complete(self) -> bool:
        """Whether all its files are there."""
        return all((self.folder / name).exists() for name in (TASK, TEMPLATE, REGIONS, ASKED, self.image))

    def write(self, rows: Sequence[Row], images: ImageSource, classes: Classes) -> Task:
        """Write what is not there yet, each file whole; what is there stays as it is."""
        pixels = _shown(images[self.image_id])
        template = template_png(self.size, classes)
        files: dict[str, Callable[[], bytes]] = {
            self.image: lambda: encode(pixels, Path(self.image).suffix, quality=95),
            REGIONS: lambda: encode(_outlined(pixels, rows), ".jpg"),
            ASKED: lambda: _dark_outside(rows, self.size),
            TEMPLATE: lambda: template,
        }
        for name, content in files.items():
            if not (self.folder / name).exists():
                write_bytes(self.folder / name, content())
        if not self.file.exists():
            described = {
                "version": _VERSION,
                "round": self.round,
                "image_id": self.image_id,
                "size": list(self.size),
                "image": self.image,
                "template": hashlib.sha256(template).hexdigest(),
                "regions": [list(region) for region in self.regions],
            }
            write_json(self.file, described)
        return Task.read(self.file)


def place_of(folder: Path, number: int, image_id: str = "") -> Path:
    """The folder of a task, or of all tasks of a round."""
    return folder / f"round-{number:02d}" / image_id


def tasks_below(folder: Path, number: int | None = None) -> Iterator[Task]:
    """All tasks that lie in a folder, or those of one round."""
    for place in folder.glob("round-*") if number is None else [place_of(folder, number)]:
        for path in place.rglob(TASK):
            yield Task.read(path)


def painted_classes(classes: Classes) -> Classes:
    """Classes that each have a color of their own, and one for what is not labeled.

    Raises:
        UsageError: if two have the same.
    """
    colors = (*classes.colors, *classes.ignore_colors)
    if len(set(colors)) < len(colors):
        twice = next(color for color in colors if colors.count(color) > 1)
        raise UsageError(f"two classes have the color {list(twice)}, but people tell them by it: give each its own")
    if classes.ignore_colors:
        return classes
    # magenta, or what is left: no gray, which a mask of indices may hold
    levels = (255, 0, 128, 64, 192)
    several = [(255, 0, 255), *((r, g, b) for r in levels for g in levels for b in levels if not r == g == b)]
    ground = next(color for color in several if color not in colors)
    return replace(classes, ignore_colors=(ground,))


def template_png(size: tuple[int, int], classes: Classes) -> bytes:
    """A mask in which nothing is labeled: a palette PNG in the colors of the classes, or colors where 8 bits are few.

    Args:
        size: height and width.
        classes: with a color for what is not labeled.
    """
    ground = classes.ignore_colors[0]
    if not (0 <= classes.ignore_index <= _BYTE and len(classes) <= _BYTE + 1):
        return encode(np.full((*size, 3), ground, np.uint8))
    from PIL import Image

    palette = [*classes.colors, *[ground] * (_BYTE + 1 - len(classes))]
    image = Image.new("P", size[::-1], classes.ignore_index)
    image.putpalette([value for color in palette for value in color])
    return _png(image)


def _dark_outside(rows: Sequence[Row], size: tuple[int, int]) -> bytes:
    """A layer that is clear where something is asked, and dark elsewhere."""
    from PIL import Image

    layer = np.zeros((*size, 4), np.uint8)
    layer[..., 3] = np.where(regions_of(rows, size) < 0, _DARK, 0)
    return _png(Image.fromarray(layer))


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _shown(image: Any) -> Any:
    """An image as people can see it, ``(H, W, 3)`` uint8: 16 bits and floats spread over what most pixels hold."""
    if image.dtype != np.uint8:
        low, high = np.percentile(image[..., :3], (0.1, 99.9))
        image = np.clip((image - low) / max(high - low, 1e-12), 0, 1)
    return to_rgb(image)


def _outlined(image: Any, rows: Sequence[Row]) -> Any:
    """The image with its regions outlined and numbered, as large as can be read."""
    short, long = min(image.shape[:2]), max(image.shape[:2])
    times = min(max(1, -(-_READABLE // short)), _LONGEST / long)
    return outline_regions(image, [outlines(row) for row in rows], [str(n) for n in range(1, len(rows) + 1)], times)
