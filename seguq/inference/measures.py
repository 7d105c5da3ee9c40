"""Which estimator has which measure, and the running sums that make the measures of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seguq.core.errors import SeguqError
from seguq.functional.uncertainty import energy, least_confidence, max_logit, predictive_entropy, smallest_margin

PROB_MEASURES = ("predictive_entropy", "least_confidence", "smallest_margin")
SAMPLE_MEASURES = ("total_entropy", "expected_entropy", "mutual_information", "variance", "variation_ratio")
LOGIT_MEASURES = ("energy", "max_logit")

_FROM_PROBS = {
    "predictive_entropy": predictive_entropy,
    "least_confidence": least_confidence,
    "smallest_margin": smallest_margin,
}
_FROM_LOGITS = {"energy": energy, "max_logit": max_logit}
_HOLDERS = {
    **dict.fromkeys(PROB_MEASURES, "every estimator"),
    **dict.fromkeys(SAMPLE_MEASURES, "estimators with samples (MCDropout, DeepEnsemble)"),
    **dict.fromkeys(LOGIT_MEASURES, "Deterministic"),
}


def explain_missing(name: str, estimator: str, available: tuple[str, ...]) -> str:
    """One sentence on why a measure is not there."""
    if name in _HOLDERS:
        hint = "" if name in available else f": it is a measure of {_HOLDERS[name]}"
        return f"{name!r} is not among the maps of {estimator}, which are {', '.join(available)}{hint}"
    return f"{name!r} is no measure: {estimator} has {', '.join(available)}"


def named_measures(measures: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of measures as they are asked for: one, several, or None for all."""
    return (measures,) if isinstance(measures, str) else None if measures is None else tuple(measures)


def checked_measures(measures: tuple[str, ...] | None, available: tuple[str, ...], estimator: str) -> tuple[str, ...]:
    """The measures to compute: those asked for, or all that the estimator has.

    Raises:
        SeguqError: for a name that the estimator does not have, saying which estimators do.
    """
    if measures is None:
        return available
    for name in measures:
        if name not in available:
            raise SeguqError(explain_missing(name, estimator, available))
    return measures


def of_probs(probs: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The measures of one distribution a pixel, ``(B, C, *spatial)``, by name."""
    return {name: _FROM_PROBS[name](probs) for name in names if name in _FROM_PROBS}


def of_logits(logits: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The measures of one pass's logits, ``(B, C, *spatial)``, by name."""
    return {name: _FROM_LOGITS[name](logits) for name in names if name in _FROM_LOGITS}


class RunningMeasures:
    """Running sums over samples: memory does not grow with their number, and no sample is kept.

    Args:
        names: the measures that will be asked for; sums that none of them needs are not made.

    References:
        The update of mean and sum of squares: Welford, Note on a Method for Calculating Corrected Sums of Squares
        and Products, 1962.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.count = 0
        self.mean: Tensor | None = None
        self._entropy: Tensor | None = None
        self._squares: Tensor | None = None
        self._votes: Tensor | None = None

    def add(self, probs: Tensor) -> None:
        """Take in one sample, ``(B, C, *spatial)``, at least float32; it is not kept."""
        self.count += 1
        if {"expected_entropy", "mutual_information", "total_entropy"} & set(self.names):
            entropy = predictive_entropy(probs)
            self._entropy = entropy if self._entropy is None else self._entropy.add_(entropy)
        if "variation_ratio" in self.names:
            if self._votes is None:
                self._votes = torch.zeros(probs.shape, dtype=torch.int32, device=probs.device)
            winner = probs.argmax(1, keepdim=True)
            self._votes.scatter_add_(1, winner, torch.ones_like(winner, dtype=torch.int32))
        if self.mean is None:
            self.mean = probs.clone()
            self._squares = torch.zeros_like(probs[:, 0])
            return
        delta = probs - self.mean
        self.mean.add_(delta, alpha=1 / self.count)
        if "variance" in self.names and self._squares is not None:
            self._squares.add_(delta.square_().sum(1), alpha=(self.count - 1) / self.count)

    def maps(self) -> dict[str, Tensor]:
        """The measures of the samples taken in so far, ``(B, *spatial)`` each, by name."""
        assert self.mean is not None, "no sample was added"
        out: dict[str, Tensor] = {}
        if self._entropy is not None:
            expected = self._entropy / self.count
            information = (predictive_entropy(self.mean) - expected).clamp_min(0)
            out |= {
                "expected_entropy": expected,
                "mutual_information": information,
                "total_entropy": expected + information,
            }
        if self._squares is not None:
            out["variance"] = self._squares / self.count
        if self._votes is not None:
            out["variation_ratio"] = 1 - self._votes.amax(1).to(self.mean.dtype) / self.count
        return {name: out[name] for name in self.names if name in out}
