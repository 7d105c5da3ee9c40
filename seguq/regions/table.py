"""The table of regions: a pyarrow table with one row a region, on disk as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seguq.core.checks import require_plain_name
from seguq.core.errors import SeguqError
from seguq.core.files import whole_file
from seguq.core.reading import reading
from seguq.regions.rle import RLE

_SCHEMA_VERSION = 1
_META = b"seguq"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("region_id", pa.int64()),
        ("y0", pa.int64()),
        ("x0", pa.int64()),
        ("y1", pa.int64()),
        ("x1", pa.int64()),
        ("area", pa.int64()),
        ("score", pa.float64()),
        ("predicted_class", pa.int64()),
        ("rle", RLE),
    ]
)
REQUIRED = tuple(name for name in SCHEMA.names if name != "rle")


class RegionTable:
    """One row a region: ``image_id, region_id, y0, x0, y1, x1`` (half-open), ``area, score, predicted_class, rle``.

    ``rle`` is the shape of a region that is not all of its box: COCO's run lengths, within the box (see
    `seguq.regions.rle`); null for one that is. Further columns are carried along.

    ``predicted_class`` is null where independent labels (multilabel) were predicted.

    Args:
        table: a pyarrow table with at least these columns; ``rle`` may be missing where every region is its box.
        meta: what the scores are: ``by`` (measure), ``aggregate``, ``partition``, ``estimator``.

    Raises:
        SeguqError: if a column is missing or of another type, or says what no region can be: a box or an area below
            0, or a box that ends before it begins.
    """

    def __init__(self, table: Any, meta: dict[str, Any] | None = None) -> None:
        missing = [name for name in REQUIRED if name not in table.column_names]
        if missing:
            raise SeguqError(f"a table of regions needs the columns {', '.join(REQUIRED)}; missing: {missing}")
        for name in REQUIRED:
            _require_column(name, table[name])
        _require_boxes(table)
        self.table = table
        self.meta = dict(meta or {})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"RegionTable({len(self)} regions, {self.meta})"

    def column(self, name: str) -> Any:
        """A column as a numpy array."""
        return self.table.column(name).to_numpy(zero_copy_only=False)

    def image_numbers(self) -> tuple[npt.NDArray[np.int64], Any]:
        """The images as numbers, which are quicker to compare than their ids.

        Returns:
            The number of each row's image, ``(rows,)``, and the ids that the numbers stand for, sorted, as a pyarrow
            array.

        Raises:
            SeguqError: if a row has no id.
        """
        encoded = self.table["image_id"].dictionary_encode().unify_dictionaries()
        if encoded.null_count:
            raise SeguqError("a row of the table of regions has no image_id")
        if not encoded.num_chunks:
            return np.zeros(0, np.int64), pa.array([], pa.string())
        ids = encoded.chunk(0).dictionary
        order = pc.sort_indices(ids)
        numbers = np.empty(len(ids), np.int64)
        numbers[order.to_numpy()] = np.arange(len(ids))
        return numbers[np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])], ids.take(order)

    def boxes(self) -> npt.NDArray[np.int64]:
        """The boxes, ``(rows, 4)``: y0, x0, y1, x1, half-open."""
        return np.stack([self.column(name).astype(np.int64) for name in ("y0", "x0", "y1", "x1")], axis=1)

    def take(self, rows: npt.ArrayLike) -> RegionTable:
        """The table of some rows, by their numbers, in the order given."""
        return RegionTable(self.table.take(pa.array(np.asarray(rows, dtype=np.int64))), self.meta)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        return list(self.table.to_pylist())

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame (pandas has to be installed)."""
        return self.table.to_pandas()

    @classmethod
    def concatenate(cls, tables: Sequence[RegionTable]) -> RegionTable:
        """Put tables of different images under one another; the meta data of the first is kept.

        Columns that only some of them have are null in the rows of the others.

        Raises:
            SeguqError: if there is none, or if a column is of different types.
        """
        if not tables:
            raise SeguqError("there is no table to concatenate")
        try:
            together = pa.concat_tables([table.table for table in tables], promote_options="default")
        except pa.ArrowException as error:
            raise SeguqError(f"the tables of regions have a column of different types ({error})") from error
        return cls(together, tables[0].meta)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, as a whole.

        Raises:
            SeguqError: for an image id that cannot be the name of a file.
        """
        self.require_plain_ids()
        table = self.table.replace_schema_metadata(schema_metadata(self.meta))
        with whole_file(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegionTable:
        """Read a Parquet file.

        Raises:
            SeguqError: if the file is missing, damaged, no table of regions or of another schema version.
        """
        with reading(path, "Parquet"), Path(path).open("rb") as file:
            table = pq.read_table(file, page_checksum_verification=True)
            table.validate()
        with reading(path):
            meta = read_meta(table.schema, path)
            # of independent labels no one class is predicted
            filled = [name for name in REQUIRED if name in table.column_names and name != "predicted_class"]
            lacking = [name for name in filled if table[name].null_count]
            if lacking:
                raise SeguqError(f"{path} is damaged: a row has no {lacking[0]}")
            made = cls(table, meta)
        made.require_plain_ids(f"{path}: the image id")
        return made

    def require_plain_ids(self, what: str = "the image id") -> None:
        """Raise for an id that cannot be the name of a file, as those in files have to be."""
        for image_id in pc.unique(self.table["image_id"]).to_pylist():
            if image_id is not None:  # what is missing is said where it is needed
                require_plain_name(what, image_id)


def _require_column(name: str, column: Any) -> None:
    """Raise for a column of another type than `SCHEMA` has."""
    wanted, found = SCHEMA.field(name).type, column.type
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_string(wanted):
        fits, kind = pa.types.is_string(found) or pa.types.is_large_string(found), "text"
    elif pa.types.is_integer(wanted):
        fits, kind = pa.types.is_integer(found), "whole numbers"
    else:
        fits, kind = pa.types.is_integer(found) or pa.types.is_floating(found), "numbers"
    if not fits:
        raise SeguqError(f"the column {name!r} of a table of regions holds {kind}, but is of type {column.type}")
    if pa.types.is_uint64(found):
        most = pc.max(column).as_py()
        if most is not None and most >= 2**63:
            raise SeguqError(f"the column {name!r} of a table of regions holds {most}, but must be below {2**63}")


def _require_boxes(table: Any) -> None:
    """Raise for a box or an area that no region can have."""
    for name in ("y0", "x0", "area"):
        least = pc.min(table[name]).as_py()
        if least is not None and least < 0:
            raise SeguqError(f"the column {name!r} of a table of regions must not be below 0, but holds {least}")
    for first, last in (("y0", "y1"), ("x0", "x1")):
        if pc.any(pc.less(table[last], table[first])).as_py():
            raise SeguqError(f"a box of the table of regions ends before it begins ({last} is less than {first})")


def schema_metadata(meta: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The meta data of a table as its Parquet file has them, with the schema version; NumPy's numbers as plain ones.

    Raises:
        SeguqError: for what JSON has no way to hold.
    """
    for name, value in meta.items():
        try:
            json.dumps(value, default=_plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SeguqError(
                f"the meta data of a table of regions are saved as JSON, which cannot hold {name!r}: {value!r:.40}"
            ) from error
    return {_META: json.dumps({"version": _SCHEMA_VERSION, **meta}, default=_plain).encode()}


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(type(value).__name__)


def read_meta(schema: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The meta data of a table as its Parquet file has them.

    Raises:
        SeguqError: if they are those of another version, or of another kind of file.
    """
    meta = dict(json.loads((schema.metadata or {}).get(_META, b"{}")))
    version = meta.pop("version", None)
    lacking = [name for name in REQUIRED if name not in schema.names]
    if version is None and lacking:
        raise SeguqError(f"{path} is no table of regions: it has no column {lacking[0]!r}")
    if version is None:
        raise SeguqError(
            f"{path} does not say how its regions were scored, as a table that seguq saved does: if another program "
            "rewrote it, save it again by RegionTable(pyarrow.parquet.read_table(...), meta).save(...)"
        )
    if version != _SCHEMA_VERSION:
        raise SeguqError(f"{path} is no table of regions of this version of seguq (schema {version})")
    return meta
