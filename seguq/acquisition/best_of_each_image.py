"""The most uncertain regions, spread over the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from seguq.acquisition.budget import number_within
from seguq.acquisition.noise import Floats
from seguq.acquisition.strategy import Keyed, Rows
from seguq.regions import RegionTable


class BestOfEachImage(Keyed):
    """The best region of every image first, then the second best of every image, and so on: the default.

    Within each of these, the highest scores come first. So a budget of fewer regions than there are images takes at
    most one of an image, and a larger one is still spent whole; ``per_image=`` of the budget is a bound that holds.

    Example:
        >>> BestOfEachImage()
        BestOfEachImage()
    """

    each_image: ClassVar[bool] = True

    def key(self, scores: Floats, noise: Floats) -> Floats:
        """The scores."""
        return scores

    def reasons(self, pool: RegionTable, rows: Rows) -> Sequence[str]:
        """Its place within its image."""
        images = pool.image_numbers()[0]
        mine = np.flatnonzero(np.isin(images, images[rows]))
        place = np.zeros(len(pool), np.int64)
        # of equal scores the one that was chosen earlier is the better one
        turn = np.full(len(pool), len(rows))
        turn[rows] = np.arange(len(rows))
        order = mine[np.lexsort((turn[mine], -pool.column("score")[mine]))]
        place[order] = number_within(images[order])
        return [f"{nth(int(i))}best of its image" for i in place[rows]]


def nth(number: int) -> str:
    """The ordinal of a number that counts from 0, with a space; the first has none.

    Example:
        >>> nth(0), nth(1), nth(3), nth(10), nth(20)
        ('', '2nd ', '4th ', '11th ', '21st ')
    """
    if number == 0:
        return ""
    last = (number + 1) % 10 if (number + 1) // 10 % 10 != 1 else 0
    return f"{number + 1}{('th', 'st', 'nd', 'rd')[last] if last < 4 else 'th'} "
