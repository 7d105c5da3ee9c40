"""Components: what is connected in the prediction, with the tiny merged into their neighbors."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.acquisition import Budget, Selection, TopK, select
from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps
from seguq.regions import Components, score
from seguq.regions.rle import region_mask
from tests.oracles import regions as oracles

property_test = settings(deadline=None, max_examples=150)


def maps_of(classes, num_classes=4, **maps):
    prediction = torch.as_tensor(np.asarray(classes))[None]
    return UncertaintyMaps(None, maps, ["a"], prediction=prediction, num_classes=num_classes)


def picture(*lines):
    return np.array([[" #ox".index(character) for character in line] for line in lines])


@st.composite
def predictions(draw, lowest=0):
    height, width = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    values = st.lists(st.integers(lowest, 3), min_size=height * width, max_size=height * width)
    return np.array(draw(values)).reshape(height, width)


@given(classes=predictions(-1), connectivity=st.sampled_from([4, 8]))
@property_test
def test_they_are_the_connected_parts_by_their_first_pixel(classes, connectivity):
    found = Components(min_area=1, connectivity=connectivity)(None, maps_of(classes))
    assert np.array_equal(found, oracles.components(classes, connectivity))


@given(classes=predictions(-1), min_area=st.integers(1, 12), connectivity=st.sampled_from([4, 8]))
@property_test
def test_the_tiny_are_merged_as_by_hand(classes, min_area, connectivity):
    found = Components(min_area, connectivity)(None, maps_of(classes))
    assert np.array_equal(found, oracles.merged(oracles.components(classes, connectivity), min_area))


@given(classes=predictions(), min_area=st.integers(1, 12))
@property_test
def test_none_is_smaller_than_the_area_but_an_image_that_is(classes, min_area):
    areas = np.bincount(Components(min_area)(None, maps_of(classes)).flatten())
    assert areas.min() >= min(min_area, classes.size)


@given(classes=predictions(-1), min_area=st.integers(1, 12))
@property_test
def test_what_has_no_class_stays_in_no_region(classes, min_area):
    assert np.array_equal(Components(min_area)(None, maps_of(classes)) < 0, classes < 0)


def test_the_longest_border_decides():
    found = Components(min_area=3)(None, maps_of(picture("####ooo", "####xoo", "####ooo")))
    assert found.tolist() == [[0, 0, 0, 0, 1, 1, 1]] * 3


def test_of_two_borders_alike_the_first_component_decides():
    assert Components(min_area=2)(None, maps_of(picture("ooo#xxx"))).tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_two_large_components_are_never_joined_by_a_tiny_one():
    assert Components(min_area=3)(None, maps_of(picture("###oo###"))).max() == 1


def test_pixels_that_meet_at_a_corner_are_one_component_or_two():
    classes = picture("# ", " #")
    assert Components(1)(None, maps_of(classes)).tolist() == [[0, 1], [1, 0]]
    assert Components(1, connectivity=4)(None, maps_of(classes)).unique().tolist() == [0, 1, 2, 3]


def test_a_tiny_one_without_a_neighbor_stays():
    classes = np.full((5, 5), -1)
    classes[2, 2] = 1
    assert Components(min_area=9)(None, maps_of(classes))[2, 2] == 0


def test_an_image_of_many_tiny_ones_is_merged_into_regions_of_the_area():
    classes = np.random.default_rng(0).integers(0, 4, (300, 400))
    areas = np.bincount(Components(min_area=30)(None, maps_of(classes)).flatten())
    assert areas.min() >= 30 and len(areas) > 100


def test_probabilities_give_the_components_of_their_prediction():
    probs = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)).softmax(1)
    found = Components(4)(None, UncertaintyMaps(probs, {}, ["a"]))
    assert torch.equal(found, Components(4)(None, maps_of(probs.argmax(1)[0])))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_the_type_of_the_prediction_does_not_matter(dtype):
    classes = torch.rand(12, 15, generator=torch.Generator().manual_seed(0)).round()
    assert torch.equal(Components(4)(None, maps_of(classes.to(dtype))), Components(4)(None, maps_of(classes.long())))


def test_several_independent_labels_are_refused_with_the_image():
    maps = UncertaintyMaps(torch.full((1, 3, 4, 4), 0.5), {}, ["street/7"], multilabel=True)
    with pytest.raises(
        SeguqError, match=r"maps of image 'street/7' are of several independent labels: use Superpixels"
    ):
        Components()(None, maps)


def test_maps_are_needed_and_of_one_image():
    with pytest.raises(SeguqError, match=r"Components\(\) reads the maps of an image, but was called without any"):
        Components()(torch.zeros(3, 4, 4))
    with pytest.raises(SeguqError, match="one image at a time, but was called with the maps of 2"):
        Components()(None, UncertaintyMaps(torch.full((2, 3, 4, 4), 0.5), {}, ["a", "b"]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"min_area": 0}, "min_area of Components must be a whole number of at least 1, but is 0"),
        ({"min_area": 2.0}, "but is 2.0"),
        ({"connectivity": 6}, "connectivity of Components must be 4 or 8, but is 6"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, told):
    with pytest.raises(SeguqError, match=told):
        Components(**arguments)


def test_a_ring_comes_out_of_the_selections_file_as_a_polygon_with_its_hole(tmp_path):
    classes = picture("        ", " #####  ", " #   #  ", " # o #  ", " #   #  ", " #####  ", "        ")
    values = torch.as_tensor(classes == 1).float()[None]
    table = score(maps_of(classes, variance=values), Components(min_area=2), by="variance")
    chosen = select(table, budget=Budget(regions=1), strategy=TopK())
    chosen.save(tmp_path / "s.json")
    (row,) = Selection.load(tmp_path / "s.json").rows
    y0, x0, y1, x1 = (row[name] for name in ("y0", "x0", "y1", "x1"))
    assert np.array_equal(region_mask(row), (classes == 1)[y0:y1, x0:x1]) and row["area"] == 16
    (region,) = json.loads((tmp_path / "s.json").read_text())["regions"]
    assert np.array_equal(oracles.filled(region["polygons"], *classes.shape), classes == 1)
    (rings,) = region["polygons"]
    assert rings == [[[1, 1], [6, 1], [6, 6], [1, 6]], [[2, 2], [2, 5], [5, 5], [5, 2]]]
