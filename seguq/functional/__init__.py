"""Pure tensor maths: torch in, torch out. Importing it loads torch and nothing heavier."""

from seguq.functional.calibration import expected_calibration_error, temperature_nll, top1_calibration_bins
from seguq.functional.calibration_interval import (
    calibration_error_difference_interval,
    calibration_error_interval,
    debiased_calibration_error,
)
from seguq.functional.logits import class_logits, class_target
from seguq.functional.ranking import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    area_under_roc,
    area_under_sparsification_error,
    average_precision,
    fpr_at_tpr,
    order_bins,
    selective_risk,
)
from seguq.functional.regions import region_boxes, region_majority, region_scores
from seguq.functional.uncertainty import (
    energy,
    expected_entropy,
    least_confidence,
    max_logit,
    mutual_information,
    predictive_entropy,
    smallest_margin,
    standardized_max_logit,
    total_entropy,
    variance,
    variation_ratio,
)

__all__ = [
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "area_under_roc",
    "area_under_sparsification_error",
    "average_precision",
    "calibration_error_difference_interval",
    "calibration_error_interval",
    "class_logits",
    "class_target",
    "debiased_calibration_error",
    "energy",
    "expected_calibration_error",
    "expected_entropy",
    "fpr_at_tpr",
    "least_confidence",
    "max_logit",
    "mutual_information",
    "order_bins",
    "predictive_entropy",
    "region_boxes",
    "region_majority",
    "region_scores",
    "selective_risk",
    "smallest_margin",
    "standardized_max_logit",
    "temperature_nll",
    "top1_calibration_bins",
    "total_entropy",
    "variance",
    "variation_ratio",
]
