"""Ranking figures from plain lists of scores: every pair, every threshold."""


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
