"""One number a region from dense maps: a map of labels and a map of values in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError

Aggregate = Literal["mean", "sum", "max"]
AGGREGATES: tuple[str, ...] = ("mean", "sum", "max")


def _inside(labels: Tensor, num_regions: int) -> Tensor:
    if labels.numel() and int(labels.max()) >= num_regions:
        raise SeguqError(f"labels hold region {int(labels.max())}, but there are {num_regions} regions (from 0)")
    # pixels of no region (-1) go to one bin more, which is cut off at the end
    return labels.flatten().long().where(labels.flatten() >= 0, num_regions)


def region_scores(
    values: Tensor, labels: Tensor, num_regions: int, aggregate: Aggregate = "mean"
) -> tuple[Tensor, Tensor]:
    """Aggregate a dense map over regions.

    Args:
        values: ``(H, W)``.
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. num_regions - 1``; -1 is in no region.
        num_regions: R.
        aggregate: ``"mean"``, ``"sum"`` or ``"max"`` over the pixels of a region.

    Returns:
        The score of each region, ``(R,)`` float64 (NaN for a region without a pixel), and its area, ``(R,)`` int64.

    Raises:
        SeguqError: if the two maps differ in shape, or for an unknown aggregate.

    Example:
        >>> score, area = region_scores(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]), 2)
        >>> score.tolist(), area.tolist()
        ([2.0, 5.0], [2, 1])
    """
    require_choice("aggregate", aggregate, AGGREGATES)
    if values.shape != labels.shape:
        raise SeguqError(f"values of shape {tuple(values.shape)} do not go with labels of shape {tuple(labels.shape)}")
    index = _inside(labels, num_regions)
    area = torch.zeros(num_regions + 1, dtype=torch.int64, device=values.device)
    area.scatter_add_(0, index, torch.ones_like(index))
    flat = values.flatten().double()
    if aggregate == "max":
        out = flat.new_full((num_regions + 1,), float("-inf")).scatter_reduce_(0, index, flat, "amax")
    else:
        out = flat.new_zeros(num_regions + 1).scatter_add_(0, index, flat)
        if aggregate == "mean":
            out = out / area
    return out.masked_fill(area == 0, float("nan"))[:-1], area[:-1]


def region_boxes(labels: Tensor, num_regions: int) -> Tensor:
    """Bounding boxes of regions.

    Args:
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. num_regions - 1``.
        num_regions: R.

    Returns:
        ``(R, 4)`` int64: y0, x0, y1, x1, half-open; zeros for a region without a pixel.

    Example:
        >>> region_boxes(torch.tensor([[0, 0, 1], [0, 0, -1]]), 2).tolist()
        [[0, 0, 2, 2], [0, 2, 1, 3]]
    """
    height, width = labels.shape
    index = _inside(labels, num_regions)
    y, x = (
        grid.flatten()
        for grid in torch.meshgrid(
            torch.arange(height, device=labels.device), torch.arange(width, device=labels.device), indexing="ij"
        )
    )
    low = torch.full((2, num_regions + 1), max(height, width), device=labels.device)
    high = torch.zeros((2, num_regions + 1), dtype=torch.int64, device=labels.device)
    for axis, coordinate in enumerate((y, x)):
        low[axis].scatter_reduce_(0, index, coordinate, "amin")
        high[axis].scatter_reduce_(0, index, coordinate + 1, "amax")
    boxes = torch.cat((low, high)).T[:-1]
    return boxes.where(boxes[:, 2:3] > 0, 0)


def region_majority(classes: Tensor, labels: Tensor, num_regions: int, num_classes: int) -> Tensor:
    """The most frequent class of each region; the lower index where two are equally frequent.

    Args:
        classes: class index of each pixel, ``(H, W)`` integers.
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. num_regions - 1``.
        num_regions: R.
        num_classes: C.

    Returns:
        ``(R,)`` int64; 0 for a region without a pixel.

    Example:
        >>> region_majority(torch.tensor([[1, 1, 0, 2]]), torch.tensor([[0, 0, 0, 1]]), 2, 3).tolist()
        [1, 2]
    """
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise SeguqError(f"classes must hold class indices in 0..{num_classes - 1}")
    index = _inside(labels, num_regions) * num_classes + classes.flatten().long()
    counts = torch.zeros((num_regions + 1) * num_classes, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, index, torch.ones_like(index))
    return counts.view(num_regions + 1, num_classes).argmax(1)[:-1]
