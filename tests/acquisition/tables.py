"""Tables of regions to select from."""

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
                "y1": 5,
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
