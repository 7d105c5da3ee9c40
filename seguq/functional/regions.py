"""One number a region from dense maps: a map of labels and a map of values in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.functional.aggregates import aggregate_named
from seguq.functional.runs import Array, Runs


def region_scores(
    values: Tensor, labels: Tensor, num_regions: int, aggregate: str = "mean", classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Aggregate a dense map over regions.

    Args:
        values: ``(H, W)``.
        labels: region of each pixel, ``(H, W)`` integers in ``-1 .. num_regions - 1``; -1 is in no region.
        num_regions: R.
        aggregate: ``"mean"``, ``"sum"``, ``"max"``, ``"quantile(q)"``, ``"top_k_mean(fraction)"``,
            ``"threshold_mean(t)"``, ``"nonborder_mean(width)"`` or ``"foreground_mean(background)"`` of the pixels of a
            region, as in `seguq.functional.aggregates.Aggregate`.
        classes: the predicted class of each pixel, ``(H, W)`` integers, for the last two.

    Returns:
        The score of each region, ``(R,)`` float64 (NaN for a region without a pixel), and its area, ``(R,)`` int64.

    Raises:
        UsageError: for an unknown aggregate.
        SeguqError: if the maps differ in shape, or if an aggregate needs classes.

    Example:
        >>> score, area = region_scores(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[0, 0, 1]]), 2)
        >>> score.tolist(), area.tolist()
        ([2.0, 5.0], [2, 1])
    """
    found = aggregate_named(aggregate)
    if values.shape != labels.shape:
        raise SeguqError(f"values of shape {tuple(values.shape)} do not go with labels of shape {tuple(labels.shape)}")
    if found.reads_classes and (classes is None or classes.shape != labels.shape):
        shape = "no classes" if classes is None else f"classes of shape {tuple(classes.shape)}"
        raise SeguqError(f"{found} needs the class of each pixel, {tuple(labels.shape)}, but there are {shape}")
    runs = Runs(_array(labels), num_regions)
    scores = found(_array(values), runs, None if classes is None else _array(classes))
    out = torch.from_numpy(np.where(runs.area > 0, scores, np.nan))
    return out.to(values.device), torch.from_numpy(runs.area).to(values.device)


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
    return torch.from_numpy(Runs(_array(labels), num_regions).boxes).to(labels.device)


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
    counts = Runs(_array(labels), num_regions).counts(_array(classes), num_classes)
    return torch.from_numpy(counts.argmax(1)).to(classes.device)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    found: Array = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return found
