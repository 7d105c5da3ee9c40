"""Which regions are labeled next: what every strategy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seguq.acquisition.budget import Budget, number_within
from seguq.acquisition.noise import Floats, region_noise
from seguq.core.errors import SeguqError, UsageError
from seguq.core.named import Named
from seguq.regions import RegionTable

Rows = npt.NDArray[np.int64]
"""Numbers of rows of a table."""

Labeled = Sequence[Mapping[str, Any]]
"""Rows of earlier selections."""


_HOW = {
    "class_shares": "score with --columns class_shares, or regions.score(..., columns=['class_shares'])",
    "class_probs": "predict with --save_probs, and score with --columns class_probs",
    "class_scores": "predict with --save_probs, and score again (regions.score(..., columns=['class_scores']))",
    "features": "predict with --features, and score again (regions.score(..., columns=['features']))",
}
"""How a further column of the table is made."""


class Strategy(Named, ABC):
    """Chooses regions within a budget. A subclass in a file of this folder is known by its name.

    Randomness comes from the generator that it is handed, never from elsewhere: the seed is that of
    `seguq.acquisition.select`. `seguq.acquisition.noise.region_noise` gives each region a number of its own, which does
    not change when the pool does.

    Attributes:
        needs: the further columns of the table that it reads, such as ``"features"``; where one is missing, `select`
            says how to get it.
    """

    needs: tuple[str, ...] = ()

    @abstractmethod
    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Choose from what is not labeled yet.

        Args:
            pool: the regions to choose from, sorted by image and region, at least one; scores are finite.
            budget: how much may be chosen; `Budget.spend` takes rows in an order as far as it reaches.
            labeled: the rows of all earlier selections as in `Selection.rows`, the oldest first: dicts with the
                columns that the pool had then.
            generator: the only source of randomness.

        Returns:
            Row numbers of the pool, the first to be labeled first, none of them twice.
        """

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Why each of some rows was chosen, in a few words."""
        return [f"chosen by {self.name}"] * len(rows)

    def considered(self, regions: int) -> int:
        """How many of so many regions it looks at closely: those with the highest scores."""
        return regions


class Ranked(Strategy):
    """A strategy that puts all regions in order; they are taken from the front, as far as the budget reaches.

    Example:
        >>> class FirstImagesFirst(Ranked):
        ...     def rank(self, pool, generator):
        ...         return np.argsort(pool.image_numbers()[0], kind="stable")
        >>> FirstImagesFirst()
        FirstImagesFirst()
    """

    @abstractmethod
    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """All row numbers of the pool, the first to be labeled first."""

    def choose(self, pool: RegionTable, budget: Budget, labeled: Labeled, generator: np.random.Generator) -> Rows:
        """Spend the budget along the ranks."""
        ranked = np.asarray(self.rank(pool, generator))
        if ranked.ndim != 1 or (len(ranked) and ranked.dtype.kind not in "iu"):
            raise SeguqError(f"{type(self).__name__}.rank must give row numbers, but gave {ranked!r}")
        return budget.spend(pool, ranked)


class Keyed(Ranked):
    """A strategy that ranks by a key that each region has by itself: it works on a pool of any size.

    Attributes:
        each_image: whether the first of every image come first, then the second of every image, and so on; otherwise
            the images do not matter.

    Example:
        >>> class LeastUncertain(Keyed):
        ...     def key(self, scores, noise):
        ...         return -scores
        >>> LeastUncertain()
        LeastUncertain()
    """

    each_image: ClassVar[bool] = False

    @abstractmethod
    def key(self, scores: Floats, noise: Floats) -> Floats:
        """What each region is ranked by, the largest first; of equal ones that with the smaller noise is first.

        Args:
            scores: of the regions, ``(rows,)``, finite.
            noise: of the regions, in (0, 1), ``(rows,)``.
        """

    def rank(self, pool: RegionTable, generator: np.random.Generator) -> Rows:
        """Row numbers by falling key."""
        noise = region_noise(pool, generator)
        keys = self.key(pool.column("score").astype(np.float64), noise)
        return ordered(keys, noise, pool.image_numbers()[0] if self.each_image else None)


def ordered(keys: Floats, noise: Floats, images: npt.NDArray[Any] | None = None) -> Rows:
    """Rows by falling key, of equal keys by rising noise; with images, the first of each before the second of any.

    Example:
        >>> ordered(np.array([1.0, 3.0, 2.0]), np.zeros(3)).tolist()
        [1, 2, 0]
        >>> ordered(np.array([1.0, 3.0, 2.0]), np.zeros(3), np.array([0, 1, 1])).tolist()
        [1, 0, 2]
    """
    order = np.lexsort((noise, -keys))
    if images is None:
        return order
    return order[np.argsort(number_within(images[order]), kind="stable")]


def interleaved(parts: Sequence[Rows]) -> Rows:
    """Several lists as one, in which each is spread evenly: whoever stops early has some of each.

    Example:
        >>> interleaved([np.array([1, 2, 3, 4]), np.array([10, 20])]).tolist()
        [1, 10, 2, 3, 20, 4]
    """
    rows = np.concatenate([np.asarray(part, np.int64) for part in parts])
    place = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in parts])
    return rows[np.argsort(place, kind="stable")]


def predicted_classes(pool: RegionTable) -> npt.NDArray[np.int64]:
    """The predicted class of each region, ``(rows,)``.

    Raises:
        UsageError: if a region has none, as where labels are independent of each other.
    """
    if pool.table["predicted_class"].null_count:
        raise UsageError(
            "the regions have no one predicted class (the labels of this model are independent of each other): choose "
            "by a strategy that asks for none, such as BestOfEachImage"
        )
    found: npt.NDArray[np.int64] = pool.column("predicted_class").astype(np.int64)
    return found


def require_columns(names: Sequence[str], strategy: Strategy) -> None:
    """Raise where a table lacks what a strategy reads, saying how to get it.

    Raises:
        UsageError: with the name of the column.
    """
    for name in strategy.needs:
        if name not in names:
            raise UsageError(
                f"{strategy!r} reads the column {name!r}, which the table of regions does not have: "
                f"{_HOW.get(name, f'add a column {name!r}')}"
            )


def matrix(pool: RegionTable, name: str) -> npt.NDArray[np.float32]:
    """A column of lists of one length as ``(rows, length)`` float32.

    Raises:
        UsageError: if it is of another type, or if a row has none, or what is not finite.
    """
    column = pool.table[name].combine_chunks()
    if not (pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)):
        raise UsageError(f"the column {name!r} of the table of regions must hold lists of numbers of one length")
    if column.null_count:
        raise UsageError(f"the column {name!r} of the table of regions is empty in some rows: score them again")
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    found: npt.NDArray[np.float32] = values.reshape(len(pool), column.type.list_size)
    if not np.isfinite(found).all():
        raise UsageError(f"the column {name!r} of the table of regions holds what is no finite number: score it again")
    return found


def vectors_of(labeled: Labeled, name: str, length: int) -> npt.NDArray[np.float32]:
    """What labeled regions carry of such a column, of those that do, ``(rows, length)``.

    Raises:
        UsageError: if they are of another length.
    """
    carried = [row[name] for row in labeled if row.get(name) is not None]
    try:
        found = np.array(carried, np.float32).reshape(len(carried), -1)
    except (TypeError, ValueError):
        found = np.zeros((len(carried), 0), np.float32)
    if carried and (found.shape[1] != length or not np.isfinite(found).all()):
        raise UsageError(f"the {name!r} of the labeled regions are no lists of {length} numbers, as those of the pool")
    return found.reshape(len(carried), length)
