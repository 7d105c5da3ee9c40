"""What every conformal object is: a guarantee for new images, fitted on held-out ones like them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from seguq.calibration.batches import image_ids_of
from seguq.core.checks import LabelWatch, is_number, is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf, Groups
from seguq.core.named import Named
from seguq.data.batches import plain
from seguq.functional.conformal import conformal_level, units_needed

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ConformalSummary:
    """What a conformal object promises, and what from.

    Attributes:
        promise: one sentence.
        alpha: the risk that is kept.
        images: number of images that counted: those that have what the loss is a share of.
        groups: number of exchangeable units among them: groups where they were told, images otherwise.
        empirical_risk: mean loss of these units at what was fitted; at most ``alpha`` less a little, as the new unit
            is counted with a loss of 1.
        fitted: what was fitted, by name.
    """

    promise: str
    alpha: float
    images: int
    groups: int
    empirical_risk: float
    fitted: dict[str, float]


class Conformal(Named, nn.Module, ABC):
    """A guarantee that holds for any model and any data, on average over fits and new images.

    It needs one thing: the images it is fitted on and the new one are *exchangeable* (drawn in the same way, none used
    in training, and none of them more alike than another). Frames of a video, slices of a volume and tiles of a
    picture are not, but whole videos, patients and slides may be: with ``group`` these are the units, all pixels of
    the images of one are taken together, and the promise is about a new video, patient or slide.

    An object of a class of this kind is a module without parameters. What was fitted are plain buffers; it goes into a
    checkpoint by `seguq.calibration.save_conformal`, and comes back in ``model.conformal`` by `seguq.load`.

    A class of this kind says what is measured of an image (`measure`, sums that add up over the images of a unit), the
    losses at each of its levels (`losses`, none of which rises with the level), and what a level is (`set_level`).

    Attributes:
        alpha: the risk that is kept, between 0 and 1.
        ignore_index: value of the target that is left out.
        tag: the estimator that it was fitted for, or None.
        weights_sha256: hash of the weights that it was fitted for, or None.
        global_step: the training step of those weights, or None.
        calibrated_by: hash of the calibrator of that estimator, or None.
    """

    images: Tensor
    groups: Tensor
    channels: Tensor
    empirical_risk: Tensor

    def __init__(self, alpha: float, ignore_index: int) -> None:
        super().__init__()
        if not (is_number(alpha) and 0 < alpha < 1):
            raise UsageError(f"alpha is the risk that is kept, a number between 0 and 1, but is {alpha!r}")
        if not is_whole(ignore_index):
            raise UsageError(f"ignore_index must be a whole number, but is {ignore_index!r}")
        self.alpha, self.ignore_index = alpha, ignore_index
        self.tag: str | None = None
        self.weights_sha256: str | None = None
        self.global_step: int | None = None
        self.calibrated_by: str | None = None
        for name in ("images", "groups", "channels"):
            self.register_buffer(name, torch.tensor(0))
        self.register_buffer("empirical_risk", torch.tensor(float("nan")))

    # ---- what a class of this kind says ----

    @abstractmethod
    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        """What is measured of each image, checked first: ``(B, width)`` float64 that adds up over images."""

    def channels_of(self, prediction: Tensor) -> int:
        """The number of classes or labels of a prediction, which all batches and later ones must have."""
        return int(prediction.shape[1])

    @abstractmethod
    def losses(self, sums: Tensor) -> Tensor:
        """The loss ``(units, levels)`` of each unit in [0, 1], never rising with the level; NaN: it has none."""

    @abstractmethod
    def set_level(self, level: int) -> None:
        """Keep what a level means in buffers."""

    @property
    @abstractmethod
    def counts_what(self) -> str:
        """What an image must have to count, such as "a labeled pixel"."""

    @abstractmethod
    def promise(self) -> str:
        """What is promised, in one sentence."""

    @abstractmethod
    def learned(self) -> dict[str, float]:
        """What was fitted, by name."""

    def require_keepable(self, losses: Tensor, units: int) -> None:
        """Raise where no level keeps the risk; ``losses`` is their sum at each level."""
        raise SeguqError(f"no level keeps a risk of alpha={self.alpha}")

    # ---- what all do ----

    def fit(self, batches: Iterable[Any], group: GroupOf = None) -> Self:
        """Find the level that keeps the risk, in one reading of held-out data.

        Nothing grows with the number of images; with ``group`` some 32 KB are kept for each group.

        Args:
            batches: an iterable, an iterator too, of ``(prediction, target)``, or of ``(prediction, target,
                image_ids)`` with one id an image. What a prediction is the class says.
            group: from an image's id to its group: a function or a regular expression, as in
                `seguq.core.groups.Groups`; None: each image is a unit. Without ids images are numbered from "0".

        Returns:
            Itself.

        Raises:
            SeguqError: for a batch that is not as described, with its number; for fewer units than the promise needs,
                saying how many; where no level keeps it. What was fitted before then stays.
        """
        taken = _Units(self, group)
        for number, batch in enumerate(batches):
            try:
                taken.add(batch)
            except SeguqError as error:
                raise SeguqError(f"batch {number}: {error}") from error
        taken.watch.report("the targets that were fitted on")
        losses, units = taken.total()
        if not units:
            raise SeguqError(
                f"there is nothing to fit on: of {taken.seen} images none has {self.counts_what}"
                + ("" if taken.seen else " (was a generator read before?)")
            )
        if units < (needed := units_needed(self.alpha)):
            what = "groups" if taken.groups.named else "images"
            raise SeguqError(
                f"alpha={self.alpha} needs at least {needed} {what} with {self.counts_what}, but there are {units}: "
                f"take more, or an alpha of at least {rounded_up(1 / (units + 1))}"
            )
        level = conformal_level(losses, units, self.alpha)
        if level is None:
            self.require_keepable(losses, units)
            raise SeguqError(f"no level keeps a risk of alpha={self.alpha}")
        with torch.inference_mode(False):  # tensors that were made inside of it could not be filled later
            self.set_level(level)
            self.images = torch.full_like(self.images, taken.images)
            self.groups = torch.full_like(self.groups, units)
            self.channels = torch.full_like(self.channels, taken.channels)
            self.empirical_risk = torch.full_like(self.empirical_risk, float(losses[level]) / units)
        self.tag = self.weights_sha256 = self.global_step = self.calibrated_by = None
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether it was fitted, or read from a checkpoint."""
        return int(self.images) > 0

    def require_fitted(self) -> None:
        """Raise where nothing was fitted."""
        if not self.is_fitted:
            raise SeguqError(f"this {type(self).__name__} is not fitted yet: call fit(batches) on held-out data first")

    def summary(self) -> ConformalSummary:
        """What is promised, and what from.

        Raises:
            SeguqError: where nothing was fitted.
        """
        self.require_fitted()
        risk = float(f"{float(self.empirical_risk):.6g}")  # a float32 has no more digits
        return ConformalSummary(self.promise(), self.alpha, int(self.images), int(self.groups), risk, self.learned())

    def fitted(self) -> dict[str, Any]:
        """What was fitted, as plain values for people."""
        if not self.is_fitted:
            return {}
        counts = {"images": int(self.images), "groups": int(self.groups)}
        return {**self.learned(), "empirical_risk": float(self.empirical_risk), **counts}

    def plain_arguments(self) -> dict[str, Any]:
        """Arguments as plain values, which a checkpoint can hold."""
        return self.arguments()

    def require_valid(self) -> None:
        """Raise for a state that no `fit` leads to, such as a damaged file has.

        Raises:
            ValueError: saying what is wrong.
        """
        images, groups, channels = int(self.images), int(self.groups), int(self.channels)
        if not (images >= groups >= units_needed(self.alpha) and channels >= 1):
            raise ValueError(f"it was fitted on {groups} groups of {images} images, {channels} channels")
        if not 0 <= float(self.empirical_risk) <= self.alpha + 1e-6:  # it is a float32
            raise ValueError(f"its 'empirical_risk' is {float(self.empirical_risk)}")


class _Pieces(NamedTuple):
    """A batch taken apart."""

    prediction: Tensor
    target: Tensor
    image_ids: tuple[str, ...]
    numbered: bool


class _Units:
    """Losses of exchangeable units, added up while batches are read once."""

    def __init__(self, conformal: Conformal, group: GroupOf) -> None:
        self.conformal = conformal
        self.groups = Groups(group)
        self.watch = LabelWatch(conformal.ignore_index)
        self.seen = self.images = self.channels = 0
        self._merged: dict[str, Tensor] = {}
        self._losses: Tensor | None = None
        self._units = 0

    def add(self, batch: Any) -> None:
        """Take in a batch."""
        pieces = self._taken_apart(batch)
        sums = self.conformal.measure(pieces.prediction, pieces.target).cpu()
        channels = self.conformal.channels_of(pieces.prediction)
        if self.channels not in (0, channels):
            raise SeguqError(f"a prediction of {channels} classes follows one of {self.channels}")
        self.channels = channels
        self.watch.look(pieces.target)
        counted = ~self.conformal.losses(sums)[:, 0].isnan()
        self.seen, self.images = self.seen + len(sums), self.images + int(counted.sum())
        if not self.groups.named:
            self._count(sums[counted])
            return
        self.groups.require_ids(pieces.numbered)
        for image_id, row in zip(pieces.image_ids, sums, strict=True):
            group = self.groups(image_id, 0)
            self._merged[group] = row + self._merged[group] if group in self._merged else row.clone()

    def _count(self, sums: Tensor) -> None:
        losses = self.conformal.losses(sums).sum(0)
        self._losses = losses if self._losses is None else self._losses + losses
        self._units += len(sums)

    def total(self) -> tuple[Tensor, int]:
        """The sum of the losses at each level, and the number of units."""
        for sums in self._merged.values():
            if not bool(self.conformal.losses(sums[None]).isnan().any()):
                self._count(sums[None])
        return torch.zeros(1) if self._losses is None else self._losses, self._units

    def _taken_apart(self, batch: Any) -> _Pieces:
        given = tuple(batch) if isinstance(batch, (tuple, list)) else ()
        if len(given) not in (2, 3) or not all(isinstance(item, Tensor) for item in given[:2]):
            raise SeguqError("batches must yield (prediction, target) tensors, or (prediction, target, image_ids)")
        prediction, target = (plain(item).detach() for item in given[:2])
        named = given[2] if len(given) == 3 else getattr(batch, "image_ids", None)
        named = named.tolist() if isinstance(named, Tensor) else named
        images = len(prediction) if prediction.ndim else 0
        if named is None:
            ids = image_ids_of(batch, self.seen, images)
        elif isinstance(named, (list, tuple)) and len(named) == images:
            ids = tuple(str(image_id) for image_id in named)
        else:
            raise SeguqError(f"image_ids must be a list of one id for each of {images} images")
        return _Pieces(prediction, target.to(prediction.device), ids, named is None)


def rounded_up(value: float) -> float:
    """A number below 1, rounded up to four digits behind the point."""
    return -(-int(value * 10**10) // 10**6) / 10**4
