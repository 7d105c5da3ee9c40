import gc
import math
import weakref

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seguq
from seguq import regions
from seguq.acquisition import Budget, TopK, select
from seguq.core.errors import SeguqError, UsageError
from seguq.functional import predictive_entropy
from seguq.inference import UncertaintyMaps
from seguq.regions import (
    Boxes,
    Components,
    Grid,
    Partition,
    Pixels,
    RegionTable,
    WholeImage,
    score,
    worst_regions,
)
from tests.oracles import regions as oracles

property_test = settings(deadline=None, max_examples=40)
aggregates = pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])


def maps_of(values, classes=3, ids=None, **settings):
    """Maps of values ``(B, H, W)`` with random probabilities that are always the same."""
    values = torch.as_tensor(values)
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(len(values), classes, *values.shape[1:], generator=generator), 1)
    ids = [f"image {i}" for i in range(len(values))] if ids is None else ids
    return UncertaintyMaps(probs, {"variance": values}, ids, "mc_dropout(layers=all)", **settings)


@st.composite
def cases(draw):
    """Maps, and the labels that a partition will give for each of their images; -1 and gaps are frequent."""
    images, height, width = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = torch.from_numpy(generator.normal(size=(images, height, width)))
    labels = generator.integers(-1, draw(st.integers(0, 6)), (images, height, width), endpoint=True)
    return maps_of(values), torch.from_numpy(labels.astype(np.int32))


class Given(Partition):
    """A partition that gives prepared labels, one image after the other."""

    def __init__(self, labels):
        self.labels = iter(labels)

    def __call__(self, image, maps=None):
        return next(self.labels)


def by_loop(maps, labels, aggregate):
    """The rows of a table, from the oracles of single figures."""
    rows = []
    for i, image_id in enumerate(maps.image_ids):
        regions = int(labels[i].max()) + 1
        arrays = maps["variance"][i].numpy(), labels[i].numpy()
        scores, area = oracles.region_scores(*arrays, regions, aggregate)
        boxes = oracles.region_boxes(arrays[1], regions)
        majority = oracles.region_majority(maps.prediction[i].numpy(), arrays[1], regions, maps.num_classes)
        for r in np.flatnonzero(area).tolist():
            y0, x0, y1, x1 = boxes[r].tolist()
            inside = arrays[1][y0:y1, x0:x1] == r
            shape = None if inside.all() else oracles.run_lengths(inside)
            score_of = pytest.approx(scores[r], abs=1e-9)
            rows.append(
                (image_id, r, y0, x0, y1, x1, int(area[r]), score_of, int(majority[r]), shape, *labels[i].shape)
            )
    return rows


@aggregates
@given(case=cases())
@property_test
def test_a_table_matches_the_loop(aggregate, case):
    maps, labels = case
    table = score(maps, Given(labels), by="variance", aggregate=aggregate)
    assert [tuple(row.values()) for row in table.rows()] == by_loop(maps, labels, aggregate)


@aggregates
@given(height=st.integers(1, 7), width=st.integers(1, 7), size=st.integers(1, 8))
@property_test
def test_a_table_of_a_grid_matches_the_loop(aggregate, height, width, size):
    maps = maps_of(np.random.default_rng(height * 8 + width).random((2, height, width)))
    labels = Grid(size)(None, maps).expand(2, -1, -1)
    table = score(maps, Grid(size), by="variance", aggregate=aggregate)
    assert [tuple(row.values()) for row in table.rows()] == by_loop(maps, labels, aggregate)


def table_of_a_quarter(aggregate, **changes):
    values = torch.zeros(1, 4, 4)
    values[0, :2, 2:] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    return score(maps_of(values), Grid(2), by="variance", aggregate=aggregate, **changes)


@pytest.mark.parametrize(("aggregate", "expected"), [("mean", 3.0), ("sum", 12.0), ("max", 6.0)])
def test_a_score_is_the_aggregate_of_the_regions_pixels(aggregate, expected):
    assert table_of_a_quarter(aggregate).column("score").tolist() == [0.0, expected, 0.0, 0.0]


def test_the_mean_is_taken_by_default():
    table = score(maps_of(torch.arange(4.0).view(1, 1, 4)), WholeImage(), by="variance")
    assert table.column("score").tolist() == [1.5]


@pytest.mark.parametrize("given_images", [False, True])
@aggregates
def test_a_volume_is_one_region_with_the_box_of_a_slice_and_the_area_of_its_voxels(aggregate, given_images):
    values = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    maps, images = maps_of(values, ids=["a", "b"]), torch.rand(2, 1, 5, 3, 4) if given_images else None
    rows = score(maps, WholeImage(), by="variance", aggregate=aggregate, images=images).rows()
    array = values.double().flatten(1).numpy()
    assert [row["score"] for row in rows] == pytest.approx(getattr(array, aggregate)(1).tolist(), rel=1e-12)
    majority = [int(np.bincount(one.flatten().numpy()).argmax()) for one in maps.prediction]
    expected = [(i, 0, 0, 0, 3, 4, 60, c, None, 3, 4) for i, c in zip("ab", majority, strict=True)]
    assert [tuple(value for name, value in row.items() if name != "score") for row in rows] == expected


def test_boxes_are_half_open():
    row = table_of_a_quarter("mean").rows()[1]
    assert (row["y0"], row["x0"], row["y1"], row["x1"]) == (0, 2, 2, 4)


@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 10))
@property_test
def test_boxes_of_a_grid_cover_the_image_once(height, width, size):
    covered = np.zeros((height, width), dtype=int)
    for row in score(maps_of(torch.zeros(1, height, width)), Grid(size), by="variance").rows():
        covered[row["y0"] : row["y1"], row["x0"] : row["x1"]] += 1
        assert row["area"] == (row["y1"] - row["y0"]) * (row["x1"] - row["x0"])
    assert (covered == 1).all()


def test_the_predicted_class_is_the_most_frequent_in_the_region():
    prediction = torch.tensor([[[0, 2, 2, 1], [2, 2, 1, 1]]])
    maps = UncertaintyMaps(None, {"variance": torch.zeros(1, 2, 4)}, ["a"], prediction=prediction, num_classes=3)
    assert score(maps, Grid(2), by="variance").column("predicted_class").tolist() == [2, 1]


def test_the_predicted_class_of_equally_frequent_ones_is_the_lower():
    prediction = torch.tensor([[[2, 1, 1, 2]]])
    maps = UncertaintyMaps(None, {"variance": torch.zeros(1, 1, 4)}, ["a"], prediction=prediction, num_classes=3)
    assert score(maps, WholeImage(), by="variance").column("predicted_class").tolist() == [1]


def test_multilabel_maps_are_scored_like_others():
    values = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    one, other = (score(maps_of(values, multilabel=m), Grid(2), by="variance") for m in (False, True))
    assert one.column("score").tolist() == other.column("score").tolist()


def test_every_image_has_regions_of_its_own():
    table = score(maps_of(torch.zeros(2, 2, 4), ids=["b", "a"]), Grid(2), by="variance")
    assert list(zip(table.column("image_id"), table.column("region_id").tolist(), strict=True)) == [
        ("b", 0),
        ("b", 1),
        ("a", 0),
        ("a", 1),
    ]


def test_a_table_says_how_it_was_scored():
    assert table_of_a_quarter("max").meta == {
        "by": "variance",
        "aggregate": "max",
        "partition": "Grid(size=2)",
        "estimator": "mc_dropout(layers=all)",
    }


def test_scores_of_half_precision_maps_are_summed_in_float64():
    maps = maps_of(torch.full((1, 64, 64), 0.1, dtype=torch.float16))
    expected = 4096 * float(torch.tensor(0.1, dtype=torch.float16))
    assert score(maps, WholeImage(), by="variance", aggregate="sum").column("score")[0] == pytest.approx(expected)


# streams


def parts():
    generator = torch.Generator().manual_seed(0)
    for start in (0, 2, 4):
        yield maps_of(torch.rand(2, 4, 6, generator=generator), ids=[f"image {start}", f"image {start + 1}"])


def test_a_stream_of_maps_is_scored_like_its_parts():
    separate = [row for part in parts() for row in score(part, Grid(4), by="variance").rows()]
    assert score(parts(), Grid(4), by="variance").rows() == separate


def test_a_stream_may_hold_images_of_different_size():
    maps = [maps_of(torch.zeros(1, 2, 2), ids=["a"]), maps_of(torch.zeros(1, 4, 2), ids=["b"])]
    assert score(maps, Grid(2), by="variance").column("image_id").tolist() == ["a", "b", "b"]


def test_a_stream_is_not_kept():
    seen = []

    def watched():
        for part in parts():
            gc.collect()
            assert sum(reference() is not None for reference in seen) <= 1
            seen.append(weakref.ref(part))
            yield part

    score(watched(), Grid(4), by="variance")
    assert len(seen) == 3


def test_a_stream_of_no_maps_gives_an_empty_table():
    assert len(score([], Grid(4), by="variance")) == 0


def test_images_with_a_stream_are_an_error():
    with pytest.raises(SeguqError, match=r"images= goes with one UncertaintyMaps"):
        score(parts(), Grid(4), images=torch.zeros(2, 3, 4, 6), by="variance")


# partitions of one's own


class Bright(Partition):
    """One region where the image is bright, none elsewhere."""

    needs_image = True

    def __call__(self, image, maps=None):
        return torch.where(image[0] > 0.5, 0, -1).int()


def test_a_partition_gets_the_image_of_each_map():
    images = torch.zeros(2, 3, 2, 2)
    images[0, 0, 0, 0] = images[1, 0, 1] = 1
    table = score(maps_of(torch.arange(8.0).view(2, 2, 2)), Bright(), images=images, by="variance")
    assert [(row["image_id"], row["area"], row["score"]) for row in table.rows()] == [
        ("image 0", 1, 0.0),
        ("image 1", 2, 6.5),
    ]


def bright_rows(table):
    return [(row["image_id"], row["area"]) for row in table.rows()]


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_stream_of_pairs_gives_a_partition_the_image_of_each_map(kind):
    class Light(Partition):
        """As `Bright`, of images as they are stored."""

        needs_image = True

        def __call__(self, image, maps=None):
            red = image[0] if kind == "tensor" else torch.from_numpy(image[..., 0])
            return torch.where(red > 0.5, 0, -1).int()

    images = torch.zeros(2, 3, 2, 4)
    images[0, 0, 0, 0] = images[1, 0, 1] = 1
    maps = maps_of(torch.zeros(2, 2, 4))
    stored = [image if kind == "tensor" else image.permute(1, 2, 0).numpy() for image in images]
    table = score(zip(maps.split(), stored, strict=True), Light(), by="variance")
    assert bright_rows(table) == [("image 0", 1), ("image 1", 4)]


def test_a_stream_may_mix_pairs_and_maps_without_an_image():
    one, other = maps_of(torch.zeros(2, 2, 4)).split()
    assert len(score([(one, np.zeros((2, 4, 3))), other], Grid(2), by="variance")) == 4


def test_a_pair_of_several_maps_is_an_error():
    with pytest.raises(SeguqError, match="maps of one image, but one has those of 2"):
        score([(maps_of(torch.zeros(2, 2, 4)), np.zeros((2, 4, 3)))], Grid(2), by="variance")


@pytest.mark.parametrize("stream", [False, True])
def test_a_partition_that_looks_at_images_where_there_are_none_is_an_error_that_names_both(stream):
    maps = maps_of(torch.zeros(2, 2, 4))
    with pytest.raises(SeguqError, match=r"Bright\(\) looks at the image, but there is none of 'image 0'"):
        score([maps] if stream else maps, Bright(), by="variance")


@pytest.mark.parametrize("partition", [32, "Grid", Grid], ids=repr)
def test_what_is_no_partition_is_an_error_that_shows_one(partition):
    with pytest.raises(SeguqError, match=r"partition must be one such as seguq.regions.Grid\(32\)"):
        score(maps_of(torch.zeros(2, 2, 4)), partition, by="variance")


def test_a_name_that_begins_like_a_grids_is_no_grid():
    class GridOfTriangles(Partition):
        """Two triangles."""

        def __call__(self, image, maps=None):
            return torch.tensor([[0, 0, 1], [0, 1, 1]], dtype=torch.int32)

    rows = score(maps_of(torch.zeros(1, 2, 3)), GridOfTriangles(), by="variance").rows()
    assert [row["rle"] for row in rows] == [[0, 3, 1], [1, 3]]


def test_images_may_be_a_list_of_arrays_with_their_channels_last():
    images = [np.zeros((2, 4, 3)), np.zeros((2, 4, 3))]
    assert len(score(maps_of(torch.zeros(2, 2, 4)), Grid(2), images=images, by="variance")) == 4


def test_pixels_of_no_region_count_neither_in_score_nor_in_area_nor_in_box():
    labels = torch.tensor([[[-1, -1, -1], [-1, 0, 0]]], dtype=torch.int32)
    row = score(maps_of([[[9.0, 9.0, 9.0], [9.0, 1.0, 3.0]]]), Given(labels), by="variance").rows()[0]
    assert [row[name] for name in ("y0", "x0", "y1", "x1", "area", "score")] == [1, 1, 2, 3, 2, 2.0]


def test_regions_without_a_pixel_are_left_out():
    labels = torch.tensor([[[4, 4], [1, -1]]], dtype=torch.int32)
    table = score(maps_of(torch.zeros(1, 2, 2)), Given(labels), by="variance")
    assert table.column("region_id").tolist() == [1, 4]


def test_an_image_without_a_region_gives_no_row():
    labels = torch.full((1, 2, 2), -1, dtype=torch.int32)
    assert len(score(maps_of(torch.zeros(1, 2, 2)), Given(labels), by="variance")) == 0


class Needy(Partition):
    """Keeps the maps that it is called with."""

    needs = ("variance",)

    def __init__(self):
        self.seen = []

    def __call__(self, image, maps=None):
        self.seen.append(maps)
        return (maps["variance"][0] > 0.5).int()


def test_a_partition_that_needs_maps_gets_those_of_one_image_at_a_time():
    values = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps, partition = maps_of(values), Needy()
    score(maps, partition, by="variance")
    assert [one.image_ids for one in partition.seen] == [("image 0",), ("image 1",)]
    assert all(torch.equal(one["variance"][0], values[i]) for i, one in enumerate(partition.seen))
    assert all(torch.equal(one.prediction[0], maps.prediction[i]) for i, one in enumerate(partition.seen))


def test_the_maps_that_a_partition_needs_divide_the_image():
    table = score(maps_of([[[0.25, 1.0, 0.75]]]), Needy(), by="variance", aggregate="max")
    assert table.column("score").tolist() == [0.25, 1.0]


def test_a_partition_that_needs_a_map_that_is_not_there_is_a_key_error_that_names_it():
    maps = UncertaintyMaps(torch.full((1, 2, 3, 4), 0.5), {"energy": torch.zeros(1, 3, 4)}, ["a"])
    with pytest.raises(KeyError, match="variance"):
        score(maps, Needy(), by="energy")


class Curious(Partition):
    """A partition that looks at the image and keeps what it saw."""

    def __call__(self, image, maps=None):
        self.seen = image
        return torch.zeros(2, 2, dtype=torch.int32)


def test_a_map_is_never_handed_over_as_the_image():
    maps, partition = maps_of(torch.full((1, 2, 2), 0.25)), Curious()
    score(maps, partition, by="variance")
    assert partition.seen is None


# wrong use


def test_a_map_that_holds_nan_is_an_error_that_names_measure_and_image():
    values = torch.zeros(2, 2, 2)
    values[1, 0, 1] = math.nan
    with pytest.raises(SeguqError, match="'variance' of image 'b' holds NaN"):
        score(maps_of(values, ids=["a", "b"]), Grid(2), by="variance")


class Slices(Partition):
    """Cuts a volume into its slices, which a table of boxes cannot say."""

    takes_volumes = True

    def __call__(self, image, maps=None):
        return torch.arange(maps.spatial[0])[:, None, None].expand(maps.spatial)


@pytest.mark.parametrize(
    ("partition", "told"),
    [
        (Grid(2), r"Grid\(size=2\) cuts 2-D images only, but 'image 0' is a volume \(2, 3, 4\).*WholeImage\(\)"),
        (Slices(), r"cuts the volume 'image 0' into 2 regions: volumes are one region each"),
        (Given(torch.zeros(1, 2, 3, 4)), "cuts 2-D images only"),
    ],
    ids=["grid", "slices", "one's own"],
)
def test_what_is_for_2d_images_only_says_so_of_a_volume(partition, told):
    with pytest.raises(SeguqError, match=told):
        score(maps_of(torch.zeros(1, 2, 3, 4)), partition, by="variance")


def test_a_measure_that_is_not_there_is_a_key_error_that_says_what_is():
    with pytest.raises(KeyError, match=r"energy.*variance"):
        score(maps_of(torch.zeros(1, 2, 2)), Grid(2), by="energy")


def test_an_unknown_aggregate_is_an_error_that_lists_the_choice():
    with pytest.raises(SeguqError, match=r"mean, sum, max.*'median'"):
        table_of_a_quarter("median")


def test_another_number_of_images_than_maps_is_an_error_with_both():
    with pytest.raises(SeguqError, match="3 images do not go with maps of 2"):
        score(maps_of(torch.zeros(2, 4, 4)), Grid(2), images=torch.zeros(3, 3, 4, 4), by="variance")


def test_an_image_of_another_size_than_its_map_is_an_error_that_names_it():
    with pytest.raises(SeguqError, match=r"'image 0'.*\(8, 8\).*\(4, 4\)"):
        score(maps_of(torch.zeros(1, 4, 4)), Grid(2), images=torch.zeros(1, 3, 8, 8), by="variance")


def test_the_package_hands_on_the_function():
    assert regions.score is score


class Stairs(Grid):
    """Above the diagonal is no region: cells that do not fill their boxes, of a class that says that they do."""

    def __call__(self, image, maps=None):
        labels = super().__call__(image, maps)
        return labels.where(torch.ones_like(labels).tril() > 0, -1)


def test_regions_of_a_class_derived_from_a_grid_keep_their_shapes():
    maps = UncertaintyMaps(torch.full((1, 2, 8, 8), 0.5), {"variance": torch.rand(1, 8, 8)}, ["a"])
    found = score(maps, Stairs(4), by="variance").to_pandas()
    assert [shape is None for shape in found["rle"]] == [False, True, False]


def test_an_id_that_no_table_can_hold_is_one_sentence():
    maps = UncertaintyMaps(torch.full((1, 2, 4, 4), 0.5), {"variance": torch.zeros(1, 4, 4)}, ["Z\udcfcrich"])
    with pytest.raises(SeguqError, match=r"Z\\udcfcrich is no UTF-8"):
        score(maps, Grid(2), by="variance")


# what regions are scored by


def twice_the_variance(maps):
    """A map of one's own."""
    return 2 * maps["variance"][0]


def measured(**settings):
    """Maps of two measures."""
    generator = torch.Generator().manual_seed(3)
    probs = torch.softmax(torch.randn(2, 3, 6, 8, generator=generator), 1)
    maps = {"variance": torch.rand(2, 6, 8, generator=generator), "predictive_entropy": predictive_entropy(probs)}
    return UncertaintyMaps(probs, maps, ["a", "b"], **settings)


def test_of_several_measures_the_first_is_the_score_and_the_others_are_columns():
    table = score(measured(), Grid(4), by=["variance", twice_the_variance, "ripu", "region_impurity"])
    assert table.table.column_names[-5:] == ["twice_the_variance", "ripu", "region_impurity", "height", "width"]
    assert table.column("twice_the_variance").tolist() == pytest.approx((2 * table.column("score")).tolist())
    for name in ("ripu", "region_impurity"):
        assert score(measured(), Grid(4), by=name).column("score").tolist() == table.column(name).tolist()
    assert table.meta["by"] == "variance"


def test_a_function_of_ones_own_is_named_by_its_import_path_too():
    path = f"{twice_the_variance.__module__}.twice_the_variance"
    found, expected = (score(measured(), Grid(4), by=by).column("score") for by in (path, twice_the_variance))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("by", "error", "told"),
    [
        ([], UsageError, "names nothing to score regions by"),
        (["variance", "variance"], UsageError, "names 'variance' twice"),
        (3, UsageError, "by the name of a measure, or a function of maps, not by 3"),
        ("no_such.function", UsageError, "no_such.function cannot be imported"),
        (
            lambda maps: torch.zeros(3),
            SeguqError,
            r"must give a map of the size of the image \(6, 8\), but gave \(3,\)",
        ),
        ("mutual_information", KeyError, "estimators with samples"),
    ],
)
def test_what_regions_cannot_be_scored_by_is_one_sentence(by, error, told):
    with pytest.raises(error, match=told):
        score(measured(), Grid(4), by=by if callable(by) or isinstance(by, str) else list(by) if by != 3 else [by])


# columns


def test_columns_of_classes_are_means_over_the_regions_pixels():
    maps = measured()
    table = score(maps, Grid(4), by="variance", columns=["class_shares", "class_probs", "class_scores"])
    entropy = maps["predictive_entropy"]
    for row in table.rows():
        i = maps.image_ids.index(row["image_id"])
        inside = (slice(row["y0"], row["y1"]), slice(row["x0"], row["x1"]))
        probs = maps.probs[i][(slice(None), *inside)]
        shares = torch.bincount(maps.prediction[i][inside].flatten(), minlength=3) / row["area"]
        assert row["class_shares"] == pytest.approx(shares.tolist(), abs=1e-6)
        assert row["class_probs"] == pytest.approx(probs.mean((1, 2)).tolist(), abs=1e-6)
        assert row["class_scores"] == pytest.approx((probs * entropy[i][inside]).mean((1, 2)).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (["shares"], "columns are a list of class_shares, class_probs, class_scores, features, clicks, but are"),
        (["features"], "do not carry: make them by an estimator with features=True"),
    ],
)
def test_columns_that_cannot_be_had_say_how(columns, told):
    with pytest.raises(SeguqError, match=told):
        score(measured(), Grid(4), by="variance", columns=columns)


def test_columns_of_probabilities_of_maps_that_were_saved_without_say_how(tmp_path):
    measured().save(tmp_path / "a.npz", probs=False)
    loaded = UncertaintyMaps.load(tmp_path / "a.npz")
    with pytest.raises(SeguqError, match=r"of image 'a' were saved without: predict again, keeping them"):
        score(loaded, Grid(4), by="variance", columns=["class_scores"])
    assert len(score(loaded, Grid(4), by="variance", columns=["class_shares"])) == 8


def test_the_size_and_the_file_of_the_image_are_in_each_row():
    rows = score(measured(), Grid(4), by="variance", paths={"a": "/data/a.png"}).rows()
    assert {(row["image_id"], row["height"], row["width"], row["path"]) for row in rows} == {
        ("a", 6, 8, "/data/a.png"),
        ("b", 6, 8, None),
    }


def test_independent_labels_have_no_one_predicted_class(tmp_path):
    table = score(measured(multilabel=True), Grid(4), by="variance")
    assert table.table["predicted_class"].null_count == len(table)
    table.save(tmp_path / "regions.parquet")
    assert len(RegionTable.load(tmp_path / "regions.parquet")) == len(table)
    for way in ({"by": "ripu"}, {"aggregate": "nonborder_mean"}, {"columns": ["class_shares"]}):
        with pytest.raises(SeguqError, match="independent labels"):
            score(measured(multilabel=True), Grid(4), **{"by": "variance", **way})


# pixels without data


def test_pixels_without_data_are_in_no_region():
    maps = measured()
    maps["variance"][0, :, 4:] = math.nan
    gone = torch.zeros(6, 8, dtype=torch.bool).numpy()
    gone[:, 4:] = True
    with pytest.raises(SeguqError, match="the map 'variance' of image 'a' holds NaN"):
        score(maps, Grid(4), by="variance")
    for aggregate in ("mean", "max", "quantile(0.5)", "threshold_mean(0.1)"):
        table = score(
            maps, Grid(4), by="variance", aggregate=aggregate, missing=lambda image_id: {"a": gone}.get(image_id)
        )
        assert [(row["image_id"], row["region_id"]) for row in table.rows()] == [
            ("a", 0),
            ("a", 2),
            *(("b", region) for region in range(4)),
        ]
        assert np.isfinite(table.column("score")).all()
    with pytest.raises(SeguqError, match=r"image 'a': pixels without data \(2, 2\), map \(6, 8\)"):
        score(maps, Grid(4), by="variance", missing=lambda image_id: np.zeros((2, 2), dtype=bool))


# whole images by their worst regions


@pytest.mark.parametrize("count", [1, 3, 50])
def test_an_image_is_scored_by_the_mean_of_its_worst_regions(count):
    generator = torch.Generator().manual_seed(0)
    maps = maps_of(torch.rand(3, 8, 12, generator=generator), ids=["c", "a", "b"])
    table = score(maps, Grid(4), by="variance")
    found = worst_regions(table, count)
    assert [row["image_id"] for row in found.rows()] == ["a", "b", "c"]
    for row in found.rows():
        own = [other for other in table.rows() if other["image_id"] == row["image_id"]]
        worst = sorted((other["score"] for other in own), reverse=True)[:count]
        assert row["score"] == pytest.approx(np.mean(worst))
        votes = np.bincount([other["predicted_class"] for other in own])
        assert row["predicted_class"] == votes.argmax()
        box = [row[name] for name in ("y0", "x0", "y1", "x1", "area", "height", "width")]
        assert box == [0, 0, 8, 12, 96, 8, 12]


def test_worst_regions_of_no_region_are_no_image():
    assert len(worst_regions(score(maps_of(torch.zeros(1, 2, 2)), Grid(2), by="variance").take([]), 2)) == 0


# what estimators say of whole images, and of what an encoder makes of them


def test_a_measure_of_whole_images_is_the_score_of_each():
    maps = measured(image_scores={"pairwise_dice": torch.tensor([0.25, 0.5])})
    table = score(maps, WholeImage(), by=["pairwise_dice", "variance"])
    assert table.column("score").tolist() == [0.25, 0.5]
    with pytest.raises(SeguqError, match="pairwise_dice is a measure of whole images"):
        score(maps, Grid(4), by="pairwise_dice")


def test_clicks_are_the_corners_of_predicted_borders_and_one_for_the_class():
    prediction = torch.zeros(1, 32, 48, dtype=torch.long)
    prediction[0, 4:12, 4:12] = 1  # four corners in the first cell
    prediction[0, :, 40:] = 2  # a border from edge to edge, with an end in each of two cells
    maps = UncertaintyMaps(None, {"variance": torch.zeros(1, 32, 48)}, ["a"], prediction=prediction, num_classes=3)
    table = score(maps, Grid(16), by="variance", columns=["clicks"])
    assert table.column("clicks").tolist() == [5, 1, 2, 1, 1, 2]
    chosen = select(table, budget=Budget(clicks=7), strategy=TopK()).to_pandas()
    assert chosen["clicks"].sum() <= 7


def test_features_of_a_region_are_the_mean_over_its_pixels_of_the_cells_that_these_lie_in():
    features = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0)).half()
    (one, _) = measured(features=features).split()
    labels = torch.tensor([[0] * 5 + [1] * 3] * 4 + [[-1] * 8] * 2, dtype=torch.int32)
    (first, second) = score(one, Given([labels]), by="variance", columns=["features"]).column("features")
    cells = one.features[0].float().repeat_interleave(2, 1).repeat_interleave(4, 2)
    assert first.tolist() == pytest.approx(cells[:, labels == 0].mean(1).tolist(), abs=2e-3)
    assert second.tolist() == pytest.approx(cells[:, labels == 1].mean(1).tolist(), abs=2e-3)


def test_samples_and_encoder_of_a_real_network_give_scores_of_images_and_features(tmp_path):
    model = smp.FPN("resnet18", encoder_weights=None, classes=3)
    wanted = ["pairwise_dice", "smallest_margin"]
    est = seguq.MCDropout(model, samples=3, seed=0, measures=wanted, features=True, calibrator=None)
    maps = est(torch.randn(2, 3, 64, 64), ["a", "b"])
    maps.save(tmp_path / "maps.npz")
    for answer in (maps, UncertaintyMaps.load(tmp_path / "maps.npz")):
        images = score(answer, WholeImage(), by="pairwise_dice", columns=["features"])
        assert 0 < images.column("score").min() <= images.column("score").max() <= 1
        assert images.column("features")[0].shape == (512,)
        cells = score(answer, Grid(32), by="smallest_margin", columns=["features"]).column("features")
        assert np.mean(cells[:4], axis=0) == pytest.approx(images.column("features")[0], rel=3e-3, abs=2e-3)


# what a reader has found


@pytest.mark.parametrize("partition", [Pixels(5, 2, by="variance"), Boxes(3, 4, by="variance")], ids=repr)
def test_what_looks_for_the_largest_values_finds_them_where_there_are_data(partition):
    maps = measured()
    gone = np.zeros((6, 8), dtype=bool)
    gone[:, 4:] = True
    maps["variance"][0, :, 4:] = 9.0
    rows = score(maps, partition, by="variance", missing={"a": gone}.get).rows()
    mine = [row for row in rows if row["image_id"] == "a"]
    alone = UncertaintyMaps(maps.probs[:1, :, :, :4], {"variance": maps["variance"][:1, :, :4]}, ["a"])
    assert len(mine) >= len(score(alone, partition, by="variance")) > 0
    assert all(row["x1"] <= 4 and row["score"] < 9 for row in mine)


def test_components_of_pixels_without_data_are_none():
    maps = measured()
    gone = np.zeros((6, 8), dtype=bool)
    gone[2] = True
    labels = Components(1)(None, maps.split()[0])
    table = score(maps.split()[:1], Components(1), by="variance", missing=lambda image_id: gone)
    assert table.column("area").sum() == 40
    assert len(table) != int(labels.max()) + 1 or (labels[2] >= 0).all()


def test_a_prediction_below_0_counts_for_no_class():
    prediction = torch.tensor([[[0, 0, -1, -1, -1]] * 2])
    maps = UncertaintyMaps(None, {"variance": torch.zeros(1, 2, 5)}, ["a"], prediction=prediction, num_classes=3)
    (row,) = score(maps, Components(), by="variance", columns=["class_shares"]).rows()
    assert row["predicted_class"] == 0 and row["class_shares"] == [1, 0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_one_error_that_names_the_image(value):
    broken = measured()
    broken["variance"][1, 2, 2] = value
    with pytest.raises(SeguqError, match="the map 'variance' of image 'b' holds NaN or infinite"):
        score(broken, Grid(4), by="variance", aggregate="quantile(0.5)")
    probs = measured().probs.clone()
    probs[0, 1, 0, 0] = value
    given_probs = UncertaintyMaps(probs, {"variance": torch.zeros(2, 6, 8)}, ["a", "b"])
    with pytest.raises(SeguqError, match="the probabilities of image 'a' hold NaN or infinite"):
        score(given_probs, Grid(4), by="variance", columns=["class_probs"])
    features = torch.zeros(2, 5, 3, 2)
    features[1, 0, 0, 0] = value
    with pytest.raises(SeguqError, match="the features of image 'b' hold NaN or infinite"):
        score(measured(features=features), Grid(4), by="variance", columns=["features"])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            torch.tensor([[0] * 8] * 5 + [[200_000_000] * 8]),
            "its regions up to 200000000, but the image has 48",
        ),
        (np.zeros((6, 8), int), "gave ndarray for the regions, not a tensor of whole numbers"),
        (torch.full((6, 8), math.nan), "gave torch.float32 .* not a tensor of whole numbers"),
        (torch.zeros(3, 8, dtype=torch.int32), r"gave torch.int32 \(3, 8\) for the regions"),
    ],
)
def test_what_is_no_partition_of_the_image_is_one_sentence(labels, told):
    with pytest.raises(SeguqError, match=told):
        score(measured().split()[:1], Given([labels]), by="variance")


def height(maps):
    """A name that the table has."""
    return maps["variance"][0]


def test_a_name_that_the_table_has_is_refused():
    with pytest.raises(UsageError, match="has a column 'height' of its own"):
        score(measured(), Grid(4), by=["variance", height])


def test_a_map_of_ones_own_may_be_of_half_precision():
    table = score(measured(), WholeImage(), by=lambda maps: maps["variance"][0].bfloat16())
    assert table.column("score") == pytest.approx(measured()["variance"].mean((1, 2)).tolist(), abs=1e-2)
