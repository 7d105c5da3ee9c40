"""What a selection from a large pool costs: time and memory beyond the table itself, each in a process of its own.

python benchmarks/selection.py [ROWS ...]     (Linux: the peak is read from /proc)
"""

from __future__ import annotations

import json
import subprocess
import sys
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


def table(rows: int):
    """Regions of a grid of ten by ten in each image, in the order of `merge_shards`."""
    from seguq.regions import RegionTable

    images, cells = np.arange(rows) // PER_IMAGE, np.arange(rows) % PER_IMAGE
    y0, x0 = cells // 10 * 32, cells % 10 * 32
    columns = {
        "image_id": pa.array(np.char.add("camera/", np.char.zfill(images.astype("U"), 8))),
        "region_id": cells,
        "y0": y0,
        "x0": x0,
        "y1": y0 + 32,
        "x1": x0 + 32,
        "area": np.full(rows, 1024),
        "score": np.random.default_rng(0).random(rows),
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
    else:
        main([int(word) for word in sys.argv[1:]] or [300_000, 3_000_000])
