"""The likelihood of a class that every sample rules out: the logarithm of a mean that is 0 in a float."""

import math

import pytest
import torch
from torch import nn

from seguq import DeepEnsemble, SlidingWindow, TestTimeAugmentation
from seguq.inference.log_sums import LOWEST, add_small, log_of, sum_of
from seguq.inference.running import RunningMeasures
from seguq.metrics import NegativeLogLikelihood

SAMPLES, CLASSES, SIZE = 3, 4, (8, 8)


class Sharp(nn.Module):
    """Logits some hundreds apart, other ones at each pixel of an image."""

    def __init__(self, seed, scale):
        super().__init__()
        self.convolution = nn.Conv2d(3, CLASSES, 1)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=scale, generator=generator)

    def forward(self, images):
        return self.convolution(images)


def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def models(scale):
    return [Sharp(seed, scale).eval() for seed in range(SAMPLES)]


def log_mean(logits):
    """Of samples' logits, ``(S, B, C, *spatial)``, in float64."""
    return torch.logsumexp(logits.double().log_softmax(2), 0) - math.log(len(logits))


SCALES = [1.0, 20.0, 60.0, 300.0]  # of which the first has no class that is far behind, and the last no other


@pytest.mark.parametrize("scale", SCALES)
def test_pooled_logits_of_members_are_the_logarithm_of_their_mean(scale):
    members = models(scale)
    expected = log_mean(torch.stack([member(images()) for member in members]))
    found = DeepEnsemble(members).pooled_logits(images())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_pooled_logits_of_views_are_the_logarithm_of_their_mean(scale):
    (model, *_) = models(scale)
    expected = model(images())  # of every view the same
    found = TestTimeAugmentation(model, "flips").pooled_logits(images())
    torch.testing.assert_close(found.double(), expected.double().log_softmax(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("scale", SCALES)
def test_pooled_logits_of_windows_are_the_logarithm_of_their_blend(scale, blend):
    members = models(scale)
    expected = log_mean(torch.stack([member(images()) for member in members]))
    found = SlidingWindow(DeepEnsemble(members), window=4, overlap=0.5, blend=blend, batch=3).pooled_logits(images())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_a_likelihood_does_not_end_where_float32_does():
    wrong = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1)
    running, metric = RunningMeasures(()), NegativeLogLikelihood(2, from_logits=True)
    for scale in (1, 2):
        running.add(scale * wrong)
    metric.update(running.pooled_logits, torch.ones(1, 1, 1, dtype=torch.long))
    assert float(metric.compute()) == pytest.approx(200 + math.log(2))  # the second sample has nothing to add


def test_a_class_that_is_ruled_out_has_a_finite_logit():
    running = RunningMeasures(())
    for _ in range(2):
        running.add(torch.tensor([[0.0, -math.inf]]).view(1, 2, 1))
    assert running.pooled_logits.isfinite().all()
    assert running.mean.tolist() == [[[1.0], [0.0]]]


def test_a_sum_is_a_logarithm_only_while_it_is_small():
    sums = torch.zeros(1, dtype=torch.float64)
    for log in (-100.0, -80.0, -60.5, -59.0, -2.0):
        before, new = log_of(sums), torch.tensor([log], dtype=torch.float64)
        add_small(sums, sum_of(sums) + new.exp(), 1, new)
        expected = torch.logaddexp(before, new)
        assert float(log_of(sums)) == pytest.approx(float(expected), abs=1e-12)
        assert (float(sums) < 0) == (float(expected) < LOWEST)
