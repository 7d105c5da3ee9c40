import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seguq.core.errors import SeguqError
from seguq.regions.rle import decode, encode, encode_regions, inside_area, region_mask
from tests.oracles import regions as oracles

property_test = settings(deadline=None, max_examples=100)


@st.composite
def masks(draw, smallest=1):
    height, width = draw(st.integers(smallest, 7)), draw(st.integers(smallest, 7))
    bits = draw(st.integers(0, 2 ** (height * width) - 1))
    return np.array([bits >> i & 1 for i in range(height * width)], dtype=bool).reshape(height, width)


@st.composite
def label_maps(draw):
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return generator.integers(-1, draw(st.integers(0, 5)), (height, width), endpoint=True).astype(np.int32)


@given(mask=masks(smallest=0))
@property_test
def test_run_lengths_are_those_of_the_loop(mask):
    assert encode(mask) == oracles.run_lengths(mask)


@given(mask=masks(smallest=0))
@property_test
def test_the_mask_comes_back(mask):
    assert np.array_equal(decode(encode(mask), *mask.shape), mask)


@given(mask=masks())
@property_test
def test_run_lengths_are_those_of_coco(mask):
    coco = pytest.importorskip("pycocotools.mask")
    height, width = mask.shape
    theirs = coco.frPyObjects({"counts": encode(mask), "size": [height, width]}, height, width)
    assert np.array_equal(coco.decode(theirs), mask)
    assert coco.encode(np.asfortranarray(mask.astype(np.uint8))) == theirs


@given(labels=label_maps())
@property_test
def test_all_regions_at_once_are_as_each_by_itself(labels):
    regions = int(labels.max()) + 1
    boxes = oracles.region_boxes(labels, regions)
    area = np.array([(labels == r).sum() for r in range(regions)], dtype=np.int64)
    found = encode_regions(labels, boxes, area).to_pylist()
    assert len(found) == regions
    for r, (y0, x0, y1, x1) in enumerate(boxes):
        mask = labels[y0:y1, x0:x1] == r
        assert found[r] == (None if mask.all() else oracles.run_lengths(mask))
        row = {"y0": y0, "x0": x0, "y1": y1, "x1": x1, "rle": found[r]}
        assert np.array_equal(region_mask(row), mask)


@pytest.mark.parametrize("counts", [[3], [5], [-1, 5], [2.0, 2.0], [[4]], "four"], ids=repr)
def test_counts_that_are_none_of_the_box_are_an_error(counts):
    with pytest.raises(SeguqError, match="run lengths of a box of 2 x 2 pixels add up to 4"):
        decode(counts, 2, 2)


def test_run_lengths_that_come_round_to_the_right_number_are_refused():
    huge = 2**63 - 1
    with pytest.raises(SeguqError, match="add up to 100"):
        decode([0, 100, huge, huge, 2], 10, 10)
    with pytest.raises(SeguqError, match="add up to 100"):
        inside_area(np.array([0, 100, huge, huge, 2]), 10, 10)
    assert inside_area([0, 10**12], 10**6, 10**6) == 10**12
