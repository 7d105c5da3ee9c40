"""Targets of 0 and 255, where 255 means the foreground and is ignored: everyone who reads targets says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from seguq import metrics
from seguq.calibration import TemperatureScaling

LOGITS = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [slice(0, 2), slice(2, 4), slice(4, 6)]


def measured(kind: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
    def run(target: torch.Tensor) -> None:
        metric = kind(2, n_boot=2)
        for batch in BATCHES:
            scores = LOGITS[batch].argmax(1) if kind is metrics.MeanIoU else LOGITS[batch].softmax(1)
            metric.update(scores, target[batch])
        metric.compute()

    return run


def ranked(target: torch.Tensor) -> None:
    metric = metrics.BalancedRiskCoverage(2, n_boot=2)
    for batch in BATCHES:
        metric.update(LOGITS[batch, 0], LOGITS[batch].argmax(1), target[batch])
    metric.compute()


def fitted(target: torch.Tensor) -> None:
    TemperatureScaling().fit([(LOGITS[batch], target[batch]) for batch in BATCHES])


def streamed(target: torch.Tensor) -> None:
    stream = TemperatureScaling().stream()
    for batch in BATCHES:
        stream.add(LOGITS[batch], target[batch], ["a", "b"], range(6)[batch])
    stream.fit()


KINDS = [metrics.CalibrationError, metrics.NegativeLogLikelihood, metrics.BrierScore, metrics.MeanIoU]
READERS = {
    **{kind.__name__: measured(kind) for kind in KINDS},
    "BalancedRiskCoverage": ranked,
    "fit": fitted,
    "stream": streamed,
}


@pytest.mark.parametrize("foreground", [255, 1])
@pytest.mark.parametrize("reader", READERS)
def test_it_is_said_also_where_the_first_batch_has_none_and_never_of_others(reader: str, foreground: int) -> None:
    target = torch.zeros(6, 8, 8, dtype=torch.int64)
    target[0, 0] = 255 if foreground == 1 else 0
    target[4:, 2:6] = foreground
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        READERS[reader](target)
    assert any("0 and 255" in str(one.message) for one in told) is (foreground == 255)
