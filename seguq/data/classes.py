"""The classes of a data set: names, colors, and the ignored index, from its ``classes.json``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seguq.core.errors import SeguqError
from seguq.core.reading import listing, mapping, read_json, reading, text, whole

# distinct for color-blind eyes (Okabe and Ito, 2008), background first
_COLORS = (
    (0, 0, 0), (0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0),
    (204, 121, 167), (0, 114, 178), (240, 228, 66),
)  # fmt: skip


def default_color(index: int) -> tuple[int, int, int]:
    """A color for a class that names none."""
    if index < len(_COLORS):
        return _COLORS[index]
    return ((index * 67) % 256, (index * 131) % 256, (index * 199) % 256)


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: one name a class, by class index.
        colors: one RGB color a class, 0 to 255.
        ignore_index: the mask value that is left out of every sum.
        ignore_colors: RGB colors in palette masks that mean ``ignore_index``.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    ignore_colors: tuple[tuple[int, int, int], ...] = field(default=())

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def unnamed(cls, count: int, ignore_index: int = 255) -> Classes:
        """Classes that are known by their number only."""
        names = tuple(f"class {i}" for i in range(count))
        return cls(names, tuple(default_color(i) for i in range(count)), ignore_index)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Classes:
        """Read a ``classes.json``: ``{"ignore_index": 255, "classes": [{"index", "name", "color"}, ...]}``.

        Raises:
            SeguqError: if the file is missing, is no JSON, or its indices are not 0, 1, 2, ...
        """
        path = Path(path)
        with reading(path, advice="see seguq.data.Classes.read"):
            if not path.is_file():
                raise SeguqError(
                    f'{path} is missing: it names the classes, as {{"ignore_index": 255, "classes": '
                    f'[{{"index": 0, "name": "background", "color": [0, 0, 0]}}, ...]}}'
                )
            content = mapping(read_json(path), "its content")
            ignore_index = whole(content.get("ignore_index", 255), "ignore_index")
            entries = [_entry(mapping(item, "a class")) for item in listing(content["classes"], "'classes'")]
        kept = sorted((entry for entry in entries if entry[0] != ignore_index), key=lambda entry: entry[0])
        if 0 <= ignore_index < len(kept):
            raise SeguqError(
                f"{path}: ignore_index={ignore_index} lies among the indices of its {len(kept)} classes and would be "
                "left out of them: set an ignore_index that no class has, such as 65535"
            )
        if not kept or [entry[0] for entry in kept] != list(range(len(kept))):
            raise SeguqError(
                f"{path}: class indices must be 0, 1, 2, ... without a gap, but are {[e[0] for e in kept]}"
            )
        return cls(
            names=tuple(name for _, name, _ in kept),
            colors=tuple(color or default_color(index) for index, _, color in kept),
            ignore_index=ignore_index,
            ignore_colors=tuple(color for index, _, color in entries if index == ignore_index and color),
        )


def _entry(item: dict[str, Any]) -> tuple[int, str, tuple[int, int, int] | None]:
    color = item.get("color", item.get("colour"))
    if color is not None:
        red, green, blue = (whole(value, "a value of a color") for value in listing(color, "a color"))
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise ValueError(f"color {color} is not within 0..255")
        color = (red, green, blue)
    return whole(item["index"], "'index'"), text(item["name"], "'name'"), color
