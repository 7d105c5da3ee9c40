"""torchmetrics that stream, synchronize, and give intervals bootstrapped over images."""

from seguq.metrics.calibration import BrierScore, CalibrationError, NegativeLogLikelihood
from seguq.metrics.error_detection import ErrorDetection
from seguq.metrics.error_ranking import ErrorRanking
from seguq.metrics.overlap import MeanIoU
from seguq.metrics.risk_coverage import RiskCoverage

__all__ = [
    "BrierScore",
    "CalibrationError",
    "ErrorDetection",
    "ErrorRanking",
    "MeanIoU",
    "NegativeLogLikelihood",
    "RiskCoverage",
]
