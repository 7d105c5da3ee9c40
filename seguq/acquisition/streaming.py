"""The part of a large pool that a strategy has to see, found without the whole pool in memory.

A table of up to 128 MiB is read whole. Of a larger one, a `Keyed` strategy sees the regions that come first by its key:
more than the budget can take, so that the selection is that of the whole. Any other strategy sees the regions with the
highest scores, as many as fit into 128 MiB; the selection says how many those were.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seguq.acquisition.budget import Budget, number_within
from seguq.acquisition.labeled import is_labeled
from seguq.acquisition.noise import Floats, Hashes, draw_seed, generator_of, image_hashes, uniform
from seguq.acquisition.strategy import Keyed, Labeled, Rows, Strategy, ordered, require_columns
from seguq.acquisition.top_k import TopK
from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.regions.table import SCHEMA
from seguq.store.stored_table import StoredTable

_MEMORY = 2**27  # bytes of regions that are seen at once
_MORE = 2**12  # regions beyond those that are needed
_WAITING = 2**18  # regions that are looked at together

Bools = npt.NDArray[np.bool_]


class Front(NamedTuple):
    """What a strategy has to see of a stored table.

    Attributes:
        table: the regions.
        regions: how many there are in all.
        labeled: how many were left out already, since they are labeled.
    """

    table: RegionTable
    regions: int
    labeled: int


def front_of(path: str | os.PathLike[str], budget: Budget, strategy: Strategy, labeled: Labeled, seed: int) -> Front:
    """The regions of a stored table that a strategy has to see.

    Args:
        path: a Parquet file, or a folder of them.
        budget: how much may be chosen.
        strategy: what will choose among the regions.
        labeled: rows of earlier selections, which are left out.
        seed: that of the selection.

    Raises:
        UsageError: if it lacks a column that the strategy reads.
        SeguqError: if a file is damaged, or a score is not finite.
    """
    stored = StoredTable(path)
    require_columns(stored.schema.names, strategy)
    fitting = _MEMORY // stored.row_bytes
    if len(stored) <= fitting:
        return Front(stored.load(), len(stored), 0)
    search = _Search(stored, labeled, seed)
    if not isinstance(strategy, Keyed):
        return search.front(TopK(), fitting)
    wanted = _MORE + 2 * (budget.regions or 0)
    while True:
        found = search.front(strategy, min(wanted, fitting))
        if budget.images is not None:
            ranked = strategy.rank(found.table, generator_of(seed))
            opened = list(dict.fromkeys(found.table.table["image_id"].take(pa.array(ranked)).to_pylist()))
            if len(opened) > budget.images or wanted >= fitting:
                # all of their regions are selected, also such as come late; with the image that is one too many
                return search.all_of(opened[: budget.images + 1])
        elif wanted >= fitting or _is_enough(found.table, budget, strategy, seed):
            return found
        wanted *= 8


def _is_enough(front: RegionTable, budget: Budget, strategy: Keyed, seed: int) -> bool:
    """Whether the budget ends before these regions do: less than the average of them costs is left."""
    if not len(front):
        return True
    chosen = strategy.choose(front, budget, (), generator_of(seed))
    spent = budget.spent(front, chosen)
    return len(chosen) > 0 and budget.room - spent < spent / len(chosen)


class _Search:
    """Looks through a stored table for regions that are not labeled yet."""

    def __init__(self, stored: StoredTable, labeled: Labeled, seed: int) -> None:
        self.stored = stored
        self.noise_seed = draw_seed(generator_of(seed))
        self.labeled: dict[str, list[Mapping[str, Any]]] = {}
        for row in labeled:
            self.labeled.setdefault(str(row["image_id"]), []).append(row)

    def front(self, strategy: Keyed, count: int) -> Front:
        """The rows that come first by a strategy's key."""
        front, done = _First(strategy.each_image, count), 0
        columns = ["image_id", "region_id", "score"]
        if self.labeled:
            columns = [name for name in self.stored.schema.names if name in SCHEMA.names]
        for begin, piece in self.stored.pieces(columns):
            scores = piece["score"].to_numpy(zero_copy_only=False).astype(np.float64)
            if not np.isfinite(scores).all():
                row = int(np.flatnonzero(~np.isfinite(scores))[0])
                raise SeguqError(
                    f"{self.stored.path}: row {begin + row} of the table of regions has the score {scores[row]}: score "
                    "it again"
                )
            numbers, ids = self._images(piece)
            images = image_hashes(ids)[numbers]
            noise = uniform(images, piece["region_id"].to_numpy(zero_copy_only=False), self.noise_seed)
            kept = np.flatnonzero(~self._is_labeled(piece, numbers, ids))
            done += len(scores) - len(kept)
            front.add(kept + begin, strategy.key(scores, noise)[kept], noise[kept], images[kept])
        return Front(self.stored.take(front.rows()), len(self.stored), done)

    def all_of(self, images: Sequence[str]) -> Front:
        """All rows of some images, the labeled ones too."""
        found, opened = [], set(images)
        for begin, piece in self.stored.pieces(["image_id"]):
            numbers, ids = self._images(piece)
            wanted = np.array([image_id in opened for image_id in ids], dtype=bool)
            found.append(np.flatnonzero(wanted[numbers]) + begin)
        return Front(self.stored.take(np.concatenate(found)), len(self.stored), 0)

    def _images(self, piece: Any) -> tuple[Rows, list[str]]:
        """The image of each row as a number, and the ids that the numbers stand for."""
        column = piece["image_id"]
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        if encoded.null_count:
            raise SeguqError(f"{self.stored.path}: a row of the table of regions has no image_id: score it again")
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()

    def _is_labeled(self, piece: Any, numbers: Rows, ids: list[str]) -> Bools:
        out = np.zeros(len(numbers), dtype=bool)
        earlier = [row for image_id in ids for row in self.labeled.get(image_id, ())]
        if earlier:
            opened = np.array([image_id in self.labeled for image_id in ids])
            places = np.flatnonzero(opened[numbers])
            part = pa.Table.from_batches([piece]).take(pa.array(places))
            out[places] = is_labeled(RegionTable(part), earlier)
        return out


class _First:
    """The rows that come first by a key, of those that were seen so far.

    What comes first of a whole comes first of its parts: a further row only moves others back, also where the rows of
    an image take turns.
    """

    def __init__(self, each_image: bool, count: int) -> None:
        self.each_image, self.count = each_image, count
        self.least = -np.inf  # no row with a smaller key can be among them
        self.deepest: int | None = None  # nor one that comes later within its image
        self._kept: list[tuple[Any, ...]] = []
        self._waiting = 0

    def add(self, rows: Rows, keys: Floats, noise: Floats, images: Hashes) -> None:
        """Further rows, by their numbers."""
        possible = np.flatnonzero(keys >= self.least)
        if self.deepest:
            order = np.lexsort((noise, -keys))
            possible = order[number_within(images[order]) <= self.deepest]
        self._kept.append((rows[possible], keys[possible], noise[possible], images[possible]))
        self._waiting += len(possible)
        # the sooner it is known what cannot be among them, the less is looked at; sorting few rows often costs more
        if self._waiting >= 2 * self.count + (_WAITING if self.deepest is None else 0):
            self._prune()

    def rows(self) -> Rows:
        """Their numbers."""
        self._prune()
        rows: Rows = self._kept[0][0]
        return rows

    def _prune(self) -> None:
        rows, keys, noise, images = (np.concatenate(part) for part in zip(*self._kept, strict=True))
        order = ordered(keys, noise, images if self.each_image else None)[: self.count]
        if len(order) == self.count:
            self.deepest = int(number_within(images[order]).max()) if self.each_image else 0
            if self.deepest == 0:  # each is the first of its image, or images do not matter
                self.least = float(keys[order].min())
        self._kept = [(rows[order], keys[order], noise[order], images[order])]
        self._waiting = 0
