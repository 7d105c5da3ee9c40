"""Ranking figures from plain lists of scores: every pair, every threshold, every share that is accepted."""

from itertools import permutations


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
