"""Estimators: a model and images in, `UncertaintyMaps` out."""

from seguq.inference.deterministic import Deterministic
from seguq.inference.dropout import inject_dropout
from seguq.inference.ensemble import DeepEnsemble
from seguq.inference.estimator import Estimator
from seguq.inference.maps import UncertaintyMaps
from seguq.inference.max_logits import MaxLogitStatistics
from seguq.inference.mc_dropout import MCDropout
from seguq.inference.swag import SWAG
from seguq.inference.tiles.sliding_window import SlidingWindow
from seguq.inference.tta import TestTimeAugmentation

__all__ = [
    "SWAG",
    "DeepEnsemble",
    "Deterministic",
    "Estimator",
    "MCDropout",
    "MaxLogitStatistics",
    "SlidingWindow",
    "TestTimeAugmentation",
    "UncertaintyMaps",
    "inject_dropout",
]
