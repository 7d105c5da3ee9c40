"""A temperature from one reading, and its figures out of sample, against several readings."""

import pytest
import torch

from seguq.calibration import TemperatureScaling, cross_fit
from seguq.calibration import streamed as module
from seguq.calibration.streamed import StreamedTemperature
from seguq.core.errors import SeguqError
from seguq.metrics import CalibrationError, NegativeLogLikelihood


def batches(images=6, size=64, classes=3, scale=4.0, sharpness=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, size, size, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = torch.distributions.Categorical(logits=(logits * sharpness).movedim(1, -1)).sample()
    target[:, :3] = 255
    return [(logits[i : i + 2], target[i : i + 2]) for i in range(0, images, 2)]


def streamed(data, task="multiclass"):
    stream, seen = StreamedTemperature(TemperatureScaling(task)), 0
    for logits, target in data:
        stream.add(logits, target, range(seen, seen + len(logits)))
        seen += len(logits)
    return stream


@pytest.mark.parametrize(("classes", "scale", "sharpness"), [(2, 3, 0.5), (19, 4, 0.3), (5, 1, 2.0), (3, 6, 0.9)])
def test_it_finds_the_temperature_of_several_readings(classes, scale, sharpness):
    data = batches(classes=classes, scale=scale, sharpness=sharpness)
    fit = streamed(data).fit()
    exact = TemperatureScaling().fit(data)
    assert fit.calibrator.temperature == pytest.approx(exact.temperature, abs=1e-3)
    assert (fit.calibrator.nll_before, fit.calibrator.nll_after) == pytest.approx(
        (exact.nll_before, exact.nll_after), abs=1e-5
    )
    assert fit.images == 6


def test_its_figures_after_are_those_of_the_cross_fit_and_before_those_of_the_softmax():
    data = batches(size=128)
    fit = streamed(data).fit()
    metrics = [kind(3) for kind in (CalibrationError, NegativeLogLikelihood) for _ in range(2)]
    for part in cross_fit(TemperatureScaling, data):
        for metric, logits in zip(metrics, (part.logits, part.calibrated) * 2, strict=True):
            metric.update(logits.softmax(1), part.target)
    ece_before, ece_after, nll_before, nll_after = (float(metric.compute()) for metric in metrics)
    assert (fit.ece_before, fit.nll_before, fit.nll_after) == pytest.approx(
        (ece_before, nll_before, nll_after), abs=1e-5
    )
    assert fit.ece_after == pytest.approx(ece_after, abs=1e-3)


def test_an_image_is_judged_by_the_temperature_of_the_other_fold():
    sharp, blunt = (batches(images=2, sharpness=sharpness, seed=1)[0] for sharpness in (0.1, 1.0))
    stream = StreamedTemperature(TemperatureScaling())
    stream.add(*sharp, [0, 2])
    stream.add(*blunt, [1, 3])
    other = [TemperatureScaling().fit([pair]) for pair in (blunt, sharp)]
    metric = NegativeLogLikelihood(3)
    for (logits, target), calibrator in zip((sharp, blunt), other, strict=True):
        metric.update(calibrator(logits).softmax(1), target)
    assert stream.fit().nll_after == pytest.approx(float(metric.compute()), abs=1e-4)


def test_the_order_and_the_size_of_batches_do_not_matter(monkeypatch):
    data = batches()
    logits, target = (torch.cat(items) for items in zip(*data, strict=True))
    order = [5, 0, 3, 1, 4, 2]
    stream = StreamedTemperature(TemperatureScaling())
    monkeypatch.setattr(module, "_LARGE", 1)  # image by image
    stream.add(logits[order], target[order], order)
    assert torch.allclose(stream.sums, streamed(data).sums, rtol=1e-5, atol=1e-2)


def test_one_image_has_a_temperature_and_no_figures_out_of_sample():
    logits, target = batches()[0]
    fit = streamed([(logits[:1], target[:1])]).fit()
    assert fit.calibrator.temperature > 1.5
    assert (fit.images, fit.ece_after, fit.nll_after) == (1, None, None)


def test_without_a_labeled_pixel_there_is_no_fit():
    logits, target = batches()[0]
    assert streamed([(logits, torch.full_like(target, 255))]).fit() is None


def test_a_temperature_that_makes_nothing_better_stays_one():
    logits = torch.zeros(2, 2, 4, 4)
    assert streamed([(logits, torch.zeros(2, 4, 4, dtype=torch.long))]).fit().calibrator.temperature == 1


def test_the_bound_is_said_once_and_of_the_whole():
    logits, target = torch.randn(4, 2, 8, 8) * 5, torch.randint(2, (4, 8, 8))
    target = target.where(torch.rand(4, 8, 8) < 0.2, 1 - logits.argmax(1))
    with pytest.warns(UserWarning, match="lies at its bound, T = 20") as caught:
        streamed([(logits, target)]).fit()
    assert len(caught) == 1


def test_logits_that_are_not_finite_are_an_error():
    logits, target = batches()[0]
    logits[0, 0, 5, 5] = float("nan")
    with pytest.raises(SeguqError, match="NaN or infinite"):
        streamed([(logits, target)])
