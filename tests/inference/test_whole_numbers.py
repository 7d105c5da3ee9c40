"""Images of whole numbers: the network is given them as they are, and what cannot take them says so."""

import pytest
import torch
from torch import nn

from seguq.core.errors import SeguqError
from seguq.inference import DeepEnsemble, Deterministic, MCDropout, SlidingWindow, TestTimeAugmentation

MAKE = {
    "one pass": lambda model: Deterministic(model, calibrator=None),
    "dropout": lambda model: MCDropout(model, samples=2, seed=0, calibrator=None),
    "dropout without a seed": lambda model: MCDropout(model, samples=2, calibrator=None),
    "ensemble": lambda model: DeepEnsemble([model, model], calibrator=None),
    "views": lambda model: TestTimeAugmentation(model, "d4", calibrator=None),
    "windows": lambda model: SlidingWindow(model, window=12, calibrator=None),
}
every_estimator = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


class FromBytes(nn.Module):
    """Normalizes bytes itself, and would take floats for what is normalized already."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images if images.is_floating_point() else images.float() / 255)


class FromIndices(nn.Module):
    """Looks up each value of a map of class indices."""

    def __init__(self):
        super().__init__()
        self.table, self.dropout, self.last = nn.Embedding(256, 4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.last(self.dropout(self.table(images[:, 0].long()).movedim(-1, 1)))


def of_floats():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)).eval()


@every_estimator
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_network_of_floats_is_never_given_whole_numbers_for_floats(make, dtype):
    images = torch.randint(0, 256, (2, 3, 8, 10)).to(dtype)
    with pytest.raises(SeguqError, match=rf"Sequential fails on images of {dtype} .*images\.float\(\) / 255"):
        make(of_floats())(images, ["a", "b"])


@every_estimator
def test_a_network_that_normalizes_bytes_is_given_bytes(make):
    images = torch.randint(0, 256, (2, 3, 8, 10), dtype=torch.uint8)
    network = of_floats()
    torch.manual_seed(1)
    found = make(FromBytes(network))(images, ["a", "b"])
    torch.manual_seed(1)
    expected = make(network)(images.float() / 255, ["a", "b"])
    torch.testing.assert_close(found.probs, expected.probs)


@every_estimator
def test_a_network_of_class_indices_is_given_them(make):
    images = torch.randint(0, 256, (2, 1, 8, 10))
    assert make(FromIndices().eval())(images, ["a", "b"]).probs.shape == (2, 2, 8, 10)


def test_an_error_of_a_network_of_floats_stays_what_it_is():
    with pytest.raises(RuntimeError, match="channels"):
        Deterministic(of_floats(), calibrator=None)(torch.rand(1, 5, 8, 8))


def test_images_of_whole_numbers_are_not_resized():
    est = TestTimeAugmentation(FromBytes(of_floats()), scales=(0.5,), calibrator=None)
    with pytest.raises(SeguqError, match=r"scales= resizes images, which those of torch.uint8 cannot be"):
        est(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
