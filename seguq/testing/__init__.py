"""What all of a kind promise, as checks for those that somebody adds, as scikit-learn has for its estimators."""

from seguq.testing.annotators import check_annotator
from seguq.testing.calibrators import check_calibrator
from seguq.testing.estimators import check_estimator
from seguq.testing.metrics import check_metric

__all__ = ["check_annotator", "check_calibrator", "check_estimator", "check_metric"]
