"""From logits to calibrated logits: calibrators, how they are fitted, and how they travel in a checkpoint."""

from seguq.calibration.base import Calibrator
from seguq.calibration.checkpoint import load
from seguq.calibration.conformal import Conformal
from seguq.calibration.crossfit import cross_fit
from seguq.core.named import hand_on

__all__ = ["Calibrator", "Conformal", "cross_fit", "load"]

__getattr__ = hand_on(Calibrator, Conformal)
