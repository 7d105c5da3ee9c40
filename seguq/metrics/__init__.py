"""torchmetrics that stream, synchronize, and give intervals bootstrapped over images."""

from seguq.metrics.calibration import BrierScore, CalibrationError, NegativeLogLikelihood
from seguq.metrics.error_detection import ErrorDetection
from seguq.metrics.error_ranking import ErrorRanking
from seguq.metrics.failure_detection import FailureDetection
from seguq.metrics.human_agreement import HumanAgreement
from seguq.metrics.ood_detection import OODDetection
from seguq.metrics.overlap import MeanIoU
from seguq.metrics.pavpu import PAvPU
from seguq.metrics.risk_coverage import RiskCoverage
from seguq.metrics.working_point import WorkingPoint

__all__ = [
    "BrierScore",
    "CalibrationError",
    "ErrorDetection",
    "ErrorRanking",
    "FailureDetection",
    "HumanAgreement",
    "MeanIoU",
    "NegativeLogLikelihood",
    "OODDetection",
    "PAvPU",
    "RiskCoverage",
    "WorkingPoint",
]
