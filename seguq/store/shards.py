"""A table of regions that several processes write batch by batch: a shard each, merged afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seguq.core.errors import SeguqError
from seguq.core.files import TEMPORARY_PREFIX, naming
from seguq.core.locks import Lock
from seguq.regions.table import RegionTable, schema_metadata

_SHARD = TEMPORARY_PREFIX + "shard-"
_ROWS = 2**16  # of a row group: many small ones are slow to read and pack badly


class ShardWriter:
    """Writes the regions that one process scores to a file of its own, as they come; `merge_shards` takes them up.

    The file has a temporary name, so that `seguq.core.files.remove_leftovers` removes what a killed run has left; let
    that be done before the first shard of a run, as what was left would be merged, too. The file is made with the
    first region: a process without any makes none. `abort` lets go of it, also once it is merged.

    Args:
        folder: where the shards of all processes are; made where missing.
        rank: number of this process, from 0; no other process has the same.
        wanted: the table that the shards will be merged to, which errors name.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int, wanted: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(folder) / f"{_SHARD}{rank:05d}.parquet"
        self.wanted = Path(folder) if wanted is None else Path(wanted)
        self._lock = Lock(self.path)
        self._meta: dict[str, Any] = {}
        self._waiting: list[Any] = []
        self._rows = 0  # that wait
        self._writer: Any = None
        self._closed = False

    def add(self, table: RegionTable) -> None:
        """Append the regions of some images. They are gathered to groups of about 65 000 before they are written.

        Raises:
            SeguqError: if the shard is closed, or if these regions have other columns than the ones before, or were
                scored in another way.
            OSError: if the file cannot be written. It stays unfinished then, so that nobody merges half of it.
        """
        if self._closed:
            raise SeguqError(f"no region can be added to {self.path}: it is closed, or could not be written")
        if not len(table):
            return
        table.require_plain_ids()
        if self._writer is None:
            self._open(table)
        require_same(self.path.parent, (self._writer.schema, self._meta), (table.table.schema, table.meta))
        self._waiting.append(table.table)
        self._rows += len(table)
        if self._rows >= _ROWS:
            self._write()

    def close(self) -> None:
        """Write what waits, and end the file. A second time does nothing.

        Raises:
            OSError: if the file cannot be written.
        """
        self._closed = True
        if self._writer is not None:
            self._write()
            with self._guarded():
                self._writer.close()

    def abort(self) -> None:
        """Remove the file, also after `close`; nothing further can be added."""
        self._give_up()
        self.path.unlink(missing_ok=True)
        self._lock.release()

    def _open(self, table: RegionTable) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._meta = dict(table.meta)
        with self._guarded():
            schema = table.table.schema.with_metadata(schema_metadata(self._meta))
            self._writer = pq.ParquetWriter(self.path, schema, write_page_checksum=True)
            self._lock.take()  # until it is merged: nobody takes it for what a killed run has left

    def _write(self) -> None:
        if self._rows:
            with self._guarded():
                self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting, self._rows = [], 0

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Give errors of writing the name of the table, and write no more after one."""
        try:
            with naming(self.wanted):
                yield
        except OSError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        self._closed = True
        self._waiting, self._rows = [], 0
        if self._writer is not None:
            with suppress(OSError, pa.ArrowException):  # there was an error before, or the file is about to go anyway
                self._writer.close()
            self._writer = None


def merge_shards(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> RegionTable:
    """Put the shards of all processes together, and remove them.

    Args:
        folder: where every process has closed its `ShardWriter`.
        out: the Parquet file to write, as a whole.

    Returns:
        The table that ``out`` holds, sorted by ``image_id`` and ``region_id``: the same whatever the number of
        processes, and which of them had which image.

    Raises:
        SeguqError: if there is no region, if a shard is damaged or was not closed, if shards differ in their columns
            or in how they were scored, or if a region comes twice because two images have the same id. The shards
            are kept then.
    """
    paths = sorted(Path(folder).glob(f"{_SHARD}*.parquet"))
    shards = [shard for shard in map(_load, paths) if len(shard)]
    if not shards:
        raise SeguqError(f"no region was scored in {folder}: no image had any, or no process has written its own")
    first = shards[0]
    for shard in shards:
        require_same(folder, (first.table.schema, first.meta), (shard.table.schema, shard.meta))
    table = RegionTable.concatenate(shards).table
    table = table.sort_by([("image_id", "ascending"), ("region_id", "ascending")]).combine_chunks()
    _require_different_regions(table)
    merged = RegionTable(table, first.meta)
    merged.save(out)
    for path in paths:
        path.unlink(missing_ok=True)
    return merged


def _load(path: Path) -> RegionTable:
    try:
        return RegionTable.load(path)
    except SeguqError as error:
        message = f"{path} is damaged or unfinished, as if the process that wrote it had failed: score the images again"
        raise SeguqError(message) from error


def require_same(
    folder: str | os.PathLike[str], one: tuple[Any, dict[str, Any]], other: tuple[Any, dict[str, Any]]
) -> None:
    """Raise if regions have other columns, or were scored in another way; each is a schema and the meta data."""
    (schema, meta), (other_schema, other_meta) = one, other
    if not schema.equals(other_schema, check_metadata=False):
        columns, others = ({f"{field.name} ({field.type})" for field in fields} for fields in (schema, other_schema))
        differing = ", ".join(sorted(columns ^ others)) or "their order"
        raise SeguqError(f"the regions in {folder} do not all have the same columns: {differing}")
    names = [name for name in sorted({*meta, *other_meta}) if meta.get(name) != other_meta.get(name)]
    if names:
        ways = ", ".join(f"{name} {meta.get(name)!r} and {other_meta.get(name)!r}" for name in names)
        raise SeguqError(f"the regions in {folder} were not all scored in the same way: {ways}")


def _require_different_regions(table: Any) -> None:
    """Raise if a sorted table holds two rows of the same image and region."""
    same = [
        pc.equal(table[name].slice(1), table[name].slice(0, table.num_rows - 1)) for name in ("image_id", "region_id")
    ]
    twice = pc.index(pc.and_(*same), True).as_py()
    if twice >= 0:
        image_id, region_id = table["image_id"][twice].as_py(), table["region_id"][twice].as_py()
        raise SeguqError(
            f"two images had the same id {image_id!r}, or one was scored twice (region {region_id} is there twice): "
            "give each image an id of its own, and score each once"
        )
