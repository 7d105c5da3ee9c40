"""auto: of several calibrators the one that is best on groups that it was not fitted on."""

import math

import pytest
import torch

from seguq.calibration.auto import AutoStream
from seguq.calibration.by_name import fit_calibrator
from seguq.core.errors import SeguqError
from seguq.functional import predictive_entropy


def drawn(temperature, images=12, bias=0.0, classes=3, seed=0, size=32):
    """Logits, and labels drawn at a temperature and with a bias for each class."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(images, classes, size, size, generator=generator)
    true = temperature(logits) if callable(temperature) else temperature
    chance = (logits / true + torch.as_tensor(bias).view(1, -1, 1, 1)).softmax(1).cumsum(1)
    target = (chance < torch.rand(images, 1, size, size, generator=generator)).sum(1).clamp_max(classes - 1)
    return list(zip(logits.split(2), target.split(2), strict=True))


def by_entropy(logits):
    return torch.exp(0.2 + 0.9 * predictive_entropy(logits.softmax(1)) / math.log(3)).unsqueeze(1)


@pytest.mark.parametrize(
    ("truth", "bias", "name"),
    [(1.7, 0.0, "global"), (by_entropy, 0.0, "entropy"), (1.5, (2.0, -1.0, 0.0), "structured")],
    ids=["one temperature", "by entropy", "by class"],
)
def test_what_labels_were_drawn_with_is_chosen(truth, bias, name):
    found = fit_calibrator("auto", drawn(truth, bias=bias))
    assert found.name == name
    assert [item.name for item in found.compared if item.chosen] == [name]
    assert len(found.compared) == 5
    assert [item.parameters for item in found.compared] == sorted(item.parameters for item in found.compared)
    assert found.summary().nll_after < found.summary().nll_before
    for item in found.compared:
        assert item.interval[0] <= item.change <= item.interval[1]


def test_of_those_that_are_as_good_as_the_best_the_smallest_is_taken():
    found = fit_calibrator("auto", drawn(1.7, seed=1))
    best = min(found.compared, key=lambda item: item.change)
    (chosen,) = [item for item in found.compared if item.chosen]
    assert chosen.parameters <= best.parameters
    assert chosen.name == "global"


@pytest.mark.parametrize(("groups", "compared"), [(4, 2), (6, 5)])
def test_with_few_groups_only_those_with_few_numbers_are_compared(groups, compared):
    found = fit_calibrator("auto", drawn(by_entropy), group=lambda image_id: int(image_id) % groups)
    assert len(found.compared) == compared


def test_with_one_group_it_says_that_nothing_is_out_of_sample():
    with pytest.warns(UserWarning, match="of one group nothing is known out of sample"):
        found = fit_calibrator("auto", drawn(by_entropy), group=lambda image_id: 0)
    assert [item.name for item in found.compared] == ["global", "entropy"]
    assert all(math.isnan(end) for item in found.compared for end in item.interval)
    assert found.name == "entropy"


def test_two_processes_choose_what_one_does():
    data = drawn(by_entropy)
    whole, *parts = [AutoStream(3) for _ in range(3)]
    for number, (logits, target) in enumerate(data):
        for stream in (whole, parts[number % 2]):
            numbers = [2 * number, 2 * number + 1]
            stream.add(logits, target, [str(n) for n in numbers], numbers)
    parts[0].combine([part.state() for part in parts])
    one, other = whole.fit(), parts[0].fit()
    assert type(one) is type(other)
    logits = data[0][0]
    assert torch.allclose(one(logits), other(logits), atol=1e-3)


def test_it_is_refined_on_all_pixels():
    data = drawn(by_entropy, images=6, size=300)
    found, exact = fit_calibrator("auto", data, group=lambda i: int(i) // 2), fit_calibrator("entropy", data)
    assert torch.allclose(found.weights, exact.weights, atol=1e-3)


@pytest.mark.parametrize("batches", [[], [(torch.randn(2, 3, 8, 8), torch.full((2, 8, 8), 255))]])
def test_nothing_to_fit_on_is_one_sentence(batches):
    with pytest.raises(SeguqError, match="no labeled pixel to fit on"):
        fit_calibrator("auto", batches)
