"""What a user adds to a Trainer."""

from seguq.callbacks.calibrate import Calibrate
from seguq.callbacks.heatmaps import HeatmapWriter
from seguq.callbacks.metrics import UncertaintyMetrics
from seguq.callbacks.region_scorer import RegionScorer
from seguq.callbacks.snapshots import Snapshots
from seguq.callbacks.swag import SWAG

__all__ = ["SWAG", "Calibrate", "HeatmapWriter", "RegionScorer", "Snapshots", "UncertaintyMetrics"]
