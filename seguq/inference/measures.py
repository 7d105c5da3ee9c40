"""The measures of uncertainty: what each is computed from, its unit, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seguq.core.checks import require_choice
from seguq.core.errors import SeguqError, UsageError
from seguq.core.named import imported
from seguq.functional.uncertainty import (
    energy,
    expected_entropy,
    least_confidence,
    max_logit,
    mutual_information,
    predictive_entropy,
    smallest_margin,
    total_entropy,
    variance,
    variation_ratio,
)
from seguq.inference.features import FEATURES

Source = Literal["probs", "logits", "samples", "views"]
_HOLDERS = {
    "probs": "every estimator",
    "logits": "Deterministic",
    "samples": "estimators with samples (MCDropout, DeepEnsemble, SWAG)",
    "views": "TestTimeAugmentation",
}
# where the dimension of the classes is in what a measure is given; a map has none
_CLASS_DIM = {"probs": 1, "logits": 1, "samples": 2, "views": 2}


@dataclass(frozen=True)
class Measure:
    """A measure of uncertainty, known by its name from when it is made.

    Args:
        name: what its maps are called.
        of: what it is computed from: ``"probs"`` (pooled and calibrated, ``(B, C, *spatial)``), ``"logits"`` (raw, of
            one pass, ``(B, C, *spatial)``), ``"samples"`` (raw probabilities, ``(S, B, C, *spatial)``), or ``"views"``
            (the same of `TestTimeAugmentation`'s views).
        compute: from that to a map ``(B, *spatial)`` in which larger is more uncertain, or to scores of whole images;
            None where an estimator computes it by itself.
        unit: such as ``"nats"``; None: it has none.
        explanation: what it tells, in half a sentence.
        held_by: which estimators have it, where that does not follow from ``of``.
        per_image: it is no map, but one score for each whole image, ``(B,)``: it is computed on request alone, and lies
            in ``maps.image_scores``. Estimators that ask another one several times have only those of ``"probs"`` and
            their own.

    Raises:
        UsageError: for a name that a measure of seguq has.

    Example:
        >>> import seguq, torch
        >>> impurity = Measure("impurity", "probs", lambda probs: 1 - probs.square().sum(1))
        >>> est = seguq.Deterministic(torch.nn.Conv2d(3, 2, 1), measures=[impurity], calibrator=None)
        >>> est(torch.zeros(1, 3, 4, 4)).names
        ('impurity',)
    """

    name: str
    of: Source
    compute: Callable[[Tensor], Tensor] | None
    unit: str | None = None
    explanation: str = ""
    held_by: str | None = None
    per_image: bool = False

    def __post_init__(self) -> None:
        require_choice("of", self.of, tuple(_HOLDERS))
        if not self.name.isidentifier() or self.name == FEATURES:
            raise UsageError(
                f"a measure's name is one word, as a variable's, and not {FEATURES!r}, but is {self.name!r}"
            )
        if self.name in _known and _known[self.name] in MEASURES:
            raise UsageError(f"{self.name!r} is a measure of seguq: give yours another name")
        _known[self.name] = self

    def __call__(self, values: Tensor) -> Tensor:
        """The map of what it is computed from, or the scores of the images.

        Raises:
            SeguqError: if what it computes is no map of the right shape, or no score for each image.
        """
        assert self.compute is not None
        found = self.compute(values)
        images, _, *spatial = values.shape[_CLASS_DIM[self.of] - 1 :]
        shape = (images,) if self.per_image else (images, *spatial)
        if not isinstance(found, Tensor) or tuple(found.shape) != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            what = "a score for each image (B,)" if self.per_image else "a map (B, *spatial)"
            raise SeguqError(f"the measure {self.name!r} must give {what} = {shape}, but gave {got}")
        return found


_known: dict[str, Measure] = {}
MEASURES: tuple[Measure, ...] = ()
MEASURES = (
    Measure("predictive_entropy", "probs", predictive_entropy, "nats", "all of the uncertainty"),
    Measure("least_confidence", "probs", least_confidence, None, "what the predicted class lacks to certainty"),
    Measure("smallest_margin", "probs", smallest_margin, None, "how close the second class comes to the first"),
    Measure("total_entropy", "samples", total_entropy, "nats", "all of the uncertainty, of the raw samples"),
    Measure("expected_entropy", "samples", expected_entropy, "nats", "noise in the data, that labels do not reduce"),
    Measure("mutual_information", "samples", mutual_information, "nats", "the model's ignorance, that labels reduce"),
    Measure("variance", "samples", variance, None, "how far the samples' probabilities lie apart"),
    Measure("variation_ratio", "samples", variation_ratio, None, "the share of samples that vote for another class"),
    Measure("energy", "logits", energy, None, "how unlike the training data, by all logits"),
    Measure("max_logit", "logits", max_logit, None, "how unlike the training data, by the largest logit"),
    Measure(
        "standardized_max_logit",
        "logits",
        None,
        None,
        "the largest logit against what is usual for its class",
        "Deterministic, once fit_max_logits(batches) was called",
    ),
    Measure("augmentation_variance", "views", None, None, "how much flips and scales change the answer"),
    Measure(
        "pairwise_dice",
        "samples",
        None,
        None,
        "how little the samples' masks overlap",
        per_image=True,
    ),
)


def measures_of(*sources: Source) -> tuple[str, ...]:
    """The names of seguq's maps that are computed from these, and that need nothing else."""
    found = (item for item in MEASURES if item.of in sources and not item.per_image)
    return tuple(item.name for item in found if item.held_by is None)


def image_measures_of(*sources: Source) -> tuple[str, ...]:
    """The names of seguq's scores of whole images that are computed from these."""
    return tuple(item.name for item in MEASURES if item.of in sources and item.per_image)


def is_map(name: str) -> bool:
    """Whether a measure is a map; a name that is not known is taken for one."""
    found = measure(name)
    return found is None or not found.per_image


def require_maps(names: Sequence[str], who: str) -> None:
    """Raise for a score of whole images where maps are needed.

    Args:
        names: of measures.
        who: needs maps, for the message.
    """
    wrong = next((name for name in names if not is_map(name)), None)
    if wrong is not None:
        raise UsageError(f"{who} takes maps, but {wrong!r} is one score for each whole image: leave it out")


def own_measures_of(*sources: Source) -> tuple[str, ...]:
    """The names of measures that were made outside of seguq."""
    return tuple(item.name for item in _known.values() if item.of in sources and item not in MEASURES)


def measure(name: str) -> Measure | None:
    """The measure of a name, if there is one."""
    return _known.get(name)


def explain_missing(name: str, estimator: str, available: tuple[str, ...]) -> str:
    """One sentence on why a measure is not there."""
    found = measure(name)
    if not available:
        available = ("none",)
    if found is not None:
        on_request = f", on request: measures=[{name!r}]" if found.per_image else ""
        hint = "" if name in available else f": it is a measure of {_holders(found)}{on_request}"
        return f"{name!r} is not among the measures of {estimator}, which are {', '.join(available)}{hint}"
    return f"{name!r} is no measure: {estimator} has {', '.join(available)}"


def named_measures(measures: str | Measure | Sequence[str | Measure] | None) -> tuple[str, ...] | None:
    """Names of measures as they are asked for: one or several, or None for all.

    One's own are named by their import path, as ``my_module.my_measure``, or passed themselves.

    Raises:
        UsageError: for a path with no measure at its end.
    """
    if measures is None:
        return None
    given = (measures,) if isinstance(measures, (str, Measure)) else tuple(measures)
    return tuple(item.name if isinstance(item, Measure) else _imported(item) if "." in item else item for item in given)


def _imported(path: str) -> str:
    found = imported(path)
    if not isinstance(found, Measure):
        raise UsageError(f"{path} is no seguq.Measure, but a {type(found).__name__}")
    return found.name


def checked_measures(measures: tuple[str, ...], available: tuple[str, ...], estimator: str) -> tuple[str, ...]:
    """The measures to compute.

    Raises:
        SeguqError: for a name that the estimator does not have, saying which estimators do.
    """
    for name in measures:
        if name not in available:
            raise SeguqError(explain_missing(name, estimator, available))
    return measures


def computed(of: Source, values: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Of the measures asked for, the maps of those that are computed from ``values``, by name."""
    found = (measure(name) for name in names)
    return {item.name: item(values) for item in found if item is not None and item.of == of and item.compute}


def shown_by_default(available: Sequence[str]) -> tuple[str, ...]:
    """What is worth a picture where nothing was said: all of the uncertainty, and the model's ignorance."""
    found = tuple(name for name in ("predictive_entropy", "mutual_information") if name in available)
    return found or tuple(name for name in available if is_map(name))[:1]


def scored_by_default(available: Sequence[str], of_images: bool = False) -> str:
    """What regions are scored by where nothing was said: the margin, by which active learning has gone best here.

    Args:
        available: names of measures.
        of_images: whether regions are whole images, which samples' disagreement in their label maps ranks best.

    Raises:
        UsageError: where there is none.
    """
    first = ("pairwise_dice", "smallest_margin") if of_images else ("smallest_margin",)
    found = [*(name for name in first if name in available), *reversed(shown_by_default(available))]
    if not found:
        raise UsageError(
            f"regions are scored by a map, but of the measures {', '.join(available) or 'none'} none is one"
        )
    return found[0]


def explained() -> str:
    """The measures for a help text, a line each."""
    lines = []
    for item in _known.values():
        unit = f" ({item.unit})" if item.unit else ""
        holder = "" if item.of == "probs" else f" [{_holders(item)}]"
        kind = ", one score for each whole image, on request" if item.per_image else ""
        lines.append(f"  {item.name}{unit}: {item.explanation}{kind}{holder}")
    return "\n".join(lines)


def _holders(item: Measure) -> str:
    return item.held_by or _HOLDERS[item.of]
