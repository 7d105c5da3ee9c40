"""torchmetrics that stream, synchronize, and give intervals bootstrapped over images."""

from seguq.metrics.calibration import BrierScore, CalibrationError, NegativeLogLikelihood
from seguq.metrics.error_detection import ErrorDetection
from seguq.metrics.overlap import MeanIoU

__all__ = ["BrierScore", "CalibrationError", "ErrorDetection", "MeanIoU", "NegativeLogLikelihood"]
