"""Ranking figures from plain lists of scores: every pair, every threshold, every share that is accepted."""

from itertools import groupby, pairwise, permutations

import numpy as np


def area_under_roc(negatives, positives):
    """The share of pairs in which the positive scores above the negative, ties counted half."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def average_precision(negatives, positives):
    """Over the thresholds from the top: the gain in recall times the precision."""
    area, recall = 0.0, 0.0
    for threshold in sorted({*negatives, *positives}, reverse=True):
        hits = sum(p >= threshold for p in positives)
        taken = hits + sum(n >= threshold for n in negatives)
        area += (hits / len(positives) - recall) * hits / taken
        recall = hits / len(positives)
    return area


def fpr_at_tpr(negatives, positives, percent=95):
    """The share of negatives at or above the highest threshold that keeps ``percent`` of the positives."""
    for threshold in sorted({*negatives, *positives}, reverse=True):
        if 100 * sum(p >= threshold for p in positives) >= percent * len(positives):
            return sum(n >= threshold for n in negatives) / len(negatives)
    raise ValueError("no positive")


def expected_errors(negatives, positives, accepted):
    """Positives among the ``accepted`` lowest scores, on average over the orders of those that tie at the last one."""
    last = sorted([*negatives, *positives])[accepted - 1]
    below = sum(n < last for n in negatives) + sum(p < last for p in positives)
    tied = sum(n == last for n in negatives) + sum(p == last for p in positives)
    chance = sum(p == last for p in positives) / tied
    return sum(p < last for p in positives) + (accepted - below) * chance


def area_under_risk_coverage(negatives, positives):
    """Accept one more, from the lowest score up, and take the mean of the error rates."""
    total = len(negatives) + len(positives)
    risks = [expected_errors(negatives, positives, accepted) / accepted for accepted in range(1, total + 1)]
    return sum(risks) / total


def area_under_risk_coverage_of_every_order(negatives, positives):
    """The mean over each order of the items that never falls in score, one by one; for a handful of items."""
    items = [(n, 0) for n in negatives] + [(p, 1) for p in positives]
    areas = []
    for order in permutations(items):
        scores, wrong = [score for score, _ in order], [label for _, label in order]
        if scores == sorted(scores):
            areas.append(sum(sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)) / len(wrong))
    return sum(areas) / len(areas)


def area_under_generalized_risk_coverage(negatives, positives):
    """Trapezoids under the share of all that is wrong and accepted, over the share accepted, one step a threshold."""
    total = len(negatives) + len(positives)
    area, coverage, risk = 0.0, 0.0, 0.0
    for threshold in sorted({*negatives, *positives}):
        wrong = sum(p <= threshold for p in positives)
        next_coverage, next_risk = (wrong + sum(n <= threshold for n in negatives)) / total, wrong / total
        area += (next_coverage - coverage) * (risk + next_risk) / 2
        coverage, risk = next_coverage, next_risk
    return area


def area_under_sparsification_error(negatives, positives):
    """Remove one after the other, the highest score first or the wrong ones first: the mean of the difference."""
    total, area = len(negatives) + len(positives), 0.0
    for removed in range(total):
        rest = total - removed
        of_oracle = max(len(positives) - removed, 0)
        area += (expected_errors(negatives, positives, rest) - of_oracle) / rest
    return area / total


def balanced_curve(uncertainty, error, target):
    """Accepted share and wrong share after each distinct score, where each class has the same share of the whole."""
    weight = {c: 1 / (len(set(target)) * target.count(c)) for c in set(target)}
    accepted, wrong = [0.0], [0.0]
    pixels = sorted(zip(uncertainty, error, target, strict=True))
    for _, tied in groupby(pixels, key=lambda pixel: pixel[0]):
        here = [(weight[c], weight[c] * e) for _, e, c in tied]
        accepted.append(accepted[-1] + sum(w for w, _ in here))
        wrong.append(wrong[-1] + sum(w for _, w in here))
    return np.array(accepted), np.array(wrong)


def areas_under_balanced_curve(uncertainty, error, target):
    """AURC, AUGRC and AUSE by quadrature of the curve, which is interpolated within scores that tie."""
    accepted, wrong = balanced_curve(uncertainty, error, target)
    return {
        "aurc": area_under_rates(accepted, wrong),
        "augrc": sum(np.diff(accepted) * (wrong[1:] + wrong[:-1]) / 2),
        "ause": area_under_rates(accepted, wrong) - area_under_rates(*best_curve(wrong[-1])),
    }


def best_curve(rate):
    """Accepted and wrong share where all that is right comes first."""
    return np.array([0, 1 - rate, 1]), np.array([0, 0, rate])


def area_under_rates(accepted, wrong):
    """The integral of wrong / accepted, by Gauss's rule over the logarithm of what is accepted in each step."""
    steps = np.concatenate([[True], np.diff(accepted) > 0])
    accepted, wrong = accepted[steps], wrong[steps]
    nodes, weights = np.polynomial.legendre.leggauss(50)
    area = wrong[1]  # one rate over all of the first step
    for left, right in pairwise(accepted[1:]):
        at = np.exp(np.log(left) + np.log(right / left) * (nodes + 1) / 2)
        area += (weights * np.interp(at, accepted, wrong)).sum() * np.log(right / left) / 2
    return area
