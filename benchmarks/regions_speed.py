"""What scores of regions cost, against what scikit-image, SciPy and NumPy take for the same, in turn in one run.

    python benchmarks/regions_speed.py [MAPS]       (1,000 by default; some minutes)

Maps of 512 x 512 pixels of random values, cut into 200 superpixels of scikit-image's photographs. One thread; where
results differ by more than rounding the benchmark ends with an error.
"""

from __future__ import annotations

import statistics
import sys

import numpy as np
import torch
from in_turn import in_turn
from scipy import ndimage
from skimage import data, measure, transform

from seguq.functional.aggregates import AGGREGATES, aggregate_named
from seguq.functional.runs import Runs
from seguq.inference import UncertaintyMaps
from seguq.regions import Partition, Superpixels, score

SIDE, COUNT, CLASSES = 512, 200, 11
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def cuts() -> list[np.ndarray]:
    """Superpixels of photographs, and of these turned."""
    found = []
    for name in PHOTOGRAPHS:
        image = (transform.resize(getattr(data, name)(), (SIDE, SIDE), anti_aliasing=True) * 255).astype(np.uint8)
        for turns in range(2):
            found.append(Superpixels(COUNT)(np.rot90(image, turns)).numpy())
    return found


class Prepared(Partition):
    """Label maps that are there already, one after the other."""

    def __init__(self, labels: list[np.ndarray]) -> None:
        self.labels = labels
        self.seen = 0

    def __call__(self, image, maps=None):
        self.seen += 1
        return torch.from_numpy(self.labels[(self.seen - 1) % len(self.labels)])


def ways_of_mean(labels, values):
    """The mean of each region."""
    index = np.arange(labels.max() + 1)
    return {
        "seguq": lambda: (runs := Runs(labels, len(index))).sums(values) / runs.area,
        "NumPy, bincount": lambda: (
            np.bincount(labels.ravel(), weights=values.ravel(), minlength=len(index))
            / np.bincount(labels.ravel(), minlength=len(index))
        ),
        "SciPy, ndimage.mean": lambda: ndimage.mean(values, labels, index),
        "scikit-image, regionprops_table": lambda: measure.regionprops_table(
            labels + 1, values, properties=("label", "intensity_mean")
        )["intensity_mean"],
    }


def ways_of_four(labels, values):
    """Mean, maximum, area and bounding box of each region, one row each."""
    index = np.arange(labels.max() + 1)

    def ours():
        runs = Runs(labels, len(index))
        return np.stack((runs.sums(values) / runs.area, runs.maxima(values), runs.area, *runs.boxes.T))

    def scipy():
        slices = ndimage.find_objects(labels + 1)
        boxes = np.array([[y.start, x.start, y.stop, x.stop] for y, x in slices])
        area = np.bincount(labels.ravel(), minlength=len(index))
        return np.stack((ndimage.mean(values, labels, index), ndimage.maximum(values, labels, index), area, *boxes.T))

    def scikit_image():
        properties = ("label", "intensity_mean", "intensity_max", "area", "bbox")
        found = measure.regionprops_table(labels + 1, values, properties=properties)
        return np.stack([found[name] for name in ("intensity_mean", "intensity_max", "area", *_BOX)])

    return {"seguq": ours, "SciPy, ndimage": scipy, "scikit-image, regionprops_table": scikit_image}


_BOX = tuple(f"bbox-{i}" for i in range(4))


def ways_of_quantile(labels, values):
    """The .9 quantile of each region."""
    index = np.arange(labels.max() + 1)
    quantile = aggregate_named("quantile(0.9)")
    return {
        "seguq": lambda: quantile(values, Runs(labels, len(index))),
        "SciPy, labeled_comprehension": lambda: ndimage.labeled_comprehension(
            values.astype(np.float64), labels, index, lambda part: np.quantile(part, 0.9), float, np.nan
        ),
    }


def ways_of_six(labels, values):
    """The six aggregates that read no classes."""
    names = ("mean", "sum", "max", "quantile(0.9)", "top_k_mean(0.1)", "threshold_mean(0.5)")
    found, count = [aggregate_named(name) for name in names], int(labels.max()) + 1

    def ours():
        runs = Runs(labels, count)
        return np.stack([aggregate(values, runs) for aggregate in found])

    def total(mask, image):
        return image[mask].sum(dtype=np.float64)

    def quantile(mask, image):
        return np.quantile(image[mask].astype(np.float64), 0.9)

    def top(mask, image):
        inside = np.sort(image[mask])
        return inside[-int(np.ceil(0.1 * len(inside) - 1e-9)) :].mean(dtype=np.float64)

    def above(mask, image):
        inside = image[mask]
        return inside[inside > 0.5].sum(dtype=np.float64) / max(1, (inside > 0.5).sum())

    def scikit_image():
        table = measure.regionprops_table(
            labels + 1,
            values,
            properties=("intensity_mean", "intensity_max"),
            extra_properties=(total, quantile, top, above),
        )
        return np.stack([table[n] for n in ("intensity_mean", "total", "intensity_max", "quantile", "top", "above")])

    return {"seguq": ours, "scikit-image, regionprops_table": scikit_image}


def ways_of_all(labels, values):
    """All eight aggregates of seguq, of one partition."""
    classes = np.random.default_rng(0).integers(0, CLASSES, (SIDE // 16, SIDE // 16)).repeat(16, 0).repeat(16, 1)
    found = [aggregate_named("threshold_mean(0.5)" if name == "threshold_mean" else name) for name in AGGREGATES]
    count = int(labels.max()) + 1

    def ours():
        runs = Runs(labels, count)
        return np.stack([aggregate(values, runs, classes) for aggregate in found])

    return {"seguq": ours}


def compare(title: str, ways_of, cut, maps: int) -> None:
    """Print the time of each way, over so many maps."""
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    for number in range(maps):
        labels, values = cut[number % len(cut)], random.random((SIDE, SIDE), dtype=np.float32)
        ways = ways_of(labels, values)
        if number < len(cut):
            first, *others = (np.asarray(way(), np.float64) for way in ways.values())
            assert all(np.allclose(first, other, rtol=1e-5) for other in others), title
        for name, spent in in_turn(ways, 1).items():
            times.setdefault(name, []).extend(spent)
    ours = statistics.median(times["seguq"])
    for name, spent in times.items():
        median = statistics.median(spent)
        ratio = "" if name == "seguq" else f"{median / ours:.1f}"
        print(f"| {title} | {name} | {median * 1e3:.2f} | {ratio} |", flush=True)


def whole_tables(cut, maps: int) -> None:
    """The table of regions with classes and run lengths, from maps in memory."""
    random = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(1, CLASSES, SIDE // 16, SIDE // 16, generator=random), 1)
    probs = torch.nn.functional.interpolate(probs, (SIDE, SIDE), mode="bilinear")
    made = UncertaintyMaps(probs, {"variance": torch.rand(1, SIDE, SIDE, generator=random)}, ["a"])
    _ = made.prediction
    spent = []
    for number in range(maps):
        partition = Prepared(cut[number % len(cut) :])
        spent += in_turn({"": lambda partition=partition: score(made, partition, by="variance")}, 1)[""]
    median = statistics.median(spent) * 1e3
    print(f"| the whole table, with classes and run lengths | seguq, regions.score | {median:.2f} | |")


def main(maps: int = 1000) -> None:
    """All comparisons."""
    torch.set_num_threads(1)
    cut = cuts()
    print(f"{maps} maps of {SIDE} x {SIDE}, {COUNT} superpixels: milliseconds a map, median\n")
    print("| what | way | ms | times seguq |\n|---|---|---|---|", flush=True)
    compare("mean", ways_of_mean, cut, maps)
    compare("mean, maximum, area, box", ways_of_four, cut, maps)
    compare("quantile(0.9)", ways_of_quantile, cut, min(maps, 200))
    compare("six aggregates", ways_of_six, cut, min(maps, 200))
    compare("all eight aggregates", ways_of_all, cut, min(maps, 200))
    whole_tables(cut, min(maps, 200))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
