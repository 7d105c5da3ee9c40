"""The pipelines: exact normalization, and image and mask that move together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from seguq.core.errors import SeguqError
from seguq.data import Normalization
from seguq.data.transforms import AUGMENTATIONS, evaluation_transform, training_transform
from tests.data.builders import HEIGHT, WIDTH, Array, random_mask, random_pixels

UNCHANGED = Normalization((0.0,), (1.0,))
RGB = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalization(channels: int) -> Normalization:
    return Normalization(tuple(np.linspace(0.2, 0.6, channels)), tuple(np.linspace(0.1, 0.3, channels)))


def pixels_of(dtype: str, channels: int) -> Array:
    if dtype == "uint8":
        return random_pixels(HEIGHT, WIDTH, channels)
    return np.random.default_rng(0).normal(0.5, 3, (HEIGHT, WIDTH, channels)).astype(np.float32)


def draws(transform: Any, image: Array, mask: Array, count: int) -> list[tuple[Array, Array]]:
    outs = [transform(image=image, mask=mask) for _ in range(count)]
    return [(out["image"], out["mask"]) for out in outs]


def twin() -> tuple[Array, Array]:
    """A square mask without symmetry, and the image that shows it."""
    mask = random_mask(24, 24, classes=200).astype(np.int32)
    return mask[..., None].astype(np.uint8), mask


def shown(image: Array) -> Array:
    return np.round(image[..., 0] * 255).astype(np.int32)


# ---- evaluation ----


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
@pytest.mark.parametrize(("dtype", "largest"), [("uint8", 255), ("float32", 1)])
def test_evaluation_subtracts_the_mean_and_divides_by_the_deviation(dtype: str, largest: int, channels: int) -> None:
    pixels, norm = pixels_of(dtype, channels), normalization(channels)
    got = evaluation_transform(norm)(image=pixels)["image"]
    expected = (pixels.astype(np.float64) / largest - norm.mean) / norm.std
    assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == np.float32


def test_evaluation_without_size_leaves_the_mask_as_it_is() -> None:
    mask = random_mask(HEIGHT, WIDTH, classes=5).astype(np.int32)
    assert_array_equal(evaluation_transform(RGB)(image=pixels_of("uint8", 3), mask=mask)["mask"], mask)


@pytest.mark.parametrize("size", [(20, 24), (17, 90), (80, 96), (64, 31)])
@pytest.mark.parametrize("make", [evaluation_transform, training_transform])
def test_resizing_gives_the_size_asked_for_and_no_new_class(make: Any, size: tuple[int, int]) -> None:
    mask = np.array([0, 7, 255])[random_mask(HEIGHT, WIDTH, classes=3)].astype(np.int32)
    out = make(RGB, size)(image=pixels_of("uint8", 3), mask=mask)
    assert (out["image"].shape, out["mask"].shape) == ((*size, 3), size)
    assert set(np.unique(out["mask"])) == {0, 7, 255}


def test_halving_a_mask_takes_values_from_the_pixels_it_covers() -> None:
    mask = np.repeat(np.repeat(random_mask(20, 24, classes=9), 2, 0), 2, 1).astype(np.int32)
    out = evaluation_transform(RGB, (20, 24))(image=pixels_of("uint8", 3), mask=mask)
    assert_array_equal(out["mask"], mask[::2, ::2])


def test_a_smaller_image_is_the_average_of_the_pixels_it_covers() -> None:
    pixels = random_pixels(HEIGHT, WIDTH, 1).astype(np.float32)
    got = evaluation_transform(UNCHANGED, (20, 24))(image=pixels)["image"]
    assert_allclose(got[..., 0], pixels.reshape(20, 2, 24, 2).mean((1, 3)), rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_resizing_does_not_clip_float_pixels(channels: int) -> None:
    pixels = np.full((HEIGHT, WIDTH, channels), 4000, np.float32)
    norm = Normalization((0.0,) * channels, (1.0,) * channels)
    assert_allclose(evaluation_transform(norm, (20, 24))(image=pixels)["image"], 4000, rtol=1e-5)


def test_evaluation_gives_the_same_each_time() -> None:
    transform, pixels = evaluation_transform(RGB, (20, 24)), pixels_of("uint8", 3)
    assert_array_equal(transform(image=pixels)["image"], transform(image=pixels)["image"])


# ---- training ----


def test_training_without_augmentation_is_evaluation() -> None:
    pixels, mask = pixels_of("uint8", 3), random_mask(HEIGHT, WIDTH).astype(np.int32)
    got = training_transform(RGB, (20, 24), augmentation="none")(image=pixels, mask=mask)
    expected = evaluation_transform(RGB, (20, 24))(image=pixels, mask=mask)
    assert_array_equal(got["image"], expected["image"])
    assert_array_equal(got["mask"], expected["mask"])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_crop_is_a_window_of_the_image(dtype: str, channels: int) -> None:
    pixels = pixels_of(dtype, channels)
    norm = normalization(channels)
    whole = evaluation_transform(norm)(image=pixels)["image"]
    crop = training_transform(norm, crop=(16, 20), augmentation="none")(image=pixels)["image"]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 20), (0, 1))
    assert np.isclose(windows, crop.transpose(2, 0, 1), atol=1e-6).all((2, 3, 4)).sum() == 1


def test_crops_differ_in_their_place() -> None:
    pixels, mask = pixels_of("uint8", 3), np.arange(HEIGHT * WIDTH, dtype=np.int32).reshape(HEIGHT, WIDTH)
    transform = training_transform(RGB, crop=(16, 20), augmentation="none")
    transform.set_random_seed(0)
    assert len({int(mask[0, 0]) for _, mask in draws(transform, pixels, mask, 20)}) > 10


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_crop_moves_image_and_mask_together(augmentation: Any) -> None:
    image, mask = twin()
    transform = training_transform(UNCHANGED, crop=(10, 10), augmentation=augmentation)
    for got, got_mask in draws(transform, image, mask, 20):
        assert_array_equal(shown(got), got_mask)


@pytest.mark.parametrize("ignore_index", [255, 7, -1])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_padding_of_small_images_is_ignored_in_the_mask(augmentation: Any, ignore_index: int) -> None:
    pixels, mask = random_pixels(20, 24, 3), random_mask(20, 24).astype(np.int32)
    transform = training_transform(RGB, crop=(32, 40), augmentation=augmentation, ignore_index=ignore_index)
    out = transform(image=pixels, mask=mask)
    assert int((out["mask"] == ignore_index).sum()) == 32 * 40 - 20 * 24
    assert set(np.unique(out["mask"])) == {0, 1, ignore_index}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_what_is_ignored_in_the_mask_is_what_is_padded_in_the_image(channels: int) -> None:
    pixels = np.full((20, 24, channels), 200, np.uint8)
    norm = Normalization((0.0,) * channels, (1.0,) * channels)
    out = training_transform(norm, crop=(32, 40))(image=pixels, mask=np.zeros((20, 24), np.int32))
    padded = (out["image"] == 0).all(-1)
    assert_array_equal(padded, out["mask"] == 255)
    assert_allclose(out["image"][~padded], 200 / 255, rtol=1e-6)


def test_flip_gives_the_image_and_its_mirror_and_nothing_else() -> None:
    image, mask = twin()
    transform = training_transform(UNCHANGED, augmentation="flip")
    transform.set_random_seed(0)
    seen = {got.tobytes() for _, got in draws(transform, image, mask, 30)}
    assert seen == {mask.tobytes(), np.ascontiguousarray(mask[:, ::-1]).tobytes()}


def test_d4_gives_the_eight_symmetries_of_the_square_and_nothing_else() -> None:
    image, mask = twin()
    transform = training_transform(UNCHANGED, augmentation="d4")
    transform.set_random_seed(0)
    seen = {np.ascontiguousarray(got).tobytes() for _, got in draws(transform, image, mask, 100)}
    turned = [np.rot90(side, quarter) for side in (mask, mask.T) for quarter in range(4)]
    assert seen == {np.ascontiguousarray(one).tobytes() for one in turned}


@pytest.mark.parametrize("augmentation", ["flip", "d4"])
def test_image_and_mask_are_turned_together(augmentation: Any) -> None:
    image, mask = twin()
    for got, got_mask in draws(training_transform(UNCHANGED, augmentation=augmentation), image, mask, 30):
        assert_array_equal(shown(got), got_mask)


def test_an_unknown_augmentation_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(SeguqError, match=r"none, flip, d4.*'rotate'"):
        training_transform(RGB, augmentation="rotate")  # type: ignore[arg-type]


def seeded_draws(seed: int) -> list[tuple[Array, Array]]:
    image, mask = twin()
    transform = training_transform(UNCHANGED, crop=(10, 10), augmentation="d4")
    transform.set_random_seed(seed)
    return draws(transform, image, mask, 10)


def test_one_seed_gives_the_same_crops_and_flips() -> None:
    for (image, mask), (again, mask_again) in zip(seeded_draws(3), seeded_draws(3), strict=True):
        assert_array_equal(image, again)
        assert_array_equal(mask, mask_again)


def test_another_seed_gives_other_crops_and_flips() -> None:
    assert any(not np.array_equal(a, b) for (_, a), (_, b) in zip(seeded_draws(3), seeded_draws(4), strict=True))


def test_the_global_generator_of_numpy_is_not_used() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    seeded_draws(0)
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
