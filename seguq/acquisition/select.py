"""The choice of regions to label next."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seguq.acquisition.best_of_each_image import BestOfEachImage
from seguq.acquisition.budget import Budget, number_within
from seguq.acquisition.labeled import is_labeled
from seguq.acquisition.noise import generator_of
from seguq.acquisition.selection import RESERVED, Selection
from seguq.acquisition.strategy import Rows, Strategy, require_columns
from seguq.acquisition.streaming import front_of
from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.regions.table import REQUIRED


def select(
    table: RegionTable | str | os.PathLike[str],
    *,
    budget: Budget,
    strategy: Strategy | None = None,
    labeled: Selection | Sequence[Selection] | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> Selection:
    """Choose regions within a budget.

    Args:
        table: scored regions; the order of its rows does not matter. Or the Parquet file of such a table, or a folder
            of them: what does not fit into memory is read piece by piece (see `seguq.acquisition.streaming`).
        budget: how much may be labeled.
        strategy: which regions are taken; None: the best of each image, `BestOfEachImage`.
        labeled: earlier selections; regions that lie within theirs are left out.
        seed: for the strategy's random choices and for ties.
        classes: names of the classes, for the reasons; None: those that the table knows, or numbers.

    Returns:
        The regions in order, with all columns of the table, and the reason. If fewer are left than the budget allows,
        all of them, with a warning.

    Raises:
        SeguqError: if the table is empty, a value is missing, a score is not finite, or a region is in it twice; if it
            lacks a column that the strategy reads; or if a strategy of one's own does not keep to the rules.

    Example:
        >>> import torch
        >>> from seguq import UncertaintyMaps, acquisition, regions
        >>> values = torch.tensor([[[0.0, 1.0, 3.0, 4.0]]])
        >>> maps = UncertaintyMaps(torch.full((1, 2, 1, 4), 0.5), {"variance": values}, ["a"])
        >>> table = regions.score(maps, regions.Grid(2), by="variance")
        >>> selection = select(table, budget=Budget(regions=1))
        >>> [row["region_id"] for row in selection.rows]
        [1]
        >>> selection.rows[0]["reason"]
        'best of its image: variance 3.5, predicted class 0'
    """
    strategy = BestOfEachImage() if strategy is None else strategy
    if not isinstance(strategy, Strategy):
        raise SeguqError(f"strategy must be one such as seguq.acquisition.TopK(), but is {strategy!r}")
    if not isinstance(budget, Budget):
        raise SeguqError(f"budget must be one such as seguq.acquisition.Budget(regions=50), but is {budget!r}")
    if not (hasattr(seed, "__index__") and not isinstance(seed, bool)):
        raise SeguqError(f"seed must be a whole number, but is {seed!r}")
    earlier = [labeled] if isinstance(labeled, Selection) else list(labeled or ())
    earlier_rows = [row for selection in earlier for row in selection.rows]
    if isinstance(table, RegionTable):
        whole, left_out, chooser = len(table), 0, strategy
    else:
        table, whole, left_out, chooser = front_of(table, budget, strategy, earlier_rows, seed)
    _require_sound(table)
    require_columns(table.table.column_names, strategy)
    pool = _in_order(table)
    done = is_labeled(pool, earlier_rows)
    if done.any():
        pool = pool.take(np.flatnonzero(~done))
    chosen = np.zeros(0, np.int64)
    reasons: Sequence[str] = ()
    if len(pool):
        chosen = _checked(chooser.choose(pool, budget, earlier_rows, generator_of(seed)), pool, budget, strategy)
        reasons = chooser.reasons(pool, chosen)
    winners = pool.take(chosen)
    left_out += int(done.sum())
    if whole == len(pool) + left_out:
        _warn_of_little(winners, pool, budget)
    why = {
        "strategy": repr(strategy),
        "budget": budget.as_dict(),
        "spent": budget.spent(pool, chosen),
        "seed": int(seed),
        "regions": whole,
        "labeled": left_out,
        "considered": strategy.considered(whole - left_out),
        **table.meta,
        **({} if classes is None else {"classes": list(classes)}),
    }
    rows = winners.rows()
    words = [in_words(reason, row, why) for reason, row in zip(reasons, rows, strict=True)]
    return Selection([{"rank": i + 1, **row, "reason": words[i]} for i, row in enumerate(rows)], why)


def in_words(reason: str, row: Mapping[str, Any], why: Mapping[str, Any]) -> str:
    """Why a region was chosen, with its score and what it is predicted as."""
    by, names, number = why.get("by", "score"), why.get("classes"), row["predicted_class"]
    by = by[0] if isinstance(by, (list, tuple)) and by else by
    said = f"{reason}: {by} {row['score']:.3g}"
    if number is None:
        return said
    known = isinstance(names, (list, tuple)) and 0 <= number < len(names)
    return f"{said}, predicted {names[number] if known and names else f'class {number}'}"


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
    # where labels are independent of each other, no one class is predicted
    missing = [name for name in REQUIRED if name != "predicted_class" and table.table[name].null_count]
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
    if not budget.allows(pool, rows):
        raise SeguqError(f"{strategy!r} chose {len(rows)} regions, which is more than {budget!r} allows")
    return rows


def _warn_of_little(winners: RegionTable, pool: RegionTable, budget: Budget) -> None:
    """Warn where a budget could not be spent because there is too little left."""
    available = len(pool)
    if budget.per_image is not None and available:
        available = int((number_within(pool.image_numbers()[0]) < budget.per_image).sum())
    # a region that did not fit leaves some of the limit over, too, and is no reason to warn
    if len(winners) < available and budget.kind not in ("regions", "images"):
        return
    reached = budget.spent(winners, np.arange(len(winners)))
    if reached >= budget.room:
        return
    most = "" if budget.per_image is None else f" with at most {budget.per_image} of an image"
    if budget.kind == "cost":
        said = f"the budget allows a cost of {budget.room:g}, but only {reached:g} can be spent{most}"
    else:
        said = f"the budget allows {budget.room} {budget.kind}, but only {reached} are left to select{most}"
    warnings.warn(said, stacklevel=3)
