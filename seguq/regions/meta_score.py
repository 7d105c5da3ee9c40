"""Learning from labeled images how right a region is likely to be, by all that is known of it without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seguq.core.checks import require_seed, require_target_range
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf, Groups
from seguq.functional.adjusted_iou import adjusted_iou
from seguq.functional.borders import near_border
from seguq.functional.logits import class_target
from seguq.functional.runs import Runs
from seguq.functional.uncertainty import predictive_entropy, smallest_margin
from seguq.inference import UncertaintyMaps
from seguq.regions.components import Components
from seguq.regions.partition import Partition

Array = npt.NDArray[Any]
_FOLDS, _REPLICATES = 5, 1000


@dataclass(frozen=True)
class MetaSummary:
    """How well scores are told on images of groups that they were not learned from.

    Attributes:
        images: number of images.
        groups: number of groups of images.
        regions: number of regions with a labeled pixel.
        r2: share of the variance of the target that is explained, out of sample; NaN where there is one group.
        interval: of that, 95 %, bootstrapped over groups.
    """

    images: int
    groups: int
    regions: int
    r2: float
    interval: tuple[float, float]


class MetaScore:
    r"""The score 1 - q, with q how right a region is likely to be: gradient boosting over what is known of the region.

    Known without labels are, of the entropy E (over log C) and of the margin D = 1 - p(1) + p(2): the mean over the
    region, inside of it and on its border, and these times the ratio of size to border; the sizes of region, inside and
    border, and their ratios; the mean probability of each class; and the class. What is learned is

    - where regions are objects (`Components`), the adjusted intersection over union with the true objects (MetaSeg);
    - of any other partition the share of the region's labeled pixels that are predicted right.

    It needs scikit-learn: ``pip install 'seguq[meta]'``. What was learned lives in memory, and is for one model.

    Args:
        partition: how images are cut; None: ``Components()``.
        seed: of the boosting.
        ignore_index: value of the masks that is left out.

    References:
        Rottmann et al., Prediction Error Meta Classification in Semantic Segmentation (MetaSeg), 2020; Colling et al.,
        MetaBox+: A New Region Based Active Learning Method for Semantic Segmentation, 2021, for the choice by it.

    Example:
        >>> meta = MetaScore()
        >>> # meta.fit((est(images, ids), masks) for ...); table = seguq.regions.score(maps, meta.partition, by=meta)
    """

    name = "meta_score"

    def __init__(self, partition: Partition | None = None, seed: int = 0, ignore_index: int = 255) -> None:
        self.partition: Partition = Components() if partition is None else partition
        if not isinstance(self.partition, Partition):
            raise UsageError(f"partition must be one such as seguq.regions.Components(), but is {partition!r}")
        require_seed(seed)
        self.seed, self.ignore_index = seed, ignore_index
        self.measured: MetaSummary | None = None
        self._model: Any = None
        self._num_classes: int | None = None

    def __repr__(self) -> str:
        learned = "" if self.measured is None else f" [R2 {self.measured.r2:.3f}]"
        return f"MetaScore({self.partition!r}){learned}"

    def fit(
        self,
        batches: Iterable[tuple[UncertaintyMaps, Tensor]],
        group: GroupOf = None,
        images: Iterable[Any] | None = None,
    ) -> MetaScore:
        """Learn from labeled images that the model was not trained on; they are read once.

        Args:
            batches: pairs of maps with their probabilities, and masks ``(B, H, W)`` of class indices.
            group: from an image's id to its group, for the `summary`, as in `seguq.core.groups.Groups`.
            images: the image as stored of each map, one after the other, for a partition that looks at it.

        Returns:
            Itself.

        Raises:
            SeguqError: if no region has a labeled pixel, or maps and masks do not go together.
        """
        groups, stored = Groups(group), None if images is None else iter(images)
        known, right, of_group, seen = list[Array](), list[Array](), list[str](), 0
        for maps, masks in batches:
            if len(masks) != len(maps) or tuple(masks.shape[1:]) != maps.spatial:
                raise SeguqError(
                    f"masks of shape {tuple(masks.shape)} do not go with maps of {len(maps)} images {maps.spatial}"
                )
            masks = class_target(masks, maps.prediction[:, None], "multiclass")
            require_target_range(masks, maps.num_classes, self.ignore_index)
            for one, mask in zip(maps.cpu().split(), masks.cpu().numpy(), strict=True):
                runs = self._runs(one, None if stored is None else next(stored))
                target = self._rightness(one, runs, mask)
                there = np.isfinite(target)
                known.append(self._known(one, runs)[there])
                right.append(target[there])
                of_group += [groups(one.image_ids[0], seen)] * int(there.sum())
                seen += 1
        if not right or not sum(map(len, right)):
            raise SeguqError("there is no region with a labeled pixel to learn from")
        inputs, outputs = np.concatenate(known), np.concatenate(right)
        self._num_classes = maps.num_classes
        self.measured = self._judged(inputs, outputs, np.array(of_group), seen)
        self._model = self._boosting().fit(inputs, outputs)
        return self

    def summary(self) -> MetaSummary:
        """What was measured in the last fit, by cross-fitting over groups.

        Raises:
            SeguqError: where nothing was learned yet.
        """
        self._require_fitted()
        assert self.measured is not None
        return self.measured

    def of_regions(self, one: UncertaintyMaps, runs: Runs) -> npt.NDArray[np.float64]:
        """The score of each region of an image, ``(R,)`` from 0 to 1; larger for one that is likely wrong."""
        self._require_fitted()
        if one.num_classes != self._num_classes:
            raise SeguqError(f"MetaScore was fitted with {self._num_classes} classes, but maps have {one.num_classes}")
        if not runs.num_regions:
            return np.zeros(0)
        scores: npt.NDArray[np.float64] = 1 - np.clip(self._model.predict(self._known(one, runs)), 0, 1)
        return scores

    def _require_fitted(self) -> None:
        if self._model is None:
            raise SeguqError("MetaScore has learned nothing yet: fit it on labeled images, meta.fit(batches)")

    # ---- what is known of regions, and how right they are ----

    def _runs(self, one: UncertaintyMaps, image: Any) -> Runs:
        labels = self.partition(image, one).cpu().clamp_min(-1).numpy()
        return Runs(labels, int(labels.max(initial=-1)) + 1)

    def _known(self, one: UncertaintyMaps, runs: Runs) -> Array:
        """What is known of each region without labels, ``(R, 17 + C)``."""
        if one.multilabel:
            raise SeguqError("MetaScore is of the one predicted class of a pixel, which independent labels do not have")
        probs = one.probs
        pixels = torch.cat(
            (predictive_entropy(probs) / math.log(one.num_classes), smallest_margin(probs), probs[0]), 0
        ).numpy()
        if not np.isfinite(pixels[:, runs.labels >= 0]).all():
            raise SeguqError(f"the probabilities of image {one.image_ids[0]!r} hold NaN or infinite values")
        border = near_border(torch.from_numpy(runs.labels)[None], 1)[0].numpy()
        size, edge = np.maximum(runs.area, 1), runs.sums(border)
        inner = runs.area - edge
        columns = [runs.area, inner, edge, size / np.maximum(edge, 1), inner / np.maximum(edge, 1)]
        for values in pixels[:2]:
            whole = runs.sums(values)
            on_border = runs.sums(np.where(border, values, 0))
            mean, inside = whole / size, (whole - on_border) / np.maximum(inner, 1)
            columns += [mean, inside, on_border / np.maximum(edge, 1)]
            columns += [mean * size / np.maximum(edge, 1), inside * inner / np.maximum(edge, 1)]
        columns += list(runs.sums(pixels[2:]) / size)
        columns.append(runs.counts(one.prediction[0].numpy(), one.num_classes).argmax(1))
        return np.stack(columns, 1).astype(np.float32)

    def _rightness(self, one: UncertaintyMaps, runs: Runs, mask: Array) -> npt.NDArray[np.float64]:
        """What is learned, ``(R,)``; NaN for a region without a labeled pixel."""
        from skimage.measure import label

        classes = one.prediction[0].numpy()
        if isinstance(self.partition, Components):
            components = label(mask.astype(np.int64), background=-1, connectivity=2)  # type: ignore[no-untyped-call]
            return adjusted_iou(runs, classes, mask, components, self.ignore_index)
        labeled = mask != self.ignore_index
        size = runs.sums(labeled)
        return np.where(size > 0, runs.sums(labeled & (mask == classes)) / np.maximum(size, 1), np.nan)

    # ---- how it is learned ----

    def _boosting(self) -> Any:
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise UsageError("MetaScore needs scikit-learn: pip install 'seguq[meta]'") from error
        return HistGradientBoostingRegressor(random_state=self.seed)

    def _judged(self, inputs: Array, outputs: Array, groups: Array, images: int) -> MetaSummary:
        names, of = np.unique(groups, return_inverse=True)
        r2, interval = math.nan, (math.nan, math.nan)
        if len(names) > 1:
            # groups by size, dealt out by turns
            order = np.argsort(-np.bincount(of), kind="stable")
            fold = np.empty(len(names), np.int64)
            fold[order] = np.arange(len(names)) % min(_FOLDS, len(names))
            predicted = np.empty(len(outputs))
            for number in range(int(fold.max()) + 1):
                held = fold[of] == number
                predicted[held] = self._boosting().fit(inputs[~held], outputs[~held]).predict(inputs[held])
            r2, interval = _r2(outputs, predicted, of, self.seed)
        return MetaSummary(images, len(names), len(outputs), r2, interval)


def _r2(outputs: Array, predicted: Array, groups: Array, seed: int) -> tuple[float, tuple[float, float]]:
    """The coefficient of determination, and its interval over groups, from sums of each group."""
    parts: Sequence[Array] = (np.ones(len(outputs)), outputs, outputs**2, (outputs - predicted) ** 2)
    sums = np.stack([np.bincount(groups, weights=part) for part in parts], 1)
    count = len(sums)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _REPLICATES) @ sums
    values = [_explained(row) for row in drawn]
    low, high = np.nanquantile(values, (0.025, 0.975)) if np.isfinite(values).any() else (math.nan, math.nan)
    return _explained(sums.sum(0)), (float(low), float(high))


def _explained(sums: Array) -> float:
    number, total, squares, errors = sums
    spread = squares - total**2 / number
    return float(1 - errors / spread) if spread > 0 else math.nan
