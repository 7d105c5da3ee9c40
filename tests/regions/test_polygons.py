import numpy as np
import pytest
from hypothesis import given, settings
from scipy import ndimage

from seguq.regions.polygons import outline_clicks, polygons
from seguq.regions.rle import encode
from tests.oracles import regions as oracles
from tests.regions.test_rle import masks

property_test = settings(deadline=None, max_examples=200)


def area(ring):
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True)) / 2


def picture(*lines):
    return np.array([[character == "#" for character in line] for line in lines])


@given(mask=masks())
@property_test
def test_the_mask_comes_back(mask):
    assert np.array_equal(oracles.filled(polygons(mask), *mask.shape), mask)


@given(mask=masks())
@property_test
def test_there_is_a_polygon_for_each_part_whose_pixels_share_sides(mask):
    _, parts = ndimage.label(mask)
    assert len(polygons(mask)) == parts


@given(mask=masks())
@property_test
def test_each_polygon_is_one_part_with_its_holes(mask):
    labels, _ = ndimage.label(mask)
    for rings in polygons(mask):
        inside = oracles.filled([rings], *mask.shape)
        (part,) = np.unique(labels[inside])
        assert np.array_equal(inside, labels == part)
        assert [area(ring) > 0 for ring in rings] == [True] + [False] * (len(rings) - 1)


@given(mask=masks())
@property_test
def test_no_ring_passes_a_point_twice(mask):
    for rings in polygons(mask):
        for ring in rings:
            assert len({tuple(point) for point in ring}) == len(ring)


@given(mask=masks())
@property_test
def test_every_point_is_a_corner(mask):
    for rings in polygons(mask):
        for ring in rings:
            for before, at, after in zip(ring[-1:] + ring[:-1], ring, ring[1:] + ring[:1], strict=True):
                assert (before[0] == at[0]) != (at[0] == after[0])


def test_a_ring_has_a_hole():
    assert polygons(picture("###", "#.#", "###"), y0=10, x0=20) == [
        [[[20, 10], [23, 10], [23, 13], [20, 13]], [[21, 11], [21, 12], [22, 12], [22, 11]]]
    ]


def test_pixels_that_meet_at_a_point_are_two_polygons():
    assert polygons(picture("#.", ".#")) == [
        [[[0, 0], [1, 0], [1, 1], [0, 1]]],
        [[[1, 1], [2, 1], [2, 2], [1, 2]]],
    ]


def test_a_hole_that_meets_the_outside_at_a_point_is_a_hole():
    ((_, *holes),) = polygons(picture("##.", "#.#", "###"))
    assert holes == [[[1, 1], [1, 2], [2, 2], [2, 1]]]


def test_nothing_has_no_polygon():
    assert polygons(np.zeros((3, 4), dtype=bool)) == []


# clicks


def clicks(mask):
    mask = np.asarray(mask, bool)
    return outline_clicks({"y0": 3, "x0": 4, "y1": 3 + mask.shape[0], "x1": 4 + mask.shape[1], "rle": encode(mask)})


def test_a_box_takes_its_four_corners_and_one_click_for_its_class():
    assert clicks(np.ones((9, 30))) == outline_clicks({"y0": 0, "x0": 0, "y1": 9, "x1": 30, "rle": None}) == 5


def test_the_stairs_of_a_slanted_border_are_no_corners():
    y, x = np.mgrid[:60, :60]
    assert clicks(x + y < 60) == 3 + 1
    assert clicks(2 * x + y < 60) == 3 + 1


def test_a_round_region_takes_more_clicks_the_larger_it_is():
    y, x = np.mgrid[-100:101, -100:101]
    found = [clicks(np.hypot(y, x) <= radius) for radius in (5, 25, 100)]
    assert 5 <= found[0] < found[1] < found[2] < 40


def test_holes_and_further_parts_are_outlined_too():
    ring = np.ones((20, 20), bool)
    ring[5:15, 5:15] = False
    assert clicks(ring) == 4 + 4 + 1
    apart = np.ones((20, 20), bool)
    apart[:, 8:12] = False
    assert clicks(apart) == 4 + 4 + 1


@given(mask=masks())
@property_test
def test_every_region_of_several_pixels_takes_at_least_a_triangle(mask):
    if mask.sum() > 1:
        assert clicks(mask) >= 4


@pytest.mark.parametrize(
    "shape", [{"x1": 6, "rle": None}, {"x1": 6, "rle": [0, 1]}, {"x1": 7, "rle": [1, 1]}], ids=repr
)
def test_a_single_pixel_takes_one_click(shape):
    row = {"y0": 5, "x0": 5, "y1": 6, **shape}
    assert outline_clicks(row) == outline_clicks({**row, "area": 1}) == 1
