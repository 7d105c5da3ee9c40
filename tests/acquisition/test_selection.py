import csv
import datetime
import json
import random

import numpy as np
import pandas as pd
import pytest

from seguq.acquisition import Budget, Selection, TopK, select
from seguq.core.errors import SeguqError
from seguq.regions.rle import encode
from tests.acquisition.tables import META, table

COLUMNS = ["rank", "image_id", "region_id", "y0", "x0", "y1", "x1", "area", "score", "predicted_class"]


def selection(count=3):
    regions = table(("b/1 ä", 0.3), ("a", 0.9), ("b/1 ä", 0.7), ("c", 1 / 3))
    return select(regions, budget=Budget(regions=count), strategy=TopK(), seed=7)


def test_the_length_is_the_number_of_regions():
    assert len(selection(2)) == 2


def test_images_are_in_the_order_of_their_best_region():
    assert selection(4).image_ids == ["a", "b/1 ä", "c"]


def test_keys_are_image_number_and_box():
    assert selection(1).keys() == {("a", 0, 0, 0, 5, 10)}


def test_repr_says_how_many_regions_in_how_many_images():
    assert "Selection(4 regions in 3 images" in repr(selection(4))


def test_to_pandas_gives_the_rows():
    frame = selection().to_pandas()
    assert list(frame.columns) == [*COLUMNS, "reason"]
    pd.testing.assert_frame_equal(frame, pd.DataFrame(selection().rows))


def test_an_empty_selection_to_pandas_has_the_columns():
    frame = Selection([]).to_pandas()
    assert (list(frame.columns), len(frame)) == (COLUMNS, 0)


# on disk


@pytest.fixture
def content(tmp_path):
    """What a saved selection holds for whoever reads it as JSON."""
    selection().save(tmp_path / "selection.json")
    return json.loads((tmp_path / "selection.json").read_text(encoding="utf-8"))


def test_a_file_holds_version_reason_and_regions(content):
    assert (list(content), content["version"]) == (["version", "why", "regions"], 1)


def test_a_file_says_how_the_regions_were_chosen(content):
    counts = {"spent": 3, "regions": 4, "labeled": 0, "considered": 4}
    assert content["why"] == {"strategy": "TopK()", "budget": {"regions": 3}, "seed": 7, **counts, **META}


def test_a_file_holds_each_region_with_its_rank_and_score(content):
    kept = [{name: region[name] for name in (*COLUMNS, "reason")} for region in content["regions"]]
    assert kept == selection().rows


def test_a_file_holds_each_region_as_a_polygon_of_its_box_in_x_and_y(content):
    assert content["regions"][1]["polygon"] == [[10, 0], [20, 0], [20, 5], [10, 5]]


def test_a_polygon_encloses_the_area_of_the_box(content):
    for region in content["regions"]:
        points = region["polygon"]
        pairs = zip(points, points[1:] + points[:1], strict=True)
        area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) / 2
        assert area == (region["y1"] - region["y0"]) * (region["x1"] - region["x0"])


def test_a_file_can_be_read_by_a_person(tmp_path):
    selection().save(tmp_path / "selection.json")
    text = (tmp_path / "selection.json").read_text(encoding="utf-8")
    assert "b/1 ä" in text
    assert len(text.splitlines()) > 20


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_selection_that_was_saved_is_the_same_when_loaded(tmp_path, count):
    selection(count).save(tmp_path / "selection.json")
    loaded = Selection.load(tmp_path / "selection.json")
    assert (loaded.rows, loaded.why) == (selection(count).rows, selection(count).why)


def test_an_empty_selection_that_was_saved_is_the_same_when_loaded(tmp_path):
    Selection([], {"seed": 3}).save(tmp_path / "selection.json")
    loaded = Selection.load(tmp_path / "selection.json")
    assert (loaded.rows, loaded.why) == ([], {"seed": 3})


def test_a_selection_that_was_loaded_can_be_saved_again(tmp_path):
    selection().save(tmp_path / "one.json")
    Selection.load(tmp_path / "one.json").save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_the_same_selection_makes_the_same_file(tmp_path):
    for name in ("one.json", "two.json"):
        selection().save(tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_saving_leaves_nothing_else_in_the_folder(tmp_path):
    selection().save(tmp_path / "selection.json")
    assert [path.name for path in tmp_path.iterdir()] == ["selection.json"]


# further columns and other shapes


def ragged():
    """A selection of a region with a hole, of one of two parts, and of a box."""
    ring = [[True, True, True], [True, False, True], [True, True, True]]
    parts = [[True, False], [False, True]]
    rows = [
        {"y0": 10, "x0": 20, "y1": 13, "x1": 23, "area": 8, "rle": encode(ring)},
        {"y0": 0, "x0": 0, "y1": 2, "x1": 2, "area": 2, "rle": encode(parts)},
        {"y0": 0, "x0": 0, "y1": 2, "x1": 2, "area": 4, "rle": None},
    ]
    common = {"image_id": "a", "score": 0.5, "predicted_class": 1}
    return Selection([{"rank": i, "region_id": i, **common, **row} for i, row in enumerate(rows, 1)])


def test_a_region_that_is_no_box_has_its_true_polygons_with_holes(tmp_path):
    ragged().save(tmp_path / "selection.json")
    hole, parts, box = json.loads((tmp_path / "selection.json").read_text())["regions"]
    outer = [[20, 10], [23, 10], [23, 13], [20, 13]]
    assert hole["polygons"] == [[outer, [[21, 11], [21, 12], [22, 12], [22, 11]]]]
    assert parts["polygons"] == [[[[0, 0], [1, 0], [1, 1], [0, 1]]], [[[1, 1], [2, 1], [2, 2], [1, 2]]]]
    assert box["polygon"] == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert ["polygon" in region for region in (hole, parts, box)] == [False, False, True]


def test_shapes_come_back(tmp_path):
    ragged().save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json").rows == ragged().rows


def with_columns(**columns):
    return Selection([{**selection(1).rows[0], **columns}])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("x [\n  1,\n  2\n]", "x [\n  1,\n  2\n]"),
        ([0.1, -2.5e-30, 3.0], [0.1, -2.5e-30, 3.0]),
        ([[1, 2], [], [3]], [[1, 2], [], [3]]),
        (["1", "2"], ["1", "2"]),
        ({"a": 1, "b": [True, None]}, {"a": 1, "b": [True, None]}),
        (None, None),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ((1, 2), [1, 2]),
        (float("nan"), None),
        ([1.0, float("nan")], [1.0, None]),
    ],
    ids=repr,
)
def test_a_further_column_comes_back_as_json_has_it(tmp_path, value, found):
    with_columns(extra=value).save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json").rows == with_columns(extra=found).rows


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"x", "a bytes"), (datetime.date(2020, 1, 1), "a date"), ([float("inf")], "an infinite number")],
    ids=repr,
)
def test_a_value_that_json_cannot_hold_is_an_error_that_names_column_and_region(tmp_path, value, kind):
    with pytest.raises(SeguqError, match=rf"cannot hold {kind} \('extra' of region 0 of image 'a'\): leave"):
        with_columns(extra=value).save(tmp_path / "selection.json")
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_a_list_are_on_one_line(tmp_path):
    with_columns(extra=[1, -2.5, 3e-9]).save(tmp_path / "selection.json")
    text = (tmp_path / "selection.json").read_text()
    assert '"extra": [1, -2.5, 3e-09]' in text
    assert "[10, 5]," in text


def test_to_pandas_has_the_further_columns():
    assert list(with_columns(extra=1).to_pandas().columns) == [*COLUMNS, "reason", "extra"]


def test_a_file_without_shapes_is_read(tmp_path, content):
    old = [{name: value for name, value in region.items() if name != "rle"} for region in content["regions"]]
    (tmp_path / "old.json").write_text(json.dumps({**content, "regions": old}))
    assert len(Selection.load(tmp_path / "old.json")) == 3


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"nowhere\.json does not exist"):
        Selection.load(tmp_path / "nowhere.json")


def test_another_schema_version_is_an_error_that_says_so(tmp_path, content):
    (tmp_path / "later.json").write_text(json.dumps({**content, "version": 99}), encoding="utf-8")
    with pytest.raises(SeguqError, match=r"later\.json.*another version.*schema 99"):
        Selection.load(tmp_path / "later.json")


def test_another_schema_version_with_other_content_is_an_error_that_says_so(tmp_path):
    (tmp_path / "later.json").write_text('{"version": 99, "shards": ["a.parquet"]}')
    with pytest.raises(SeguqError, match=r"later\.json.*another version.*schema 99"):
        Selection.load(tmp_path / "later.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "some text",
        "[]",
        "3",
        "null",
        "{}",
        '{"version": 1}',
        '{"version": 1, "why": {}}',
        '{"version": 1, "why": {}, "regions": 3}',
        '{"version": 1, "why": {}, "regions": [3]}',
        '{"version": 1, "why": {}, "regions": [{"rank": 1}]}',
        '{"version": 1, "why": 3, "regions": []}',
    ],
)
def test_another_kind_of_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "selection.json").write_text(text)
    with pytest.raises(SeguqError, match=r"selection\.json cannot be read as a selection"):
        Selection.load(tmp_path / "selection.json")


def test_a_file_that_is_no_text_is_an_error_that_names_it(tmp_path):
    (tmp_path / "selection.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SeguqError, match=r"selection\.json cannot be read as a selection"):
        Selection.load(tmp_path / "selection.json")


def test_a_file_that_was_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "selection.json"
    selection().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 17):
        path.write_bytes(whole[:length])
        with pytest.raises(SeguqError, match=r"selection\.json"):
            Selection.load(path)


def test_a_file_with_damaged_bytes_is_never_another_error_than_one_that_names_it(tmp_path):
    path = tmp_path / "selection.json"
    selection().save(path)
    whole, generator, errors = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            Selection.load(path)
        except SeguqError as error:
            assert "selection.json" in str(error)
            errors += 1
    assert errors > 100


# files that somebody has edited


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"score": "high"}, "region 2: score must be a number or null, but is 'high'"),
        ({"score": float("inf")}, "region 2: score must be a number or null, but is inf"),
        ({"rank": 0}, "region 2: rank must be at least 1, but is 0"),
        ({"rank": "1"}, "region 2: rank must be a whole number, but is '1'"),
        ({"image_id": 7}, "region 2: image_id must be text, but is 7"),
        ({"y1": -3}, "region 2: y1 must be at least 1, but is -3"),
        ({"x0": 2.5}, "region 2: x0 must be a whole number, but is 2.5"),
        ({"x1": 10**30}, "region 2: x1 must be below"),
        ({"rle": [1, 2]}, "region 2: run lengths of a box of 5 x 10 pixels add up to 50"),
        ({"rle": [20, 30]}, "region 2: area must be that of 'rle', 30, but is 50"),
        ({"height": 4}, "region 2: height must be at least 5, but is 4"),
        ({"path": 3}, "region 2: path must be text, but is 3"),
        ({"reason": ["a"]}, "region 2: reason must be text"),
        ({"predicted_class": "road"}, "region 2: predicted_class must be a whole number, but is 'road'"),
        ({"area": None}, "region 2: area must be a whole number, but is None"),
        ({"area": 51}, "region 2: area must be at most that of its box, 50, but is 51"),
        ({"area": 0}, "region 2: area must be at least 1, but is 0"),
        ({"y1": 0}, "region 2: y1 must be at least 1, but is 0"),
        ({"rank": 1}, "region 2: rank must be one of its own, but is 1 as in region 1"),
        ({"region_id": 2**63}, f"region 2: region_id must be below {2**63}, but is {2**63}"),
        (
            {"polygon": [[0, 0], [9, 0], [9, 9]]},
            "region 2: polygon must be that of the box (y0, x0, y1, x1), but is another: edit these, and remove",
        ),
        ({"x1": 21}, "region 2: polygon must be that of the box (y0, x0, y1, x1), but is another: edit these"),
        (
            {"rle": [0, 20, 30], "area": 20},
            "region 2: polygon must be that of the run lengths 'rle' within the box, but is another: edit these",
        ),
    ],
    ids=repr,
)
def test_what_is_wrong_with_an_edited_region_is_said_with_its_number_and_key(tmp_path, content, change, text):
    content["regions"][1].update(change)
    (tmp_path / "edited.json").write_text(json.dumps(content))
    with pytest.raises(SeguqError) as raised:
        Selection.load(tmp_path / "edited.json")
    assert "edited.json" in str(raised.value) and text in str(raised.value)


def test_an_edited_region_without_its_polygon_is_read(tmp_path, content):
    del content["regions"][1]["polygon"]
    content["regions"][1].update(x0=12, x1=22)
    (tmp_path / "edited.json").write_text(json.dumps(content))
    assert Selection.load(tmp_path / "edited.json").rows[1]["x0"] == 12


def test_a_region_that_is_there_twice_is_an_error_with_both_places(tmp_path, content):
    content["regions"].append({**content["regions"][0], "rank": 9})
    (tmp_path / "edited.json").write_text(json.dumps(content))
    with pytest.raises(SeguqError, match=r"region 4 is the same as region 1 \(region_id 0 of image 'a'\)"):
        Selection.load(tmp_path / "edited.json")


def test_a_version_that_is_no_number_is_said_to_be_none(tmp_path, content):
    (tmp_path / "edited.json").write_text(json.dumps({**content, "version": "1"}))
    with pytest.raises(SeguqError, match=r"edited\.json .* \(version must be a whole number, but is '1'\)"):
        Selection.load(tmp_path / "edited.json")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"area": 51}, "cannot be saved: region 1: area must be at most that of its box, 50, but is 51"),
        ({"region_id": 2**63}, "cannot be saved: region 1: region_id must be below"),
        ({"x1": 2**40, "area": 50}, "cannot be saved: region 1: x1 must be below"),
        ({"rank": 0}, "cannot be saved: region 1: rank must be at least 1, but is 0"),
    ],
    ids=repr,
)
def test_nothing_is_saved_that_would_not_be_loaded(tmp_path, change, text):
    with pytest.raises(SeguqError) as raised:
        with_columns(**change).save(tmp_path / "selection.json")
    assert text in str(raised.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [2**40, 2**62, 2**63 - 1, -(2**62)], ids=repr)
def test_any_number_of_a_region_comes_back(tmp_path, number):
    with_columns(region_id=number).save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json").rows[0]["region_id"] == number


@pytest.mark.parametrize(("value", "found"), [(np.float32(0.5), 0.5), (np.arange(2), [0, 1]), (float("nan"), None)])
def test_a_reason_of_numpy_is_saved(tmp_path, value, found):
    Selection(selection(1).rows, {"x": value}).save(tmp_path / "selection.json")
    assert Selection.load(tmp_path / "selection.json").why == {"x": found}


def test_a_reason_that_json_cannot_hold_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"cannot hold an infinite number \('x'\): leave"):
        Selection(selection(1).rows, {"x": float("inf")}).save(tmp_path / "selection.json")


@pytest.mark.parametrize("name", COLUMNS)
def test_what_an_edited_region_lacks_is_named(tmp_path, content, name):
    del content["regions"][2][name]
    (tmp_path / "edited.json").write_text(json.dumps(content))
    with pytest.raises(SeguqError, match=f"region 3 has no '{name}'"):
        Selection.load(tmp_path / "edited.json")


def test_a_region_of_independent_labels_has_no_class_and_comes_back(tmp_path):
    with_columns(predicted_class=None).save(tmp_path / "a.json")
    assert Selection.load(tmp_path / "a.json").rows[0]["predicted_class"] is None


def test_size_and_path_of_the_image_come_back(tmp_path):
    known = {"height": 64, "width": 80, "path": "images/a.png"}
    with_columns(**known).save(tmp_path / "a.json")
    assert known.items() <= Selection.load(tmp_path / "a.json").rows[0].items()


# for spreadsheets


def read_csv(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_a_csv_holds_every_region_with_its_reason(tmp_path):
    selection().save_csv(tmp_path / "a.csv")
    found = read_csv(tmp_path / "a.csv")
    assert list(found[0]) == [*COLUMNS, "reason"]
    for kept, row in zip(found, selection().rows, strict=True):
        assert kept == {name: str(value) for name, value in row.items()}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =HYPERLINK(1)", '=cmd|"/c calc"!A1'])
def test_no_text_of_a_csv_is_a_formula(tmp_path, name):
    with_columns(image_id=name, note=name).save_csv(tmp_path / "a.csv")
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["image_id"], row["note"]) == ("'" + name, "'" + name)


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", "ä/ö", "'a", "\u202e"])
def test_a_name_comes_back_from_a_csv(tmp_path, name):
    with_columns(image_id=name).save_csv(tmp_path / "a.csv")
    assert read_csv(tmp_path / "a.csv")[0]["image_id"] == name


def test_numbers_of_a_csv_stay_numbers_and_lists_are_left_out(tmp_path):
    with_columns(score=-0.5, features=[1, 2], slide="u", height=9).save_csv(tmp_path / "a.csv")
    (row,) = read_csv(tmp_path / "a.csv")
    assert (row["score"], row["slide"], row["height"], "features" in row) == ("-0.5", "u", "9", False)


def test_a_csv_of_nothing_has_its_columns(tmp_path):
    Selection([]).save_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").strip() == ",".join(COLUMNS)
