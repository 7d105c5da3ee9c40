"""Tables of regions to select from."""

import numpy as np
import pyarrow as pa

from seguq.regions import RegionTable

META = {"by": "variance", "aggregate": "mean", "partition": "Grid(size=2)", "estimator": "deterministic"}


def table(*rows, meta=META):
    """A table of ``(image_id, score[, area])``; the regions of an image are numbered as they come."""
    content, seen = [], {}
    for image_id, score, *area in rows:
        number = seen[image_id] = seen.get(image_id, -1) + 1
        content.append(
            {
                "image_id": image_id,
                "region_id": number,
                "y0": 0,
                "x0": 10 * number,
                "y1": max(5, -(-area[0] // 10)) if area else 5,
                "x1": 10 * number + 10,
                "area": area[0] if area else 50,
                "score": float(score),
                "predicted_class": number % 3,
            }
        )
    return RegionTable(pa.Table.from_pylist(content), meta)


def shuffled(regions, order):
    """The same table with its rows in another order."""
    return RegionTable(regions.table.take(pa.array(list(order), pa.int64())), regions.meta)


def names(selection):
    """The regions of a selection, in order."""
    return [(row["image_id"], row["region_id"]) for row in selection.rows]


def with_columns(regions, classes=3, features=4, seed=0):
    """The same table with the further columns that some strategies read."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(classes, 0.3), len(regions)).astype(np.float32)
    shares[::3] = np.eye(classes, dtype=np.float32)[generator.integers(classes, size=len(shares[::3]))]
    columns = {
        "class_shares": (shares, pa.float32()),
        "class_probs": (generator.dirichlet(np.ones(classes), len(regions)).astype(np.float32), pa.float32()),
        "class_scores": (generator.random((len(regions), classes)).astype(np.float32), pa.float32()),
        "features": (generator.normal(size=(len(regions), features)).astype(np.float16), pa.float16()),
    }
    grown = regions.table
    for name, (values, kind) in columns.items():
        grown = grown.append_column(
            name, pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), values.shape[1])
        )
    return RegionTable(grown, regions.meta)
