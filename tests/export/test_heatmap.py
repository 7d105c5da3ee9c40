"""Maps into colors: one fixed scale, a color bar that fits, and pictures that leave their inputs alone."""

import matplotlib
import numpy as np
import pytest

from seguq.core.errors import SeguqError
from seguq.export import Scale, color_bar, colorize, heatmap, outline, overlay, picture, tint
from seguq.export.heatmap import with_color_bar

UNIT = Scale(0.0, 1.0)
DARK, BRIGHT = [68, 1, 84], [253, 231, 37]  # the ends of viridis


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ramp(height=64, width=48):
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


def test_colorize_takes_the_colors_of_viridis():
    values = np.arange(256, dtype=np.float32)[None] / 255
    expected = np.round(matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    assert np.array_equal(colorize(values, UNIT)[0], expected)


def test_colorize_gives_the_same_color_to_the_same_value_whatever_else_the_map_holds():
    alone, among_larger = np.array([[0.3]]), np.array([[0.3, 0.9]])
    assert np.array_equal(colorize(alone, UNIT)[0, 0], colorize(among_larger, UNIT)[0, 0])


@pytest.mark.parametrize("scale", [Scale(0.0, 2.0), Scale(-11.0, -10.0), Scale(0.0, 1e-9), Scale(0.0, 1e30)])
def test_colorize_puts_the_ends_of_the_scale_at_the_ends_of_the_colors(scale):
    assert colorize(np.array([[scale.low, scale.high]]), scale).tolist() == [[DARK, BRIGHT]]


def test_colorize_clips_what_lies_outside_the_scale():
    values = np.array([[-5.0, -np.inf, 7.0, np.inf]])
    assert colorize(values, UNIT).tolist() == [[DARK, DARK, BRIGHT, BRIGHT]]


def test_colorize_draws_a_scale_without_width_by_its_two_ends():
    assert colorize(np.array([[0.5, 1.5]]), Scale(1.0, 1.0)).tolist() == [[DARK, BRIGHT]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_colorize_gives_rgb_of_one_byte_for_any_float(kind):
    out = colorize(ramp().astype(kind), UNIT)
    assert (out.shape, out.dtype) == ((64, 48, 3), np.uint8)


def test_colorize_refuses_nan():
    with pytest.raises(SeguqError, match="NaN"):
        colorize(np.array([[0.5, np.nan]]), UNIT)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (4, 4, 3)])
def test_colorize_refuses_another_shape_and_names_it(shape):
    with pytest.raises(SeguqError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        colorize(np.zeros(shape), UNIT)


@pytest.mark.parametrize("height", [256, 257, 402, 439, 511, 1000])
def test_color_bar_is_as_high_as_asked_and_of_one_width(height):
    assert color_bar(height, UNIT, "entropy (nats)").shape == (height, 78, 3)


def test_drawing_over_a_color_bar_does_not_change_the_next_one():
    first = color_bar(256, Scale(0.0, 1.0), "cached")
    kept = first.copy()
    first[:] = 0
    assert (color_bar(256, Scale(0.0, 1.0), "cached") == kept).all()


def test_color_bar_shows_the_scale():
    assert not np.array_equal(color_bar(256, UNIT, "x"), color_bar(256, Scale(0.0, 0.5), "x"))


def test_color_bar_shows_the_label():
    assert not np.array_equal(color_bar(256, UNIT, "entropy"), color_bar(256, UNIT, "variance"))


def test_color_bar_runs_from_the_darkest_color_below_to_the_brightest_above():
    column = color_bar(400, UNIT, "x")[:, round(78 * 0.2)].astype(int)
    (bright,), (dark,) = (np.nonzero(abs(column - end).sum(1) <= 6)[0][:1] for end in (BRIGHT, DARK))
    assert bright < 40 < 300 < dark


def test_heatmap_of_a_large_map_has_its_size_and_the_bar_beside_it():
    assert heatmap(ramp(300, 280), UNIT, "x").shape == (300, 280 + 78, 3)


@pytest.mark.parametrize(("size", "times"), [((64, 48), 4), ((100, 40), 3), ((255, 8), 2), ((256, 8), 1)])
def test_heatmap_repeats_the_pixels_of_a_small_map_until_it_is_256_high(size, times):
    values = ramp(*size)
    drawn = heatmap(values, UNIT, "x")[:, :-78]
    assert np.array_equal(drawn, colorize(values, UNIT).repeat(times, axis=0).repeat(times, axis=1))


def test_with_color_bar_leaves_the_picture_as_it_is():
    image = noise(256, 40, 3)
    assert np.array_equal(with_color_bar(image, UNIT, "x")[:, :40], image)


def test_overlay_with_opacity_1_is_the_colors():
    colors = noise(8, 8, 3, seed=1)
    assert np.array_equal(overlay(noise(8, 8, 3), colors, opacity=1.0), colors)


def test_overlay_with_opacity_0_is_the_image_in_gray():
    out = overlay(noise(8, 8, 3), noise(8, 8, 3, seed=1), opacity=0.0).astype(int)
    luma = noise(8, 8, 3) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as RGB order has it
    assert np.abs(out - luma[..., None]).max() <= 1


def test_overlay_blends_by_the_opacity():
    image, colors = np.full((4, 4, 3), 200, np.uint8), np.full((4, 4, 3), 100, np.uint8)
    assert np.unique(overlay(image, colors, opacity=0.25)).tolist() == [175]


def test_overlay_leaves_its_inputs_alone():
    image, colors = noise(8, 8, 3), noise(8, 8, 3, seed=1)
    overlay(image, colors)
    assert np.array_equal(image, noise(8, 8, 3)) and np.array_equal(colors, noise(8, 8, 3, seed=1))


def test_overlay_refuses_colors_of_another_size():
    with pytest.raises(SeguqError, match=r"\(8, 8, 3\).*\(8, 9, 3\)"):
        overlay(noise(8, 8, 3), noise(8, 9, 3))


def test_outline_leaves_the_input_alone():
    image = noise(64, 64, 3)
    outline(image, [(8, 8, 40, 40)], labels=["1"])
    assert np.array_equal(image, noise(64, 64, 3))


@pytest.mark.parametrize(("shape", "times"), [((1, 3000), 1), ((2, 600), 3), ((100, 2049), 1)])
def test_a_thin_map_is_not_enlarged_beyond_measure_and_stands_on_white(shape, times):
    values = ramp(*shape)
    drawn = heatmap(values, UNIT, "x")[:, :-78]
    height, width = (side * times for side in shape)
    assert drawn.shape == (256, width, 3)
    assert np.array_equal(drawn[:height], colorize(values, UNIT).repeat(times, axis=0).repeat(times, axis=1))
    assert (drawn[height:] == 255).all()


def test_outline_draws_the_half_open_box_in_the_color():
    out = outline(np.zeros((64, 64, 3), np.uint8), [(10, 20, 30, 50)], color=(1, 2, 3))
    rows, columns = np.nonzero((out == (1, 2, 3)).all(-1))
    assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (10, 20, 30, 50)


def test_outline_leaves_the_inside_of_a_box_and_what_is_far_from_it():
    image = noise(64, 64, 3)
    out = outline(image, [(10, 10, 40, 40)])
    assert np.array_equal(out[14:36, 14:36], image[14:36, 14:36]) and np.array_equal(out[46:], image[46:])


def test_outline_without_boxes_is_the_image():
    assert np.array_equal(outline(noise(16, 16, 3), []), noise(16, 16, 3))


def test_outline_takes_a_view_of_an_image():
    image = noise(64, 64, 6)[:, ::-1, :3]
    assert outline(image, [(8, 8, 40, 40)]).shape == (64, 64, 3)


def test_outline_writes_a_label_inside_its_box():
    image, box = np.full((128, 128, 3), 90, np.uint8), [(20, 20, 100, 100)]
    rows, columns = np.nonzero((outline(image, box) != outline(image, box, labels=["7"])).any(-1))
    assert min(rows.min(), columns.min()) >= 20 and max(rows.max(), columns.max()) < 100


def test_tint_blends_the_pixels_of_the_mask_and_no_others():
    image, mask = np.full((2, 2, 3), 100, np.uint8), np.array([[True, False], [False, False]])
    out = tint(image, mask, (200, 0, 50), opacity=0.5)
    assert out[0, 0].tolist() == [150, 50, 75] and (out[~mask] == 100).all()


def test_tint_leaves_the_input_alone():
    image = noise(8, 8, 3)
    tint(image, np.ones((8, 8)), (1, 2, 3))
    assert np.array_equal(image, noise(8, 8, 3))


def test_tint_takes_a_mask_of_zeros_and_ones():
    image = noise(8, 8, 3)
    mask = np.random.default_rng(1).integers(0, 2, (8, 8))
    assert np.array_equal(tint(image, mask, (1, 2, 3)), tint(image, mask.astype(bool), (1, 2, 3)))


def test_picture_gives_each_class_its_color():
    colors = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert picture(np.array([[0, 1], [2, 0]]), colors).tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [1, 2, 3]]]


@pytest.mark.parametrize("ignore_index", [255, 2, 1000])
def test_picture_shows_the_ignored_pixels_in_gray(ignore_index):
    out = picture(np.array([[0, ignore_index]]), [(1, 2, 3), (4, 5, 6)], ignore_index)
    assert out.tolist() == [[[1, 2, 3], [128, 128, 128]]]


def test_picture_shows_a_class_without_a_color_in_gray():
    assert picture(np.array([[300]]), [(1, 2, 3)]).tolist() == [[[128, 128, 128]]]


def test_picture_has_colors_for_more_than_256_classes():
    colors = [(i % 251, i // 251, 7) for i in range(300)]
    assert picture(np.array([[299]]), colors, ignore_index=65535).tolist() == [[[299 - 251, 1, 7]]]
