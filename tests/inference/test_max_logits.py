"""Standardized max logits against numpy over all pixels at once."""

import numpy as np
import pytest
import torch
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError
from seguq.inference import Deterministic, MaxLogitStatistics, TestTimeAugmentation
from tests.inference.models import SmallNet, fixed, images


def batches(count=4):
    return [(images(3, 12 + i), torch.zeros(3, 12 + i, 12 + i, dtype=torch.long)) for i in range(count)]


@torch.no_grad()
def pixels(model, data):
    """Largest logits and predicted classes of all pixels."""
    logits = [model(image).movedim(1, -1).reshape(-1, 3) for image, _ in data]
    largest, winner = torch.cat(logits).double().max(1)
    return largest.numpy(), winner.numpy()


@pytest.fixture
def model():
    return fixed(SmallNet)


def test_the_statistics_are_those_of_all_pixels_at_once(model):
    statistics = Deterministic(model, calibrator=None).fit_max_logits(batches())
    largest, winner = pixels(model, batches())
    predicted = sorted(set(winner.tolist()))
    assert len(predicted) >= 2 and statistics.count.sum() == len(winner)
    for c in predicted:
        own = largest[winner == c]
        assert len(own) == int(statistics.count[c])
        assert float(statistics.mean[c]) == pytest.approx(own.mean(), rel=1e-6)
        assert float(statistics.std[c]) == pytest.approx(own.std(), rel=1e-5)


def test_the_map_is_by_the_class_of_each_pixel(model):
    est = Deterministic(model, calibrator=None)
    est.fit_max_logits(batches())
    largest, winner = pixels(model, batches())
    mean, std = np.zeros(3), np.ones(3)
    for c in set(winner.tolist()):
        mean[c], std[c] = largest[winner == c].mean(), largest[winner == c].std()
    maps = est(images(2))
    with torch.no_grad():
        top, index = model(images(2)).max(1)
    assert set(index.flatten().tolist()) <= set(winner.tolist())
    expected = -(top.numpy() - mean[index]) / std[index]
    np.testing.assert_allclose(maps["standardized_max_logit"].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert maps.names[-1] == "standardized_max_logit"


def test_over_the_data_of_the_statistics_it_is_standardized(model):
    est = Deterministic(model, calibrator=None)
    est.fit_max_logits(batches())
    found = torch.cat([est(image)["standardized_max_logit"].flatten() for image, _ in batches()])
    assert float(found.mean()) == pytest.approx(0, abs=1e-4) and float(found.std()) == pytest.approx(1, abs=1e-2)


def test_a_class_that_was_never_predicted_has_the_statistics_of_all():
    statistics = MaxLogitStatistics(3)
    logits = torch.tensor([[4.0, 0.0, -9.0], [6.0, 0.0, -9.0], [1.0, 2.0, -9.0]])
    statistics.update(logits)
    assert statistics.mean.tolist() == [5, 2, 4] and statistics.count.tolist() == [2, 1, 0]
    whole = np.std([4, 6, 2])
    assert statistics.std.tolist() == pytest.approx([1, whole, whole])


def test_statistics_travel_as_a_state_dict(model):
    fitted = Deterministic(model, calibrator=None).fit_max_logits(batches())
    other = MaxLogitStatistics(3)
    other.load_state_dict(fitted.state_dict())
    one = Deterministic(model, max_logits=fitted, calibrator=None)(images())
    two = Deterministic(model, max_logits=other, calibrator=None)(images())
    assert torch.equal(one["standardized_max_logit"], two["standardized_max_logit"])


def test_measures_that_were_named_stay_so(model):
    est = Deterministic(model, measures=["energy"], calibrator=None)
    est.fit_max_logits(batches())
    assert est(images()).names == ("energy",)
    with pytest.raises(SeguqError, match="once fit_max_logits"):
        Deterministic(model, measures=["standardized_max_logit"])


def test_views_average_it(model):
    inner = Deterministic(model, calibrator=None)
    inner.fit_max_logits(batches())
    maps = TestTimeAugmentation(inner, "flips", calibrator=None)(images())
    expected = torch.stack([
        inner(images().flip(axes) if axes else images())["standardized_max_logit"].flip(axes)
        for axes in ((), (-1,), (-2,), (-1, -2))
    ])  # fmt: skip
    torch.testing.assert_close(maps["standardized_max_logit"], expected.mean(0), rtol=0, atol=1e-5)


def test_the_function_is_that_of_a_loop():
    logits, mean, std = torch.randn(2, 4, 3, 5), torch.randn(4), torch.rand(4) + 0.1
    expected = torch.empty(2, 3, 5)
    for b, y, x in np.ndindex(2, 3, 5):
        c = int(logits[b, :, y, x].argmax())
        expected[b, y, x] = -(logits[b, c, y, x] - mean[c]) / std[c]
    torch.testing.assert_close(F.standardized_max_logit(logits, mean, std), expected)
    half = F.standardized_max_logit(logits.bfloat16(), mean, std)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: F.standardized_max_logit(torch.zeros(1, 3), torch.zeros(2), torch.ones(2)), "logits have 3 classes"),
        (lambda: F.standardized_max_logit(torch.zeros(1, 2), torch.zeros(2), torch.zeros(2)), "above 0"),
        (lambda: MaxLogitStatistics(1), "num_classes"),
        (lambda: MaxLogitStatistics(3).update(torch.zeros(1, 2)), "logits have 2 classes, but the statistics are of 3"),
        (lambda: MaxLogitStatistics(2).update(torch.full((1, 2), torch.nan)), "NaN"),
        (lambda: MaxLogitStatistics(2).mean, "there are no statistics yet"),
        (lambda: Deterministic(nn.Conv2d(3, 2, 1)).fit_max_logits([]), "there is no batch to learn from"),
        (
            lambda: Deterministic(nn.Conv2d(3, 2, 1), task="multilabel").fit_max_logits(batches()),
            "not of task='multilabel'",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(call, told):
    with pytest.raises(SeguqError, match=told):
        call()


def test_it_works_under_inference_mode(model):
    est = seguq.Deterministic(model, calibrator=None)
    with torch.inference_mode():
        est.fit_max_logits(batches())
    assert torch.isfinite(est(images())["standardized_max_logit"]).all()
