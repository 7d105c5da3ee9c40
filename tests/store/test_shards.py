import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seguq.core.errors import SeguqError
from seguq.core.files import remove_leftovers
from seguq.regions import RegionTable
from seguq.regions.table import SCHEMA
from seguq.store.shards import ShardWriter, merge_shards

ROOT = Path(__file__).parents[2]
META = {"by": "variance", "aggregate": "mean", "partition": "Grid(size=2)", "estimator": "deterministic"}


def table(*image_ids, regions=3, meta=META, first=0):
    rows = [
        dict.fromkeys(SCHEMA.names, i)
        | {"image_id": image_id, "score": (i + len(image_id)) / 7, "rle": [i] if i % 2 else None}
        for image_id in image_ids
        for i in range(first, first + regions)
    ]
    return RegionTable(pa.Table.from_pylist(rows, schema=SCHEMA), meta)


def write(folder, *shards):
    """Each shard is a list of tables."""
    for rank, tables in enumerate(shards):
        writer = ShardWriter(folder, rank)
        for one in tables:
            writer.add(one)
        writer.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# merging


def test_merged_shards_are_sorted_by_image_and_region(tmp_path):
    write(tmp_path, [table("b", "d", first=1), table("b", regions=1)], [table("c"), table("a")])
    merged = merge_shards(tmp_path, tmp_path / "out.parquet")
    expected = sorted(
        table("a", "b", "c").rows() + table("b", first=3, regions=1).rows() + table("d", first=1).rows(),
        key=lambda row: (row["image_id"], row["region_id"]),
    )
    assert merged.rows() == expected


def test_what_is_returned_is_what_the_file_holds(tmp_path):
    write(tmp_path, [table("a")], [table("b")])
    merged = merge_shards(tmp_path, tmp_path / "out.parquet")
    loaded = RegionTable.load(tmp_path / "out.parquet")
    assert (merged.rows(), merged.meta) == (loaded.rows(), loaded.meta) == (table("a", "b").rows(), META)


def test_the_file_is_the_same_byte_for_byte_whatever_the_number_of_processes(tmp_path):
    image_ids = [f"folder {i % 7}/ä{i}" for i in range(50)]
    contents = set()
    for processes in (1, 2, 3, 8, 60):
        order = random.Random(processes).sample(image_ids, len(image_ids))
        folder = tmp_path / str(processes)
        write(folder, *([table(image_id) for image_id in order[rank::processes]] for rank in range(processes)))
        merge_shards(folder, folder / "out.parquet")
        contents.add((folder / "out.parquet").read_bytes())
    assert len(contents) == 1


def test_ids_are_sorted_as_python_sorts_them(tmp_path):
    image_ids = ["b", "B", "a/b", "a", "ä", "大", "a10", "a2", "_", "\N{GRINNING FACE}"]
    write(tmp_path, [table(*image_ids, regions=1)])
    merged = merge_shards(tmp_path, tmp_path / "out.parquet")
    assert merged.column("image_id").tolist() == sorted(image_ids)


def test_merging_removes_the_shards(tmp_path):
    write(tmp_path, [table("a")], [table("b")])
    assert len(names(tmp_path)) == 2
    merge_shards(tmp_path, tmp_path / "out.parquet")
    assert names(tmp_path) == ["out.parquet"]


def test_the_result_may_go_to_another_folder_that_is_missing(tmp_path):
    write(tmp_path / "shards", [table("a")])
    merge_shards(tmp_path / "shards", tmp_path / "other" / "out.parquet")
    assert names(tmp_path / "shards") == []
    assert RegionTable.load(tmp_path / "other" / "out.parquet").rows() == table("a").rows()


def test_further_columns_are_kept(tmp_path):
    wider = [
        RegionTable(table(image_id).table.append_column("comment", pa.array(["x", image_id, "z"])), META)
        for image_id in "ba"
    ]
    write(tmp_path, wider[:1], wider[1:])
    merged = merge_shards(tmp_path, tmp_path / "out.parquet")
    assert merged.column("comment").tolist() == ["x", "a", "z", "x", "b", "z"]


def test_a_process_without_a_region_changes_nothing(tmp_path):
    other = {**META, "estimator": None}  # what `score` says of a stream without an image
    write(tmp_path, [table(meta=other)], [table("a"), table(meta=other)], [])
    merged = merge_shards(tmp_path, tmp_path / "out.parquet")
    assert (merged.rows(), merged.meta) == (table("a").rows(), META)


def test_a_shard_file_without_a_row_changes_nothing(tmp_path):
    write(tmp_path, [table("a")])
    table(meta={**META, "estimator": None}).save(ShardWriter(tmp_path, 1).path)
    assert merge_shards(tmp_path, tmp_path / "out.parquet").meta == META
    assert names(tmp_path) == ["out.parquet"]


@pytest.mark.parametrize("shards", [[], [[]], [[table()], [table()]]], ids=["no shard", "no table", "no row"])
def test_no_region_at_all_is_an_error_that_names_the_folder(tmp_path, shards):
    write(tmp_path, *shards)
    with pytest.raises(SeguqError, match=f"no region was scored in {tmp_path}"):
        merge_shards(tmp_path, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_folder_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"no region was scored in .*nowhere"):
        merge_shards(tmp_path / "nowhere", tmp_path / "out.parquet")


@pytest.mark.parametrize("together", [True, False])
def test_two_images_of_the_same_id_are_an_error_that_names_it(tmp_path, together):
    again = table("b", regions=1, first=2)
    write(tmp_path, *([[table("a", "b"), again]] if together else [[table("a", "b")], [again]]))
    before = names(tmp_path)
    with pytest.raises(SeguqError, match=r"two images had the same id 'b'.*region 2 is there twice"):
        merge_shards(tmp_path, tmp_path / "out.parquet")
    assert names(tmp_path) == before


def test_the_same_region_number_in_different_images_is_no_error(tmp_path):
    write(tmp_path, [table("a", regions=1)], [table("b", regions=1)])
    assert len(merge_shards(tmp_path, tmp_path / "out.parquet")) == 2


@pytest.mark.parametrize("name", META)
def test_shards_that_were_scored_in_different_ways_are_an_error(tmp_path, name):
    write(tmp_path, [table("a")], [table("b", meta={**META, name: "other"})])
    with pytest.raises(SeguqError, match=rf"not all scored in the same way: {name} '{META[name][:4]}.*' and 'other'$"):
        merge_shards(tmp_path, tmp_path / "out.parquet")
    assert len(names(tmp_path)) == 2


def test_shards_with_different_columns_are_an_error(tmp_path):
    wider = RegionTable(table("b").table.append_column("comment", pa.array(["x", "y", "z"])), META)
    write(tmp_path, [table("a")], [wider])
    with pytest.raises(SeguqError, match=r"same columns: comment \(string\)$"):
        merge_shards(tmp_path, tmp_path / "out.parquet")


def test_a_shard_that_was_not_closed_is_an_error_that_names_it(tmp_path):
    write(tmp_path, [table("a")])
    writer = ShardWriter(tmp_path, 1)
    writer.add(table("b"))
    with pytest.raises(SeguqError, match=r"shard-00001\.parquet is damaged or unfinished"):
        merge_shards(tmp_path, tmp_path / "out.parquet")
    writer.abort()


def test_a_damaged_page_of_a_shard_is_found(tmp_path):
    write(tmp_path, [table("one image of a long name")])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    place = content.index(b"long name")
    path.write_bytes(content[:place] + b"L" + content[place + 1 :])
    with pytest.raises(SeguqError, match="damaged"):
        merge_shards(tmp_path, tmp_path / "out.parquet")


def test_when_the_result_cannot_be_written_the_shards_stay(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(tmp_path, [table("a")], [table("b")])
    before = names(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        merge_shards(tmp_path, tmp_path / "out.parquet")
    assert names(tmp_path) == before


# one shard


def test_small_batches_are_gathered_to_large_row_groups(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    for i in range(1000):
        writer.add(table(f"{i:04d}", regions=100))
    writer.close()
    meta = pq.read_metadata(writer.path)
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [65_600, 34_400]


def test_what_waits_is_bounded(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    sizes = []
    for i in range(30):
        writer.add(table(str(i), regions=10_000))
        sizes.append(writer.path.stat().st_size)
    assert len(set(sizes)) == 5  # the file grows with every seventh batch
    writer.abort()


def test_a_shard_holds_the_rows_in_the_order_in_which_they_came(tmp_path):
    write(tmp_path, [table("b"), table("a")])
    (path,) = tmp_path.iterdir()
    assert RegionTable.load(path).rows() == table("b", "a").rows()


def test_the_folder_is_made(tmp_path):
    write(tmp_path / "some" / "folders", [table("a")])
    assert len(names(tmp_path / "some" / "folders")) == 1


def test_a_shard_that_nobody_holds_any_more_is_removed_as_a_leftover(tmp_path):
    ShardWriter(tmp_path, 0).path.write_bytes(b"what a killed process has left")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_shard_that_waits_for_others_is_no_leftover(tmp_path):
    write(tmp_path, [table("a")], [table("b")])
    remove_leftovers(tmp_path)
    assert len(names(tmp_path)) == 2


def test_a_shard_of_the_same_rank_takes_the_place_of_an_older_one(tmp_path):
    write(tmp_path, [table("old")])
    write(tmp_path, [table("new")])
    assert merge_shards(tmp_path, tmp_path / "out.parquet").rows() == table("new").rows()


def test_closing_twice_does_nothing_more(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.add(table("a"))
    writer.close()
    content = writer.path.read_bytes()
    writer.close()
    assert writer.path.read_bytes() == content


@pytest.mark.parametrize("end", ["close", "abort"])
def test_adding_after_the_end_is_an_error(tmp_path, end):
    writer = ShardWriter(tmp_path, 0)
    writer.add(table("a"))
    getattr(writer, end)()
    with pytest.raises(SeguqError, match="no region can be added to"):
        writer.add(table("b"))


@pytest.mark.parametrize("state", ["new", "open", "closed", "aborted"])
def test_abort_leaves_no_file_and_can_be_closed_after(tmp_path, state):
    writer = ShardWriter(tmp_path, 0)
    if state != "new":
        writer.add(table("a", regions=70_000))
        writer.add(table("b"))
    if state == "closed":
        writer.close()
    if state == "aborted":
        writer.abort()
    writer.abort()
    writer.close()
    assert names(tmp_path) == []


def test_a_table_that_was_scored_in_another_way_is_an_error_and_not_added(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.add(table("a"))
    with pytest.raises(SeguqError, match="not all scored in the same way: by 'variance' and 'energy'"):
        writer.add(table("b", meta={**META, "by": "energy"}))
    writer.close()
    assert merge_shards(tmp_path, tmp_path / "out.parquet").rows() == table("a").rows()


def test_a_table_with_other_columns_is_an_error_and_not_added(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.add(table("a"))
    other = table("b").table
    with pytest.raises(SeguqError, match=r"same columns: score \(double\), score \(float\)"):
        writer.add(RegionTable(other.set_column(7, "score", other["score"].cast(pa.float32())), META))
    with pytest.raises(SeguqError, match="same columns: their order"):
        writer.add(RegionTable(other.select(sorted(other.column_names)), META))
    writer.close()
    assert merge_shards(tmp_path, tmp_path / "out.parquet").rows() == table("a").rows()


def test_further_columns_come_through_shards(tmp_path):
    one = table("a", "b").table
    features = pa.FixedSizeListArray.from_arrays(pa.array([float(i) for i in range(2 * len(one))]), 2)
    wide = RegionTable(one.append_column("feature", features), META)
    write(tmp_path, [wide.take([3, 4, 5])], [wide.take([0, 1, 2])])
    assert merge_shards(tmp_path, tmp_path / "out.parquet").rows() == wide.rows()


WRITE_TOO_MUCH = """
import random, resource, sys
import pyarrow as pa
from seguq.core.errors import SeguqError
from seguq.regions import RegionTable
from seguq.store.shards import ShardWriter, merge_shards
from seguq.regions.table import SCHEMA
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
count = int(sys.argv[2])
columns = {name: [random.randrange(2**50) for _ in range(count)] for name in SCHEMA.names}
columns |= {"y0": [0] * count, "x0": [0] * count}
table = RegionTable(pa.table({**columns, "image_id": ["a"] * count, "rle": [None] * count}, schema=SCHEMA))
writer = ShardWriter(sys.argv[1], 0, sys.argv[1] + "/out.parquet")
for step in (lambda: (writer.add(table), writer.close()), lambda: writer.add(table), writer.close):
    try:
        print(step())
    except OSError as error:
        print(error.errno, error.filename)
    except SeguqError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    merge_shards(sys.argv[1], sys.argv[1] + "/out.parquet")
except SeguqError as error:
    print(error)
writer.abort()
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits are those of POSIX")
@pytest.mark.parametrize("rows", [30_000, 70_000], ids=["at the end", "in the middle"])
def test_a_shard_that_cannot_be_written_is_named_and_not_merged_and_can_be_removed(tmp_path, rows):
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path), str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    path = ShardWriter(tmp_path, 0).path
    first, second, third, fourth = done.stdout.splitlines()
    assert first == f"{errno.EFBIG} {tmp_path / 'out.parquet'}"
    assert second == f"no region can be added to {path}: it is closed, or could not be written"
    assert third == "None"
    assert fourth.startswith(f"{path} is damaged or unfinished")
    assert (names(tmp_path), done.stderr) == ([], "")
