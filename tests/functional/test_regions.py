import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from seguq.core.errors import SeguqError, UsageError
from seguq.functional import region_boxes, region_impurity, region_majority, region_scores, ripu
from tests.oracles import regions as oracles

AGGREGATES = [
    "mean",
    "sum",
    "max",
    "quantile(0.3)",
    "top_k_mean(0.25)",
    "threshold_mean(0.5)",
    "nonborder_mean(2)",
    "foreground_mean(0)",
]
property_test = settings(max_examples=60, deadline=None)


@st.composite
def labels(draw):
    """A map of labels and the number of regions; pixels of no region and regions of no pixel are frequent."""
    num_regions = draw(st.integers(1, 6))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6))
    dtype = draw(st.sampled_from([np.int32, np.int64]))
    return draw(hnp.arrays(dtype, shape, elements=st.integers(-1, num_regions - 1))), num_regions


def values_like(labels):
    return hnp.arrays(np.float64, labels.shape, elements=st.floats(-1e3, 1e3))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@given(case=labels(), data=st.data())
@property_test
def test_region_scores_match_the_loop(aggregate, dtype, case, data):
    labels, num_regions = case
    values = data.draw(values_like(labels)).astype(dtype)
    classes = data.draw(hnp.arrays(np.int64, labels.shape, elements=st.integers(0, 1)))
    arrays = map(torch.from_numpy, (values, labels))
    actual = region_scores(*arrays, num_regions, aggregate, classes=torch.from_numpy(classes))
    expected = oracles.region_scores(values, labels, num_regions, aggregate, classes)
    torch.testing.assert_close(actual, tuple(map(torch.from_numpy, expected)), equal_nan=True, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_region_scores_are_those_of_scipy(aggregate):
    generator = np.random.default_rng(0)
    labels = ndimage.zoom(generator.integers(-1, 40, (9, 11)), 7, order=0)
    values = generator.normal(size=labels.shape).astype(np.float32)
    classes = ndimage.zoom(generator.integers(0, 3, (9, 11)), 7, order=0)
    away = ~(ndimage.maximum_filter(classes, 5) != ndimage.minimum_filter(classes, 5))
    index, wide = np.arange(40), values.astype(np.float64)
    expected = {
        "mean": lambda: ndimage.mean(wide, labels, index),
        "sum": lambda: ndimage.sum_labels(wide, labels, index),
        "max": lambda: ndimage.maximum(wide, labels, index),
        "quantile(0.3)": lambda: ndimage.labeled_comprehension(
            wide, labels, index, lambda part: np.quantile(part, 0.3), float, np.nan
        ),
        "top_k_mean(0.25)": lambda: ndimage.labeled_comprehension(
            wide, labels, index, lambda part: np.sort(part)[-math.ceil(len(part) / 4) :].mean(), float, np.nan
        ),
        "threshold_mean(0.5)": lambda: ndimage.mean(wide, np.where(values > 0.5, labels, -1), index),
        "nonborder_mean(2)": lambda: np.nan_to_num(ndimage.mean(wide, np.where(away, labels, -1), index)),
        "foreground_mean(0)": lambda: (
            ndimage.sum_labels(wide, labels, index) / np.maximum(1, ndimage.sum_labels(classes != 0, labels, index))
        ),
    }[aggregate]()
    arrays = map(torch.from_numpy, (values, labels))
    found, area = region_scores(*arrays, 40, aggregate, classes=torch.from_numpy(classes))
    there = area.numpy() > 0
    np.testing.assert_allclose(found.numpy()[there], expected[there], rtol=1e-10)


@pytest.mark.parametrize(
    ("aggregate", "told"),
    [
        ("quantile(1.5)", r"takes a share from 0 to 1, but is 'quantile\(1.5\)'"),
        ("top_k_mean(0)", "a share above 0, at most 1"),
        ("threshold_mean", r"needs a number, as in threshold_mean\(0.5\)"),
        ("threshold_mean(high)", "takes a number"),
        ("threshold_mean(nan)", "takes a number"),
        ("nonborder_mean(1.5)", "a whole number from 1"),
        ("mean(3)", "takes nothing in brackets"),
        ("quantile(0.5", "must be one of mean, sum, max, quantile"),
        (0.5, "must be one of mean"),
    ],
)
def test_a_wrong_aggregate_is_one_sentence(aggregate, told):
    with pytest.raises(UsageError, match=told):
        region_scores(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 1, aggregate)


def test_an_aggregate_that_reads_classes_says_so():
    with pytest.raises(SeguqError, match=r"nonborder_mean\(2\) needs the class of each pixel, \(1, 1\)"):
        region_scores(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 1, "nonborder_mean")


@given(classes=hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 2)))
@property_test
def test_impurity_and_ripu_match_the_loop(classes):
    entropy = np.random.default_rng(0).random(classes.shape)
    impurity = oracles.region_impurity(classes, 3, 1)
    given_classes = torch.from_numpy(classes)[None]
    torch.testing.assert_close(
        region_impurity(given_classes, 3)[0].double(), torch.from_numpy(impurity), atol=1e-6, rtol=0
    )
    expected = impurity * oracles.window_mean(entropy, 1) / math.log(3)
    found = ripu(torch.from_numpy(entropy)[None], given_classes, 3)[0].double()
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_impurity_of_a_checkerboard_is_that_of_5_to_4():
    board = (torch.arange(5)[:, None] + torch.arange(5)) % 2
    assert float(region_impurity(board[None], 11)[0, 2, 2]) == pytest.approx(0.687 / math.log(11), abs=1e-3)
    assert float(region_impurity(torch.zeros(1, 5, 5), 11).max()) == 0


@given(case=labels())
@property_test
def test_region_boxes_match_the_loop(case):
    labels, num_regions = case
    expected = torch.from_numpy(oracles.region_boxes(labels, num_regions))
    assert torch.equal(region_boxes(torch.from_numpy(labels), num_regions), expected)


@given(case=labels(), num_classes=st.integers(1, 4), data=st.data())
@property_test
def test_region_majority_matches_the_loop(case, num_classes, data):
    labels, num_regions = case
    classes = data.draw(hnp.arrays(np.int64, labels.shape, elements=st.integers(0, num_classes - 1)))
    actual = region_majority(torch.from_numpy(classes), torch.from_numpy(labels), num_regions, num_classes)
    assert torch.equal(actual, torch.from_numpy(oracles.region_majority(classes, labels, num_regions, num_classes)))


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
@pytest.mark.parametrize("content", [math.nan, math.inf, 1e9])
def test_region_scores_do_not_depend_on_pixels_of_no_region(aggregate, content):
    values, labels = torch.tensor([[1.0, content], [3.0, 2.0]]), torch.tensor([[0, -1], [0, 1]])
    expected = {"mean": [2.0, 2.0], "sum": [4.0, 2.0], "max": [3.0, 2.0]}
    assert region_scores(values, labels, 2, aggregate)[0].tolist() == expected[aggregate]


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
def test_score_of_a_region_without_a_pixel_is_nan_and_its_area_0(aggregate):
    score, area = region_scores(torch.ones(1, 2), torch.tensor([[0, 2]]), 3, aggregate)
    assert score.isnan().tolist() == [False, True, False]
    assert area.tolist() == [1, 0, 1]


def test_scores_of_a_map_that_lies_in_no_region_are_nan():
    score, area = region_scores(torch.ones(2, 2), torch.full((2, 2), -1), 2)
    assert score.isnan().all()
    assert area.tolist() == [0, 0]


def test_the_largest_of_negative_values_is_negative():
    assert region_scores(torch.tensor([[-3.0, -1.0]]), torch.tensor([[0, 0]]), 1, "max")[0].tolist() == [-1.0]


def test_region_scores_sum_float32_maps_in_float64():
    values = torch.full((1, 101), 1e-3)
    values[0, 0] = 2.0**24
    score, _ = region_scores(values, torch.zeros(1, 101, dtype=torch.int32), 1, "sum")
    assert score.item() == pytest.approx(2**24 + 0.1, abs=1e-6)


def test_region_scores_of_maps_of_different_shape_raise_with_both_shapes():
    with pytest.raises(SeguqError, match=r"\(2, 3\).*\(3, 2\)"):
        region_scores(torch.ones(2, 3), torch.zeros(3, 2, dtype=torch.int64), 1)


def test_region_scores_by_an_unknown_aggregate_raise_with_the_choice():
    with pytest.raises(SeguqError, match=r"mean, sum, max.*'median'"):
        region_scores(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), 1, "median")


def test_box_of_a_region_without_a_pixel_is_zeros():
    assert region_boxes(torch.tensor([[1, 1]]), 3).tolist() == [[0, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 0]]


def test_majority_of_a_region_without_a_pixel_is_0():
    assert region_majority(torch.tensor([[2, 2]]), torch.tensor([[1, -1]]), 3, 3).tolist() == [0, 2, 0]


def test_majority_of_equally_frequent_classes_is_the_lower_one():
    assert region_majority(torch.tensor([[3, 1, 1, 3]]), torch.zeros(1, 4, dtype=torch.int64), 1, 4).tolist() == [1]
