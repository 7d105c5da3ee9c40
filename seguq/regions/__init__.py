"""Partitions of an image into regions, and the table of their scores."""

from seguq.regions.partition import Grid, Partition, WholeImage
from seguq.regions.score import score
from seguq.regions.table import RegionTable

__all__ = ["Grid", "Partition", "RegionTable", "WholeImage", "score"]
