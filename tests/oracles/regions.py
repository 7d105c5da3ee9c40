"""Figures of regions: for each region, a walk over the pixels of the image."""

import math

import numpy as np


def _pixels(labels, region):
    return [(y, x) for y in range(labels.shape[0]) for x in range(labels.shape[1]) if labels[y, x] == region]


def region_scores(values, labels, num_regions, aggregate, classes=None):
    score, area = [], []
    for region in range(num_regions):
        pixels = _pixels(labels, region)
        inside = [float(values[pixel]) for pixel in pixels]
        area.append(len(inside))
        score.append(_aggregated(aggregate, inside, pixels, classes) if inside else math.nan)
    return np.array(score, dtype=np.float64), np.array(area, dtype=np.int64)


def _aggregated(aggregate, inside, pixels, classes):
    name, _, argument = aggregate.rstrip(")").partition("(")
    mean = math.fsum(inside) / len(inside)
    if name in ("mean", "sum", "max"):
        return {"mean": mean, "sum": math.fsum(inside), "max": max(inside)}[name]
    number = float(argument)
    if name == "quantile":
        return np.quantile(np.array(inside, dtype=np.float64), number)
    if name == "top_k_mean":
        count = max(1, math.ceil(number * len(inside) - 1e-9))
        return math.fsum(sorted(inside)[-count:]) / count
    if name == "threshold_mean":
        chosen = [value for value in inside if value > number]
        return math.fsum(chosen) / max(1, len(chosen))
    if name == "nonborder_mean":
        chosen = [v for v, pixel in zip(inside, pixels, strict=True) if not _near_border(classes, pixel, int(number))]
        return math.fsum(chosen) / max(1, len(chosen))
    assert name == "foreground_mean"
    return math.fsum(inside) / max(1, sum(classes[pixel] != number for pixel in pixels))


def _near_border(classes, pixel, distance):
    y, x = pixel
    window = classes[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
    return len(set(window.ravel().tolist())) > 1


def region_impurity(classes, num_classes, radius):
    """Entropy of the classes in each pixel's window."""
    out = np.zeros(classes.shape)
    for y in range(classes.shape[0]):
        for x in range(classes.shape[1]):
            window = classes[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            shares = [np.mean(window == number) for number in range(num_classes)]
            out[y, x] = -sum(share * math.log(share) for share in shares if share > 0) / math.log(num_classes)
    return out


def window_mean(values, radius):
    """The mean over each pixel's window."""
    out = np.zeros(values.shape)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[y, x] = values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].mean()
    return out


def region_boxes(labels, num_regions):
    boxes = np.zeros((num_regions, 4), dtype=np.int64)
    for region in range(num_regions):
        inside = _pixels(labels, region)
        if inside:
            ys, xs = zip(*inside, strict=True)
            boxes[region] = min(ys), min(xs), max(ys) + 1, max(xs) + 1
    return boxes


def region_majority(classes, labels, num_regions, num_classes):
    majority = np.zeros(num_regions, dtype=np.int64)
    for region in range(num_regions):
        votes = [0] * num_classes
        for pixel in _pixels(labels, region):
            votes[int(classes[pixel])] += 1
        majority[region] = votes.index(max(votes))
    return majority


def run_lengths(mask):
    """COCO's counts: down each column, pixels outside and inside by turns."""
    counts, inside = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != inside:
                inside = not inside
                counts.append(0)
            counts[-1] += 1
    return counts


def filled(polygons, height, width):
    """Which pixels' centers lie in a polygon: those with an odd number of sides to their left."""
    mask = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            crossed = 0
            for rings in polygons:
                for ring in rings:
                    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
                        crossed += ax == bx and ax <= x and min(ay, by) <= y < max(ay, by)
            mask[y, x] = crossed % 2 == 1
    return mask


def _around(y, x, connectivity, shape):
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    for dy, dx in steps:
        if (connectivity == 8 or dy == 0 or dx == 0) and 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]:
            yield y + dy, x + dx


def _numbered(labels):
    """The same regions, numbered by their first pixel, row by row."""
    numbers = {}
    return np.array([[-1 if v < 0 else numbers.setdefault(int(v), len(numbers)) for v in row] for row in labels])


def components(classes, connectivity):
    """Parts of one class, by flooding; -1 where there is no class."""
    labels, count = np.full(classes.shape, -1), 0
    for start in np.ndindex(classes.shape):
        if labels[start] >= 0 or classes[start] < 0:
            continue
        labels[start], todo = count, [start]
        while todo:
            for pixel in _around(*todo.pop(), connectivity, classes.shape):
                if labels[pixel] < 0 and classes[pixel] == classes[start]:
                    labels[pixel] = count
                    todo.append(pixel)
        count += 1
    return labels


def merged(labels, min_area):
    """Each part that is too small joins the neighbor of the longest border, all at once, until none is left."""
    labels = _numbered(labels)
    while True:
        choices = {}
        for region in range(labels.max() + 1):
            inside = _pixels(labels, region)
            borders = {}
            for pixel in inside:
                for other in _around(*pixel, 4, labels.shape):
                    if labels[other] not in (region, -1):
                        borders[int(labels[other])] = borders.get(int(labels[other]), 0) + 1
            if len(inside) < min_area and borders:
                choices[region] = min(borders, key=lambda other: (-borders[other], other))
        if not choices:
            return labels
        group = {region: {region} for region in range(labels.max() + 1)}
        for region, other in choices.items():
            together = group[region] | group[other]
            for member in together:
                group[member] = together
        labels = _numbered([[-1 if v < 0 else min(group[int(v)]) for v in row] for row in labels])


def largest_pixels(values, count, min_distance):
    """All pixels from the largest down; each that is far enough from those before it is taken."""
    order = sorted(np.ndindex(values.shape), key=lambda pixel: (-values[pixel], pixel))
    taken = []
    for y, x in order:
        if len(taken) < count and all(max(abs(y - v), abs(x - u)) >= min_distance for v, u in taken):
            taken.append((y, x))
    labels = np.full(values.shape, -1)
    for number, pixel in enumerate(sorted(taken)):
        labels[pixel] = number
    return labels


def best_boxes(values, size, count):
    """All boxes from the largest sum down; each that overlaps none before it is taken."""
    height, width = min(size, values.shape[0]), min(size, values.shape[1])
    corners = [(y, x) for y in range(values.shape[0] - height + 1) for x in range(values.shape[1] - width + 1)]
    sums = {(y, x): math.fsum(map(float, values[y : y + height, x : x + width].flat)) for y, x in corners}
    labels, taken = np.full(values.shape, -1), []
    for y, x in sorted(corners, key=lambda corner: (-sums[corner], corner)):
        if len(taken) < count and (labels[y : y + height, x : x + width] < 0).all():
            taken.append((y, x))
            labels[y : y + height, x : x + width] = 0
    for number, (y, x) in enumerate(sorted(taken)):
        labels[y : y + height, x : x + width] = number
    return labels
