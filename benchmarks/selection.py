"""What a selection from a large pool costs: time and memory, each in a process of its own.

python benchmarks/selection.py [ROWS ...]             from a table in memory: memory beyond the table itself
python benchmarks/selection.py --disk [ROWS ...]      from a Parquet file, beside Arrow reading and sorting its scores
(Linux: the peak is read from /proc)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

PER_IMAGE = 100
BUDGETS = {
    "1,000 regions": {"regions": 1000},
    "1 million pixels": {"pixels": 1_000_000},
    "100 images": {"images": 100},
    "1,000 regions, 2 of an image": {"regions": 1000, "per_image": 2},
    "1,000 regions, after 1,000 that are labeled": {"regions": 1000},
}


FROM_DISK = (("TopK", {"regions": 1000}), ("Random", {"regions": 1000}), ("PowerTopK", {"regions": 1000}))
FROM_DISK += tuple(("BestOfEachImage", budget) for name, budget in BUDGETS.items() if "labeled" not in name)


def table(rows: int, first: int = 0):
    """Regions of a grid of ten by ten in each image, in the order of `merge_shards`."""
    from seguq.regions import RegionTable

    images, cells = np.arange(first, first + rows) // PER_IMAGE, np.arange(rows) % PER_IMAGE
    y0, x0 = cells // 10 * 32, cells % 10 * 32
    columns = {
        "image_id": pa.array(np.char.add("camera/", np.char.zfill(images.astype("U"), 8))),
        "region_id": cells,
        "y0": y0,
        "x0": x0,
        "y1": y0 + 32,
        "x1": x0 + 32,
        "area": np.full(rows, 1024),
        "score": np.random.default_rng(first).random(rows),
        "predicted_class": cells % 7,
    }
    return RegionTable(pa.table(columns), {"by": "mutual_information", "partition": "Grid(size=32)"})


def measure(rows: int, name: str) -> None:
    """One selection; what it took, as JSON."""
    from seguq.acquisition import Budget, Selection, TopK, select

    pool = table(rows)
    earlier = []
    if "labeled" in name:
        rows = pool.table.take(pa.array(np.linspace(0, len(pool) - 1, 1000).astype(int))).to_pylist()
        earlier = [Selection([{"rank": rank, **row} for rank, row in enumerate(rows, 1)], dict(pool.meta))]
    try:
        budget = Budget(**BUDGETS[name])
    except TypeError:  # of a version without per_image
        print("null")
        return
    select(table(200), budget=Budget(regions=1), strategy=TopK())  # what is loaded or made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    begin = time.process_time()
    select(pool, budget=budget, strategy=TopK(), labeled=earlier)
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "mib": (status("VmHWM") - before) / 1024}))


def write(path: Path, rows: int) -> None:
    """A table of so many rows, a million at a time."""
    import pyarrow.parquet as pq

    from seguq.regions.table import schema_metadata

    writer = None
    for first in range(0, rows, 1_000_000):
        part = table(min(1_000_000, rows - first), first)
        schema = part.table.schema.with_metadata(schema_metadata(part.meta))
        writer = writer or pq.ParquetWriter(path, schema, write_page_checksum=True)
        writer.write_table(part.table)
    writer.close()


def measure_disk(path: str, name: str, limits: str) -> None:
    """One selection from a file, or Arrow's reading and sorting of its scores; what it took, as JSON."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from seguq.acquisition import Budget, Selection, Strategy, select

    earlier, budget = [], json.loads(limits)
    if budget.pop("labeled", False):
        from seguq.store.stored_table import StoredTable

        stored = StoredTable(path)
        rows = stored.take(np.linspace(0, len(stored) - 1, 1000).astype(int)).rows()
        earlier = [Selection([{"rank": rank, **row} for rank, row in enumerate(rows, 1)])]
    strategy = None if name == "Arrow" else Strategy.named(name)()
    select(table(200), budget=Budget(regions=1))  # what is loaded or made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, begin = status("VmRSS"), time.process_time()
    if strategy is None:
        pc.sort_indices(pq.read_table(path, columns=["score"]), [("score", "descending")])
    else:
        select(path, budget=Budget(**budget), strategy=strategy, labeled=earlier)
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "mib": (status("VmHWM") - before) / 1024}))


def from_disk(sizes: list[int]) -> None:
    """Print a table of strategies and sizes."""
    print("| rows | strategy | budget | processor time | memory at the peak |\n|---|---|---|---|---|")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "regions.parquet"
            write(path, rows)
            for name, budget in (("Arrow", {}), *FROM_DISK, ("BestOfEachImage", {"regions": 1000, "labeled": True})):
                words = [sys.executable, __file__, "--measure-disk", str(path), name, json.dumps(budget)]
                out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
                found = json.loads(out.splitlines()[-1])
                what = ", ".join(f"{key} {value:,}" for key, value in budget.items()) or "reads and sorts the scores"
                row = f"| {rows:,} | {name} | {what} | {found['seconds']:.2f} s | {found['mib']:.0f} MiB |"
                print(row, flush=True)


def status(name: str) -> int:
    """A line of what Linux says of this process, in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


def main(sizes: list[int]) -> None:
    """Print a table of all budgets and sizes."""
    print("| rows | budget | processor time | more memory at the peak |\n|---|---|---|---|")
    for rows in sizes:
        for name in BUDGETS:
            words = [sys.executable, __file__, "--measure", str(rows), name]
            out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            found = json.loads(out.splitlines()[-1])
            if found is not None:
                print(f"| {rows:,} | {name} | {found['seconds']:.2f} s | {found['mib']:.0f} MiB |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["--measure-disk"]:
        measure_disk(*sys.argv[2:5])
    elif sys.argv[1:2] == ["--disk"]:
        from_disk([int(word) for word in sys.argv[2:]] or [10_000_000, 20_000_000])
    else:
        main([int(word) for word in sys.argv[1:]] or [300_000, 3_000_000])
