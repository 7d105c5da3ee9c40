import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.errors import SeguqError
from seguq.inference import UncertaintyMaps
from seguq.regions import Grid, Partition, WholeImage, score, without

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


@given(height=sides, width=sides, size=st.integers(1, 6), gap=st.integers(0, 6))
@settings(deadline=None, max_examples=80)
def test_a_grid_with_a_stride_has_the_cells_at_the_beginning_of_each(height, width, size, gap):
    labels, of_strides = Grid(size, size + gap)(torch.zeros(3, height, width)), Grid(size + gap)
    expected = of_strides(torch.zeros(3, height, width)).numpy()
    for y in range(height):
        for x in range(width):
            inside = y % (size + gap) < size and x % (size + gap) < size
            assert labels[y, x] == (expected[y, x] if inside else -1)


@pytest.mark.parametrize("stride", [1, 3, 0, 4.0, True, 2**31])
def test_a_stride_by_which_cells_would_overlap_or_that_is_none_is_an_error(stride):
    with pytest.raises(SeguqError, match=f"stride of a grid must be a whole number of at least 4, .* is {stride!r}"):
        Grid(4, stride=stride)


def test_a_stride_of_the_size_is_none():
    assert torch.equal(Grid(3, 3)(torch.zeros(3, 8, 8)), Grid(3)(torch.zeros(3, 8, 8)))


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


@pytest.mark.parametrize("as_array", [False, True])
def test_what_is_left_out_is_in_no_region_and_the_others_keep_their_numbers(as_array):
    labels = Grid(2)(torch.zeros(3, 2, 6))
    mask = torch.tensor([[True, True, False, False, False, True], [True, True, False, True, False, False]])
    found = without(labels, mask.numpy() if as_array else mask)
    assert found.tolist() == [[-1, -1, 1, 1, 2, -1], [-1, -1, 1, -1, 2, 2]]
    assert found.dtype == torch.int32
    assert labels.min() == 0  # it is a copy


def test_a_region_that_is_left_out_has_no_row_and_one_that_is_partly_has_its_shape():
    class Cut(Partition):
        fills_boxes = True

        def __call__(self, image, maps=None):
            mask = torch.zeros(2, 6, dtype=torch.bool)
            mask[:, :2] = mask[0, 5] = True
            return without(Grid(2)(image, maps), mask)

    maps = UncertaintyMaps(torch.full((1, 2, 2, 6), 0.5), {"variance": torch.ones(1, 2, 6)}, ["a"])
    rows = score(maps, Cut(), by="variance").rows()
    assert [(row["region_id"], row["area"], row["rle"]) for row in rows] == [(1, 4, None), (2, 3, [0, 2, 1, 1])]


@pytest.mark.parametrize("mask", [torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.uint8)])
def test_a_mask_of_another_size_or_type_is_an_error(mask):
    with pytest.raises(SeguqError, match=r"left out must be bool of shape \(2, 6\) as the regions are, but is"):
        without(Grid(2)(torch.zeros(3, 2, 6)), mask)
