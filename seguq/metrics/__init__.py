"""torchmetrics that stream, synchronize, and give intervals bootstrapped over images."""

from seguq.metrics.balanced_risk_coverage import BalancedRiskCoverage
from seguq.metrics.calibration_error import CalibrationError
from seguq.metrics.error_detection import ErrorDetection
from seguq.metrics.error_ranking import ErrorRanking
from seguq.metrics.failure_detection import FailureDetection
from seguq.metrics.human_agreement import HumanAgreement
from seguq.metrics.local_calibration_error import LocalCalibrationError
from seguq.metrics.ood_detection import OODDetection
from seguq.metrics.overlap import MeanIoU
from seguq.metrics.pavpu import PAvPU
from seguq.metrics.proper_scores import BrierDecomposition, BrierScore, NegativeLogLikelihood
from seguq.metrics.risk_coverage import RiskCoverage
from seguq.metrics.working_point import WorkingPoint

__all__ = [
    "BalancedRiskCoverage",
    "BrierDecomposition",
    "BrierScore",
    "CalibrationError",
    "ErrorDetection",
    "ErrorRanking",
    "FailureDetection",
    "HumanAgreement",
    "LocalCalibrationError",
    "MeanIoU",
    "NegativeLogLikelihood",
    "OODDetection",
    "PAvPU",
    "RiskCoverage",
    "WorkingPoint",
]
