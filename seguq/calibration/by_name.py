"""Calibrators as people ask for them: by name, as an object of their own, or ``"auto"``."""

from __future__ import annotations

import copy
import inspect
from typing import NamedTuple

from torch import Tensor

from seguq.calibration.auto import AutoStream
from seguq.calibration.base import Calibrator, Stream
from seguq.calibration.batches import FittingBatches, checked_pair, require_reiterable, taken_apart
from seguq.calibration.crops import stream_of_crops
from seguq.core.errors import SeguqError, UsageError
from seguq.core.groups import GroupOf
from seguq.functional.logits import Task

AUTO = "auto"


def require_known(calibrator: Calibrator | str) -> None:
    """Raise unless this is a calibrator, the name of one that can be made knowing its logits alone, or ``"auto"``."""
    if isinstance(calibrator, str):
        if calibrator != AUTO:
            calibrator_for(calibrator, Kind(2, 2, "multiclass"), 255)
    elif not isinstance(calibrator, Calibrator):
        raise UsageError(
            f"calibrator must be a calibrator or the name of one ({', '.join((*Calibrator.names(), AUTO))}), but is "
            f"{calibrator!r}"
        )


class Kind(NamedTuple):
    """What logits are: number of classes, spatial dimensions, and the task of the model's own logits."""

    num_classes: int
    spatial_dims: int
    task: Task

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, task: Task) -> Kind:
        """Of class logits ``(B, C, *spatial)`` and class indices ``(B, *spatial)``; labels are no spatial dimension."""
        return cls(logits.shape[1], target.ndim - 1 - (task == "multilabel"), task)


def calibrator_for(calibrator: Calibrator | str, kind: Kind, ignore_index: int) -> Calibrator:
    """A new calibrator for such logits.

    Args:
        calibrator: its name; or one, of which a copy is given: for another task than multiclass with that.
        kind: what logits are.
        ignore_index: value of the target that is left out, for one by name.
    """
    if isinstance(calibrator, str):
        return Calibrator.make(calibrator, **kind._asdict(), ignore_index=ignore_index)
    made = copy.deepcopy(calibrator)
    if made.task == "multiclass":
        made.task = kind.task
    return made


def stream_for(calibrator: Calibrator | str, kind: Kind, ignore_index: int, group: GroupOf = None) -> Stream:
    """What it is fitted on in one reading: its own `stream`; crops where it has none.

    Args:
        calibrator: as in `calibrator_for`, or ``"auto"``.
        kind: what logits are.
        ignore_index: value of the target that is left out.
        group: from an image's id to its group.
    """
    if calibrator == AUTO:
        return AutoStream(kind.num_classes, kind.task, ignore_index, group, kind.spatial_dims)
    made = calibrator_for(calibrator, kind, ignore_index)
    return made.stream(group) or stream_of_crops(made, group)


def fit_calibrator(
    calibrator: Calibrator | str,
    batches: FittingBatches,
    task: Task = "multiclass",
    ignore_index: int = 255,
    group: GroupOf = None,
) -> Calibrator:
    """Fit a calibrator, or the best of several.

    Args:
        calibrator: an object, which is fitted itself; the name of one; or ``"auto"``, as in `AutoStream`.
        batches: as in `Calibrator.fit`.
        task: for one by name.
        ignore_index: for one by name.
        group: from an image's id to its group, for what is chosen and judged by groups.

    Returns:
        The calibrator, fitted.

    Raises:
        UsageError: for an unknown name.
        SeguqError: as `Calibrator.fit` does.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0]]).repeat(4, 1)
        >>> fit_calibrator("global", [(logits, torch.tensor([0, 0, 0, 1]))])
        TemperatureScaling() [temperature=3.641]
    """
    require_known(calibrator)
    if isinstance(calibrator, str):
        require_reiterable(batches)
        first = next(iter(batches), None)
        if first is None:
            raise SeguqError("there is no labeled pixel to fit on: there are no batches")
        logits, _, target = taken_apart(first)
        try:
            logits, target = checked_pair(logits, target, task, ignore_index)
        except SeguqError as error:
            raise SeguqError(f"batch 0: {error}") from error
        kind = Kind.of(logits, target, task)
        if calibrator == AUTO:
            stream = AutoStream(kind.num_classes, task, ignore_index, group, kind.spatial_dims)
            stream.take_all(batches)
            found = stream.fit()
            if found is None:
                raise SeguqError(f"there is no labeled pixel to fit on (all targets are ignore_index={ignore_index})")
            stream.refine(found, batches)
            return found
        calibrator = calibrator_for(calibrator, kind, ignore_index)
    takes_group = "group" in inspect.signature(calibrator.fit).parameters
    fitted: Calibrator = calibrator.fit(batches, **({"group": group} if takes_group else {}))
    return fitted
