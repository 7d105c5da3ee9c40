"""How long a temperature takes to fit, beside torch's LBFGS over the same logits in memory.

python benchmarks/temperature.py            # 8 images of 256 x 256 with 19 classes, and with 2

Given is the median time of each, how much of LBFGS's it is, and how far its log T lies from that of a bounded search in
double precision (scipy).
"""

import argparse
import math
import statistics

import torch
from in_turn import in_turn
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from seguq import TemperatureScaling


def logits_and_labels(images, classes, size):
    """Smooth logits, and labels drawn from their own probabilities at T = 1 / 0.6."""
    generator = torch.Generator().manual_seed(0)
    coarse = 6 * torch.randn(images, classes, size // 16, size // 16, generator=generator)
    logits = F.interpolate(coarse, size=(size, size), mode="bicubic")
    logits += torch.randn(logits.shape, generator=generator)
    drawn = torch.rand(images, 1, size, size, generator=generator)
    return logits, ((0.6 * logits).softmax(1).cumsum(1) < drawn).sum(1).clamp_max(classes - 1)


def lbfgs(logits, labels):
    """As temperature scaling is usually written: all logits in memory, at most 50 iterations with a line search."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(logits * torch.exp(-log_temperature), labels)
        value.backward()
        return value

    optimizer.step(loss)
    return float(log_temperature.detach())


def searched(logits, labels):
    logits = logits.double()
    bounds = (-math.log(20), math.log(20))
    return minimize_scalar(
        lambda x: float(F.cross_entropy(logits * math.exp(-x), labels)), bounds=bounds, options={"xatol": 1e-9}
    ).x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 2])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for classes in options.classes:
        logits, labels = logits_and_labels(options.images, classes, options.size)
        batches = list(zip(logits.split(1), labels.split(1), strict=True))
        found = {}
        ways = {
            "LBFGS": lambda: found.update({"LBFGS": lbfgs(logits, labels)}),  # noqa: B023
            "fit": lambda: found.update({"fit": float(TemperatureScaling().fit(batches).log_temperature)}),  # noqa: B023
        }
        times = {name: statistics.median(spent) for name, spent in in_turn(ways, options.rounds, warm_up=1).items()}
        best = searched(logits, labels)
        print(f"\n{options.images} images of {options.size} x {options.size}, {classes} classes")
        for name, spent in times.items():
            ratio, off = spent / times["LBFGS"], found[name] - best
            print(f"{name:8s} {spent:6.3f} s   {ratio:5.2f} of LBFGS   log T off by {off:+.1e}")


if __name__ == "__main__":
    main()
