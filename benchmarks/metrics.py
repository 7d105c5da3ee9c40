"""Time, memory and error of metrics, beside those of torchmetrics and scikit-learn that compute the same.

OMP_NUM_THREADS=1 python benchmarks/metrics.py                          # 1 million pixels of 11 classes, one image
OMP_NUM_THREADS=1 python benchmarks/metrics.py --pixels 40 --rounds 1   # 40 million

A time is that of one update and the value after it, in turn, the median of all rounds; memory is by how much the
process grew meanwhile; the error is the distance from the value in double precision, or from that of sorted scores.
"""

import argparse
import ctypes
import statistics

import numpy as np
import torch
from in_turn import in_turn
from sklearn import metrics as sklearn
from torch.nn import functional as F
from torchmetrics import classification as peers

from seguq import metrics

CLASSES, BINS = 11, 15


def memory(name):
    """``VmRSS`` (held now) or ``VmHWM`` (the most since it was reset) of this process, in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def most_memory(way):
    """By how many MiB the process grows while it does something, and what that gives."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what was freed, which would be filled first
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the most is what is held now
    before = memory("VmRSS")
    found = way()
    return max(0.0, memory("VmHWM") - before), found


def data(millions):
    """Probabilities of a model that is too sure, labels, the predicted classes, uncertainties and errors."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, CLASSES, millions * 1000, 1000, generator=generator).mul_(2)
    drawn = torch.rand(1, millions * 1000, 1000, generator=generator)
    target = torch.zeros(drawn.shape, dtype=torch.int64)
    below = torch.zeros_like(drawn)
    total = (logits * 0.6).logsumexp(1)
    for number in range(CLASSES - 1):
        below += (0.6 * logits[:, number] - total).exp()
        target += below < drawn
    probs = logits.softmax(1)
    confidence, prediction = probs.max(1)
    return probs, target, prediction, 1 - confidence, (prediction != target).long()


def in_double(probs, target, prediction):
    """Calibration error, Brier score and likelihood in double precision, a million pixels at a time."""
    bins, sums, overlap = np.zeros((3, BINS)), np.zeros(2), np.zeros((CLASSES, CLASSES))
    edges = (np.arange(1, BINS) / BINS).astype(np.float32)
    for rows in range(0, probs.shape[2], 1000):
        part = probs[0, :, rows : rows + 1000].flatten(1).numpy()
        labels = target[0, rows : rows + 1000].flatten().numpy()
        said = prediction[0, rows : rows + 1000].flatten().numpy()
        place = np.searchsorted(edges, part.max(0))
        for count, weights in zip(bins, (None, part.max(0).astype(float), said == labels), strict=True):
            count += np.bincount(place, weights, BINS)
        part = part.astype(float)
        true = part[labels, np.arange(len(labels))]
        sums += np.square(part).sum() + (1 - 2 * true).sum(), -np.log(true).sum()
        overlap += np.bincount(labels * CLASSES + said, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    both = np.diag(overlap)
    iou = both / (overlap.sum(0) + overlap.sum(1) - both)
    return np.abs(bins[1] - bins[2]).sum() / target.numel(), *(sums / target.numel()), iou.mean()


def seen(metric, *batch, of=None):
    """The value of a metric after one update."""

    def way():
        metric.reset()
        metric.update(*batch)
        value = metric.compute()
        return float(value if of is None else value[of])

    return way


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=1, help="millions of pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    probs, target, prediction, uncertainty, error = data(options.pixels)
    ece, brier, nll, iou = in_double(probs, target, prediction)
    wrong, score = error.flatten().numpy(), uncertainty.flatten().numpy()

    def one_hot_brier():
        return float((probs - F.one_hot(target, CLASSES).movedim(-1, 1)).square().sum(1).mean())

    quick = {"ignore_index": 255, "validate_args": False}
    cases = {
        "calibration error": (
            ece,
            seen(metrics.CalibrationError(CLASSES), probs, target),
            {"torchmetrics": seen(peers.MulticlassCalibrationError(CLASSES, BINS, **quick), probs, target)},
        ),
        "Brier score": (brier, seen(metrics.BrierScore(CLASSES), probs, target), {"one-hot in torch": one_hot_brier}),
        "likelihood": (
            nll,
            seen(metrics.NegativeLogLikelihood(CLASSES), probs, target),
            {"nll_loss of the log": lambda: float(F.nll_loss(probs.log(), target))},
        ),
        "mean IoU": (
            iou,
            seen(metrics.MeanIoU(CLASSES), prediction, target),
            {"torchmetrics": seen(peers.MulticlassJaccardIndex(CLASSES, **quick), prediction, target)},
        ),
        "AUROC": (
            sklearn.roc_auc_score(wrong, score),
            seen(metrics.ErrorDetection(), uncertainty, error, of="auroc"),
            {
                "torchmetrics": seen(peers.BinaryAUROC(validate_args=False), uncertainty, error),
                "scikit-learn": lambda: float(sklearn.roc_auc_score(wrong, score)),
            },
        ),
        "AUPR": (
            sklearn.average_precision_score(wrong, score),
            seen(metrics.ErrorDetection(), uncertainty, error, of="aupr"),
            {
                "torchmetrics": seen(peers.BinaryAveragePrecision(validate_args=False), uncertainty, error),
                "scikit-learn": lambda: float(sklearn.average_precision_score(wrong, score)),
            },
        ),
    }
    print(f"{options.pixels} million pixels, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| metric | of | ms | times as long | MiB | error |\n|---|---|---|---|---|---|")
    for name, (truth, ours, others) in cases.items():
        ways = {"seguq": ours, **others}
        spent = in_turn(ways, options.rounds, warm_up=options.rounds > 1)
        times = {way: 1e3 * statistics.median(each) for way, each in spent.items()}
        for way, act in ways.items():
            most, found = most_memory(act)
            figures = f"{times[way]:.0f} | {times[way] / times['seguq']:.1f} | {most:.0f} | {abs(found - truth):.0e}"
            print(f"| {name} | {way} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
