"""Pure tensor maths: torch in, torch out. Importing it loads torch and nothing heavier."""

from seguq.functional.agreement import (
    annotator_disagreement,
    generalized_energy_distance,
    normalized_cross_correlation,
)
from seguq.functional.borders import near_border
from seguq.functional.calibration import expected_calibration_error, temperature_nll, top1_calibration_bins
from seguq.functional.calibration_interval import (
    calibration_error_difference_interval,
    calibration_error_interval,
    debiased_calibration_error,
)
from seguq.functional.calibration_kinds import (
    brier_parts,
    calibration_error,
    classwise_calibration_bins,
    equal_mass,
)
from seguq.functional.conformal import bin_edge, class_sets, conformal_level, probability_bins, units_needed
from seguq.functional.correlation import rank_correlation
from seguq.functional.dice import multilabel_pairwise_dice, pairwise_dice
from seguq.functional.dilation import dilate, dilations_to_reach
from seguq.functional.impurity import region_impurity, ripu
from seguq.functional.logits import class_logits, class_target
from seguq.functional.patches import patch_errors, patches_right, patches_right_area, patches_right_best
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
from seguq.functional.shares import (
    area_under_risk_coverage_of_shares,
    area_under_sparsification_error_of_shares,
    class_balanced,
)
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
from seguq.functional.working_points import risk_coverage_points, working_bin

__all__ = [
    "annotator_disagreement",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "area_under_risk_coverage_of_shares",
    "area_under_roc",
    "area_under_sparsification_error",
    "area_under_sparsification_error_of_shares",
    "average_precision",
    "bin_edge",
    "brier_parts",
    "calibration_error",
    "calibration_error_difference_interval",
    "calibration_error_interval",
    "class_balanced",
    "class_logits",
    "class_sets",
    "class_target",
    "classwise_calibration_bins",
    "conformal_level",
    "debiased_calibration_error",
    "dilate",
    "dilations_to_reach",
    "energy",
    "equal_mass",
    "expected_calibration_error",
    "expected_entropy",
    "fpr_at_tpr",
    "generalized_energy_distance",
    "least_confidence",
    "max_logit",
    "multilabel_pairwise_dice",
    "mutual_information",
    "near_border",
    "normalized_cross_correlation",
    "order_bins",
    "pairwise_dice",
    "patch_errors",
    "patches_right",
    "patches_right_area",
    "patches_right_best",
    "predictive_entropy",
    "probability_bins",
    "rank_correlation",
    "region_boxes",
    "region_impurity",
    "region_majority",
    "region_scores",
    "ripu",
    "risk_coverage_points",
    "selective_risk",
    "smallest_margin",
    "standardized_max_logit",
    "temperature_nll",
    "top1_calibration_bins",
    "total_entropy",
    "units_needed",
    "variance",
    "variation_ratio",
    "working_bin",
]
