import random
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.regions.rle import RLE

COLUMNS = ["image_id", "region_id", "y0", "x0", "y1", "x1", "area", "score", "predicted_class"]
META = {"by": "variance", "aggregate": "mean", "partition": "Grid(size=2)", "estimator": "deterministic"}


def table(image_id="a/b ä", count=3, meta=META):
    rows = [
        dict(zip(COLUMNS, (image_id, i, 0, 2 * i, 2, 2 * i + 2, 4, i / 3, i % 2), strict=True)) for i in range(count)
    ]
    return RegionTable(pa.Table.from_pylist(rows) if rows else no_rows(), meta)


def no_rows():
    kinds = {"image_id": pa.string(), "score": pa.float64()}
    return pa.schema([(name, kinds.get(name, pa.int64())) for name in COLUMNS]).empty_table()


def test_the_length_is_the_number_of_rows():
    assert len(table(count=5)) == 5


def test_rows_are_dicts_of_plain_values():
    assert table().rows()[1] == {
        "image_id": "a/b ä",
        "region_id": 1,
        "y0": 0,
        "x0": 2,
        "y1": 2,
        "x1": 4,
        "area": 4,
        "score": 1 / 3,
        "predicted_class": 1,
    }


def test_a_column_is_an_array():
    assert table().column("x1").tolist() == [2, 4, 6]


def test_repr_says_how_many_regions_and_how_they_were_scored():
    assert repr(table()) == f"RegionTable(3 regions, {META})"


def test_a_table_may_hold_further_columns():
    wider = table().table.append_column("comment", pa.array(["x", "y", "z"]))
    assert RegionTable(wider).rows()[2]["comment"] == "z"


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_without_a_column_is_an_error_that_names_it(name):
    with pytest.raises(SeguqError, match=rf"missing: \['{name}'\]"):
        RegionTable(table().table.drop_columns([name]))


def test_to_pandas_gives_the_columns_and_rows():
    frame = table().to_pandas()
    assert list(frame.columns) == COLUMNS
    pd.testing.assert_frame_equal(frame, pd.DataFrame(table().rows()), check_dtype=False)


# shapes and further columns


def wider(image_id="a", count=3):
    """A table with what others have computed of each region, of the types that are likely."""
    features = pa.FixedSizeListArray.from_arrays(pa.array([float(i) for i in range(2 * count)]), 2)
    columns = {
        "rle": pa.array([[1, 3], None, [0, 2, 2]][:count], RLE),
        "feature": features,
        "slide": pa.array(["x", None, "z"][:count]),
        "counts": pa.array([[1, 2], [], None][:count]),
    }
    plain = table(image_id, count).table
    return RegionTable(pa.table({**{name: plain[name] for name in plain.column_names}, **columns}), META)


def test_further_columns_are_there_when_saved_and_loaded(tmp_path):
    wider().save(tmp_path / "regions.parquet")
    loaded = RegionTable.load(tmp_path / "regions.parquet")
    assert loaded.rows() == wider().rows()
    assert loaded.table.schema.field("feature").type == wider().table.schema.field("feature").type


def test_further_columns_are_put_under_one_another():
    both = RegionTable.concatenate([wider("a"), wider("b")])
    assert both.rows() == wider("a").rows() + wider("b").rows()


def test_a_column_that_only_one_table_has_is_null_in_the_other():
    both = RegionTable.concatenate([table("b"), wider("a")])
    assert both.rows() == [row | dict.fromkeys(("rle", "feature", "slide", "counts")) for row in table("b").rows()] + (
        wider("a").rows()
    )


def test_a_column_of_two_types_is_an_error_that_names_it():
    one, other = (table().table.append_column("slide", pa.array(values)) for values in (["x"] * 3, [1, 2, 3]))
    with pytest.raises(SeguqError, match=r"different types.*slide"):
        RegionTable.concatenate([RegionTable(one), RegionTable(other)])


def test_rows_are_taken_in_the_order_given_with_all_columns():
    assert wider().take([2, 0]).rows() == [wider().rows()[2], wider().rows()[0]]
    assert wider().take([]).rows() == []


@pytest.mark.parametrize("chunked", [False, True])
def test_images_are_numbered_in_the_order_of_their_ids(chunked):
    parts = [table(name, 2).table for name in ("c", "a", "ä", "c")]
    together = pa.concat_tables(parts)
    numbers, ids = RegionTable(together if chunked else together.combine_chunks()).image_numbers()
    assert (numbers.tolist(), ids.to_pylist()) == ([1, 1, 0, 0, 2, 2, 1, 1], ["a", "c", "ä"])


def test_no_row_is_of_no_image():
    numbers, ids = table(count=0).image_numbers()
    assert (len(numbers), len(ids)) == (0, 0)


# under one another


def test_tables_are_put_under_one_another():
    both = RegionTable.concatenate([table("a"), table("b", count=2)])
    assert both.rows() == table("a").rows() + table("b", count=2).rows()


def test_the_first_tables_meta_data_are_kept():
    assert RegionTable.concatenate([table("a"), table("b", meta={"by": "energy"})]).meta == META


def test_no_table_to_concatenate_is_an_error():
    with pytest.raises(SeguqError, match="no table to concatenate"):
        RegionTable.concatenate([])


# on disk


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_table_that_was_saved_is_the_same_when_loaded(tmp_path, count):
    table(count=count).save(tmp_path / "regions.parquet")
    loaded = RegionTable.load(tmp_path / "regions.parquet")
    assert (loaded.rows(), loaded.meta) == (table(count=count).rows(), META)


def test_a_table_that_was_loaded_can_be_saved_again(tmp_path):
    table().save(tmp_path / "one.parquet")
    RegionTable.load(tmp_path / "one.parquet").save(tmp_path / "two.parquet")
    loaded = RegionTable.load(tmp_path / "two.parquet")
    assert (loaded.rows(), loaded.meta) == (table().rows(), META)


def test_a_folder_whose_name_reads_like_a_column_adds_none(tmp_path):
    path = tmp_path / "image_id=zzz" / "round=3" / "regions.parquet"
    table().save(path)
    assert RegionTable.load(path).rows() == table().rows()


def test_a_file_can_be_read_by_pyarrow_alone(tmp_path):
    table().save(tmp_path / "regions.parquet")
    assert pq.read_table(tmp_path / "regions.parquet").to_pylist() == table().rows()


def test_saving_leaves_nothing_else_in_the_folder(tmp_path):
    table().save(tmp_path / "regions.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["regions.parquet"]


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"nowhere\.parquet does not exist"):
        RegionTable.load(tmp_path / "nowhere.parquet")


def test_another_schema_version_is_an_error_that_says_so(tmp_path):
    content = table().table.replace_schema_metadata({"seguq": '{"version": 99}'})
    pq.write_table(content, tmp_path / "regions.parquet")
    with pytest.raises(SeguqError, match=r"regions\.parquet.*schema 99"):
        RegionTable.load(tmp_path / "regions.parquet")


def test_somebody_elses_parquet_is_an_error_that_names_it(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "other.parquet")
    with pytest.raises(SeguqError, match=r"other\.parquet is no table of regions"):
        RegionTable.load(tmp_path / "other.parquet")


def test_a_file_without_a_column_is_an_error_that_names_file_and_column(tmp_path):
    content = table().table.drop_columns(["score"]).replace_schema_metadata({"seguq": '{"version": 1}'})
    pq.write_table(content, tmp_path / "regions.parquet")
    with pytest.raises(SeguqError, match=r"regions\.parquet.*score"):
        RegionTable.load(tmp_path / "regions.parquet")


@pytest.mark.parametrize("meta", [b"", b"{", b"[1]", b"3", b"\xff\xfe"], ids=repr)
def test_meta_data_that_cannot_be_read_are_an_error_that_names_the_file(tmp_path, meta):
    pq.write_table(table().table.replace_schema_metadata({b"seguq": meta}), tmp_path / "regions.parquet")
    with pytest.raises(SeguqError, match=r"regions\.parquet"):
        RegionTable.load(tmp_path / "regions.parquet")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"image_id,score\na,1\n", b"PAR1 and no more"], ids=repr)
def test_another_kind_of_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "regions.parquet").write_bytes(content)
    with pytest.raises(SeguqError, match=r"regions\.parquet cannot be read as Parquet"):
        RegionTable.load(tmp_path / "regions.parquet")


def test_a_file_that_was_cut_off_anywhere_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "regions.parquet"
    table().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(SeguqError, match=r"regions\.parquet"):
            RegionTable.load(path)


def test_a_file_with_damaged_bytes_is_never_another_error_than_one_that_names_it(tmp_path):
    path = tmp_path / "regions.parquet"
    table().save(path)
    whole, generator, errors = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 3, 10])):
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            RegionTable.load(path)
        except SeguqError as error:
            assert "regions.parquet" in str(error)
            errors += 1
    assert errors > 100


def test_a_file_that_another_program_rewrote_is_an_error_that_says_how_to_save_it_again(tmp_path):
    frame = table().to_pandas()
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(SeguqError, match=r"a\.parquet does not say how its regions were scored.*RegionTable\(.*\.save"):
        RegionTable.load(tmp_path / "a.parquet")
    RegionTable(pq.read_table(tmp_path / "a.parquet"), META).save(tmp_path / "b.parquet")
    again = RegionTable.load(tmp_path / "b.parquet")
    assert (again.rows(), again.meta) == (table().rows(), META)


def test_numbers_that_no_int64_holds_are_an_error_with_the_column():
    place = COLUMNS.index("region_id")
    for numbers, fits in (([1, 2, 2**63 - 1], True), ([1, 2, 2**63], False)):
        with nullcontext() if fits else pytest.raises(SeguqError, match=rf"'region_id' .* holds {2**63}, but must be"):
            RegionTable(table().table.set_column(place, "region_id", pa.array(numbers, pa.uint64())))


@pytest.mark.parametrize(("value", "found"), [(np.float32(0.5), 0.5), (np.int64(3), 3), (np.arange(2), [0, 1])])
def test_meta_data_of_numpy_are_saved(tmp_path, value, found):
    table(meta={"x": value}).save(tmp_path / "a.parquet")
    assert RegionTable.load(tmp_path / "a.parquet").meta == {"x": found}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {1, 2}, np.float32("inf")], ids=repr)
def test_meta_data_that_json_cannot_hold_are_an_error_that_names_them(tmp_path, value):
    with pytest.raises(SeguqError, match=r"saved as JSON, which cannot hold 'x': "):
        table(meta={"x": value}).save(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []
