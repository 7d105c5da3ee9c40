"""Conformal risk control as it is written down: try every threshold, one image and one pixel after the other."""

import itertools
import math

import numpy as np


def true_pairs(probs, target, task, ignore_index=255):
    """Of one image ``(C, *spatial)``: the probability of each class that a pixel has, and whether it is the largest."""
    found = []
    for where in np.ndindex(*target.shape):
        label = int(target[where])
        if label == ignore_index or (task != "multiclass" and label == 0):
            continue
        if task == "multiclass":
            p = [float(probs[(c, *where)]) for c in range(len(probs))]
            found.append((p[label], p[label] == max(p)))
        else:
            found.append((float(probs[where if task == "multilabel" else (0, *where)]), False))
    return found


def wrong_pairs(probs, target, task, ignore_index=255):
    """The probability of each class that a labeled pixel does not have."""
    found = []
    for where in np.ndindex(*target.shape):
        label = int(target[where])
        if label == ignore_index:
            continue
        if task == "multiclass":
            found += [float(probs[(c, *where)]) for c in range(len(probs)) if c != label]
        elif label == 0:
            found.append(float(probs[where if task == "multilabel" else (0, *where)]))
    return found


def miss(pairs, threshold):
    """The share of pairs of `true_pairs` that are not in the sets."""
    return sum(not (largest or p >= threshold) for p, largest in pairs) / len(pairs)


def false_positive(pairs, threshold):
    """The share of pairs of `wrong_pairs` that are in the sets."""
    return sum(p >= threshold for p in pairs) / len(pairs)


def keeps(losses, alpha):
    """The condition of conformal risk control, of the losses of all units."""
    return (sum(losses) + 1) / (len(losses) + 1) <= alpha


def grid_below(p):
    """The largest number with five binary digits behind the leading one that is at most p."""
    if p <= 0:
        return 0.0
    mantissa, exponent = math.frexp(p)  # p = mantissa 2^exponent, mantissa in [.5, 1)
    return math.ldexp(math.floor(mantissa * 64), exponent - 6)


def grid_above(p):
    """The smallest such number that is larger than p."""
    below = grid_below(p)
    _, exponent = math.frexp(below)
    return math.ldexp(math.ldexp(below, 6 - exponent) + 1, exponent - 6)


def largest_threshold(units, loss, alpha):
    """The largest threshold, of all, that keeps a loss which rises with it."""
    candidates = sorted({p for pairs in units for p, _ in pairs} | {0.0, 1.0}, reverse=True)
    return next(t for t in candidates if keeps([loss(pairs, t) for pairs in units], alpha))


def smallest_threshold(units, loss, alpha):
    """The probability above which a threshold keeps a loss that falls with it; None where each does."""
    candidates = sorted({p for pairs in units for p in pairs})
    kept = [t for t in [*candidates, 2.0] if keeps([loss(pairs, t) for pairs in units], alpha)]
    return None if kept[0] == candidates[0] else max(p for p in candidates if p < kept[0])


def grown(mask):
    """A mask after one 3 x 3 (3 x 3 x 3) dilation, one pixel after the other."""
    out = np.zeros_like(mask)
    for where in zip(*np.nonzero(mask), strict=True):
        for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
            place = tuple(i + d for i, d in zip(where, step, strict=True))
            if all(0 <= i < n for i, n in zip(place, mask.shape, strict=True)):
                out[place] = True
    return out


def least_margin(images, coverage):
    """The least number of dilations after which the masks of ``(predicted, true)`` images cover enough; or infinity."""
    masks = [predicted.astype(bool) for predicted, _ in images]
    total = sum(int((true == 1).sum()) for _, true in images)
    for margin in range(max(max(mask.shape) for mask in masks) + 1):
        inside = sum(int((mask & (true == 1)).sum()) for mask, (_, true) in zip(masks, images, strict=True))
        if inside / total >= coverage:
            return margin
        masks = [grown(mask) for mask in masks]
    return math.inf


def quantile(scores, alpha):
    """The ``ceil((n + 1) (1 - alpha))``-th smallest of n scores, by trying each."""
    return next(s for s in sorted(scores) if keeps([float(other > s) for other in scores], alpha))
