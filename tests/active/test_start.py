"""The first labels: every class twice where labels are known, and the rest by chance or by features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from seguq.acquisition import Budget, KMeansPlusPlus, Random
from seguq.active.run_folder import RunFolder
from seguq.active.start import _EveryClassTwice
from seguq.annotators import Oracle
from seguq.regions import Grid, RegionTable
from tests.active.small_loop import make_loop, rows_of, write_data

SIZE, CELL = 16, 4


def table(ids):
    """A grid of cells of each image, all alike."""
    cells = [(y, x) for y in range(0, SIZE, CELL) for x in range(0, SIZE, CELL)]
    rows = [
        {"image_id": image_id, "region_id": number, "y0": y, "x0": x, "y1": y + CELL, "x1": x + CELL, "area": CELL**2,
         "score": 0.5, "predicted_class": 0}
        for image_id in ids for number, (y, x) in enumerate(cells)
    ]  # fmt: skip
    return RegionTable(pa.Table.from_pylist(rows))


def share(truth, row, index):
    return (truth[row["y0"] : row["y1"], row["x0"] : row["x1"]] == index).mean()


def chosen(strategy, pool, budget, seed=0):
    return pool.take(strategy.choose(pool, budget, [], np.random.default_rng(seed))).rows()


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_there_twice_also_a_rare_one(seed):
    """A class that only 3 cells of 20 images hold, of which a third or less is that class."""
    ids = [f"i{number}" for number in range(20)]
    generator = np.random.default_rng(seed)
    masks = {image_id: np.zeros((SIZE, SIZE), int) for image_id in ids}
    for image_id in ids[::2]:
        masks[image_id][:8] = 1
    rare = generator.choice(ids, 3, replace=False)
    for image_id in rare:
        masks[image_id][12:14, 12:14] = 2  # a quarter of a cell
    found = chosen(_EveryClassTwice(Random(), masks.__getitem__, 3), table(ids), Budget(regions=10), seed)
    assert len(found) == 10
    for index in range(3):
        assert sum(share(masks[row["image_id"]], row, index) >= 0.1 for row in found) >= 2


def test_a_trace_of_a_class_does_not_count():
    mask = np.zeros((SIZE, SIZE), int)
    mask[0, 0] = 1  # a sixteenth of a cell
    mask[8:12, 8:12] = 1
    mask[4:8, 4:8] = 1
    found = chosen(_EveryClassTwice(Random(), lambda image_id: mask, 2), table(["a"]), Budget(regions=4))
    assert {5, 10} <= {row["region_id"] for row in found}


def test_a_class_that_is_nowhere_and_what_is_ignored_do_no_harm():
    mask = np.zeros((SIZE, SIZE), int)
    mask[:8] = 255
    found = chosen(_EveryClassTwice(Random(), lambda image_id: mask, 3), table(["a", "b"]), Budget(regions=6))
    assert len({(row["image_id"], row["region_id"]) for row in found}) == 6


@pytest.mark.parametrize(
    "budget", [Budget(regions=3), Budget(pixels=50), Budget(images=1), Budget(clicks=12)], ids=repr
)
def test_it_keeps_to_the_budget(budget):
    masks = {name: np.arange(SIZE * SIZE).reshape(SIZE, SIZE) // 64 for name in "abc"}
    pool = table("abc")
    strategy = _EveryClassTwice(Random(), masks.__getitem__, 4)
    rows = strategy.choose(pool, budget, [], np.random.default_rng(0))
    assert len(set(rows.tolist())) == len(rows) > 0
    limit = next(value for name, value in budget.as_dict().items() if value)
    assert budget.spent(pool, rows) <= limit


def test_the_rest_is_what_the_other_strategy_takes():
    """Where nothing is known, all of it; and one seed chooses alike."""
    pool = table("abc")
    nothing = _EveryClassTwice(Random(), lambda image_id: np.full((SIZE, SIZE), 255), 3)
    one, other = (chosen(nothing, pool, Budget(regions=8), 4) for _ in range(2))
    assert one == other
    assert chosen(nothing, pool, Budget(regions=8), 5) != one
    assert len(one) == 8


@pytest.mark.parametrize("start", [None, KMeansPlusPlus()], ids=repr)
def test_a_loop_begins_with_every_class(shared_path, tmp_path, start):
    root = write_data(shared_path / "data", pool=4)
    loop = make_loop(root, tmp_path / "run", start=start, rounds=1, calibrator=None, partition=Grid(4))
    loop.run()
    oracle, rows = Oracle(root / "masks" / "pool"), rows_of(tmp_path / "run", 0)
    for index in range(3):
        assert sum(share(oracle.truth(row["image_id"]), row, index) >= 0.1 for row in rows) >= 2
    names = RegionTable.load(RunFolder(tmp_path / "run").table(0)).table.column_names
    assert ("features" in names) is (start is not None)
    assert all(row["reason"].startswith("first labels") for row in rows)
