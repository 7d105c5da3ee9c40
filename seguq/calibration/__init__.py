"""From logits to calibrated logits: calibrators, how they are fitted, and how they travel in a checkpoint."""

from seguq.calibration.base import Calibrator
from seguq.calibration.conformal import Conformal
from seguq.calibration.conformal_checkpoint import save_conformal
from seguq.calibration.crossfit import cross_fit
from seguq.calibration.loading import load
from seguq.core.named import hand_on

__all__ = ["Calibrator", "Conformal", "cross_fit", "load", "save_conformal"]

__getattr__ = hand_on(Calibrator, Conformal)
