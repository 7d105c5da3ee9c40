"""What a user adds to a Trainer."""

from seguq.callbacks.calibrate import Calibrate
from seguq.callbacks.heatmaps import HeatmapWriter
from seguq.callbacks.metrics import UncertaintyMetrics
from seguq.callbacks.region_scorer import RegionScorer

__all__ = ["Calibrate", "HeatmapWriter", "RegionScorer", "UncertaintyMetrics"]
