"""Every metric draws itself, as torchmetrics' metrics do."""

import matplotlib
import pytest
import torch
from torchmetrics import MetricCollection

from seguq.metrics import (
    BrierScore,
    CalibrationError,
    ErrorDetection,
    ErrorRanking,
    MeanIoU,
    NegativeLogLikelihood,
    RiskCoverage,
)
from tests.metrics.builders import ids, probs_and_target, uncertainty_and_error

matplotlib.use("Agg")

OF_PROBS = (CalibrationError, BrierScore, NegativeLogLikelihood)
OF_SCORES = (ErrorDetection, ErrorRanking, RiskCoverage)
ALL = (*OF_PROBS, *OF_SCORES, MeanIoU)


def filled(kind, grouped=True):
    group = {"group": ids(12)} if grouped else {}
    if kind in OF_SCORES:
        metric = kind(n_boot=20)
        metric.update(*uncertainty_and_error(images=12), **group)
        return metric
    probs, target = probs_and_target(images=12, classes=3)
    metric = kind(3, n_boot=20)
    metric.update(probs.argmax(1) if kind is MeanIoU else probs, target, **group)
    return metric


@pytest.mark.parametrize("kind", ALL)
def test_a_metric_draws_its_value_and_its_interval(kind):
    figure, axes = filled(kind).plot()
    assert axes in figure.axes
    without = filled(kind, grouped=False).plot()[1]
    drawn = [len(each.lines) + len(each.collections) for each in (axes, without)]
    assert drawn[0] > drawn[1] > 0  # the interval is what is more


@pytest.mark.parametrize("kind", [BrierScore, NegativeLogLikelihood, MeanIoU])
def test_the_dot_is_the_value_and_the_bar_the_interval(kind):
    metric = filled(kind)
    bar, dot = metric.plot()[1].lines
    assert bar.get_ydata() == pytest.approx([float(end) for end in metric.compute_interval()])
    assert dot.get_ydata() == pytest.approx([float(metric.compute())])


def test_a_collection_draws_each_of_its_metrics():
    probs, target = probs_and_target(images=12, classes=3)
    collection = MetricCollection([kind(3, n_boot=10) for kind in OF_PROBS])
    collection.update(probs, target)
    drawn = collection.plot()
    assert len(drawn) == 3
    assert all(axes.lines for _, axes in drawn)


@pytest.mark.parametrize("kind", ALL)
def test_drawing_opens_no_window_manager_figure(kind):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    filled(kind).plot()
    assert pyplot.get_fignums() == before


def test_a_metric_of_many_classes_is_small():
    states = MeanIoU(1000).metric_state.values()
    assert sum(state.numel() * state.element_size() for state in states if isinstance(state, torch.Tensor)) < 10e6
