"""Mean and deviation measured over a folder."""

import numpy as np
import pytest
from PIL import Image

from seguq.core.errors import SeguqError
from seguq.data import SegmentationFolder, measured_normalization, nuclei_mini
from seguq.data.transforms import evaluation_transform


@pytest.mark.parametrize("channels", [1, 3])
def test_normalizing_with_what_was_measured_gives_mean_zero_and_deviation_one(tmp_path, channels):
    generator = np.random.default_rng(0)
    for i, size in enumerate([(20, 30), (50, 10), (7, 7)]):  # of different sizes: each pixel counts the same
        pixels = generator.integers(40 * i, 60 * i + 80, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(tmp_path / f"{i}.png")
    folder = SegmentationFolder(tmp_path, transform=evaluation_transform(measured_normalization(tmp_path, channels)))
    values = np.concatenate([item["image"].numpy().reshape(channels, -1) for item in folder], axis=1)
    np.testing.assert_allclose(values.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(1), 1, atol=1e-5)


def test_a_channel_that_is_the_same_everywhere_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SeguqError, match="the same everywhere"):
        measured_normalization(tmp_path, channels=1)


def test_images_that_ship_are_measured_as_numpy_does():
    pixels = [np.asarray(Image.open(p).convert("RGB")).reshape(-1, 3) for p in (nuclei_mini() / "images/val").iterdir()]
    expected = np.concatenate(pixels) / 255
    measured = measured_normalization(nuclei_mini() / "images" / "val")
    np.testing.assert_allclose(measured.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(measured.std, expected.std(0), rtol=1e-5)
