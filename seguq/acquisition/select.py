"""The choice of regions to label next."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from seguq.acquisition.budget import Budget, number_within
from seguq.acquisition.labeled import is_labeled
from seguq.acquisition.selection import RESERVED, Selection
from seguq.acquisition.strategy import Rows, Strategy
from seguq.core.errors import SeguqError
from seguq.core.seeds import derive_seed
from seguq.regions import RegionTable
from seguq.regions.table import REQUIRED


def select(
    table: RegionTable,
    *,
    budget: Budget,
    strategy: Strategy,
    labeled: Selection | Sequence[Selection] | None = None,
    seed: int = 0,
) -> Selection:
    """Choose regions within a budget.

    Args:
        table: scored regions; the order of its rows does not matter.
        budget: how much may be labeled.
        strategy: which regions are taken.
        labeled: earlier selections; regions that lie within theirs are left out.
        seed: for the strategy's random choices and for ties.

    Returns:
        The regions in order, with all columns of the table, and the reason. If fewer are left than the budget allows,
        all of them, with a warning.

    Raises:
        SeguqError: if the table is empty, a value is missing, a score is not finite, or a region is in it twice; or
            if a strategy of one's own does not keep to the rules.

    Example:
        >>> import torch
        >>> from seguq import UncertaintyMaps, acquisition, regions
        >>> values = torch.tensor([[[0.0, 1.0, 3.0, 4.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 4), 0.5), {"variance": values}, ["a"])
        >>> table = regions.score(maps, regions.Grid(2), by="variance")
        >>> selection = select(table, budget=Budget(regions=1), strategy=acquisition.TopK())
        >>> [row["region_id"] for row in selection.rows]
        [1]
    """
    if not isinstance(strategy, Strategy):
        raise SeguqError(f"strategy must be one such as seguq.acquisition.TopK(), but is {strategy!r}")
    _require_sound(table)
    earlier = [labeled] if isinstance(labeled, Selection) else list(labeled or ())
    earlier_rows = [row for selection in earlier for row in selection.rows]
    pool = _in_order(table)
    done = is_labeled(pool, earlier_rows)
    if done.any():
        pool = pool.take(np.flatnonzero(~done))
    chosen = np.zeros(0, np.int64)
    if len(pool):
        generator = np.random.default_rng(derive_seed("select", seed))
        chosen = _checked(strategy.choose(pool, budget, earlier_rows, generator), pool, budget, strategy)
    winners = pool.take(chosen)
    _warn_of_little(winners, pool, budget)
    why = {"strategy": repr(strategy), "budget": budget.as_dict(), "seed": int(seed), **table.meta}
    return Selection([{"rank": rank, **row} for rank, row in enumerate(winners.rows(), 1)], why)


def _require_sound(table: RegionTable) -> None:
    if len(table) == 0:
        raise SeguqError("the table of regions is empty: there is nothing to select from")
    taken = [name for name in RESERVED if name in table.table.column_names]
    if taken:
        raise SeguqError(f"the table of regions has a column {taken[0]!r}, a name of the selection's own: rename it")
    scores = table.column("score")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise SeguqError(f"row {row} of the table of regions has the score {scores[row]}: score it again")
    missing = [name for name in REQUIRED if table.table[name].null_count]
    if missing:
        raise SeguqError(f"a row of the table of regions has no {missing[0]}: score it again")


def _in_order(table: RegionTable) -> RegionTable:
    """The table sorted by image and region, so that the order of its rows does not matter.

    Raises:
        SeguqError: if a region is in it twice.
    """
    images = table.image_numbers()[0]
    regions = table.column("region_id")
    if _rising(images, regions):
        return table
    order = np.lexsort((regions, images))
    if not _rising(images[order], regions[order]):  # numbers may come again where the boxes are others
        boxes = table.boxes()
        order = np.lexsort((*boxes.T[::-1], regions, images))
        keys = np.column_stack([images, regions, boxes])[order]
        again = np.flatnonzero((keys[1:] == keys[:-1]).all(1))
        if len(again):
            twice = table.take(order[again[:1]]).rows()[0]
            raise SeguqError(
                f"the table of regions holds region {twice['region_id']} of image {twice['image_id']!r} more than "
                "once: score each image once, and pass image_ids to the estimator so that no two have the same id"
            )
    return table.take(order)


def _rising(images: Rows, regions: Rows) -> bool:
    """Whether each row comes after the one before it, and is another."""
    same = images[1:] == images[:-1]
    return bool(((images[1:] > images[:-1]) | (same & (regions[1:] > regions[:-1]))).all())


def _checked(rows: Rows, pool: RegionTable, budget: Budget, strategy: Strategy) -> Rows:
    """What a strategy chose, if it kept to the rules."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise SeguqError(f"{strategy!r} must choose row numbers, but chose {rows!r}")
    outside = rows[(rows < 0) | (rows >= len(pool))]
    if len(outside):
        raise SeguqError(f"{strategy!r} chose row {outside[0]} of a pool of {len(pool)}")
    if len(np.unique(rows)) < len(rows):
        raise SeguqError(f"{strategy!r} chose a region more than once")
    rows = rows.astype(np.int64)
    if len(budget.spend(pool, rows)) < len(rows):
        raise SeguqError(f"{strategy!r} chose {len(rows)} regions, which is more than {budget!r} allows")
    return rows


def _warn_of_little(winners: RegionTable, pool: RegionTable, budget: Budget) -> None:
    """Warn where a budget could not be spent because there is too little left."""
    limit, wanted = next((name, value) for name, value in budget.as_dict().items() if name != "per_image")
    reached = {"regions": len(winners), "images": len(winners.image_numbers()[1])}
    available = len(pool)
    if budget.per_image is not None and available:
        available = int((number_within(pool.image_numbers()[0]) < budget.per_image).sum())
    if len(winners) == available:  # a region that did not fit leaves pixels over, too, and is no reason to warn
        reached["pixels"] = int(winners.column("area").sum())
    if limit in reached and reached[limit] < wanted:
        most = "" if budget.per_image is None else f" with at most {budget.per_image} of an image"
        warnings.warn(
            f"the budget allows {wanted} {limit}, but only {reached[limit]} are left to select{most}", stacklevel=3
        )
