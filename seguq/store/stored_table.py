"""A table of regions on disk that is larger than what should be in memory: read piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import TEMPORARY_PREFIX
from seguq.core.reading import reading
from seguq.regions.table import REQUIRED, RegionTable, read_meta
from seguq.store.shards import require_same

_PIECE = 2**16  # rows
_LIST = 64  # bytes of a text or a list, about


class StoredTable:
    """The Parquet file of a table of regions, or a folder of such files that were scored in one way.

    Args:
        path: the file; or the folder, whose files are taken by their names.

    Raises:
        UsageError: if there is no such file, or none in the folder.
        SeguqError: if a file is damaged, or none of ours; or if they differ in their columns or in how they were
            scored.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with reading(self.path):
            names = [p for p in sorted(self.path.glob("*.parquet")) if not p.name.startswith(TEMPORARY_PREFIX)]
            self.paths = names if self.path.is_dir() else [self.path]
        if not self.paths:
            raise UsageError(f"{path} holds no .parquet file of regions")
        self.counts: list[int] = []
        first: tuple[Any, dict[str, Any]] | None = None
        for file in self.paths:
            with reading(file, "Parquet"), file.open("rb") as opened:
                found = pq.ParquetFile(opened)
                schema, count = found.schema_arrow, found.metadata.num_rows
            with reading(file):
                meta = read_meta(schema, file)
            lacking = [name for name in REQUIRED if name not in schema.names]
            if lacking:
                raise SeguqError(f"{file} is no table of regions: it has no column {lacking[0]!r}")
            if first is not None:
                require_same(path, first, (schema, meta))
            first = first or (schema, meta)
            self.counts.append(count)
        assert first is not None
        self.schema, self.meta = first

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def row_bytes(self) -> int:
        """About how much memory a row takes."""
        return sum(_width(field.type) for field in self.schema)

    def load(self) -> RegionTable:
        """All of it."""
        return RegionTable.concatenate([RegionTable.load(path) for path in self.paths])

    def pieces(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Some columns, piece by piece, each with the number of its first row; image ids as a dictionary."""
        begin = 0
        for path in self.paths:
            with reading(path, "Parquet"), ExitStack() as stack:
                file = _opened(path, stack, read_dictionary=["image_id"])
                for batch in file.iter_batches(_PIECE, columns=list(columns)):
                    yield begin, batch
                    begin += batch.num_rows

    def take(self, rows: npt.ArrayLike) -> RegionTable:
        """All columns of some rows, by their numbers, in the order of the files."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        found: list[Any] = []
        begin = 0
        for path in self.paths:
            with reading(path, "Parquet"), ExitStack() as stack:
                file = _opened(path, stack)
                for group in range(file.metadata.num_row_groups):
                    end = begin + file.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(wanted, (begin, end))
                    if high > low:
                        found += _rows_of(file, group, wanted[low:high] - begin)
                    begin = end
        table = RegionTable(pa.Table.from_batches(found, self.schema), self.meta)
        table.require_plain_ids(f"{self.path}: the image id")
        return table


def _rows_of(file: Any, group: int, wanted: npt.NDArray[np.int64]) -> Iterator[Any]:
    """Some rows of a row group, by their numbers within it."""
    begin = 0
    for batch in file.iter_batches(_PIECE, row_groups=[group]):
        low, high = np.searchsorted(wanted, (begin, begin + batch.num_rows))
        if high > low:
            yield batch.take(pa.array(wanted[low:high] - begin))
        begin += batch.num_rows


def _opened(path: Path, stack: ExitStack, **settings: Any) -> Any:
    # without pre_buffer: it would read all of a column, as it lies on disk, before the first batch
    file = stack.enter_context(path.open("rb"))
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False, **settings)


def _width(kind: Any) -> int:
    """Bytes of a value, those of text and lists guessed."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * _width(kind.value_type))
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:  # of no fixed size
        return _LIST
