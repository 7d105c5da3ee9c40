"""What was selected for labeling, and why: one JSON file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from seguq.core.checks import is_number, require_plain_name
from seguq.core.errors import SeguqError
from seguq.core.files import write_bytes
from seguq.core.reading import listing, mapping, read_json, reading, text, whole
from seguq.regions.polygons import polygons
from seguq.regions.rle import inside_area, region_mask

Row = TypeVar("Row", bound=Mapping[str, Any])

_SCHEMA_VERSION = 1
_ROW = ("rank", "image_id", "region_id", "y0", "x0", "y1", "x1", "area", "score", "predicted_class")
_TOO_LARGE = 2**40  # pixels, also of the largest image
_INT64 = 2**63
_OUTLINES = ("polygon", "polygons")
RESERVED = ("rank", "reason", *_OUTLINES)
"""Columns that a selection adds to those of its table."""

# lists of numbers as `json.dumps` spreads them over lines; a text holds no line break of its own
_NUMBERS = re.compile(r"\[\n\s*((?:-?[\d.eE+-]+,\n\s*)*-?[\d.eE+-]+)\n\s*\]")


class Selection:
    """Regions to label next, in order, with the reason for each.

    Args:
        rows: one dict a region, in order of rank: ``rank`` (from 1), ``image_id``, ``region_id``, the box ``y0, x0,
            y1, x1`` (half-open, in pixels), ``area``, ``score``, ``predicted_class``; ``rle`` where the region is not
            all of its box (see `seguq.regions.RegionTable`); and what further columns the table had.
        why: how they were chosen: ``strategy``, ``budget``, ``seed``, ``by``, ``aggregate``, ``partition``,
            ``estimator``, ``model``.
    """

    def __init__(self, rows: list[dict[str, Any]], why: dict[str, Any] | None = None) -> None:
        self.rows = rows
        self.why = dict(why or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Selection({len(self)} regions in {len(self.image_ids)} images, {self.why})"

    @property
    def image_ids(self) -> list[str]:
        """The images that have to be opened, in order of their best region."""
        return list(dict.fromkeys(row["image_id"] for row in self.rows))

    def in_image(self, image_id: str) -> list[dict[str, Any]]:
        """The rows of one image, in order of rank."""
        return [row for row in self.rows if row["image_id"] == image_id]

    def keys(self) -> set[tuple[Any, ...]]:
        """What identifies each region: image, number, and box."""
        return {region_key(row) for row in self.rows}

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame (pandas has to be installed)."""
        import pandas

        columns = dict.fromkeys((*_ROW, *(name for row in self.rows for name in row)))
        return pandas.DataFrame(self.rows, columns=list(columns))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, as a whole, with the outline of each region in pixels.

        A region that is all of its box has a ``polygon``: the four ``[x, y]`` corners. Any other has ``polygons``: one
        for each of its parts, each a list of rings of corners, the first around it, the others around its holes.

        Raises:
            SeguqError: for a value that JSON has no way to hold (NaN is written as null), an image id that cannot be
                the name of a file, or what `load` would not take.
        """
        for row in self.rows:
            require_plain_name("the image id", row["image_id"])
        plain = [{name: _plain(value, _of(name, row)) for name, value in row.items()} for row in self.rows]
        try:
            regions = [{**row, **_outline(row)} for row in _rows(plain)]
        except ValueError as error:
            raise SeguqError(f"the selection cannot be saved: {error}") from error
        why = {name: _plain(value, repr(name)) for name, value in self.why.items()}
        content = {"version": _SCHEMA_VERSION, "why": why, "regions": regions}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        text = _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
        write_bytes(path, (text + "\n").encode(errors="backslashreplace"))

    def save_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV, as a whole, for a spreadsheet: without shapes and other lists.

        Text that a spreadsheet would take for a formula (an id that begins with ``=``, say) has a ``'`` before it.

        Raises:
            SeguqError: for an image id that cannot be the name of a file.
        """
        for row in self.rows:
            require_plain_name("the image id", row["image_id"])
        listed = dict.fromkeys((*_ROW, "reason", *(name for row in self.rows for name in row)))
        plain = [{name: _plain(value, _of(name, row)) for name, value in row.items()} for row in self.rows]
        names = [name for name in listed if not any(isinstance(row.get(name), (list, dict)) for row in plain)]
        names = [name for name in names if name != "rle" and (name in _ROW or any(name in row for row in plain))]
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow([_cell(name) for name in names])
        writer.writerows([_cell(row.get(name)) for name in names] for row in plain)
        write_bytes(path, out.getvalue().encode("utf-8-sig", errors="backslashreplace"))  # so that Excel sees UTF-8

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a file that `save` wrote.

        Raises:
            SeguqError: if it is missing, no selection, or of another schema version; or if a region is none, saying
                which, and what is wrong with it.
        """
        with reading(path, "a selection"):
            content = mapping(read_json(path), "its content")
            version = whole(content["version"], "version")
            if version != _SCHEMA_VERSION:
                raise SeguqError(f"{path} was written by another version of seguq (schema {version})")
            rows = _rows(listing(content["regions"], "'regions'"))
            why = mapping(content["why"], "'why'")
        for row in rows:
            require_plain_name(f"{path}: the image id", row["image_id"])
        return cls(rows, why)


def box_of(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The box of a region: y0, x0, y1, x1, half-open."""
    return int(row["y0"]), int(row["x0"]), int(row["y1"]), int(row["x1"])


def region_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What identifies a region: its image, number, and box."""
    return tuple(row[name] for name in ("image_id", "region_id", "y0", "x0", "y1", "x1"))


def by_image(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by their image, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["image_id"], []).append(row)
    return found


def outlines(row: Mapping[str, Any]) -> list[list[list[list[int]]]]:
    """The polygons of a region: for each part its rings of ``[x, y]`` corners, the first around it."""
    y0, x0, y1, x1 = box_of(row)
    if row.get("rle") is None:
        return [[[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]]
    return polygons(region_mask(row), y0, x0)


def _outline(row: Mapping[str, Any]) -> dict[str, Any]:
    found = outlines(row)
    return {"polygon": found[0][0]} if row.get("rle") is None else {"polygons": found}


def _rows(regions: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows as they were before they were saved.

    Raises:
        ValueError: with the number of the first that is none, or that is there twice.
    """
    rows = [_nth(number, region) for number, region in enumerate(regions, 1)]
    keys, ranks = dict[Any, int](), dict[Any, int]()
    for number, row in enumerate(rows, 1):
        first = keys.setdefault(region_key(row), number)
        if first != number:
            raise ValueError(
                f"region {number} is the same as region {first} (region_id {row['region_id']} of image "
                f"{row['image_id']!r}): each may be there once"
            )
        first = ranks.setdefault(row["rank"], number)
        if first != number:
            raise ValueError(f"region {number}: rank must be one of its own, but is {row['rank']} as in region {first}")
    return rows


def _nth(number: int, region: Any) -> dict[str, Any]:
    """A row as it was before it was saved, the first has the number 1.

    Raises:
        ValueError: with that number.
    """
    if not isinstance(region, dict):
        raise ValueError(f"region {number} must be a mapping, but is {region!r:.40}")
    try:
        return _row(mapping(region, "it"))
    except KeyError as error:
        raise ValueError(f"region {number} has no {error.args[0]!r}") from error
    except ValueError as error:
        raise ValueError(f"region {number}: {error}") from error


def _row(region: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was before it was saved.

    Raises:
        ValueError: for one that is none; it may come from anywhere, and is about to be counted, cut out and drawn.
    """
    text(region["image_id"], "image_id")
    _whole(region, "rank", 1)
    _whole(region, "region_id", most=_INT64)
    if region["predicted_class"] is not None:  # of independent labels there is no one class
        _whole(region, "predicted_class", most=_INT64)
    y0, x0 = (_whole(region, name, 0) for name in ("y0", "x0"))
    y1, x1 = _whole(region, "y1", y0 + 1), _whole(region, "x1", x0 + 1)
    area, of_box = _whole(region, "area", 1), (y1 - y0) * (x1 - x0)
    if area > of_box:
        raise ValueError(f"area must be at most that of its box, {of_box}, but is {area}")
    score = region["score"]
    if score is not None and not (is_number(score) and math.isfinite(score)):  # NaN is written as null
        raise ValueError(f"score must be a number or null, but is {score!r:.40}")
    for name in ("reason", "path"):
        if region.get(name) is not None:
            text(region[name], name)
    for name, least in (("height", y1), ("width", x1)):
        if region.get(name) is not None:
            _whole(region, name, least)
    if region.get("rle") is not None:
        inside = inside_area(region["rle"], y1 - y0, x1 - x0)
        if inside != area:
            raise ValueError(f"area must be that of 'rle', {inside}, but is {area}")
    if any(region.get(name) is not None for name in _OUTLINES):
        _require_outline(region)
    return {name: region[name] for name in _ROW} | {
        name: value for name, value in region.items() if name not in _OUTLINES
    }


def _require_outline(region: Mapping[str, Any]) -> None:
    """Raise where a polygon was edited, which nothing would look at."""
    derived = _outline(region)
    counts = "the box (y0, x0, y1, x1)" if region.get("rle") is None else "the run lengths 'rle' within the box"
    for name in _OUTLINES:
        if region.get(name) not in (None, derived.get(name)):
            raise ValueError(f"{name} must be that of {counts}, but is another: edit these, and remove {name!r}")


def _whole(region: Mapping[str, Any], name: str, least: int | None = None, most: int = _TOO_LARGE) -> int:
    """A whole number that a region can have."""
    value = whole(region[name], name, least)
    if abs(value) >= most:
        raise ValueError(f"{name} must be below {most}, but is {value!r:.40}")
    return value


def _cell(value: Any) -> Any:
    """A value as a spreadsheet may read it; text is never a formula."""
    if isinstance(value, str) and value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return "'" + value
    return "" if value is None else value


def _of(name: str, row: Mapping[str, Any]) -> str:
    return f"{name!r} of region {row.get('region_id')} of image {row.get('image_id')!r}"


def _plain(value: Any, what: str) -> Any:
    """A value as JSON has it; ``what`` it is, for the message."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and not math.isinf(value):
        return None if math.isnan(value) else value
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item, what) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    kind = "an infinite number" if isinstance(value, float) else f"a {type(value).__name__}"
    raise SeguqError(
        f"a selection is saved as JSON, which cannot hold {kind} ({what}): leave it out of the table, or make it text"
    )
