"""What was selected for labeling, and why: one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import write_json

_SCHEMA_VERSION = 1
_ROW = ("rank", "image_id", "region_id", "y0", "x0", "y1", "x1", "area", "score", "predicted_class")


class Selection:
    """Regions to label next, in order, with the reason for each.

    Args:
        rows: one dict a region, in order of rank: ``rank`` (from 1), ``image_id``, ``region_id``, the box ``y0, x0,
            y1, x1`` (half-open, in pixels), ``area``, ``score``, ``predicted_class``.
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

        return pandas.DataFrame(self.rows, columns=list(_ROW))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, as a whole; each region also as a polygon of (x, y) corners."""
        regions = []
        for row in self.rows:
            y0, x0, y1, x1 = box_of(row)
            regions.append({**row, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]})
        write_json(path, {"version": _SCHEMA_VERSION, "why": self.why, "regions": regions})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a file that `save` wrote.

        Raises:
            SeguqError: if it is missing, no selection, or of another schema version.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path} does not exist")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            version = content["version"]
            current = version == _SCHEMA_VERSION
            rows = [{name: row[name] for name in _ROW} for row in content["regions"]] if current else []
            why = dict(content["why"]) if current else {}
        except (ValueError, KeyError, TypeError) as error:
            raise SeguqError(f"{path} cannot be read as a selection: it is damaged or another kind of file") from error
        if not current:
            raise SeguqError(f"{path} was written by another version of seguq (schema {version})")
        return cls(rows, why)


def box_of(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The box of a region: y0, x0, y1, x1, half-open."""
    return int(row["y0"]), int(row["x0"]), int(row["y1"]), int(row["x1"])


def region_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a region: its image, number, and box."""
    return tuple(row[name] for name in ("image_id", "region_id", "y0", "x0", "y1", "x1"))
