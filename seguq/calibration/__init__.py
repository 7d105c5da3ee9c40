"""From logits to calibrated logits: calibrators, how they are fitted, and how they travel in a checkpoint."""

from seguq.calibration.base import Calibrator
from seguq.calibration.checkpoint import load
from seguq.calibration.crossfit import cross_fit
from seguq.calibration.temperature import TemperatureScaling

__all__ = ["Calibrator", "TemperatureScaling", "cross_fit", "load"]
