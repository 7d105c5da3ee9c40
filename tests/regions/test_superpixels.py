"""Superpixels: connected regions of like color, of the image as stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import slic

from seguq.core.errors import SeguqError, UsageError
from seguq.regions import Superpixels

methods = pytest.mark.parametrize("method", ["slic", "slic_zero"])


def photograph(height=60, width=80, seed=0, channels=3):
    """Smooth blobs of color, 8 bit."""
    noise = np.random.default_rng(seed).random((height, width, channels))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


@methods
def test_they_are_those_of_scikit_image(method):
    image = photograph()
    zero = method == "slic_zero"
    expected = slic(image, n_segments=50, compactness=20, sigma=0.7, slic_zero=zero, start_label=0, channel_axis=-1)
    assert np.array_equal(Superpixels(50, method)(image), expected)


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    count=st.integers(1, 80),
    channels=st.sampled_from([1, 3, 4]),
    method=st.sampled_from(["slic", "slic_zero"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_each_is_connected_and_none_is_empty(height, width, count, channels, method, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    labels = Superpixels(count, method)(image).numpy()
    assert set(np.unique(labels)) == set(range(labels.max() + 1))
    assert all(ndimage.label(labels == region)[1] == 1 for region in range(labels.max() + 1))


@methods
@pytest.mark.parametrize("noise", [0, 40, 80])
def test_there_are_about_as_many_as_asked_for_also_where_there_is_noise(method, noise):
    added = np.random.default_rng(1).integers(0, noise + 1, (120, 160, 1))
    image = (photograph(120, 160) / 255 * (255 - noise) + added).astype(np.uint8)
    assert 38 <= Superpixels(50, method)(image).max() + 1 <= 60


def test_no_more_than_there_are_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert Superpixels(10_000)(image).max() + 1 <= 20


def test_they_keep_to_an_edge_of_color():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 17:] = (200, 40, 40)
    labels = Superpixels(16)(image).numpy()
    assert not set(np.unique(labels[:, :17])) & set(np.unique(labels[:, 17:]))


def test_a_gray_image_is_cut_as_one_of_three_equal_channels():
    gray = photograph(channels=1)
    assert np.array_equal(Superpixels(50)(gray), Superpixels(50)(np.repeat(gray, 3, 2)))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("scale", [1 / 255, 1.0, 1e4])
def test_the_scale_of_the_values_does_not_matter(channels, scale):
    image = photograph(channels=channels)
    labels, of_floats = Superpixels(50)(image), Superpixels(50)(image.astype(np.float64) * scale - 3 * scale)
    # a value in between two of 64 bits may fall to either side
    assert (labels == of_floats).float().mean() > 0.99


def test_16_bits_are_cut_as_8():
    image = photograph()
    assert (Superpixels(50)(image.astype(np.uint16) * 257) == Superpixels(50)(image)).float().mean() > 0.99


def test_color_weighs_the_same_whatever_the_number_of_channels():
    gray = photograph(channels=1)
    two, eight = (Superpixels(50)(np.repeat(gray, channels, 2)) for channels in (2, 8))
    # a value in between two of 64 bits may fall to either side
    assert (two == eight).float().mean() > 0.99


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_an_edge_is_kept_to_whatever_the_number_of_channels(channels):
    image = np.zeros((40, 40, channels), np.uint8)
    image[:, 17:] = 255
    labels = Superpixels(16)(image).numpy()
    assert not set(np.unique(labels[:, :17])) & set(np.unique(labels[:, 17:]))
    assert labels.max() + 1 >= 9  # and they stay compact


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_values_that_are_no_numbers_is_refused(value):
    image = np.ones((4, 4, 3), np.float32)
    image[1, 2, 0] = value
    with pytest.raises(SeguqError, match="holds NaN, infinite or huge values: fill them"):
        Superpixels(3)(image)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"count": 0}, "count of Superpixels must be a whole number of at least 1, but is 0"),
        ({"count": 2.5}, "but is 2.5"),
        ({"count": 5, "method": "felzenszwalb"}, "method of Superpixels must be one of slic, slic_zero, but is"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, told):
    with pytest.raises((SeguqError, UsageError), match=told):
        Superpixels(**arguments)
