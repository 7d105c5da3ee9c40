"""Connected components of the prediction: objects, and what lies between them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.checks import require_count
from seguq.core.errors import SeguqError, UsageError
from seguq.inference import UncertaintyMaps
from seguq.regions.partition import Partition, maps_of_one

_Ints = npt.NDArray[np.int64]


class Components(Partition):
    """Connected components of the predicted classes, of all of them, those of a background too.

    Components of fewer than ``min_area`` pixels are merged: each into the neighbor with which it shares the longest
    border (of two that are alike, the one that comes first), all at once, until none is left that has a neighbor.
    They are numbered by their first pixel, row by row.

    Args:
        min_area: in pixels; 1: nothing is merged.
        connectivity: whether pixels that meet at a corner are neighbors (8) or not (4). Borders are counted in sides of
            pixels either way.

    Raises:
        UsageError: for an area that is no whole number of at least 1, or another connectivity.

    Example:
        >>> classes = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 1]]])
        >>> maps = UncertaintyMaps(None, {}, ["a"], prediction=classes, num_classes=3)
        >>> Components(min_area=2)(None, maps).tolist()  # the 2 has two sides with the zeros, and one with the ones
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """

    def __init__(self, min_area: int = 16, connectivity: Literal[4, 8] = 8) -> None:
        require_count("min_area of Components", min_area)
        if connectivity not in (4, 8) or isinstance(connectivity, bool):
            raise UsageError(f"connectivity of Components must be 4 or 8, but is {connectivity!r}")
        self.min_area = min_area
        self.connectivity: Literal[4, 8] = connectivity

    def __call__(self, image: Any, maps: UncertaintyMaps | None = None) -> Tensor:
        """The component of each pixel, ``(H, W)`` int32; -1 where the prediction is below 0.

        Raises:
            SeguqError: if there are no maps, those of several independent labels, or of a volume.
        """
        from skimage.measure import label

        found = maps_of_one(maps, self)
        if found.multilabel:
            raise SeguqError(
                f"{self!r} cuts by the one predicted class of each pixel, but the maps of image "
                f"{found.image_ids[0]!r} are of several independent labels: use Superpixels, Grid or Boxes"
            )
        prediction = found.prediction[0].long().cpu().numpy()
        if not prediction.size:
            return torch.full(prediction.shape, -1, dtype=torch.int32)
        of_data = np.maximum(prediction, -1)
        # numbered by their first pixel, from 1; the background of scikit-image, here what has no class, is 0
        steps = 1 if self.connectivity == 4 else 2
        numbers = label(of_data, background=-1, connectivity=steps)  # type: ignore[no-untyped-call]
        labels = numbers.astype(np.int32) - 1
        if self.min_area > 1:
            labels = _merged(labels, self.min_area)
        return torch.from_numpy(labels)


def _merged(labels: npt.NDArray[np.int32], min_area: int) -> npt.NDArray[np.int32]:
    """Labels in which components below an area belong to a neighbor; rounds go over borders, not over pixels."""
    count = int(labels.max()) + 1
    area = np.bincount(labels[labels >= 0], minlength=count)
    a, b, length = _borders(labels, area < min_area)
    owner = np.arange(count)  # the component that each belongs to: the first of those that are one
    while True:
        tiny = area < min_area
        chosen = _neighbors(a, b, length, tiny)
        if (chosen == np.arange(count)).all():
            break
        chosen = _roots(chosen)
        owner = chosen[owner]
        area = np.bincount(chosen, weights=area, minlength=count).astype(np.int64)
        a, b, length = _pairs(chosen[a], chosen[b], length, count)
    numbers = np.cumsum(owner == np.arange(count)) - 1
    # the -1 of no component takes the last place
    return np.append(numbers[owner], -1).astype(np.int32)[labels]


def _borders(labels: npt.NDArray[np.int32], tiny: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints, _Ints]:
    """Pairs of components that share sides of pixels, one of them tiny at least, and how many sides."""
    of_tiny = np.append(tiny, False)[labels]
    first, second = [], []
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        sides = (labels[here] != labels[there]) & (of_tiny[here] | of_tiny[there])
        sides &= (labels[here] >= 0) & (labels[there] >= 0)
        first.append(labels[here][sides])
        second.append(labels[there][sides])
    a, b = np.concatenate(first).astype(np.int64), np.concatenate(second).astype(np.int64)
    keys, length = np.unique(np.minimum(a, b) * len(tiny) + np.maximum(a, b), return_counts=True)
    return keys // len(tiny), keys % len(tiny), length


def _pairs(a: _Ints, b: _Ints, length: _Ints, count: int) -> tuple[_Ints, _Ints, _Ints]:
    """Each pair once, the lower component first, with the sum of its lengths; none of a component with itself."""
    two = a != b
    keys = (np.minimum(a, b) * count + np.maximum(a, b))[two]
    order = keys.argsort(kind="stable")
    keys, length = keys[order], length[two][order]
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    sums: _Ints = np.add.reduceat(length, begins) if len(begins) else length
    return keys[begins] // count, keys[begins] % count, sums


def _neighbors(a: _Ints, b: _Ints, length: _Ints, tiny: npt.NDArray[np.bool_]) -> _Ints:
    """For each component the neighbor that it is merged into; for one that is not tiny, or has none, itself."""
    own, other = np.concatenate((a, b)), np.concatenate((b, a))
    asks = tiny[own]
    own, other, length = own[asks], other[asks], np.concatenate((length, length))[asks]
    order = np.lexsort((-other, length))  # the best last, which stays where several are written to one place
    chosen = np.arange(len(tiny))
    chosen[own[order]] = other[order]
    return chosen


def _roots(chosen: _Ints) -> _Ints:
    """For each component the first of all those that one is merged with, directly or by way of others.

    Borders are in one order, by length and then by numbers; so a circle of choices is of two components at most.
    """
    numbers = np.arange(len(chosen))
    mutual = chosen[chosen] == numbers
    end = np.where(mutual, np.minimum(chosen, numbers), chosen)
    while (end[end] != end).any():
        end = end[end]
    first = np.full(len(chosen), len(chosen))
    np.minimum.at(first, end, numbers)
    return first[end]
