"""What strategies and budgets need to know of a region beside its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seguq.core.errors import SeguqError, UsageError
from seguq.functional.runs import Runs
from seguq.functional.uncertainty import predictive_entropy
from seguq.inference import UncertaintyMaps
from seguq.regions.polygons import border_clicks

COLUMNS = ("class_shares", "class_probs", "class_scores", "features", "clicks")

Array = npt.NDArray[Any]


def require_columns(columns: Sequence[str]) -> None:
    """Raise for a column that there is not.

    Raises:
        UsageError: saying which there are.
    """
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or isinstance(columns, str):
        raise UsageError(f"columns are a list of {', '.join(COLUMNS)}, but are {columns!r}")


def further_columns(
    columns: Sequence[str], one: UncertaintyMaps, runs: Runs, counts: Array | None, kept: Array
) -> dict[str, Any]:
    """The columns asked for, as pyarrow arrays.

    Args:
        columns: their names.
        one: the maps of one image.
        runs: its regions.
        counts: pixels of each region that are predicted as each class, ``(R, C)``; None for independent labels.
        kept: the regions that have rows.
    """
    out: dict[str, Any] = {}
    for name in dict.fromkeys(columns):
        if name == "features":
            out[name] = _lists(_features(one, runs)[kept], np.float16)
            continue
        if counts is None:
            raise SeguqError(
                f"the column {name} is of classes of which a pixel has one, and independent labels (multilabel) are "
                "several"
            )
        if name == "clicks":
            out[name] = pa.array(border_clicks(one.prediction[0].numpy(), runs.labels, runs.num_regions)[kept])
            continue
        shares = counts / np.maximum(runs.area, 1)[:, None]
        found = shares if name == "class_shares" else _class_means(name, one, runs)
        out[name] = _lists(found[kept], np.float32)
    return out


def _class_means(name: str, one: UncertaintyMaps, runs: Runs) -> Array:
    """Mean over each region of the probability of each class, or of that times the entropy, ``(R, C)``."""
    try:
        probs = one.probs
    except SeguqError as error:
        raise SeguqError(
            f"the column {name} is made from probabilities, which the maps of image {one.image_ids[0]!r} were saved "
            "without: predict again, keeping them (--save_probs)"
        ) from error
    values = probs if name == "class_probs" else probs * predictive_entropy(probs).unsqueeze(1)
    means: Array = (runs.sums(values[0].numpy()) / np.maximum(runs.area, 1)).T
    return _finite(means, "probabilities", one)


def _features(one: UncertaintyMaps, runs: Runs) -> Array:
    """The mean over each region of the encoder's last map, each cell of which stands for its pixels, ``(R, D)``."""
    features = one.features
    if features is None:
        raise SeguqError(
            f"the column features is made from the encoder's last map, which the maps of image {one.image_ids[0]!r} do "
            "not carry: make them by an estimator with features=True (seguq predict --features)"
        )
    if features.ndim != 4:
        raise SeguqError(f"features of regions are of 2-D images, but these have the shape {tuple(features.shape)}")
    depth, rows, columns = features.shape[1:]
    height, width = runs.labels.shape
    cells = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
    pixels = runs.counts(cells, rows * columns).astype(np.float32)
    sums: Array = pixels @ features[0].float().numpy().reshape(depth, -1).T
    return _finite(sums / np.maximum(runs.area, 1)[:, None], "features", one)


def _finite(means: Array, what: str, one: UncertaintyMaps) -> Array:
    if not np.isfinite(means).all():
        raise SeguqError(f"the {what} of image {one.image_ids[0]!r} hold NaN or infinite values")
    return means


def _lists(values: Array, kind: type[np.floating[Any]]) -> Any:
    """Rows of numbers as lists of one length."""
    flat = pa.array(np.ascontiguousarray(values, dtype=kind).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
