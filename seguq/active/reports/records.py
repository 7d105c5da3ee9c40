"""What came of each round of a loop: its ``metrics.json``, read and checked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from seguq.core.errors import SeguqError, UsageError
from seguq.core.reading import mapping, number, read_json, reading, text, whole

MAIN_METRIC = "miou"
"""The metric that a loop is judged by."""

METRIC_NAMES = {"miou": "mean IoU", "accuracy": "pixel accuracy", "ece": "ECE", "nll": "NLL"}
"""What the metrics are called before people."""

METRICS_FILE = "metrics.json"
_VERSION = 1
_FOLDER = re.compile(r"round-(\d{2,9})")
_UNITS = ("regions", "pixels", "images", "clicks", "cost")
_LARGEST = 2**60  # of a count


class Interval(NamedTuple):
    """A figure with the ends of its interval of 95 %; NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.in_words()

    def in_words(self, sign: str = "") -> str:
        """The figure as people read it, its interval in brackets.

        Args:
            sign: ``"+"`` shows that of a gain.

        Example:
            >>> Interval(0.02, -0.01, 0.05).in_words("+"), Interval(0.4, math.nan, math.nan).in_words()
            ('+0.020 [-0.010, +0.050]', '0.400')
        """
        if math.isnan(self.value):
            return "unknown"
        ends = "" if math.isnan(self.low + self.high) else f" [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"
        return f"{self.value:{sign}.3f}{ends}"


class Counts(NamedTuple):
    """How much of something there is; ``clicks`` is 0 where nobody has clicked, as in a pool."""

    regions: int
    pixels: int
    images: int
    clicks: int = 0


@dataclass(frozen=True)
class Record:
    """One round of a loop, once it was judged.

    Attributes:
        round: its number, from 0.
        split: what it was judged on, ``test`` or ``val``; None where there were no labeled images for that.
        images: how many images that were.
        groups: and how many groups, over which the intervals are.
        metrics: figures by name; empty where there was nothing to judge on.
        gain: what the figures have grown since an earlier round, paired; by name.
        since: that round; None where nothing is compared.
        labeled: all that is labeled, up to and with this round.
        pool: all that there is.
        chosen: regions that this round has asked for.
        answered: regions of these that came back.
        spent: what they cost, in ``unit``.
        budget: how much this round was allowed, as `seguq.acquisition.Budget.as_dict` says it.
        seconds: what each step took.
    """

    round: int
    split: str | None
    images: int
    groups: int
    metrics: Mapping[str, Interval]
    gain: Mapping[str, Interval]
    since: int | None
    labeled: Counts
    pool: Counts
    chosen: int
    answered: int
    spent: float
    budget: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def share(self) -> float:
        """The labeled share of the pool's pixels, 0 to 1; NaN of an empty pool."""
        return self.labeled.pixels / self.pool.pixels if self.pool.pixels else math.nan

    @property
    def unit(self) -> str | None:
        """What ``spent`` counts: regions, pixels, images, clicks or cost; None where the budget names none."""
        return next((name for name in _UNITS if name in self.budget), None)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Record:
        """Read a ``metrics.json``.

        Raises:
            SeguqError: if it is missing, damaged, or of another version.
        """
        with reading(path):
            content = mapping(read_json(path), "its content")
            version = whole(content["version"], "version")
            if version != _VERSION:
                raise SeguqError(f"{path} was written by another version of seguq (schema {version})")
            split, gain = content["split"], content["gain"]
            gains = {} if gain is None else mapping(gain, "'gain'")
            since = None if gain is None else _count(gains, "since")
            selected = mapping(content["selected"], "'selected'")
            found = cls(
                round=_count(content, "round"),
                split=None if split is None else text(split, "'split'"),
                images=_count(content, "images"),
                groups=_count(content, "groups"),
                metrics=_intervals(mapping(content["metrics"], "'metrics'")),
                gain=_intervals({name: value for name, value in gains.items() if name != "since"}),
                since=since,
                labeled=_counts(content["labeled"], "'labeled'", clicks=True),
                pool=_counts(content["pool"], "'pool'", clicks=False),
                chosen=_count(selected, "regions"),
                answered=_count(selected, "answered"),
                spent=_finite(selected["spent"], "'spent'"),
                budget=mapping(selected["budget"], "'budget'"),
                seconds={
                    name: _finite(value, f"'seconds' of {name!r:.40}")
                    for name, value in mapping(content["seconds"], "'seconds'").items()
                },
            )
            if since is not None and since >= found.round:
                raise ValueError(f"'since' must be a round before {found.round}, but is {since}")
            return found


def round_folder(run_dir: str | os.PathLike[str], number: int) -> Path:
    """The folder of a round."""
    return Path(run_dir) / f"round-{number:02d}"


def require_run(run_dir: str | os.PathLike[str]) -> Path:
    """The folder of a loop, which has to be there.

    Raises:
        UsageError: for one that is missing, or that no loop has begun.
    """
    folder = Path(run_dir)
    with reading(folder):
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}")
        if not (folder / "loop.json").exists():
            raise UsageError(f"{folder} is no run of seguq loop: it has no loop.json")
    return folder


def read_records(run_dir: str | os.PathLike[str]) -> list[Record]:
    """The rounds of a loop that were judged, in order.

    Args:
        run_dir: the folder of the loop.

    Raises:
        UsageError: if that is none.
        SeguqError: for a file that is damaged, and for a round before the last that lacks it.
    """
    folder = require_run(run_dir)
    with reading(folder):
        matches = (_FOLDER.fullmatch(path.name) for path in folder.iterdir())
        begun = sorted({int(match[1]) for match in matches if match is not None})
    judged = [i for i in begun if (round_folder(folder, i) / METRICS_FILE).exists()]
    records = []
    for i, found in enumerate(judged):
        path = round_folder(folder, i) / METRICS_FILE
        if found != i:
            raise SeguqError(
                f"{path} is missing, though round {found} has its own: bring it back, or begin anew in another folder"
            )
        record = Record.read(path)
        if record.round != i:
            raise SeguqError(f"{path} is of round {record.round}: it was copied or moved from there")
        records.append(record)
    return records


def _count(content: Mapping[str, Any], name: str) -> int:
    value = whole(content[name], f"{name!r}", 0)
    if value >= _LARGEST:
        raise ValueError(f"{name!r} must be below {_LARGEST}, but is {value!r:.40}")
    return value


def _counts(value: Any, name: str, *, clicks: bool) -> Counts:
    content = mapping(value, name)
    regions, pixels, images = (_count(content, part) for part in ("regions", "pixels", "images"))
    return Counts(regions, pixels, images, _count(content, "clicks") if clicks else 0)


def _finite(value: Any, name: str) -> float:
    found = number(value, name, 0)
    if not math.isfinite(found):
        raise ValueError(f"{name} must be finite, but is {found}")
    return found


def _intervals(content: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: _interval(mapping(value, f"{name!r:.40}"), name) for name, value in content.items()}


def _interval(content: Mapping[str, Any], name: str) -> Interval:
    parts = (content[part] for part in Interval._fields)  # JSON has no NaN of its own, so it may be null
    return Interval(*(math.nan if part is None else number(part, f"a figure of {name!r:.40}") for part in parts))
