"""The examples of CONTRIBUTING.md run as they stand, and keep what all of their kind promise."""

import re
from pathlib import Path

import numpy as np

from seguq import acquisition
from seguq.calibration import Calibrator
from seguq.regions import RegionTable
from seguq.testing import check_calibrator
from tests.acquisition.tables import table

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def run():
    found = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, found)
    return found


def test_the_calibrator_is_known_by_its_name_and_keeps_what_all_promise():
    made = run()["HalfWay"](share=0.4)
    assert Calibrator.named("half_way") is type(made)
    check_calibrator(made)


def test_the_strategy_ranks_by_area():
    strategy = run()["Largest"](least=1)
    pool = table(("a", 1.0, 30), ("a", 2.0, 50), ("b", 0.5, 10))
    assert isinstance(pool, RegionTable) and isinstance(strategy, acquisition.Ranked)
    area = pool.column("area")[strategy.rank(pool, np.random.default_rng(0))]
    assert (np.diff(area) <= 0).all() and len(area) == len(pool)


def test_every_file_that_it_names_is_there():
    root = Path(__file__).parent.parent
    names = re.findall(r"`((?:tests|seguq|benchmarks)/[\w./]+)`", TEXT)
    assert len(names) >= 5
    assert [name for name in names if not (root / name).exists()] == []
