import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps
from seguq.regions import Grid, Partition, WholeImage

sides = st.integers(1, 9)


def maps_of(height, width):
    return UncertaintyMaps(torch.full((1, 2, height, width), 0.5), {}, ["a"])


def grid_loop(height, width, size):
    """Cells as a person would number them: along the rows of cells, from the top left."""
    labels, corners = np.zeros((height, width), dtype=np.int64), {}
    for y in range(height):
        for x in range(width):
            labels[y, x] = corners.setdefault((y // size, x // size), len(corners))
    numbers = {corner: number for number, corner in enumerate(sorted(corners))}
    return [[numbers[(y // size, x // size)] for x in range(width)] for y in range(height)]


@given(height=sides, width=sides, size=st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_a_grid_matches_the_loop(height, width, size):
    assert Grid(size)(torch.zeros(3, height, width)).tolist() == grid_loop(height, width, size)


@given(height=sides, width=sides, size=st.integers(1, 12))
@settings(deadline=None, max_examples=80)
def test_the_cells_of_a_grid_are_numbered_without_a_gap(height, width, size):
    labels = Grid(size)(torch.zeros(3, height, width))
    assert labels.unique().tolist() == list(range(-(-height // size) * -(-width // size)))


def test_cells_at_the_right_and_lower_border_are_cut_off():
    assert Grid(2)(torch.zeros(1, 3, 5)).tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


@pytest.mark.parametrize("size", [5, 6, 1000])
def test_a_cell_as_large_as_the_image_or_larger_is_the_image(size):
    assert Grid(size)(torch.zeros(3, 4, 5)).unique().tolist() == [0]


partitions = pytest.mark.parametrize("partition", [Grid(2), WholeImage()], ids=repr)

pictures = pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 4, 7),
        torch.zeros(1, 4, 7),
        torch.zeros(4, 7),
        np.zeros((4, 7, 3), dtype=np.uint8),
        np.zeros((4, 7, 1), dtype=np.float32),
        np.zeros((4, 7), dtype=np.uint8),
    ],
    ids=["tensor CHW", "tensor 1HW", "tensor HW", "array HWC", "array HW1", "array HW"],
)


@partitions
@pictures
def test_regions_have_the_size_of_the_image(partition, image):
    assert tuple(partition(image).shape) == (4, 7)


@partitions
def test_regions_have_the_size_of_the_maps_where_there_is_no_image(partition):
    assert torch.equal(partition(None, maps_of(4, 7)), partition(torch.zeros(3, 4, 7)))


@partitions
def test_regions_have_the_size_of_multilabel_maps(partition):
    maps = UncertaintyMaps(torch.full((1, 5, 4, 7), 0.5), {}, ["a"], multilabel=True)
    assert tuple(partition(None, maps).shape) == (4, 7)


@partitions
def test_regions_are_int32(partition):
    assert partition(torch.zeros(3, 4, 7)).dtype == torch.int32


@partitions
def test_neither_image_nor_maps_is_an_error_that_says_what_is_needed(partition):
    with pytest.raises(SeguqError, match="needs an image or maps"):
        partition(None)


@partitions
def test_a_partition_is_one(partition):
    assert isinstance(partition, Partition)


@partitions
def test_a_partition_that_looks_at_sizes_needs_no_map(partition):
    assert partition.needs == ()


def test_the_whole_image_is_one_region():
    assert WholeImage()(torch.zeros(3, 4, 7)).unique().tolist() == [0]


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 2, 4, 7), np.zeros((2, 4, 7, 3)), None], ids=["tensor", "array", "maps"]
)
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_volume_is_one_region_or_an_error_that_says_2d_only(image, multilabel):
    maps = UncertaintyMaps(torch.full((1, 2, 2, 4, 7), 0.5), {}, ["a"], multilabel=multilabel)
    assert WholeImage()(image, maps).tolist() == torch.zeros(2, 4, 7).tolist()
    with pytest.raises(SeguqError, match=r"2-D images only, but was called with a volume \(2, 4, 7\)"):
        Grid(2)(image, maps)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "2", None, 2**31])
def test_a_side_that_is_no_number_of_pixels_is_an_error_with_what_it_is(size):
    with pytest.raises(SeguqError, match=f"whole number of at least 1 pixel, but is {size!r}"):
        Grid(size)


@pytest.mark.parametrize("partition", [Grid(32), WholeImage()], ids=repr)
def test_repr_can_be_read_as_code(partition):
    assert repr(eval(repr(partition))) == repr(partition)
