"""Which estimator has which measure, and those of one distribution a pixel."""

from __future__ import annotations

from collections.abc import Sequence

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
    "augmentation_variance": "TestTimeAugmentation",
    "standardized_max_logit": "Deterministic, once fit_max_logits(batches) was called",
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
