"""The choice of regions to label next."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seguq.acquisition.budget import Budget
from seguq.acquisition.selection import Selection, box_of, region_key
from seguq.acquisition.strategies import Strategy
from seguq.core.errors import SeguqError
from seguq.core.seeds import derive_seed
from seguq.regions import RegionTable


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
        strategy: the order in which regions are taken.
        labeled: earlier selections, whose regions are left out, as is what lies within their cells or whole images.
        seed: for the strategy's random choices and for ties.

    Returns:
        The regions in order, with the reason. If fewer are left than the budget allows, all of them, with a warning.

    Raises:
        SeguqError: if the table is empty, a score is not finite, or a region is in it twice.

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
    if len(table) == 0:
        raise SeguqError("the table of regions is empty: there is nothing to select from")
    scores = table.column("score")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise SeguqError(f"row {row} of the table of regions has the score {scores[row]}: score it again")
    earlier = [labeled] if isinstance(labeled, Selection) else list(labeled or ())
    done = set().union(*(selection.keys() for selection in earlier))
    order = np.lexsort((table.column("region_id"), table.column("image_id").astype(str)))
    rows = RegionTable(table.table.take(order), table.meta)
    ranked = strategy.rank(rows, np.random.default_rng(derive_seed("select", seed)))
    content = rows.rows()
    keys = [region_key(row) for row in content]
    if len(set(keys)) < len(keys):
        twice = next(row for row, key, after in zip(content, keys, keys[1:], strict=False) if key == after)
        raise SeguqError(
            f"the table of regions holds region {twice['region_id']} of image {twice['image_id']!r} more than once: "
            "score each image once, and pass image_ids to the estimator so that no two have the same id"
        )
    boxes = _labeled_boxes(earlier)
    left = [content[i] for i in ranked if keys[i] not in done and not _within(content[i], boxes)]
    chosen = list(budget.spend(left))
    ((limit, wanted),) = budget.as_dict().items()
    reached = {"regions": len(chosen), "images": len({row["image_id"] for row in chosen})}
    if len(chosen) == len(left):  # a region that did not fit leaves pixels over, too, and is no reason to warn
        reached["pixels"] = sum(row["area"] for row in chosen)
    if limit in reached and reached[limit] < wanted:
        warnings.warn(f"the budget allows {wanted} {limit}, but only {reached[limit]} are left to select", stacklevel=2)
    why = {"strategy": repr(strategy), "budget": budget.as_dict(), "seed": int(seed), **table.meta}
    return Selection([{"rank": rank, **row} for rank, row in enumerate(chosen, 1)], why)


def _labeled_boxes(earlier: Sequence[Selection]) -> dict[str, list[tuple[int, int, int, int]]]:
    """By image, the boxes of earlier selections whose regions fill their boxes (cells of a grid, whole images)."""
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for selection in earlier:
        if str(selection.why.get("partition", "")).startswith(("Grid", "WholeImage")):
            for row in selection.rows:
                boxes.setdefault(row["image_id"], []).append(box_of(row))
    return boxes


def _within(row: Mapping[str, Any], boxes: Mapping[str, Sequence[tuple[int, int, int, int]]]) -> bool:
    y0, x0, y1, x1 = box_of(row)
    return any(
        top <= y0 and left <= x0 and y1 <= bottom and x1 <= right
        for top, left, bottom, right in boxes.get(row["image_id"], ())
    )
