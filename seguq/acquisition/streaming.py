"""The part of a large pool that a strategy has to see, found without the whole pool in memory.

What is selected from a file is what would be selected from the same table in memory. A table of up to 128 MiB is read
whole. Of a larger one, a `Keyed` strategy sees the regions that come first by its key, and one that looks at features
those with the highest scores: as many as it takes for the budget to end among them, and all where it does not. Any
other strategy sees the whole table, however large it is.
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
from seguq.acquisition.on_features import OnFeatures
from seguq.acquisition.spending import least_price, priced_by
from seguq.acquisition.strategy import Keyed, Labeled, Rows, Strategy, ordered, require_columns
from seguq.acquisition.top_k import TopK
from seguq.core.errors import SeguqError
from seguq.core.log import say_once
from seguq.regions import RegionTable
from seguq.regions.table import SCHEMA
from seguq.store.stored_table import StoredTable

_MEMORY = 2**27  # bytes of a table that is read whole without a second thought
_MUCH = 2**30  # bytes of a table that is read whole, from which on that is said
_MORE = 2**12  # regions beyond those that are needed
_WAITING = 2**18  # regions that are looked at together

Bools = npt.NDArray[np.bool_]


class Front(NamedTuple):
    """What a strategy has to see of a stored table.

    Attributes:
        table: the regions.
        regions: how many there are in all.
        labeled: how many were left out already, since they are labeled.
        strategy: what chooses among these what the given strategy would choose among all.
    """

    table: RegionTable
    regions: int
    labeled: int
    strategy: Strategy


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
    if len(stored) > _MEMORY // stored.row_bytes:
        search = _Search(stored, budget, labeled, seed)
        if isinstance(strategy, Keyed):
            found = _first(search, budget, strategy, seed)
        elif isinstance(strategy, OnFeatures):
            found = _highest(search, budget, strategy, seed)
        else:
            found = None
        if found is not None:
            return found
        size = len(stored) * stored.row_bytes
        if size > _MUCH:
            say_once(f"{stored.path} is read into memory as a whole for {strategy!r}, about {size / 2**30:.1f} GiB")
    return Front(stored.load(), len(stored), 0, strategy)


def _first(search: _Search, budget: Budget, strategy: Keyed, seed: int) -> Front | None:
    """What comes first by a key, as far as the budget reaches; None: it takes the whole."""
    wanted = _MORE + 2 * (budget.regions or 0)
    while wanted < len(search.stored):
        table, done, least = search.front(strategy, wanted)
        ranked = strategy.rank(table, generator_of(seed))
        if budget.images is not None:
            opened = list(dict.fromkeys(table.table["image_id"].take(pa.array(ranked)).to_pylist()))
            if len(opened) > budget.images:
                # all of their regions are selected, also such as come late; with the image that is one too many
                table = search.all_of(opened[: budget.images + 1])
                return Front(table, len(search.stored), done, strategy)
        elif len(table) < wanted or _ends(table, budget, budget.spend(table, ranked), least):
            return Front(table, len(search.stored), done, strategy)
        wanted *= 8
    return None


def _highest(search: _Search, budget: Budget, strategy: OnFeatures, seed: int) -> Front | None:
    """The highest scores: the share that is looked at, and what follows as far as the budget reaches."""
    if budget.images is not None:
        return None
    wanted = strategy.considered(len(search.stored)) + _MORE + 2 * (budget.regions or 0)
    while wanted < len(search.stored):
        table, done, least = search.front(TopK(), wanted)
        same = strategy.among(strategy.considered(len(search.stored) - done))
        enough = len(table) < wanted
        if not enough:
            ranked = TopK().rank(table, generator_of(seed))
            enough = _ends(table, budget, budget.spend(table, ranked), least)
            if enough and budget.regions is None:  # of regions there are as many in whatever order they are taken
                enough = _ends(table, budget, same.choose(table, budget, search.rows, generator_of(seed)), least)
        if enough:
            return Front(table, len(search.stored), done, same)
        wanted *= 8
    return None


def _ends(front: RegionTable, budget: Budget, chosen: Rows, least: float) -> bool:
    """Whether nothing beyond some regions would be taken after what was chosen of them.

    Args:
        front: the regions.
        budget: as it was before.
        chosen: rows of them, taken one after the other as long as any could be.
        least: no region costs less.
    """
    if budget.room - budget.spent(front, chosen) < least:
        return True
    if budget.fill:
        return False
    possible = np.ones(len(front), dtype=bool)  # of these, the first that did not fit was the end
    if budget.per_image is not None:
        images = front.image_numbers()[0]
        possible = (np.bincount(images[chosen], minlength=len(front)) < budget.per_image)[images]
    possible[chosen] = False
    return bool(possible.any())


class _Search:
    """Looks through a stored table for regions that are not labeled yet."""

    def __init__(self, stored: StoredTable, budget: Budget, labeled: Labeled, seed: int) -> None:
        self.stored, self.budget, self.rows = stored, budget, labeled
        self.noise_seed = draw_seed(generator_of(seed))
        self.labeled: dict[str, list[Mapping[str, Any]]] = {}
        for row in labeled:
            self.labeled.setdefault(str(row["image_id"]), []).append(row)

    def front(self, strategy: Keyed, count: int) -> tuple[RegionTable, int, float]:
        """The regions that come first by a strategy's key, how many are labeled, and what none costs less than."""
        front, done, least = _First(strategy.each_image, count), 0, np.inf
        columns = {"image_id", "region_id", "score", *priced_by(self.budget.kind, self.stored.schema.names)}
        if self.labeled:
            columns |= {name for name in self.stored.schema.names if name in SCHEMA.names}
        for begin, piece in self.stored.pieces(sorted(columns)):
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
            least = min(least, least_price(self.budget.kind, piece.take(pa.array(kept))))
            front.add(kept + begin, strategy.key(scores, noise)[kept], noise[kept], images[kept])
        return self.stored.take(front.rows()), done, least

    def all_of(self, images: Sequence[str]) -> RegionTable:
        """All regions of some images that are not labeled."""
        found, opened = [], set(images)
        for begin, piece in self.stored.pieces(["image_id"]):
            numbers, ids = self._images(piece)
            wanted = np.array([image_id in opened for image_id in ids], dtype=bool)
            found.append(np.flatnonzero(wanted[numbers]) + begin)
        table = self.stored.take(np.concatenate(found))
        return table.take(np.flatnonzero(~is_labeled(table, self.rows)))

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
