"""Arrays to image files and back."""

import io

import numpy as np
import pytest
from PIL import Image

from seguq.data import Classes
from seguq.data.reading import read_image, read_mask
from seguq.export import to_rgb, write_index_png, write_png
from seguq.export.images import encode


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 2])
def test_to_rgb_shows_the_first_of_one_or_two_channels_in_gray(channels):
    image = noise(6, 5, channels)
    assert np.array_equal(to_rgb(image), np.stack([image[..., 0]] * 3, -1))


@pytest.mark.parametrize("channels", [3, 4, 5])
def test_to_rgb_shows_the_first_three_of_more_channels(channels):
    image = noise(6, 5, channels)
    assert np.array_equal(to_rgb(image), image[..., :3])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_to_rgb_gives_whole_rgb_of_one_byte(channels, kind):
    out = to_rgb((noise(6, 5, channels) / 255 * (255 if kind is np.uint8 else 1)).astype(kind))
    assert (out.shape, out.dtype, out.flags.c_contiguous) == ((6, 5, 3), np.uint8, True)


def test_to_rgb_does_not_stretch_floats_within_0_and_1():
    image = np.array([[[0.0, 0.2, 0.4]]], np.float32)
    assert to_rgb(image).tolist() == [[[0, 51, 102]]]


@pytest.mark.parametrize(("low", "high"), [(-2.0, 3.0), (0.0, 4000.0), (-1.0, 0.5), (1e-3, 1e6)])
def test_to_rgb_spreads_other_floats_over_what_the_image_holds(low, high):
    image = np.linspace(low, high, 12, dtype=np.float32).reshape(2, 2, 3)
    out = to_rgb(image)
    assert (out.min(), out.max()) == (0, 255) and (np.diff(out.flatten().astype(int)) > 0).all()


def test_to_rgb_of_a_constant_outside_0_and_1_is_black():
    assert not to_rgb(np.full((2, 2, 3), 7.0, np.float32)).any()


def test_to_rgb_does_not_look_at_channels_that_are_not_shown():
    image = np.full((2, 2, 4), 0.2, np.float32)
    image[..., 3] = 900
    assert (to_rgb(image) == 51).all()


def test_encode_png_keeps_every_value_in_rgb_order():
    image = noise(9, 7, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(image)))), image)


def test_encode_jpeg_keeps_the_order_of_the_colors():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (220, 60, 20)
    decoded = np.asarray(Image.open(io.BytesIO(encode(image, ".jpg"))), int)
    assert np.abs(decoded - image).max() < 8


def test_encode_jpeg_of_lower_quality_is_smaller():
    image = noise(64, 64, 3)
    assert len(encode(image, ".jpg", quality=30)) < len(encode(image, ".jpg", quality=95))


@pytest.mark.parametrize("view", [np.s_[:, ::-1], np.s_[::2, 1:]])
def test_encode_takes_a_view_of_an_image(view):
    image = noise(10, 12, 3)[view]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(image)))), image)


def test_write_png_is_read_back_as_it_was(tmp_path):
    image = noise(9, 7, 3)
    write_png(tmp_path / "new" / "folder" / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "new" / "folder" / "a.png"), image)


def test_write_png_leaves_nothing_else_behind(tmp_path):
    write_png(tmp_path / "a.png", noise(9, 7, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("largest", "mode"), [(0, "L"), (1, "L"), (255, "L"), (256, "I;16"), (65535, "I;16")])
def test_write_index_png_is_read_back_as_the_indices(tmp_path, largest, mode):
    classes = np.random.default_rng(0).integers(0, largest + 1, (8, 6))
    classes[0, 0] = largest
    write_index_png(tmp_path / "mask.png", classes)
    with Image.open(tmp_path / "mask.png") as file:
        assert file.mode == mode
    assert np.array_equal(read_mask(tmp_path / "mask.png", Classes.unnamed(2)), classes)
