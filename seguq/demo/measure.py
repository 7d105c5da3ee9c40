"""What the demo measures: overlap, calibration, error detection, and the search for images of another kind."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seguq.calibration import Calibrator, cross_fit
from seguq.calibration.temperature import TemperatureScaling
from seguq.cli.common import scalar
from seguq.core.progress import ProgressLoader, progress
from seguq.data import unpack_batch
from seguq.demo.gallery import Example
from seguq.functional.ranking import area_under_roc
from seguq.inference import Estimator
from seguq.metrics import CalibrationError, ErrorDetection, MeanIoU, NegativeLogLikelihood
from seguq.store.folder import mean_score

_TOP = 10


@dataclass
class Evaluation:
    """What was measured on one split with one estimator."""

    cells: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    auroc: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    diagrams: dict[str, CalibrationError] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)


def _triple(value: Tensor, interval: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    return float(value), float(interval[0]), float(interval[1])


def evaluate(
    est: Estimator, calibrator: Calibrator, loader: DataLoader[dict[str, object]], split: str, keep: int = 0
) -> Evaluation:
    """Measure an estimator on labeled images that neither the network nor the calibrator has seen."""
    overlap = MeanIoU(2)
    error = {"before": CalibrationError(2), "after": CalibrationError(2)}
    loss = {when: NegativeLogLikelihood(2, from_logits=True) for when in ("before", "after")}
    ranking = {measure: ErrorDetection() for measure in est.measures}
    out = Evaluation()
    for batch in map(unpack_batch, progress(loader, f"{est.tag} on {split}")):
        assert batch.mask is not None
        images, ids = est.take_in(batch.image, batch.image_id)
        with torch.no_grad():
            raw, others = est.pool(images, ids, est.measures)
        maps = est.answer(raw, others, images, ids).cpu()
        logits = {"before": raw.cpu(), "after": calibrator.cpu()(raw.cpu())}
        overlap.update(maps.prediction, batch.mask, group=maps.image_ids)
        for when in ("before", "after"):
            error[when].update(logits[when].softmax(1), batch.mask, group=maps.image_ids)
            loss[when].update(logits[when], batch.mask, group=maps.image_ids)
        wrong = (maps.prediction != batch.mask).long().masked_fill(batch.mask == 255, 255)
        for measure, metric in ranking.items():
            metric.update(maps[measure], wrong, group=maps.image_ids)
        if keep:
            out.examples += [Example(one, mask, split) for one, mask in zip(maps.split(), batch.mask, strict=True)]
    out.cells["mean IoU"] = _cell(overlap)
    for when in ("before", "after"):
        out.cells[f"ECE {when}"] = _cell(error[when])
        out.cells[f"NLL {when}"] = _cell(loss[when])
    out.cells["ECE change"] = _triple(*error["after"].compute_difference(error["before"]))
    out.cells["NLL change"] = _triple(*loss["after"].compute_difference(loss["before"]))
    out.diagrams = error
    for measure, metric in ranking.items():
        value, interval = metric.compute(), metric.compute_interval()
        assert isinstance(value, dict) and isinstance(interval, dict)
        out.auroc[measure] = _triple(value["auroc"], interval["auroc"])
    # the most uncertain first: what a person should look at
    out.examples.sort(key=lambda item: -float(mean_score(item.maps, "predictive_entropy")[0]))
    out.examples = out.examples[:keep]
    return out


def _cell(metric: MeanIoU | CalibrationError | NegativeLogLikelihood) -> tuple[float, float, float]:
    interval = metric.compute_interval()
    assert isinstance(interval, tuple)
    return _triple(scalar(metric.compute()), interval)


def own_temperature(
    est: Estimator, loader: DataLoader[dict[str, object]], num_classes: int
) -> dict[str, tuple[float, float, float]]:
    """What a temperature is worth that is fitted on images of the same kind: out of sample, in two folds."""
    before, after = CalibrationError(num_classes), CalibrationError(num_classes)
    with warnings.catch_warnings():
        # that it lies at its bound is what the page explains
        warnings.filterwarnings("ignore", message="the best temperature lies at its bound")
        pooled = est.pooled(ProgressLoader(loader, "a temperature for stained images"))
        batches = list(cross_fit(TemperatureScaling, pooled))
    for batch in batches:
        before.update(batch.logits.softmax(1), batch.target, group=batch.groups)
        after.update(batch.calibrated.softmax(1), batch.target, group=batch.groups)
    return {"ECE after": _cell(after), "ECE change": _triple(*after.compute_difference(before))}


def stained_found(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], ids: list[str], stained: set[str], seed: int
) -> dict[str, tuple[float, float, float]]:
    """How many of the most uncertain images are stained ones, and how well all are ranked; intervals over images."""
    truth = np.array([image_id in stained for image_id in ids])
    top = min(_TOP, len(ids))

    def found(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[float, float]:
        values, kind = scores[rows], truth[rows]
        count = float(kind[np.argsort(-values, kind="stable")[:top]].sum())
        order = np.unique(values, return_inverse=True)[1]
        bins = order.max() + 1
        negatives, positives = (np.bincount(order[kind == flag], minlength=bins) for flag in (False, True))
        return count, float(area_under_roc(torch.tensor(negatives).double(), torch.tensor(positives).double()))

    generator = np.random.default_rng(seed)
    draws = np.array([found(generator.integers(0, len(ids), len(ids))) for _ in range(1000)])
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0) if len(stained) else (np.full(2, np.nan),) * 2
    count, auroc = found(np.arange(len(ids)))
    return {
        "stained among the top": (count, float(low[0]), float(high[0])),
        "AUROC for stained": (auroc, float(low[1]), float(high[1])),
        "top": (float(top), float(top), float(top)),
        "stained": (float(len(stained)),) * 3,
    }
