"""What each way to calibrate is worth on images that it has not seen: tables of real networks, by video.

    python benchmarks/calibration_worth.py --data DATA                    # all; networks are trained first (40 minutes)
    python benchmarks/calibration_worth.py --data DATA --net nuclei --estimator "one pass" --calibrator global entropy

Each calibrator is fitted on an estimator's logits of the images of two videos (of nuclei: of the validation split), and
judged on those of another. An arrow says that the interval (95 %, bootstrap over the images that are judged) of the
difference to one temperature, image by image, lies below or above 0 (and that it shows in four digits). Peers are
measured where they are installed (`make bench-peers`), the published local net for one pass alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from calibration_nets import ESTIMATORS, SETTINGS, Outputs, add_options, cannot_be_had, group_of, outputs
from local_temperature_net import LocalTemperatureNet
from torch import Tensor

from seguq import metrics
from seguq.calibration import Calibrator
from seguq.calibration.by_name import fit_calibrator

REFERENCE = "global"
FAMILY = (
    "entropy",
    "image",
    "structured",
    "order_preserving",
    "selective",
    "selective on entropy",
    "local_network",
    "local_network with the image",
    "auto",
)
COMPARED = ("dirichlet", "histogram", "isotonic")
PEERS = ("fiducio, order-preserving", "fiducio, ensemble of T")
STRIDE = 32  # of the pixels that fiducio is given
PUBLISHED = "local net, as published"
METHODS = ("none", REFERENCE, *FAMILY, *COMPARED, *PEERS, PUBLISHED)

Calibrate = Callable[[Tensor, Tensor], Tensor]  # of logits and images


def measures(classes: int) -> dict[str, Any]:
    """What is measured, by the head of its column."""
    options: dict[str, Any] = {"num_classes": classes, "n_boot": 500}
    border = {"near_border": 2, **options}
    return {
        "NLL": metrics.NegativeLogLikelihood(from_logits=True, **options),
        "Brier": metrics.BrierScore(**options),
        "ECE": metrics.CalibrationError(**options),
        "class-wise": metrics.CalibrationError(kind="classwise", **options),
        "local": metrics.LocalCalibrationError(**options),
        "near predicted borders": metrics.CalibrationError(**border),
        "near true borders": metrics.CalibrationError(border="true", n_bins=10, average="image", **border),
        "mean IoU": metrics.MeanIoU(**options),
    }


def judged(calibrate: Calibrate, judge: Outputs) -> dict[str, Any]:
    """All measures of calibrated logits."""
    found = measures(judge.logits.shape[1])
    for batch in judge:
        with torch.no_grad():
            logits = calibrate(batch.logits, batch.image)
        probs = logits.softmax(1)
        for head, metric in found.items():
            seen = logits if head == "NLL" else probs.argmax(1) if head == "mean IoU" else probs
            metric.update(seen, batch.target, group=batch.image_ids)
    return found


def fitted(method: str, fit: Outputs, name: str, cache: Path) -> Calibrate:
    """A method's calibrator, fitted."""
    if method == "none":
        return lambda logits, image: logits
    if method == PUBLISHED:
        return published(fit, name, cache)
    if method in PEERS:
        return of_fiducio(method, fit)
    return by_name(method, fit, fit.logits.shape[1], fit.image.shape[1], group_of(name))


def by_name(method: str, batches: Any, classes: int, channels: int, group: Any) -> Calibrator:
    """A calibrator of seguq, fitted, by the name that a table gives it."""
    name, _, rest = method.partition(" ")
    more: dict[str, Any] = {"on entropy": {"base": "entropy"}, "with the image": {"image_channels": channels}}
    if rest:
        return Calibrator.make(name, num_classes=classes, **more[rest]).fit(batches, group)
    return fit_calibrator(name, batches, group=group)


def of_fiducio(method: str, fit: Outputs) -> Calibrate:
    """fiducio's, over every 32nd pixel: it needs all that it fits on in memory, and reads it 200 times."""
    import fiducio

    logits, target = fit.logits.movedim(1, -1).flatten(0, -2)[::STRIDE], fit.target.flatten()[::STRIDE]
    labeled = target != 255
    made = fiducio.OrderPreservingMatrixScaling if method == PEERS[0] else fiducio.EnsembleTemperatureScaling
    calibrator = made(device="cpu").fit(logits[labeled].float(), target[labeled].long())
    return lambda logits, image: calibrator.decision_function(logits)


def published(fit: Outputs, name: str, cache: Path) -> Calibrate:
    """The published local net, its epoch chosen on the last quarter of each video (of the images without one)."""
    group, groups = group_of(name), {}
    for image_id in fit.ids:
        groups.setdefault("" if group is None else group(image_id), []).append(image_id)
    held = {image_id for ids in groups.values() for image_id in ids[-(len(ids) // 4) :]}
    net = LocalTemperatureNet(fit.logits.shape[1], fit.image.shape[1])
    file = cache / f"{name}, local net as published.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
    else:
        net.fit(fit.where(lambda image_id: image_id not in held), list(fit.where(lambda image_id: image_id in held)))
        torch.save(net.state_dict(), file)
    return net


def is_there(method: str) -> bool:
    """Whether seguq has what a table gives this name."""
    return method in ("none", "auto") or method.partition(" ")[0] in Calibrator.names()


class Outcome(NamedTuple):
    """A calibrator, how long it took to fit, and how it does."""

    calibrate: Calibrate
    seconds: float
    measures: dict[str, Any]


def outcome(method: str, fit: Outputs, judge: Outputs, name: str, cache: Path) -> Outcome:
    begun = time.perf_counter()
    calibrate = fitted(method, fit, name, cache)
    return Outcome(calibrate, time.perf_counter() - begun, judged(calibrate, judge))


def missing(method: str, estimator: str) -> str | None:
    """Why a method is left out, or None."""
    if method == PUBLISHED:
        return None if estimator == "one pass" else "for one pass alone"
    if method in PEERS:
        return None if importlib.util.find_spec("fiducio") else "fiducio is not installed"
    return None if is_there(method) else "there is none of this name"


def row(method: str, found: dict[str, Any], reference: dict[str, Any], seconds: float) -> tuple[str, dict[str, Any]]:
    """A row of the table, and its numbers with their intervals."""
    cells, numbers = [], {}
    for head, metric in found.items():
        value = float(metric.compute())
        difference, (low, high) = metric.compute_difference(reference[head])
        difference, low, high = float(difference), float(low), float(high)
        numbers[head] = {"value": value, "difference": difference, "low": low, "high": high}
        cells.append(with_arrow(method, numbers[head]))
        if head == "NLL":
            cells.append("" if method == REFERENCE else f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]")
    return f"| {method} | {' | '.join(cells)} | {seconds:.0f} |", numbers


def with_arrow(method: str, number: dict[str, float]) -> str:
    """A value, with an arrow where the interval of its difference to one temperature leaves out 0."""
    shows = abs(number["difference"]) >= 5e-5  # in the digits that are given
    apart = method != REFERENCE and shows and (number["low"] > 0 or number["high"] < 0)
    arrow = "" if not apart else "↓" if number["high"] < 0 else "↑"
    value = number["value"]
    return (f"{value:.4f}" if value < 100 else f"{value:.3g}") + arrow


def table(name: str, estimator: str, part: str, methods: list[str], options: Any) -> dict[str, Any]:
    """Print the table of an estimator of a network; returns its numbers by method."""
    fit, judge = (outputs(name, estimator, which, options.cache, options.data) for which in ("fit", part))
    print(f"\n### {name}, {part}: {estimator} ({len(fit.ids)} images to fit on, {len(judge.ids)} to judge on)\n")
    left_out = {method: reason for method in methods if (reason := missing(method, estimator))}
    if left_out:
        print(f"Left out: {', '.join(f'{method} ({reason})' for method, reason in left_out.items())}\n")
    heads = list(measures(2))
    print(f"| calibrator | NLL | against one T | {' | '.join(heads[1:])} | fit, s |")
    print("|---" * (len(heads) + 3) + "|", flush=True)
    numbers: dict[str, Any] = {}
    reference = outcome(REFERENCE, fit, judge, name, options.cache)
    fits = []
    for method in methods:
        if method in left_out:
            continue
        told = reference if method == REFERENCE else outcome(method, fit, judge, name, options.cache)
        line, numbers[method] = row(method, told.measures, reference.measures, told.seconds)
        print(line, flush=True)
        fits.append(told.calibrate)
    print("\n" + "\n".join(f"- {item!r}" for item in fits if isinstance(item, Calibrator)), flush=True)
    return numbers


def overview(numbers: dict[str, Any], head: str) -> None:
    """One measure of all estimators by all calibrators, from what `table` gave by network, part and estimator."""
    methods = list(dict.fromkeys(method for found in numbers.values() for method in found))
    print(f"\n### {head} of all\n\n| network, estimator | {' | '.join(methods)} |\n{'|---' * (len(methods) + 1)}|")
    for name, found in numbers.items():
        cells = [with_arrow(method, found[method][head]) if method in found else "" for method in methods]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--net", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--part", nargs="+", help="what is judged on: judge, or of nuclei also ood", default=["judge"])
    parser.add_argument("--estimator", nargs="+", choices=list(ESTIMATORS), default=list(ESTIMATORS))
    parser.add_argument("--calibrator", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, help="file for all numbers with their intervals")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    numbers = {}
    for name in options.net:
        reason = cannot_be_had(name, options.cache, options.data)
        if reason:
            print(f"{name} left out: {reason}")
            continue
        for part in options.part:
            for estimator in options.estimator if part in SETTINGS[name].parts else []:
                numbers[f"{name}, {part}, {estimator}"] = table(name, estimator, part, options.calibrator, options)
                if options.json:
                    options.json.write_text(json.dumps(numbers, indent=1))
    if len(numbers) > 1:
        for head in ("NLL", "ECE", "near predicted borders"):
            overview(numbers, head)


if __name__ == "__main__":
    main()
