"""Partitions of an image into regions, and the table of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguq.core.named import hand_on
from seguq.regions.partition import Partition
from seguq.regions.score import score
from seguq.regions.table import RegionTable

if TYPE_CHECKING:
    from seguq.regions.grid import Grid as Grid
    from seguq.regions.whole_image import WholeImage as WholeImage

__all__ = ["Partition", "RegionTable", "score"]
__getattr__ = hand_on(Partition)
