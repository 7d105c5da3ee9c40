"""Selections from tables on disk that are larger than what is in memory at once."""

import random
import warnings

import numpy as np
import pyarrow as pa
import pytest

from seguq.acquisition import Budget, Keyed, Strategy, TopK, select, streaming
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
    Budget(regions=25, per_image=2, fill=False),
    Budget(pixels=700),
    Budget(pixels=707),
    Budget(pixels=2207, per_image=1),
    Budget(pixels=700, fill=False),
    Budget(pixels=1100, per_image=1, fill=False),
    Budget(images=5),
    Budget(images=5, fill=False),
    Budget(images=5, per_image=2),
    Budget(clicks=52),
    Budget(cost=lambda row: 1.0, limit=9),
    Budget(cost=lambda row: 0.1 * row["area"], limit=90.3, fill=False),
]

DEEP = [Budget(regions=399), Budget(regions=401), Budget(regions=70, per_image=2)]


def regions(seed=0, count=400):
    """Regions of 30 images in no order, many of equal score."""
    generator = random.Random(seed)
    some = [f"image {i}" for i in range(30)]
    rows = [
        (generator.choice(some), generator.choice([0.0, 0.25, generator.random()]), generator.choice([50, 50, 50, 43]))
        for _ in range(count)
    ]
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
@pytest.mark.parametrize("name", ours())
def test_from_disk_the_same_is_selected_as_from_memory(name, budget, parts, tmp_path, pieces):
    strategy = Strategy.named(name)(**ARGUMENTS.get(name, {}))
    one = regions()
    path = saved(one, tmp_path, parts)
    labeled = []
    for seed in range(2):
        memory, disk = (
            quietly(pool, budget=budget, strategy=strategy, labeled=labeled, seed=seed) for pool in (one, path)
        )
        assert disk.rows == memory.rows and len(disk)
        assert disk.why == memory.why
        labeled.append(disk)


@pytest.mark.parametrize(
    "budget", [Budget(regions=399), Budget(regions=401), Budget(regions=60, per_image=2)], ids=repr
)
def test_a_deep_budget_is_spent_from_disk_too_or_said_to_be_too_large(budget, tmp_path, pieces):
    one = regions()
    said = []
    for pool in (one, saved(one, tmp_path, 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said.append((select(pool, budget=budget).rows, [str(warning.message) for warning in caught]))
    assert said[0] == said[1]


def read_whole(monkeypatch):
    """How often a table is read as a whole."""
    counted, load = [], stored_table.StoredTable.load
    monkeypatch.setattr(stored_table.StoredTable, "load", lambda self: counted.append(self) or load(self))
    return counted


@pytest.mark.parametrize("name", [*KEYED, "CoreSet", "KMeansPlusPlus"])
@pytest.mark.parametrize("budget", [Budget(regions=7), Budget(pixels=349), Budget(clicks=34)], ids=repr)
def test_what_comes_first_is_enough_for_a_small_budget(name, budget, tmp_path, pieces, monkeypatch):
    path = saved(regions(count=4000), tmp_path, 1)
    counted = read_whole(monkeypatch)
    selection = select(path, budget=budget, strategy=Strategy.named(name)(**ARGUMENTS.get(name, {})))
    assert selection.why["regions"] == 4000 and not counted


def test_a_small_region_far_down_is_found_where_only_that_fits(tmp_path, pieces):
    rows = [("a", 1.0 + 1 / (i + 1), 50) for i in range(399)] + [("a", 0.0, 7)]
    one = table(*rows)
    memory, disk = (select(pool, budget=Budget(pixels=507), strategy=TopK()) for pool in (one, saved(one, tmp_path, 1)))
    assert disk.rows == memory.rows and disk.rows[-1]["area"] == 7


@pytest.mark.parametrize("clicks", [500, 501, 504])
def test_a_single_pixel_far_down_is_found_where_only_its_click_fits(clicks, tmp_path, pieces):
    one = table(*[("a", 1.0 + 1 / (i + 1), 50) for i in range(399)], ("a", 0.0, 1))
    memory, disk = (
        select(pool, budget=Budget(clicks=clicks), strategy=TopK()) for pool in (one, saved(one, tmp_path, 1))
    )
    assert disk.rows == memory.rows and len(disk) == 100 + (clicks > 500)


def test_a_very_large_table_that_is_read_whole_is_said_to_be(tmp_path, pieces, monkeypatch, caplog):
    monkeypatch.setattr(streaming, "_MUCH", 400)
    select(saved(regions(), tmp_path, 1), budget=Budget(regions=3), strategy=Strategy.named("ClassBalanced")())
    assert "regions.parquet is read into memory as a whole for ClassBalanced()" in caplog.text


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
