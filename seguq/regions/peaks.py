"""The largest values of a map, each at a distance from the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def peaks(values: npt.NDArray[Any], count: int, rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Take the largest value that is left, leave out what is near it, and so on.

    Args:
        values: ``(H, W)``, finite; of integers none is the lowest of its type.
        count: how many to take at most.
        rows: two of them are at least so many rows apart,
        columns: or at least so many columns.

    Returns:
        Rows and columns of those taken, ``(n, 2)``, n up to ``count``, the largest first; of equal ones the first, row
        by row.

    Example:
        >>> peaks(np.array([[1, 5, 4, 2, 3]]), 2, 2, 2).tolist()
        [[0, 1], [0, 4]]
    """
    taken: list[tuple[int, int]] = []
    if not values.size:
        return np.zeros((0, 2), np.int64)
    height, width = values.shape
    gone = np.iinfo(values.dtype).min if values.dtype.kind == "i" else -np.inf
    left = values.copy()
    # of each row the largest and its place: only rows that lose something are looked at again
    top, place = left.max(1), left.argmax(1)
    while len(taken) < count:
        y = int(top.argmax())
        if top[y] == gone:
            break
        x = int(place[y])
        taken.append((y, x))
        near = slice(max(y - rows + 1, 0), min(y + rows, height))
        left[near, max(x - columns + 1, 0) : min(x + columns, width)] = gone
        top[near], place[near] = left[near].max(1), left[near].argmax(1)
    return np.array(taken, dtype=np.int64).reshape(-1, 2)
