"""Figures of regions: for each region, a walk over the pixels of the image."""

import math

import numpy as np


def _pixels(labels, region):
    return [(y, x) for y in range(labels.shape[0]) for x in range(labels.shape[1]) if labels[y, x] == region]


def region_scores(values, labels, num_regions, aggregate):
    score, area = [], []
    for region in range(num_regions):
        inside = [float(values[pixel]) for pixel in _pixels(labels, region)]
        area.append(len(inside))
        if not inside:
            score.append(math.nan)
        elif aggregate == "max":
            score.append(max(inside))
        else:
            score.append(math.fsum(inside) / (len(inside) if aggregate == "mean" else 1))
    return np.array(score, dtype=np.float64), np.array(area, dtype=np.int64)


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
