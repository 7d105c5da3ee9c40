"""Selections from tables on disk that are larger than what is in memory at once."""

import random
import warnings

import numpy as np
import pyarrow as pa
import pytest

from seguq.acquisition import Budget, Keyed, Strategy, select, streaming
from seguq.core.errors import SeguqError, UsageError
from seguq.regions import RegionTable
from seguq.store import stored_table
from tests.acquisition.tables import META, names, table, with_columns
from tests.acquisition.test_every_strategy import ARGUMENTS, ours

KEYED = [name for name in ours() if issubclass(Strategy.named(name), Keyed)]
BUDGETS = [
    Budget(regions=7),
    Budget(regions=150),
    Budget(regions=20, per_image=1),
    Budget(pixels=700, fill=False),
    Budget(images=5),
    Budget(images=5, fill=False),
    Budget(clicks=52),
    Budget(cost=lambda row: 1.0, limit=9),
]


def regions(seed=0, count=400):
    """Regions of 30 images in no order, many of equal score."""
    generator = random.Random(seed)
    some = [f"image {i}" for i in range(30)]
    rows = [(generator.choice(some), generator.choice([0.0, 0.25, generator.random()])) for _ in range(count)]
    return with_columns(table(*rows))


@pytest.fixture
def pieces(monkeypatch):
    """Little fits into memory: a few regions at a time."""
    monkeypatch.setattr(stored_table, "_PIECE", 50)
    monkeypatch.setattr(streaming, "_WAITING", 32)
    monkeypatch.setattr(streaming, "_MORE", 3)
    monkeypatch.setattr(streaming, "_MEMORY", 300 * 150)


def saved(one, path, parts):
    """The table as a file, or as a folder of several."""
    if parts == 1:
        one.save(path / "regions.parquet")
        return path / "regions.parquet"
    path = path / "folder"
    for number, rows in enumerate(np.array_split(np.arange(len(one)), parts)):
        one.take(rows).save(path / f"{number}.parquet")
    return path


def quietly(*arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return select(*arguments, **settings)


@pytest.mark.parametrize(("budget", "parts"), [(budget, 1 + i % 2) for i, budget in enumerate(BUDGETS)], ids=repr)
@pytest.mark.parametrize("name", KEYED)
def test_what_ranks_by_a_key_selects_from_disk_what_it_selects_from_memory(name, budget, parts, tmp_path, pieces):
    strategy = Strategy.named(name)(**ARGUMENTS.get(name, {}))
    one = regions()
    path = saved(one, tmp_path, parts)
    labeled = []
    for seed in range(2):
        memory, disk = (
            quietly(pool, budget=budget, strategy=strategy, labeled=labeled, seed=seed) for pool in (one, path)
        )
        assert disk.rows == memory.rows and len(disk)
        assert (disk.why["regions"], disk.why["spent"]) == (400, memory.why["spent"])
        labeled.append(disk)


@pytest.mark.parametrize("name", sorted(set(ours()) - set(KEYED)))
def test_any_other_sees_the_highest_scores_and_the_selection_says_how_many(name, tmp_path, pieces):
    strategy = Strategy.named(name)(**ARGUMENTS.get(name, {}))
    one = regions()
    selection = quietly(saved(one, tmp_path, 1), budget=Budget(regions=9), strategy=strategy, seed=1)
    assert len(selection) == 9
    assert 0 < selection.why["considered"] < 400 == selection.why["regions"]
    fitting = sorted(one.column("score"))[-streaming._MEMORY // stored_width(tmp_path) :][0]
    assert min(row["score"] for row in selection.rows) >= fitting


def stored_width(folder):
    return stored_table.StoredTable(folder / "regions.parquet").row_bytes


def test_a_table_that_fits_into_memory_is_seen_as_a_whole(tmp_path):
    one = regions()
    for name in ours():
        strategy = Strategy.named(name)(**ARGUMENTS.get(name, {}))
        memory, disk = (
            quietly(pool, budget=Budget(regions=9), strategy=strategy) for pool in (one, saved(one, tmp_path, 2))
        )
        assert disk.rows == memory.rows and disk.why == memory.why


def test_a_score_that_is_not_finite_is_an_error_with_file_and_row(tmp_path, pieces):
    one = regions()
    scores = one.column("score").copy()
    scores[333] = np.nan
    place = one.table.column_names.index("score")
    path = saved(RegionTable(one.table.set_column(place, "score", pa.array(scores)), META), tmp_path, 1)
    with pytest.raises(SeguqError, match=r"regions\.parquet: row 333 of the table of regions has the score nan"):
        select(path, budget=Budget(regions=3))


def test_a_column_that_is_lacking_is_an_error_before_anything_is_read(tmp_path, pieces, monkeypatch):
    path = saved(RegionTable(regions().table.drop_columns(["features"]), META), tmp_path, 1)
    monkeypatch.setattr(stored_table.StoredTable, "pieces", None)
    with pytest.raises(UsageError, match="reads the column 'features', which the table of regions does not have"):
        select(path, budget=Budget(regions=3), strategy=Strategy.named("CoreSet")())


def test_files_of_a_folder_that_were_scored_otherwise_are_an_error(tmp_path):
    saved(regions(), tmp_path, 2)
    RegionTable(table(("z", 1.0)).table, {**META, "by": "energy"}).save(tmp_path / "folder" / "9.parquet")
    with pytest.raises(SeguqError, match=r"do not all have the same columns|not all scored in the same way"):
        select(tmp_path / "folder", budget=Budget(regions=3))


@pytest.mark.parametrize("wrong", ["nothing.parquet", "empty"])
def test_what_is_no_table_is_an_error_that_names_it(wrong, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=wrong):
        select(tmp_path / wrong, budget=Budget(regions=3))


def test_a_damaged_file_is_an_error_that_names_it(tmp_path, pieces):
    path = saved(regions(), tmp_path, 1)
    whole = path.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:cut])
        with pytest.raises(SeguqError, match=r"regions\.parquet"):
            select(path, budget=Budget(regions=3))


def test_unfinished_shards_in_a_folder_are_not_read(tmp_path):
    path = saved(regions(), tmp_path, 2)
    (path / ".seguq-tmp-shard-00000.parquet").write_bytes(b"unfinished")
    assert len(names(select(path, budget=Budget(regions=3)))) == 3
