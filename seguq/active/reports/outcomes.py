"""What came of the regions that a round has asked for: the classes of the answers, beside the predicted ones."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of, by_image, region_key
from seguq.active.events import answered_regions, read_events
from seguq.active.reports.records import Interval, round_folder
from seguq.core.errors import SeguqError
from seguq.data import Classes, read_mask
from seguq.regions.rle import region_mask

_REPLICATES = 1000
_SEED = 0

Mask = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What came of one region.

    Attributes:
        row: the region, as in the selection.
        answered: whether it came back in this round.
        pixels: how many pixels of the answer are of each class, ``(classes,)``.
        untold: pixels that nobody could tell the class of.
    """

    row: dict[str, Any]
    answered: bool
    pixels: npt.NDArray[np.int64]
    untold: int

    @property
    def predicted(self) -> int | None:
        """The most frequent class of the prediction that the choice was made from; None of independent labels."""
        found: int | None = self.row["predicted_class"]
        return found

    @property
    def labeled(self) -> int:
        """Pixels that the answer has a class for."""
        return int(self.pixels.sum())

    @property
    def other(self) -> int:
        """Of these, the pixels of another class than the predicted one."""
        known = self.predicted is not None and self.predicted < len(self.pixels)
        return self.labeled - (int(self.pixels[self.predicted]) if known else 0)


def answer_file(run_dir: str | os.PathLike[str], number: int, image_id: str) -> Path:
    """The mask of what came back of an image in a round."""
    return round_folder(run_dir, number) / "answers" / f"{image_id}.png"


def read_answer(path: Path, rows: Iterable[dict[str, Any]], classes: Classes) -> Mask:
    """A mask of answers, as large as the regions need.

    Raises:
        SeguqError: if it is missing or damaged, or a region reaches beyond it.
    """
    if not path.exists():
        raise SeguqError(f"{path} is missing, though the journal says that it came back: bring it back")
    mask: Mask = read_mask(path, classes)
    for row in rows:
        _, _, y1, x1 = box_of(row)
        if y1 > mask.shape[0] or x1 > mask.shape[1]:
            raise SeguqError(
                f"{path} has {mask.shape[0]} x {mask.shape[1]} pixels, but a region that was asked for reaches to row "
                f"{y1} and column {x1}: it is of another image"
            )
    return mask


def outcomes_of(run_dir: str | os.PathLike[str], number: int, selection: Selection, classes: Classes) -> list[Outcome]:
    """What came back of each region of a round's selection, in its order; one mask in memory at a time.

    Raises:
        SeguqError: for a file of the run that is missing or damaged.
    """
    back = _back(run_dir, number)
    found: dict[tuple[Any, ...], Outcome] = {}
    for image_id, rows in by_image(selection.rows).items():
        answered = [row for row in rows if region_key(row) in back]
        mask = read_answer(answer_file(run_dir, number, image_id), answered, classes) if answered else None
        for row in rows:
            is_back = mask is not None and region_key(row) in back
            found[region_key(row)] = _outcome(row, mask if is_back else None, len(classes))
    return [found[region_key(row)] for row in selection.rows]


def late_answers(run_dir: str | os.PathLike[str], number: int) -> int:
    """How many regions came back in a round that earlier ones had asked for."""
    return len(_back(run_dir, number, late=True))


def _back(run_dir: str | os.PathLike[str], number: int, late: bool = False) -> set[tuple[Any, ...]]:
    """What identifies each region that came back in a round, of those that it had asked for, or that others had."""
    events = [event for event in read_events(run_dir) if event.round == number]
    events = [event for event in events if (event.content.get("asked", number) != number) is late]
    return {key for event in events for key in answered_regions(event, run_dir)}


def _outcome(row: dict[str, Any], mask: Mask | None, num_classes: int) -> Outcome:
    if mask is None:
        return Outcome(row, False, np.zeros(num_classes, np.int64), 0)
    y0, x0, y1, x1 = box_of(row)
    values = mask[y0:y1, x0:x1][region_mask(row)]
    known = values[(values >= 0) & (values < num_classes)]
    return Outcome(row, True, np.bincount(known, minlength=num_classes), len(values) - len(known))


def share_of_other(outcomes: Sequence[Outcome]) -> Interval:
    """The share of labeled pixels that are of another class than their region was predicted to be.

    Args:
        outcomes: those without a predicted class count nothing.

    Returns:
        The share, 0 to 1, with its interval of 95 %, bootstrapped over images; NaN where nothing is labeled, and an
        interval of NaN where all is of one image.
    """
    import torch

    from seguq.metrics.bootstrap import percentiles, poisson_weights

    counts: dict[str, npt.NDArray[np.float64]] = {}
    for item in outcomes:
        if item.predicted is not None and item.labeled:
            before = counts.get(item.row["image_id"], np.zeros(2))
            counts[item.row["image_id"]] = before + np.array([item.other, item.labeled])
    if not counts:
        return Interval(math.nan, math.nan, math.nan)
    other, labeled = sum(counts.values(), np.zeros(2))
    if len(counts) < 2:
        return Interval(float(other / labeled), math.nan, math.nan)
    sums = np.zeros((2, _REPLICATES))
    for image_id, pair in counts.items():
        sums += pair[:, None] * poisson_weights(_SEED, image_id, _REPLICATES)
    drawn = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = percentiles(torch.from_numpy(drawn), 0.95)
    return Interval(float(other / labeled), float(low), float(high))
