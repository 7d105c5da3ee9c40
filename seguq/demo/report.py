"""The page that the demo writes: what the model sees, where it is wrong, how sure it is, and what to label next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of
from seguq.cli.common import with_interval
from seguq.cli.sheets import tiles_of
from seguq.core.files import write_bytes
from seguq.data import read_image
from seguq.data.classes import Classes
from seguq.demo.gallery import Example, common_scale, gallery, legend
from seguq.export import colorize, contact_sheet, outline, to_rgb
from seguq.export.page import captioned, cards, image_tag, page, picture_row, plot_tag, table, text
from seguq.inference import UncertaintyMaps
from seguq.metrics import CalibrationError

Triple = tuple[float, float, float]
_CONTEXT = 48
_SHEET = 8


@dataclass
class Pool:
    """The unlabeled images, what the model said of them, and what was chosen to be labeled."""

    folder: Path
    ids: list[str]
    maps: Mapping[str, UncertaintyMaps]
    scores: Mapping[str, npt.NDArray[np.float64]]
    """The mean of each measure over each image."""
    selection: Selection
    highest: Selection
    """What plain top-k would have chosen, for comparison."""
    stained: set[str]


@dataclass
class Findings:
    """Everything that the demo found. Numbers are a value and both ends of its interval."""

    evaluations: dict[str, dict[str, Triple]]
    diagrams: dict[str, dict[str, CalibrationError]]
    own_temperature: dict[str, Triple]
    auroc: dict[str, Triple]
    found: dict[str, dict[str, Triple]]
    temperatures: dict[str, float]
    settings: dict[str, Any]
    times: dict[str, float]
    examples: list[Example]
    classes: Classes
    pool: Pool

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        names = ("evaluations", "own_temperature", "auroc", "found", "temperatures", "settings", "times")
        return {name: getattr(self, name) for name in names}

    def headline(self) -> list[tuple[str, str]]:
        """The numbers that matter most, as people read them."""
        one, mc, stained = (self.evaluations[n] for n in ("one pass, test", "MC dropout, test", "one pass, stained"))
        rows = [
            ("mean IoU, test", _cell(one["mean IoU"])),
            ("ECE before, test (one pass)", _cell(one["ECE before"], 4)),
            ("ECE after, test (one pass)", _cell(one["ECE after"], 4)),
            ("ECE before, test (MC dropout)", _cell(mc["ECE before"], 4)),
            ("ECE after, test (MC dropout)", _cell(mc["ECE after"], 4)),
            ("ECE before, stained images", _cell(stained["ECE before"], 4)),
            ("ECE after, stained, temperature of fluorescence", _cell(stained["ECE after"], 4)),
            ("ECE after, stained, temperature of stained (2 folds)", _cell(self.own_temperature["ECE after"], 4)),
        ]
        rows += [(f"AUROC for wrong pixels: {m.replace('_', ' ')}", _cell(v)) for m, v in self.auroc.items()]
        for measure, item in self.found.items():
            name = measure.replace("_", " ")
            top, count = int(item["top"][0]), item["stained among the top"]
            rows.append((f"stained among the {top} most uncertain of the pool ({name})", _cell(count, 0)))
            rows.append((f"AUROC stained above fluorescence ({name})", _cell(item["AUROC for stained"])))
        return rows


def _plain(tag: str) -> str:
    """An estimator's tag in words."""
    return "one pass" if tag == "deterministic" else "MC dropout"


def _cell(triple: Triple, digits: int = 3) -> str:
    value, low, high = triple
    return with_interval(value, (low, high), digits)


def write_report(folder: Path, findings: Findings) -> None:
    """Write ``report.html``."""
    parts = [
        _head(findings),
        gallery(findings.examples, findings.classes),
        _labeling(findings),
        _ranking(findings),
        _calibration(findings),
        _errors(findings),
        _making(findings),
    ]
    write_bytes(folder / "report.html", page("seguq demo", "".join(parts)).encode())


def _head(findings: Findings) -> str:
    test, stained = findings.evaluations["one pass, test"], findings.evaluations["one pass, stained"]
    value = findings.auroc["predictive_entropy"]
    found = findings.found["predictive_entropy"]
    top = int(found["top"][0])

    def interval(triple: Triple, digits: int = 3) -> str:
        return f"95 % interval {triple[1]:.{digits}f} to {triple[2]:.{digits}f}"

    return (
        "<h1>What this model does not know</h1>"
        '<p class="soft">A small network was trained to find nuclei in fluorescence microscopy, and asked, pixel by '
        "pixel, how sure it is. In the pool of unlabeled images some are of another kind, stained tissue, which it has "
        "never seen. All numbers are of images that the model was not trained on; intervals are bootstrapped over "
        "images.</p>"
        + cards(
            [
                (f"{test['mean IoU'][0]:.3f}", "mean IoU on test images", interval(test["mean IoU"])),
                (f"{value[0]:.3f}", "AUROC for wrong pixels (predictive entropy, MC dropout)", interval(value)),
                (
                    f"{found['stained among the top'][0]:.0f} of {top}",
                    "most uncertain pool images are stained ones",
                    f"{found['stained'][0]:.0f} of all in the pool; {interval(found['stained among the top'], 0)}",
                ),
                (
                    f"{test['ECE before'][0]:.3f} / {stained['ECE before'][0]:.3f}",
                    "calibration error, own kind / stained",
                    f"one pass, before calibration; {interval(test['ECE before'])} / {stained['ECE before'][1]:.3f} to "
                    f"{stained['ECE before'][2]:.3f}",
                ),
            ]
        )
    )


def _crop(image: npt.NDArray[np.uint8], row: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A region with what lies around it, outlined."""
    y0, x0, y1, x1 = box_of(row)
    height, width = image.shape[:2]
    top, left = max(0, y0 - _CONTEXT), max(0, x0 - _CONTEXT)
    bottom, right = min(height, y1 + _CONTEXT), min(width, x1 + _CONTEXT)
    part = image[top:bottom, left:right].repeat(2, axis=0).repeat(2, axis=1)
    return outline(part, [[2 * (y0 - top), 2 * (x0 - left), 2 * (y1 - top), 2 * (x1 - left)]])


def _labeling(findings: Findings) -> str:
    pool, selection, names = findings.pool, findings.pool.selection, findings.classes.names
    maps, stained = pool.maps, pool.stained
    crops = []
    for row in selection.rows[:12]:
        image = to_rgb(read_image(pool.folder / f"{row['image_id']}.jpg"))
        kind = ' <span class="chip">stained</span>' if row["image_id"] in stained else ""
        caption = (
            f"<b>{row['rank']}.</b> margin score {row['score']:.3f} on average; mostly predicted "
            f"{text(names[row['predicted_class']])}; image {text(row['image_id'])}, rows {row['y0']} to {row['y1']}, "
            f"columns {row['x0']} to {row['x1']}{kind}"
        )
        crops.append(captioned(image_tag(_crop(image, row), f"region {row['rank']}", ".png"), caption))
    scale = common_scale(list(maps.values()), "smallest_margin")
    whole = []
    for image_id in selection.image_ids[:4]:
        mine = selection.in_image(image_id)
        labels = [str(row["rank"]) for row in mine]
        image = to_rgb(read_image(pool.folder / f"{image_id}.jpg"))
        heat = colorize(maps[image_id]["smallest_margin"][0].numpy(), scale)
        # enlarged, or the ranks could not be read
        image, heat = (part.repeat(2, axis=0).repeat(2, axis=1) for part in (image, heat))
        boxes = [[2 * side for side in box_of(row)] for row in mine]
        pair = np.hstack([outline(image, boxes, labels=labels), outline(heat, boxes)])
        count = f"{len(mine)} region{'s' if len(mine) > 1 else ''}"
        whole.append(captioned(image_tag(pair, f"image {image_id}"), f"image {text(image_id)}: {count} selected"))
    inside = sum(row["image_id"] in stained for row in selection.rows)
    return (
        "<h2>What to label next, and why</h2>"
        "<p>The pool was cut into cells of 32 x 32 pixels. Each is scored by the mean margin, 1 - (p(1) - p(2)), of "
        "its pixels: where a second class comes close to the first, a label may teach most. The best cell of every "
        f"image comes first, then the second best. Within a budget of {len(selection)} regions, these are the first; "
        f"{inside} of the {len(selection)} lie in stained images.</p>"
        + picture_row(crops)
        + "<h3>The images they come from</h3>"
        + f'<div class="legend">{legend(scale, "smallest_margin")}</div>'
        + picture_row(whole, "wide")
        + _spread(findings)
    )


def _spread(findings: Findings) -> str:
    """What the default has chosen beside what the highest scores alone would have been."""
    pool, names = findings.pool, findings.classes.names
    both = {"the best of each image": pool.selection, "the highest scores alone": pool.highest}
    rows, sheets = [], []
    for title, chosen in both.items():
        classes = [sum(row["predicted_class"] == number for row in chosen.rows) for number in range(len(names))]
        most = max(len(chosen.in_image(image_id)) for image_id in chosen.image_ids)
        inside = len(pool.stained.intersection(chosen.image_ids))
        rows.append([title, str(len(chosen.image_ids)), str(most), str(inside), *map(str, classes)])
        first = list(tiles_of(chosen, lambda image_id: read_image(pool.folder / f"{image_id}.jpg"), _SHEET))
        (sheet,) = contact_sheet(first, f"{title}: {len(chosen)} regions in {len(chosen.image_ids)} images")
        sheets.append(captioned(image_tag(sheet, title), f"the first {len(first)} images"))
    images, others = (len(chosen.image_ids) for chosen in both.values())
    heads = ["chosen", "images", "most regions of one", "stained images", *(f"predicted {name}" for name in names)]
    return (
        "<h3>Why not simply the highest scores?</h3>"
        f"<p>They are often neighbors, and one of them says what the others would. The same budget, spent on the best "
        f"region of each image first, opens {images} images; the highest scores alone lie in {others}.</p>"
        + table(heads, rows)
        + picture_row(sheets, "wide")
    )


def _ranking(findings: Findings) -> str:
    pool = findings.pool
    scores, ids, stained = pool.scores["predictive_entropy"], pool.ids, pool.stained
    thumbs = []
    for rank, i in enumerate(np.argsort(-scores, kind="stable")[:10], 1):
        chip = ' <span class="chip">stained</span>' if ids[i] in stained else ""
        image = to_rgb(read_image(pool.folder / f"{ids[i]}.jpg"))
        thumbs.append(captioned(image_tag(image, f"image {ids[i]}"), f"<b>{rank}.</b> mean {scores[i]:.3f} nats{chip}"))
    rows = [
        [
            measure.replace("_", " "),
            f"{_cell(item['stained among the top'], 0)} of {item['top'][0]:.0f}",
            _cell(item["AUROC for stained"]),
        ]
        for measure, item in findings.found.items()
    ]
    return (
        "<h2>Images of another kind</h2>"
        f"<p>{len(stained)} of the {len(ids)} pool images are of stained tissue; nobody told the model. Ranked by mean "
        "predictive entropy, these are the ten that it is least sure of.</p>"
        + picture_row(thumbs)
        + table(["images ranked by", "stained among the most uncertain", "AUROC, stained above fluorescence"], rows)
    )


def _calibration(findings: Findings) -> str:
    from matplotlib.figure import Figure

    plots = []
    for name, title in (("one pass, test", "Test images, as in training"), ("one pass, stained", "Stained tissue")):
        figure = Figure(figsize=(4.3, 4.3), layout="constrained")
        axes = figure.add_subplot()
        for when, color in (("before", "#b5367a"), ("after", "#31688e")):
            findings.diagrams[name][when].plot(ax=axes, label=when, color=color)
        axes.set_title(title, fontsize=11)
        plots.append(captioned(plot_tag(figure, f"reliability diagram, {title}"), "bands: 95 % over images"))
    test, stained = findings.evaluations["one pass, test"], findings.evaluations["one pass, stained"]
    mc = findings.evaluations["MC dropout, test"]
    own = findings.own_temperature["ECE after"]
    value, low, high = test["ECE change"]
    word = "lowers" if high < 0 else "raises" if low > 0 else "does not show to change"
    amount = f" by {abs(value):.4f} [{min(abs(low), abs(high)):.4f}, {max(abs(low), abs(high)):.4f}]"
    verdict = (
        "on images like those that the model was trained on, confidence is good to begin with (a calibration error of "
        f"{test['ECE before'][0]:.3f}), and the temperature {word} the error{amount if low * high > 0 else ''}"
    )
    rows = [
        ["test, one pass", *(_cell(test[f"ECE {when}"], 4) for when in ("before", "after", "change"))],
        ["test, MC dropout", *(_cell(mc[f"ECE {when}"], 4) for when in ("before", "after", "change"))],
        [
            "stained, temperature fitted on fluorescence",
            *(_cell(stained[f"ECE {when}"], 4) for when in ("before", "after", "change")),
        ],
        [
            "stained, temperature fitted on other stained images",
            _cell(stained["ECE before"], 4),
            *(_cell(findings.own_temperature[f"ECE {when}"], 4) for when in ("after", "change")),
        ],
    ]
    count, _, correct = findings.diagrams["one pass, stained"]["before"].bins.sum(1).tolist()
    right = correct / max(count, 1)
    moral = (
        f"No temperature can do better: the model is right in only {100 * right:.0f} % of these pixels, and a "
        "temperature can take its confidence down to 50 %, but not change its mind. Such images have to be labeled."
        if right < 0.5
        else "Calibration holds for the kind of image that it was fitted on."
    )
    temperatures = " and ".join(f"{value:.2f} for {text(_plain(tag))}" for tag, value in findings.temperatures.items())
    return (
        "<h2>Does 90 % mean nine times in ten?</h2>"
        f"<p>A temperature was fitted on the validation images ({temperatures}). To say it as it is: {verdict}. "
        f"On stained tissue its confidence means much less: the calibration error is {stained['ECE before'][0]:.3f}. A "
        f"temperature from the wrong kind of image leaves {stained['ECE after'][0]:.3f}; one that is fitted on "
        f"other stained images leaves {own[0]:.3f}. {moral}</p>"
        + picture_row(plots, "wide")
        + table(["expected calibration error", "before", "after (out of sample)", "change"], rows)
    )


def _errors(findings: Findings) -> str:
    rows = [
        [measure.replace("_", " "), _cell(value)]
        for measure, value in sorted(findings.auroc.items(), key=lambda item: -item[1][0])
    ]
    return (
        "<h2>Which measure finds the errors</h2>"
        "<p>The chance that a wrong pixel is more uncertain than a right one: 1 is perfect, 0.5 is worth nothing. "
        f"MC dropout of {findings.settings['samples']} samples, test images.</p>"
        + table(["measure", "AUROC for wrong pixels [95 % interval]"], rows)
    )


def _making(findings: Findings) -> str:
    settings = findings.settings
    times = "; ".join(f"{name} {seconds:.0f} s" for name, seconds in findings.times.items())
    return (
        "<h2>How it was made</h2>"
        f"<p>{settings['architecture']} with {text(settings['encoder'])} from random weights, {settings['steps']} "
        f"steps, seed {settings['seed']}. Images: BBBC038 / 2018 Data Science Bowl, CC0. {times}. "
        "The same on your own images:</p>"
        "<pre><code>seguq fit --data.root DATA --model.classes 2 --out runs/mine\n"
        "seguq calibrate --checkpoint runs/mine/best.ckpt --data DATA --estimator mc_dropout\n"
        "seguq predict --checkpoint runs/mine/best.ckpt --images POOL --out runs/pool\n"
        "seguq score --predictions runs/pool\n"
        "seguq select --scores runs/pool/regions.parquet --budget.regions 50</code></pre>"
    )
