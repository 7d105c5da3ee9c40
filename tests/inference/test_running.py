"""The running sums on a device other than a CPU, whose path is run here on one: the same measures, and one wait."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seguq import functional
from seguq.inference.measures import measures_of
from seguq.inference.running import RunningMeasures

SAMPLE_MEASURES = measures_of("samples")


def samples(count=5, shape=(2, 4, 7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator) for _ in range(count)]


class Whole(RunningMeasures):
    def _in_parts(self, flat):
        return False


@pytest.mark.parametrize("shape", [(2, 4, 7, 9), (1, 2, 5), (3, 11, 4, 4, 3), (0, 3, 4, 4)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_batch_as_a_whole_gives_what_its_parts_give(shape, count):
    whole, parts = Whole(SAMPLE_MEASURES), RunningMeasures(SAMPLE_MEASURES)
    for logits in samples(count, shape):
        logits[logits > 4] = 4.0  # ties for the first
        whole.add(logits)
        parts.add(logits)
    torch.testing.assert_close(whole.mean, parts.mean, rtol=0, atol=1e-6)
    for name, values in parts.maps().items():
        torch.testing.assert_close(whole.maps()[name], values, rtol=0, atol=1e-6)


def test_a_batch_as_a_whole_gives_the_measures_of_all_samples():
    running, logits = Whole(SAMPLE_MEASURES), samples()
    for one in logits:
        running.add(one)
    probs, maps = torch.softmax(torch.stack(logits), 2), running.maps()
    for name in ("expected_entropy", "mutual_information", "variance", "variation_ratio"):
        torch.testing.assert_close(maps[name], getattr(functional, name)(probs), rtol=1e-4, atol=1e-6)


class Waits(TorchDispatchMode):
    """Names of the operations that would make a program wait for its device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::_to_copy", "aten::item"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_all_samples_together_wait_once():
    running = Whole(SAMPLE_MEASURES)
    with Waits() as waits:
        for logits in samples():
            running.add(logits)
        running.maps()
    assert waits.names == ["aten::_local_scalar_dense"]


def test_a_sample_in_parts_is_asked_for_ties_which_waits():
    with Waits() as waits:
        RunningMeasures(SAMPLE_MEASURES).add(samples()[0])
    assert "aten::_local_scalar_dense" in waits.names
