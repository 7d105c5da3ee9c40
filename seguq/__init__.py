"""seguq: what a segmentation model does not know, pixel by pixel and region by region, and what to label next.

Names are handed on when they are first asked for (PEP 562), so ``import seguq`` itself loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seguq import acquisition as acquisition
    from seguq import active as active
    from seguq import annotators as annotators
    from seguq import calibration as calibration
    from seguq import callbacks as callbacks
    from seguq import data as data
    from seguq import export as export
    from seguq import functional as functional
    from seguq import inference as inference
    from seguq import metrics as metrics
    from seguq import regions as regions
    from seguq import store as store
    from seguq import weights as weights
    from seguq.active.loop import ActiveLearningLoop as ActiveLearningLoop
    from seguq.calibration import load as load
    from seguq.calibration.conformal_margin import ConformalMargin as ConformalMargin
    from seguq.calibration.conformal_risk_control import ConformalRiskControl as ConformalRiskControl
    from seguq.calibration.dirichlet import DirichletCalibration as DirichletCalibration
    from seguq.calibration.entropy import EntropyTemperatureScaling as EntropyTemperatureScaling
    from seguq.calibration.histogram import HistogramBinning as HistogramBinning
    from seguq.calibration.image import ImageTemperatureScaling as ImageTemperatureScaling
    from seguq.calibration.isotonic import IsotonicCalibration as IsotonicCalibration
    from seguq.calibration.local_network import LocalTemperatureScaling as LocalTemperatureScaling
    from seguq.calibration.order_preserving import OrderPreservingScaling as OrderPreservingScaling
    from seguq.calibration.prediction_sets import PredictionSets as PredictionSets
    from seguq.calibration.selective import SelectiveScaling as SelectiveScaling
    from seguq.calibration.structured import StructuredScaling as StructuredScaling
    from seguq.calibration.temperature import TemperatureScaling as TemperatureScaling
    from seguq.data import LabeledData as LabeledData
    from seguq.data import SegmentationData as SegmentationData
    from seguq.inference import Measure as Measure
    from seguq.inference import UncertaintyMaps as UncertaintyMaps
    from seguq.inference import inject_dropout as inject_dropout
    from seguq.inference.deterministic import Deterministic as Deterministic
    from seguq.inference.ensemble import DeepEnsemble as DeepEnsemble
    from seguq.inference.mc_dropout import MCDropout as MCDropout
    from seguq.inference.swag import SWAG as SWAG
    from seguq.inference.tiles import SlidingWindow as SlidingWindow
    from seguq.inference.tta import TestTimeAugmentation as TestTimeAugmentation
    from seguq.task import SegmentationTask as SegmentationTask

__version__ = "0.1.0"

_MODULES = (
    "acquisition",
    "active",
    "annotators",
    "calibration",
    "callbacks",
    "data",
    "export",
    "functional",
    "inference",
    "metrics",
    "regions",
    "store",
    "weights",
)
_NAMES = {
    "ActiveLearningLoop": "seguq.active",
    "ConformalMargin": "seguq.calibration",
    "ConformalRiskControl": "seguq.calibration",
    "DirichletCalibration": "seguq.calibration",
    "EntropyTemperatureScaling": "seguq.calibration",
    "HistogramBinning": "seguq.calibration",
    "ImageTemperatureScaling": "seguq.calibration",
    "IsotonicCalibration": "seguq.calibration",
    "LocalTemperatureScaling": "seguq.calibration",
    "OrderPreservingScaling": "seguq.calibration",
    "PredictionSets": "seguq.calibration",
    "SelectiveScaling": "seguq.calibration",
    "StructuredScaling": "seguq.calibration",
    "TemperatureScaling": "seguq.calibration",
    "load": "seguq.calibration",
    "LabeledData": "seguq.data",
    "SegmentationData": "seguq.data",
    "SWAG": "seguq.inference",
    "DeepEnsemble": "seguq.inference",
    "Deterministic": "seguq.inference",
    "MCDropout": "seguq.inference",
    "SlidingWindow": "seguq.inference",
    "TestTimeAugmentation": "seguq.inference",
    "Measure": "seguq.inference",
    "UncertaintyMaps": "seguq.inference",
    "inject_dropout": "seguq.inference",
    "SegmentationTask": "seguq.task",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"seguq.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'seguq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
