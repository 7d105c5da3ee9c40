"""Partitions of an image into regions, and the table of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seguq.core.named import hand_on
from seguq.regions.cache import cached
from seguq.regions.meta_score import MetaScore
from seguq.regions.partition import Partition, without
from seguq.regions.score import score
from seguq.regions.table import RegionTable
from seguq.regions.worst import worst_regions

if TYPE_CHECKING:
    from seguq.regions.boxes import Boxes as Boxes
    from seguq.regions.components import Components as Components
    from seguq.regions.grid import Grid as Grid
    from seguq.regions.pixels import Pixels as Pixels
    from seguq.regions.superpixels import Superpixels as Superpixels
    from seguq.regions.whole_image import WholeImage as WholeImage

__all__ = ["MetaScore", "Partition", "RegionTable", "cached", "score", "without", "worst_regions"]
__getattr__ = hand_on(Partition)
