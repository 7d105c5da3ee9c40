"""Pairwise Dice as a person would compute it: pair by pair, class by class, pixel by pixel."""

import itertools


def dice(one, other):
    """Of two sets of pixels; empty against empty is 1."""
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


def pairwise_dice(labels, num_classes, background=0):
    """Of label maps ``(S, B, *spatial)``, one number an image."""
    flat = labels.flatten(2)
    counted = [each for each in range(num_classes) if each != background]
    masks = [
        [[{i for i, value in enumerate(one.tolist()) if value == each} for each in counted] for one in image]
        for image in flat.transpose(0, 1)
    ]
    return [_score(image) for image in masks]


def multilabel_pairwise_dice(masks):
    """Of masks ``(S, B, L, *spatial)`` of 0 and 1."""
    flat = masks.flatten(3)
    return [
        _score([[{i for i, value in enumerate(label.tolist()) if value} for label in one] for one in image])
        for image in flat.transpose(0, 1)
    ]


def _score(samples):
    """Of one image, whose samples are lists of sets of pixels, one a class."""
    pairs = list(itertools.combinations(samples, 2))
    of_pairs = [sum(map(dice, one, other)) / len(one) for one, other in pairs]
    return 1 - sum(of_pairs) / len(pairs)
