"""How well predicted objects are, one by one."""

from __future__ import annotations

import numpy as np

from seguq.functional.runs import Array, Floats, Runs


def adjusted_iou(runs: Runs, classes: Array, target: Array, components: Array, ignore_index: int = 255) -> Floats:
    r"""The adjusted intersection over union of each predicted object with the true ones of its class.

    .. math:: \frac{|P \cap G|}{|P \cup G'|}

    P is a predicted object of class c, G the pixels that are truly c, and G' the true components of c that P meets,
    without what other predictions of c cover: so an object is not blamed for what its neighbors have found.

    Args:
        runs: the predicted objects of an image.
        classes: the predicted class of each pixel, ``(H, W)``; the class of an object is its most frequent one.
        target: the true class of each pixel, ``(H, W)``, or ``ignore_index``, which is left out.
        components: the connected component of equal true classes that each pixel lies in, ``(H, W)`` from 0.
        ignore_index: value of the target that is left out.

    Returns:
        ``(R,)`` from 0 to 1; NaN for an object of which no pixel is labeled.

    References:
        Rottmann et al., Prediction Error Meta Classification in Semantic Segmentation: Detection via Aggregated
        Dispersion Measures of Softmax Probabilities (MetaSeg), 2020, eq. 8.

    Example:
        >>> predicted, truth = np.array([[1, 1, 0, 0]]), np.array([[0, 1, 1, 0]])
        >>> runs = Runs(np.array([[0, 0, 1, 1]]), 2)
        >>> adjusted_iou(runs, predicted, truth, np.array([[0, 1, 1, 2]])).round(3).tolist()
        [0.333, 0.5]
    """
    labeled = target != ignore_index
    of_class = np.append(runs.counts(classes, int(classes.max(initial=0)) + 1).argmax(1), -1)[runs.labels]
    number = int(components.max(initial=0)) + 1
    right = labeled & (target == of_class)  # of class c, and in an object of class c
    size = runs.sums(labeled)
    inside = runs.sums(right)
    found = np.bincount(components[right], minlength=number)
    missed = np.bincount(components[labeled], minlength=number) - found
    # each true component that an object meets, once
    met = np.unique(runs.labels[right].astype(np.int64) * number + components[right])
    met = met[met >= 0]
    outside = np.bincount(met // number, weights=missed[met % number], minlength=runs.num_regions)
    with np.errstate(invalid="ignore"):
        scores: Floats = np.where(size > 0, inside / (size + outside), np.nan)
    return scores
