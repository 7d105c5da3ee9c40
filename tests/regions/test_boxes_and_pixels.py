"""Boxes and Pixels: the best of a map, at a distance from one another, against a walk over all there are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.errors import SeguqError
from seguq.functional import predictive_entropy, ripu
from seguq.inference import UncertaintyMaps
from seguq.regions import Boxes, Pixels, score
from tests.oracles import regions as oracles

property_test = settings(deadline=None, max_examples=150)
both = pytest.mark.parametrize("partition", [Boxes(2, 3), Pixels(3, 2)], ids=repr)


def maps_of(values, name="predictive_entropy"):
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return UncertaintyMaps(torch.full((1, 2, *values.shape), 0.5), {name: values[None]}, ["a"])


@st.composite
def value_maps(draw):
    """Few values, so that there are ties, or many; eighths, whose sums are exact."""
    height, width, largest = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 3, 10_000]))
    values = st.lists(st.integers(-largest, largest), min_size=height * width, max_size=height * width)
    return np.array(draw(values), np.float32).reshape(height, width) / 8


@given(values=value_maps(), count=st.integers(1, 12), min_distance=st.integers(1, 6))
@property_test
def test_pixels_are_those_of_a_walk_from_the_largest_down(values, count, min_distance):
    found = Pixels(count, min_distance)(None, maps_of(values))
    assert np.array_equal(found, oracles.largest_pixels(values, count, min_distance))


@given(values=value_maps(), size=st.integers(1, 6), count=st.integers(1, 12))
@property_test
def test_boxes_are_those_of_a_walk_from_the_best_down(values, size, count):
    assert np.array_equal(Boxes(size, count)(None, maps_of(values)), oracles.best_boxes(values, size, count))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_boxes_of_any_values_are_those_of_the_walk(scale):
    values = np.random.default_rng(0).random((25, 30)).astype(np.float32) * np.float32(scale)
    assert np.array_equal(Boxes(6, 7)(None, maps_of(values)), oracles.best_boxes(values, 6, 7))


def test_equal_boxes_are_taken_row_by_row():
    # every box holds each value of the tile once; in floating point their sums would differ by rounding
    tile = np.random.default_rng(0).random((16, 16)).astype(np.float32) ** 12
    labels = Boxes(16, 3)(None, maps_of(np.tile(tile, (16, 16)))).numpy()
    assert [labels[0, 16 * k] for k in range(3)] == [0, 1, 2] and (labels >= 0).sum() == 3 * 16 * 16


def test_boxes_of_an_image_that_is_smaller_are_as_large_as_it_is():
    values = np.arange(15.0).reshape(3, 5)
    assert Boxes(9, 4)(None, maps_of(values)).tolist() == [[0] * 5] * 3
    assert Boxes(4, 4)(None, maps_of(values)).tolist() == [[-1, 0, 0, 0, 0]] * 3


def test_regions_are_numbered_by_place_and_not_by_value():
    assert Pixels(2, 2)(None, maps_of([[1, 0, 0, 9]])).tolist() == [[0, -1, -1, 1]]
    assert Boxes(1, 2)(None, maps_of([[1, 0, 0, 9]])).tolist() == [[0, -1, -1, 1]]


def test_pixels_at_a_distance_of_one_are_any():
    assert Pixels(2, 1)(None, maps_of([[1, 8, 9, 0]])).tolist() == [[-1, 0, 1, -1]]


@both
def test_there_are_fewer_where_no_more_fit(partition):
    assert partition(None, maps_of([[1, 2]])).max() == 0


@both
def test_the_map_is_the_one_that_was_asked_for(partition):
    other = type(partition)(**{**partition.arguments(), "by": "energy"})
    assert (partition.needs, other.needs) == (("predictive_entropy",), ("energy",))
    values = np.random.default_rng(0).normal(size=(9, 9))
    assert torch.equal(other(None, maps_of(values, "energy")), partition(None, maps_of(values)))
    with pytest.raises(KeyError, match="energy"):
        other(None, maps_of(values))


def test_a_measure_of_ones_own_goes_by_its_import_path():
    assert Boxes(2, 3, by="tests.extension.things.GINI").needs == ("gini",)


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_an_error_with_the_image(partition, value):
    values = np.zeros((4, 4))
    values[1, 1] = value
    with pytest.raises(SeguqError, match="'predictive_entropy', but that map of image 'a' holds NaN or infinite"):
        partition(None, maps_of(values))


def test_the_score_of_a_box_and_of_a_pixel_is_that_of_the_map():
    values = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    boxes = score(maps_of(values), Boxes(4, 5), by="predictive_entropy").rows()
    for row in boxes:
        inside = values[row["y0"] : row["y1"], row["x0"] : row["x1"]].astype(np.float64)
        assert (row["area"], row["rle"]) == (16, None) and row["score"] == pytest.approx(inside.mean())
    for row in score(maps_of(values), Pixels(5, 3), by="predictive_entropy").rows():
        assert (row["area"], row["score"]) == (1, values[row["y0"], row["x0"]])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Boxes(0, 3), "size of Boxes must be a whole number of at least 1, but is 0"),
        (lambda: Boxes(3, 0), "count of Boxes"),
        (lambda: Pixels(0), "count of Pixels"),
        (lambda: Pixels(3, 0.5), "min_distance of Pixels must be a whole number of at least 1, but is 0.5"),
        (lambda: Pixels(3, by="nowhere.measure"), "nowhere.measure cannot be imported"),
    ],
)
def test_a_wrong_argument_is_one_sentence(make, told):
    with pytest.raises(SeguqError, match=told):
        make()


@pytest.mark.parametrize("made", [Pixels(4, 2, by="ripu"), Boxes(3, 2, by="ripu")], ids=repr)
def test_what_is_made_from_other_maps_is_looked_at_too(made):
    probs = torch.softmax(4 * torch.randn(1, 3, 9, 11, generator=torch.Generator().manual_seed(0)), 1)
    maps = UncertaintyMaps(probs, {"predictive_entropy": predictive_entropy(probs)}, ["a"])
    assert made.needs == ("predictive_entropy",)
    values = ripu(maps["predictive_entropy"], maps.prediction, 3)
    there = UncertaintyMaps(probs, {"there": values}, ["a"])
    expected = type(made)(**{**made.arguments(), "by": "there"})
    assert torch.equal(made(None, maps), expected(None, there))
