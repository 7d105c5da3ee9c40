"""The table of regions: a pyarrow table with one row a region, on disk as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file

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
    ]
)


class RegionTable:
    """One row a region: ``image_id, region_id, y0, x0, y1, x1`` (half-open), ``area, score, predicted_class``.

    Args:
        table: a pyarrow table with at least these columns.
        meta: what the scores are: ``by`` (measure), ``aggregate``, ``partition``, ``estimator``.
    """

    def __init__(self, table: Any, meta: dict[str, Any] | None = None) -> None:
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise SeguqError(f"a table of regions needs the columns {', '.join(SCHEMA.names)}; missing: {missing}")
        self.table = table
        self.meta = dict(meta or {})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"RegionTable({len(self)} regions, {self.meta})"

    def column(self, name: str) -> Any:
        """A column as a numpy array."""
        return self.table.column(name).to_numpy(zero_copy_only=False)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        return list(self.table.to_pylist())

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame (pandas has to be installed)."""
        return self.table.to_pandas()

    @classmethod
    def concatenate(cls, tables: Sequence[RegionTable]) -> RegionTable:
        """Put tables of different images under one another; the meta data of the first is kept."""
        if not tables:
            raise SeguqError("there is no table to concatenate")
        return cls(pa.concat_tables([table.table for table in tables]), tables[0].meta)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, as a whole."""
        table = self.table.replace_schema_metadata(schema_metadata(self.meta))
        with whole_file(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegionTable:
        """Read a Parquet file.

        Raises:
            SeguqError: if the file is missing, damaged, no table of regions or of another schema version.
        """
        if not Path(path).is_file():
            raise UsageError(f"{path} does not exist")
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SeguqError(f"{path} cannot be read as Parquet: it is damaged or another kind of file") from error
        try:
            meta = dict(json.loads((table.schema.metadata or {}).get(_META, b"{}")))
        except (ValueError, TypeError) as error:
            raise SeguqError(f"{path} is no table of regions: its meta data are damaged") from error
        version = meta.pop("version", None)
        if version != _SCHEMA_VERSION:
            raise SeguqError(f"{path} is no table of regions of this version of seguq (schema {version})")
        try:
            return cls(table, meta)
        except ValueError as error:
            raise SeguqError(f"{path}: {error}") from error


def schema_metadata(meta: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The meta data of a table as its Parquet file has them, with the schema version."""
    return {_META: json.dumps({"version": _SCHEMA_VERSION, **meta}).encode()}
