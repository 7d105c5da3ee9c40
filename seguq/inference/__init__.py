"""Estimators: a model and images in, `UncertaintyMaps` out."""

from seguq.core.named import hand_on
from seguq.inference.dropout import inject_dropout
from seguq.inference.estimator import Estimator
from seguq.inference.maps import UncertaintyMaps
from seguq.inference.max_logits import MaxLogitStatistics
from seguq.inference.measures import Measure

__all__ = ["Estimator", "MaxLogitStatistics", "Measure", "UncertaintyMaps", "inject_dropout"]

__getattr__ = hand_on(Estimator)
