"""A page of one round: what was chosen, what came of it, and what it was worth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seguq.acquisition import Selection
from seguq.acquisition.selection import by_image
from seguq.active.reports.curve import curve_of
from seguq.active.reports.outcomes import (
    Outcome,
    answer_file,
    late_answers,
    outcomes_of,
    read_answer,
    share_of_other,
)
from seguq.active.reports.records import (
    MAIN_METRIC,
    METRIC_NAMES,
    Interval,
    Record,
    read_records,
    require_run,
    round_folder,
)
from seguq.active.reports.status import SELECTION_FILE, labeled_in_words, percent
from seguq.active.reports.views import View
from seguq.core.checks import is_whole
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource
from seguq.export.learning_curve import learning_curve
from seguq.export.page import captioned, cards, image_tag, page, picture_row, plot_tag, table, text

PAGE_FILE = "page.html"
SHOWN = 24
"""Images that are drawn, the first by rank."""

_LISTED = 4  # regions below a picture, one by one


def round_page(run_dir: str | os.PathLike[str], round: int, images: ImageSource, classes: Classes) -> str:
    """The page of a round of a loop, as one HTML file with its pictures inside.

    Args:
        run_dir: the folder of the loop.
        round: the number of the round, whose regions were chosen.
        images: the pool; an image that is gone, or cannot be read, is told of on the page.
        classes: names and colors.

    Returns:
        HTML. It links to the pages of the rounds before and after, where a loop puts them.

    Raises:
        UsageError: for a folder that is no run, or a round that has chosen nothing yet.
        SeguqError: for a file of the run that is missing or damaged.
    """
    folder = require_run(run_dir)
    path = round_folder(folder, round if is_whole(round, 0) else 0) / SELECTION_FILE
    if not is_whole(round, 0) or not path.exists():
        raise UsageError(f"{folder} has no round {round!r} that has chosen regions")
    selection, records = Selection.load(path), read_records(folder)[: round + 1]
    outcomes = outcomes_of(folder, round, selection, classes)
    mine = records[round] if round < len(records) else None
    body = (
        _head(folder, round, selection, outcomes, mine)
        + _worth(records, round)
        + _classes(outcomes, classes)
        + _images(folder, round, selection, outcomes, images, classes)
        + _links(folder, round)
    )
    return page(f"round {round} of {folder.name}", body)


def _head(folder: Path, number: int, selection: Selection, outcomes: Sequence[Outcome], record: Record | None) -> str:
    back = sum(outcome.answered for outcome in outcomes)
    late = late_answers(folder, number)
    asked = f"asked for in {_count(selection.image_ids, 'image')}"
    asked += f"; and {late} that earlier rounds had asked for" if late else ""
    boxes = [(f"{back} of {len(outcomes)}", "regions came back", asked)]
    if record is not None:
        found, gain = record.metrics.get(MAIN_METRIC), record.gain.get(MAIN_METRIC)
        if found is not None:
            note = f"{_ends(found)}, {record.images} {record.split} images"
            boxes.append((_value(found), f"{METRIC_NAMES[MAIN_METRIC]} after this round", note))
        if gain is not None:
            note = f"{_ends(gain, '+')}, paired"
            boxes.append((_value(gain, "+"), f"gained since round {record.since}", note))
        boxes.append(
            (percent(record.share), "of the pool's pixels labeled", f"{record.labeled.clicks:,} clicks so far")
        )
        unit = record.unit or ""
        budget = ", ".join(f"{name} {value}" for name, value in record.budget.items())
        boxes.append((f"{record.spent:,g}", f"{unit} spent in this round", f"budget: {budget}"))
    else:
        boxes.append(("not yet", "judged", "the model of this round has no figures"))
    why = selection.why
    words = [f"strategy {why['strategy']}"] if why.get("strategy") else []
    words += [f"{name} {why[name]}" for name in ("by", "aggregate", "partition", "estimator", "seed") if name in why]
    chosen = f'<p class="soft">How these regions were chosen: {text("; ".join(words))}.</p>' if words else ""
    labeled = "" if record is None else f" Labeled by its end: {text(labeled_in_words(record))}."
    of = f'<p class="soft">of the loop in {text(folder)}.{labeled}</p>'
    return _links(folder, number) + f"<h1>Round {number}</h1>" + of + cards(boxes) + chosen


def _links(folder: Path, number: int) -> str:
    """To the neighbors; the next one is written when that round ends."""
    before = f'<a href="../round-{number - 1:02d}/{PAGE_FILE}">&larr; round {number - 1}</a> &nbsp; ' if number else ""
    after = f'<a href="../round-{number + 1:02d}/{PAGE_FILE}">round {number + 1} &rarr;</a>'
    done = "" if (round_folder(folder, number + 1) / PAGE_FILE).exists() else " (once it has ended)"
    return f'<p class="soft">{before}{after}{done}</p>'


def _worth(records: Sequence[Record], number: int) -> str:
    """The figures before and after, and the curve up to here."""
    if number >= len(records):
        return "<h2>What it was worth</h2><p>It was not judged yet.</p>"
    if not records[number].metrics:
        return "<h2>What it was worth</h2><p>There are no labeled images that this round was judged on.</p>"
    after = records[number]
    before = records[number - 1] if number else None
    rows = []
    for name, value in after.metrics.items():
        earlier, gain = None if before is None else before.metrics.get(name), after.gain.get(name)
        rows.append(
            [
                METRIC_NAMES.get(name, name),
                "" if earlier is None else str(earlier),
                str(value),
                "" if gain is None else gain.in_words("+"),
            ]
        )
    figure = learning_curve([curve_of(records, "this run")], "labeled pixels", METRIC_NAMES[MAIN_METRIC])
    curve = captioned(plot_tag(figure, "learning curve"), "the learning curve up to this round")
    heads = ["metric", "" if before is None else f"after round {number - 1}", f"after round {number}", "gain, paired"]
    over = f"{after.images} {after.split} images in {after.groups} groups"
    judged = any(MAIN_METRIC in record.metrics for record in records)
    return (
        "<h2>What it was worth</h2>"
        f"<p>Intervals are of 95 %, bootstrapped over {text(over)}. A gain is the difference of two rounds on the same "
        "images, and its interval that of this difference.</p>"
        + table(heads, rows)
        + (f'<div style="max-width: 720px; margin-top: 14px">{curve}</div>' if judged else "")
    )


def _classes(outcomes: Sequence[Outcome], classes: Classes) -> str:
    """The classes of what came back, against those that the model had predicted."""
    back = [outcome for outcome in outcomes if outcome.labeled]
    if not back:
        return "<h2>What came back</h2><p>Nothing that was asked for in this round has come back in it.</p>"
    total = np.sum([outcome.pixels for outcome in back], axis=0)
    shown = [number for number in range(len(classes)) if total[number]]
    rows = []
    for predicted in sorted({outcome.predicted for outcome in back}, key=lambda value: (value is None, value)):
        mine = [outcome for outcome in back if outcome.predicted == predicted]
        rows.append([_name(predicted, classes), *_cells(mine, shown)])
    if len(rows) > 1:
        rows.append(["all", *_cells(back, shown)])
    heads = ["predicted class", "regions", "pixels labeled", "of another class", *(classes.names[n] for n in shown)]
    untold = sum(outcome.untold for outcome in outcomes)
    more = f" Of {untold:,} pixels nobody could tell the class." if untold else ""
    return (
        "<h2>How often was the model wrong in what it asked for?</h2>"
        "<p>Each region goes by the class that the model had predicted most often in it. The columns at the right say "
        "what its pixels are in truth; <i>of another class</i> is how many are not of the predicted one, with an "
        "interval of 95 % over images. In a region that a border runs through some pixels are of another class though "
        f"the model may have known it.{more}</p>" + table(heads, rows)
    )


def _cells(outcomes: Sequence[Outcome], shown: Sequence[int]) -> list[str]:
    pixels = np.sum([outcome.pixels for outcome in outcomes], axis=0)
    share = share_of_other(outcomes)
    other = "" if np.isnan(share.value) else f"{100 * share.value:.1f} %"
    if np.isfinite([share.low, share.high]).all():
        other += f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    parts = [f"{100 * pixels[number] / pixels.sum():.1f} %" for number in shown]
    return [str(len(outcomes)), f"{pixels.sum():,}", other, *parts]


def _images(
    folder: Path, number: int, selection: Selection, outcomes: Sequence[Outcome], images: ImageSource, classes: Classes
) -> str:
    """The images, the first by rank."""
    rows = by_image(selection.rows)
    of_image: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        of_image.setdefault(outcome.row["image_id"], []).append(outcome)
    legend = "".join(
        f'<span><i style="background: rgb{color}"></i>{text(name)}</span>'
        for color, name in zip(classes.colors, classes.names, strict=True)
    )
    left = len(rows) - SHOWN
    shown = f"the first {SHOWN} of {len(rows)} images by rank; {left} are left out" if left > 0 else "all images"
    parts = [_image(folder, number, image_id, of_image[image_id], images, classes) for image_id in list(rows)[:SHOWN]]
    return (
        "<h2>What was asked for, and what came back</h2>"
        f"<p>Shown are {shown}. The numbers are ranks. Then each region has the color of the class that was predicted "
        "most often in it, and last its pixels have those of the answer; white is what nobody could tell.</p>"
        f'<div class="legend">{legend}</div>' + "".join(parts)
    )


def _image(
    folder: Path, number: int, image_id: str, outcomes: Sequence[Outcome], images: ImageSource, classes: Classes
) -> str:
    """One image: asked, predicted, answered."""
    head = f"<h3>image {text(image_id)}</h3>" + _listed(outcomes, classes)
    back = [outcome for outcome in outcomes if outcome.answered]
    mask = read_answer(answer_file(folder, number, image_id), [item.row for item in back], classes) if back else None
    try:
        view = View(images[image_id], [outcome.row for outcome in outcomes])
    except SeguqError as error:  # an image that is gone is no reason to lose the page
        return head + f"<p>It cannot be shown: {text(error)}.</p>"
    answered = "came back" if len(back) == len(outcomes) else f"came back: {len(back)} of {len(outcomes)} regions"
    pictures = [
        (view.asked(), "asked for"),
        (view.asked_closer(), "closer"),
        (view.predicted(classes), "predicted, one class a region"),
        (view.answered(mask, outcomes, classes), answered),
    ]
    shown = [
        captioned(image_tag(made, f"{what}: image {image_id}"), text(what))
        for made, what in pictures
        if made is not None
    ]
    return head + picture_row([*shown, *([] if back else [captioned("", "nothing has come back yet")])])


def _listed(outcomes: Sequence[Outcome], classes: Classes) -> str:
    """The first regions of an image in words."""
    lines = []
    for outcome in outcomes[:_LISTED]:
        row = outcome.row
        words = [f"<b>rank {row['rank']}</b>"]
        if row.get("reason"):  # it names what it was scored by, and the predicted class
            words.append(text(row["reason"]))
        else:
            words += [] if row["score"] is None else [f"score {row['score']:.4g}"]
            words += [] if outcome.predicted is None else [f"predicted {text(_name(outcome.predicted, classes))}"]
        words.append(text(_came(outcome, classes)))
        lines.append("; ".join(words))
    more = len(outcomes) - _LISTED
    lines += [f"and {more} more region{'s' if more > 1 else ''} of this image"] if more > 0 else []
    return f'<p class="soft">{"<br>".join(lines)}</p>'


def _came(outcome: Outcome, classes: Classes) -> str:
    """What a region is in truth, in words."""
    if not outcome.answered:
        return "not back yet"
    if not outcome.labeled:
        return "nobody could tell"
    first = int(outcome.pixels.argmax())
    said = f"labeled {classes.names[first]} ({100 * outcome.pixels[first] / outcome.labeled:.0f} %)"
    return (
        said if outcome.predicted is None else f"{said}, {100 * outcome.other / outcome.labeled:.0f} % of another class"
    )


def _name(number: int | None, classes: Classes) -> str:
    if number is None:
        return "none"
    return classes.names[number] if 0 <= number < len(classes) else f"class {number}"


def _value(interval: Interval, sign: str = "") -> str:
    return "unknown" if np.isnan(interval.value) else f"{interval.value:{sign}.3f}"


def _ends(interval: Interval, sign: str = "") -> str:
    if np.isnan([interval.low, interval.high]).any():
        return "no interval"
    return f"95 % interval {interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _count(items: Sequence[Any] | Mapping[str, Any], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"
