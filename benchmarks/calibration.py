"""Calibrators where the truth is known, and how long one temperature takes beside others' ways, with what memory.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --only speed --images 20

What they are worth on real images is in calibration_worth.py. Peers are measured where they are installed (`make
bench-peers`). Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_worth import COMPARED, FAMILY, REFERENCE, by_name, is_there
from in_child import measured
from temperature import lbfgs
from torch import Tensor
from torch.nn import functional as F

import seguq
from seguq import metrics
from seguq.calibration import Calibrator
from seguq.calibration.batches import FittingBatch

CLASSES = 11
TRUE_T = 1.7
GROUPS = 4
ONCE = 30  # seconds from which on a way is measured once


# ---- the truth is known


def images_of(images: int, size: tuple[int, int], seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with smooth regions, a smooth feature from -1 to 1 as a channel beside noise, and uniform draws."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [side // 16 + 1 for side in size]
    logits = F.interpolate(4 * torch.randn(images, classes, *coarse, generator=generator), size, mode="bicubic")
    logits += torch.randn(logits.shape, generator=generator)
    feature = F.interpolate(torch.randn(images, 1, 3, 4, generator=generator), size, mode="bicubic").tanh()
    noise = torch.randn(feature.shape, generator=generator)
    return logits, torch.cat((feature, noise), 1), torch.rand(images, 1, *size, generator=generator)


def labeled(logits: Tensor, draws: Tensor) -> Tensor:
    """Labels drawn from the probabilities of logits."""
    return (logits.softmax(1).cumsum(1) < draws).sum(1).clamp_max(logits.shape[1] - 1)


def batches_of(logits: Tensor, image: Tensor, target: Tensor, prefix: str) -> list[FittingBatch]:
    """Batches of 4 images, each of which belongs to one of four groups."""
    ids = tuple(f"{number * GROUPS // len(logits)}_{prefix}{number}" for number in range(len(logits)))
    made = []
    for start in range(0, len(logits), 4):
        part = slice(start, start + 4)
        batch = FittingBatch(logits[part], image[part], target[part])
        batch.image_ids = ids[part]
        made.append(batch)
    return made


def group_of(image_id: str) -> str:
    return image_id.split("_")[0]


def entropy(logits: Tensor) -> Tensor:
    """Entropy over log C, ``(B, 1, H, W)``."""
    logp = logits.log_softmax(1)
    return -(logp.exp() * logp).sum(1, keepdim=True) / math.log(logits.shape[1])


def off_by(found: Tensor, truth: Tensor) -> float:
    """Median relative error."""
    return float((found / truth - 1).abs().median())


def off_by_at_most(found: Tensor, truth: Tensor) -> float:
    """Largest relative error."""
    return float((found / truth - 1).abs().max())


def slopes(logits: Tensor, calibrated: Tensor) -> Tensor:
    """The scale of each class's log-probability, of a calibrator with a scale and a bias per class, ``(C,)``."""
    logp, out = (item.movedim(1, -1).flatten(0, -2).double() for item in (logits.log_softmax(1), calibrated))
    found = []
    for c in range(logits.shape[1]):
        other = (c + 1) % logits.shape[1]
        inputs = torch.stack((logp[:, c], logp[:, other], torch.ones(len(logp), dtype=torch.float64)), 1)
        found.append(torch.linalg.lstsq(inputs, out[:, c] - out[:, other]).solution[0])
    return torch.stack(found)


def temperatures_by_class(logits: Tensor, calibrated: Tensor) -> Tensor:
    """The median T among pixels of each predicted class, told from the distance of the first two classes, ``(C,)``."""
    predicted = logits.argmax(1)
    before, after = (item.topk(2, 1).values.diff(dim=1).squeeze(1) for item in (logits, calibrated))
    return torch.stack([(before / after)[predicted == c].median() for c in range(logits.shape[1])])


def truths() -> Iterator[tuple[str, str, str, Callable[[], tuple[float, float]]]]:
    """What is to be found, by which calibrator, the error that is allowed, and what gives error and bound."""
    size = (96, 128)
    logits, image, draws = images_of(48, size, 0)
    seen, _, _ = images_of(12, size, 1)
    new, new_image, _ = images_of(12, size, 1)

    def fitted(name: str, scaled: Tensor) -> Any:
        return by_name(name, batches_of(logits, image, labeled(scaled, draws), "fit"), CLASSES, 2, group_of)

    def one() -> float:
        return abs(fitted("global", logits / TRUE_T).temperature - TRUE_T)

    yield f"one T of {TRUE_T}", "global", "off by .03", lambda: (one(), 0.03)

    def field(name: str, log_t: Callable[[Tensor, Tensor], Tensor]) -> float:
        calibrator = fitted(name, logits * torch.exp(-log_t(logits, image)))
        return off_by(calibrator.temperature_map(new, new_image), log_t(new, new_image).exp())

    def of_entropy(z: Tensor, x: Tensor) -> Tensor:
        return 0.2 + 0.6 * entropy(z)

    def of_feature(z: Tensor, x: Tensor) -> Tensor:
        return 0.4 + 0.5 * x[:, :1]

    def of_image(z: Tensor, x: Tensor) -> Tensor:
        level = entropy(z).mean((1, 2, 3), keepdim=True)
        return 0.4 + 4 * (level - 0.45)

    for name in ("entropy", "selective on entropy", "local_network"):
        yield "T by the entropy", name, "median 10 %", lambda name=name: (field(name, of_entropy), 0.1)
    name = "local_network with the image"
    yield "T by a smooth feature of the image", name, "median 10 %", lambda: (field(name, of_feature), 0.1)
    yield "one T an image, by its mean entropy", "image", "median 10 %", lambda: (field("image", of_image), 0.1)

    scale, bias = torch.linspace(0.4, 0.8, CLASSES), torch.linspace(-0.3, 0.3, CLASSES)
    by_class = torch.linspace(1.2, 2.2, CLASSES)

    def per_class() -> float:
        shape = (1, CLASSES, 1, 1)
        calibrator = fitted("structured", scale.view(shape) * logits.log_softmax(1) + bias.view(shape))
        return off_by_at_most(slopes(seen, calibrator(seen)), scale)

    def per_predicted_class() -> float:
        calibrator = fitted("order_preserving", logits / by_class[logits.argmax(1)].unsqueeze(1))
        return off_by_at_most(temperatures_by_class(seen, calibrator(seen)), by_class)

    yield "a scale and a bias per class", "structured", "each class 5 %", lambda: (per_class(), 0.05)
    yield "T by predicted class", "order_preserving", "each class 5 %", lambda: (per_predicted_class(), 0.05)


def kept(yes: bool) -> str:
    return "kept" if yes else "NOT kept"


def known_truth() -> None:
    print("\n| truth | calibrator | asked | off by | |\n|---|---|---|---|---|")
    for truth, name, asked, way in truths():
        if not is_there(name):
            print(f"| {truth} | `{name}` | {asked} | there is none of this name | |", flush=True)
            continue
        error, bound = way()
        print(
            f"| {truth} | `{name}` | {asked} | {error:.4f} | {'kept' if error <= bound else 'NOT kept'} |", flush=True
        )


def perfect_model() -> None:
    """Labels drawn from the model's own probabilities: nothing can be gained, and little should be lost."""
    size = (96, 128)
    (logits, image, draws), (seen, seen_image, seen_draws) = (images_of(48, size, seed) for seed in (0, 1))
    fit = batches_of(logits, image, labeled(logits, draws), "fit")
    judge = batches_of(seen, seen_image, labeled(seen, seen_draws), "judge")

    def nll(calibrate: Callable[[Tensor, Tensor], Tensor]) -> float:
        metric = metrics.NegativeLogLikelihood(CLASSES, from_logits=True)
        with torch.no_grad():
            for logits, image, target in judge:
                metric.update(calibrate(logits, image), target)
        return float(metric.compute())

    before = nll(lambda logits, image: logits)
    print(f"\nA model that is perfect already: held-out NLL {before:.4f}\n")
    print("| calibrator | more than that, % | |\n|---|---|---|")
    for name in (REFERENCE, *FAMILY, *COMPARED):
        if not is_there(name):
            print(f"| `{name}` | there is none of this name | |", flush=True)
            continue
        more = 100 * (nll(by_name(name, fit, CLASSES, 2, group_of)) / before - 1)
        print(f"| `{name}` | {more:+.4f} | {kept(more <= 0.1)} |", flush=True)


# ---- speed and memory


class Stored:
    """Logits and labels in a file, an image after the other: a re-iterable of batches, or all at once."""

    def __init__(self, file: Path, images: int, size: tuple[int, int], log_t: Callable[[Tensor], Tensor]) -> None:
        self.images, self.size, self.file = images, size, file
        self.values = CLASSES * size[0] * size[1]
        with file.open("wb") as opened:
            for number in range(images):
                logits, _, draws = images_of(1, size, number)
                logits.numpy().tofile(opened)
                labeled(logits * torch.exp(-log_t(logits)), draws).float().numpy().tofile(opened)
        self.truth = mean_t(log_t(self.read(0, 1)[0]))

    def read(self, start: int, images: int) -> tuple[Tensor, Tensor]:
        per_image = self.values * (CLASSES + 1) // CLASSES
        found = np.fromfile(self.file, np.float32, images * per_image, offset=4 * start * per_image)
        found = torch.from_numpy(found).view(images, CLASSES + 1, *self.size)
        return found[:, :CLASSES], found[:, CLASSES].long()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.images, 4):
            yield self.read(start, min(4, self.images - start))

    def pixels(self) -> tuple[Tensor, Tensor]:
        """All pixels, ``(N, C)`` and ``(N,)``."""
        logits, target = self.read(0, self.images)
        return logits.movedim(1, -1).reshape(-1, CLASSES), target.flatten()


def lbfgs_without_search(logits: Tensor, target: Tensor) -> float:
    """As it is most often copied: a rate of .01, 50 iterations, no line search, from T = 1.5."""
    temperature = torch.full((), 1.5, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / temperature, target)
        value.backward()
        return value

    optimizer.step(loss)
    return float(temperature.detach())


def lbfgs_of_entropy(logits: Tensor, target: Tensor) -> float:
    """The entropy form over all pixels in memory."""
    parameters = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")
    measure = entropy(logits)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits * torch.exp(-(parameters[0] + parameters[1] * measure)), target)
        value.backward()
        return value

    optimizer.step(loss)
    a, b = parameters.detach()
    return mean_t(a + b * measure[:1])


def of_netcal(logits: Tensor, target: Tensor) -> float:
    from netcal.scaling import TemperatureScaling

    calibrator = TemperatureScaling()
    calibrator.fit(logits.softmax(1).numpy(), target.numpy(), tensorboard=False)
    return float(np.asarray(calibrator.temperature).reshape(-1)[0])


def of_fiducio(logits: Tensor, target: Tensor, optimizer: str) -> float:
    import fiducio

    return fiducio.TemperatureScaling(optimizer=optimizer, device="cpu").fit(logits, target).temperature


def of_seguq(name: str, stored: Stored) -> float:
    return mean_t_of(Calibrator.make(name).fit(stored), stored)


def of_stream(name: str, stored: Stored) -> float | None:
    """One reading, as the callback does it during validation."""
    stream, seen = Calibrator.make(name).stream(), 0
    if stream is None:
        return None
    for logits, target in stored:
        numbers = list(range(seen, seen + len(logits)))
        stream.add(logits, target, [str(number) for number in numbers], numbers)
        seen += len(logits)
    return mean_t_of(stream.fit(), stored)


def mean_t_of(calibrator: Any, stored: Stored) -> float:
    return mean_t(calibrator.temperature_map(stored.read(0, 1)[0]).log())


def mean_t(log_t: Tensor) -> float:
    """The geometric mean, by which ways are told to have found T."""
    return float(log_t.mean().exp())


def ways_of_one(stored: Stored) -> dict[str, Callable[[], Any]]:
    """By name, functions that read what lies in the file and give the one T that they find."""
    found: dict[str, Callable[[], Any]] = {
        "seguq, `fit`": lambda: of_seguq("global", stored),
        "seguq, one reading": lambda: of_stream("global", stored),
        "LBFGS, strong Wolfe": lambda: math.exp(lbfgs(*stored.read(0, stored.images))),
        "LBFGS without line search": lambda: lbfgs_without_search(*stored.read(0, stored.images)),
    }
    if importlib.util.find_spec("netcal"):
        found["netcal"] = lambda: of_netcal(*stored.pixels())
    if importlib.util.find_spec("fiducio"):
        for optimizer in ("lbfgs", "adam") if stored.images <= 20 else ("lbfgs",):  # 200 images take Adam half an hour
            found[f"fiducio, {optimizer}"] = lambda optimizer=optimizer: of_fiducio(*stored.pixels(), optimizer)
    return found


def ways_of_entropy(stored: Stored) -> dict[str, Callable[[], Any]]:
    """The same of the entropy form; they give the mean T in the first image."""
    found: dict[str, Callable[[], Any]] = {}
    if "entropy" in Calibrator.names():
        found["seguq, `fit`"] = lambda: of_seguq("entropy", stored)
        found["seguq, one reading"] = lambda: of_stream("entropy", stored)
    return found | {"LBFGS, strong Wolfe": lambda: lbfgs_of_entropy(*stored.read(0, stored.images))}


def speed(images: int, rounds: int) -> None:
    """Processor time and memory of each way, in a process of its own, with reading the file."""
    size = (192, 256)
    kinds: dict[str, tuple[Any, Any]] = {
        f"one T, {TRUE_T}": (lambda logits: torch.full((1, 1, 1, 1), math.log(TRUE_T)), ways_of_one),
        "T by the entropy, log T = 0.2 + 0.6 H / log C": (lambda logits: 0.2 + 0.6 * entropy(logits), ways_of_entropy),
    }
    for kind, (log_t, ways) in kinds.items():
        print(f"\n{images} images of {CLASSES} x {size[0]} x {size[1]}, {kind}\n")
        print("| way | seconds | times the first | peak, MiB | T | |\n|---|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            stored = Stored(Path(folder) / "logits", images, size, log_t)
            runs: dict[str, list[Any]] = {}
            for _ in range(rounds):
                for name, way in ways(stored).items():
                    known = runs.setdefault(name, [])
                    if not known or known[0].get("seconds", math.inf) < ONCE:
                        known.append(measured(way))
        first = None
        for name, found in runs.items():
            if "error" in found[-1]:
                print(f"| {name} | {found[-1]['error']} | | | | |")
            elif found[-1]["value"] is not None:
                seconds, peak = statistics.median(run["seconds"] for run in found), max(run["MiB"] for run in found)
                first, value = first or seconds, found[-1]["value"]
                said = "" if abs(value - stored.truth) <= 0.03 else f"does not find {stored.truth:.4f}"
                print(f"| {name} | {seconds:.2f} | {seconds / first:.2f} | {peak:.0f} | {value:.4f} | {said} |")


PARTS = ("truth", "perfect", "speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--images", type=int, nargs="+", default=[20, 200], help="for time and memory")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"seguq {seguq.__version__}, torch {torch.__version__}, one thread")
    if "truth" in options.only:
        known_truth()
    if "perfect" in options.only:
        perfect_model()
    for images in options.images if "speed" in options.only else []:
        speed(images, options.rounds)


if __name__ == "__main__":
    main()
