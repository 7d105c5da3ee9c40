"""Metrics beside those of torchmetrics, scikit-learn, torch-uncertainty and MONAI: time, memory, error.

python benchmarks/metrics.py                # 1 and 40 images of a million pixels, 11 classes

Each way runs in a process of its own, which takes in one image after the other and computes the value. Given are the
processor time, by how much the memory of the process grew at its peak, and how far the value lies from the one that
NumPy and SciPy find in double precision with all pixels in memory. Peers are measured where they are installed
(`make bench-peers`), each as its documentation says; what a peer needs in another form (one-hot labels, flat arrays) is
made within its time. Linux only.
"""

import argparse
import importlib.util
import statistics

import numpy as np
import torch
from in_child import measured

from seguq import metrics

CLASSES, SIDE, BINS = 11, 1000, 15


def image(seed):
    """Probabilities ``(1, C, H, W)`` of a sure and not quite right model, and labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(1, CLASSES, SIDE // 20, SIDE // 20, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    logits += torch.randn(logits.shape, generator=generator)
    drawn = torch.rand(1, 1, SIDE, SIDE, generator=generator)
    labels = ((0.6 * logits).softmax(1).cumsum(1) < drawn).sum(1).clamp_max_(CLASSES - 1)
    return logits.softmax(1), labels


def entropy_and_error(probs, labels):
    entropy = -(probs * probs.clamp_min(1e-30).log()).sum(1)
    return entropy, (probs.argmax(1) != labels).long()


def with_ids(batches):
    return [(*batch, [str(number)]) for number, batch in enumerate(batches)]


def streamed(metric, batches, name=None, value=float):
    """The value of a torchmetric that has seen all batches."""
    for batch in batches:
        metric.update(*batch)
    found = metric.compute()
    return value(found if name is None else found[name])


# ---- the truth, in double precision


def calibration_truth(images, adaptive=False, classwise=False):
    gaps = []
    for c in range(CLASSES) if classwise else [None]:
        said, came = [], []
        for probs, labels in images:
            confidence, predicted = probs.max(1) if c is None else (probs[:, c], torch.tensor(c))
            said.append(confidence.flatten().numpy())
            came.append((predicted == labels).flatten().numpy())
        said, came = np.concatenate(said), np.concatenate(came)
        if adaptive:
            number = np.empty(len(said), np.int64)
            number[np.argsort(said, kind="stable")] = np.arange(len(said)) * BINS // len(said)
        else:
            edges = (np.arange(1, BINS) / BINS).astype(np.float32)
            number = np.searchsorted(edges, said, side="left")
        sums = (np.bincount(number, values, BINS) for values in (said.astype(np.float64), came.astype(np.float64)))
        gaps.append(np.abs(np.subtract(*sums)).sum() / len(said))
    return float(np.mean(gaps))


def likelihood_truth(images):
    values = [-np.log(probs.double().gather(1, labels[:, None]).numpy()).mean() for probs, labels in images]
    return float(np.mean(values))


def brier_truth(images):
    hot = [torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1) for _, labels in images]
    return float(
        np.mean([float((p.double() - h).square().sum(1).mean()) for (p, _), h in zip(images, hot, strict=True)])
    )


def overlap_truth(images):
    confusion = np.zeros((CLASSES, CLASSES))
    for probs, labels in images:
        index = (CLASSES * labels + probs.argmax(1)).flatten().numpy()
        confusion += np.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    both = np.diag(confusion)
    return float(np.mean(both / (confusion.sum(0) + confusion.sum(1) - both)))


def ranking_truth(scored, name):
    scores = np.concatenate([entropy.flatten().numpy() for entropy, _ in scored])
    wrong = np.concatenate([error.flatten().numpy() for _, error in scored])
    if name == "aurc":
        errors = wrong[np.argsort(scores, kind="stable")].cumsum()
        return float((errors / np.arange(1, len(errors) + 1)).mean())
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = wrong[order].cumsum()[ends].astype(np.float64)
    alarms = ends + 1 - hits
    if name == "auroc":
        areas = np.diff(alarms, prepend=0) * (hits + np.append(0, hits[:-1])) / 2
        return float(areas.sum() / hits[-1] / alarms[-1])
    if name == "aupr":
        return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])
    return float(alarms[np.argmax(hits / hits[-1] >= 0.95)] / alarms[-1])


# ---- the ways


def ways(images, scored):
    """By quantity: the truth, and functions that give the value."""
    labeled = [(probs.argmax(1), labels) for probs, labels in images]
    found = {
        "calibration error": {
            "truth": lambda: calibration_truth(images),
            "seguq": lambda: streamed(metrics.CalibrationError(CLASSES), images),
            "seguq, group=": lambda: streamed(metrics.CalibrationError(CLASSES), with_ids(images)),
        },
        "calibration error, classwise": {
            "truth": lambda: calibration_truth(images, classwise=True),
            "seguq": lambda: streamed(metrics.CalibrationError(CLASSES, kind="classwise"), images),
        },
        "calibration error, adaptive": {
            "truth": lambda: calibration_truth(images, adaptive=True),
            "seguq": lambda: streamed(metrics.CalibrationError(CLASSES, kind="adaptive"), images),
        },
        "negative log-likelihood": {
            "truth": lambda: likelihood_truth(images),
            "seguq": lambda: streamed(metrics.NegativeLogLikelihood(CLASSES), images),
        },
        "Brier score": {
            "truth": lambda: brier_truth(images),
            "seguq": lambda: streamed(metrics.BrierScore(CLASSES), images),
        },
        "mean IoU": {
            "truth": lambda: overlap_truth(images),
            "seguq": lambda: streamed(metrics.MeanIoU(CLASSES), labeled),
            "seguq, group=": lambda: streamed(metrics.MeanIoU(CLASSES), with_ids(labeled)),
        },
    }
    for name in ("auroc", "aupr", "fpr95", "aurc"):
        found[name] = {
            "truth": lambda name=name: ranking_truth(scored, name),
            "seguq": lambda name=name: streamed(metrics.ErrorRanking(), scored, name),
        }
    found["auroc"]["seguq, group="] = lambda: streamed(metrics.ErrorRanking(), with_ids(scored), "auroc")
    for add in (of_torchmetrics, of_scikit_learn, of_torch_uncertainty, of_monai):
        for quantity, more in add(images, scored, labeled).items():
            found[quantity] |= more
    return found


def of_torchmetrics(images, scored, labeled):
    from torchmetrics import classification as tm

    options = {"num_classes": CLASSES}
    flat = [(scores.flatten(), error.flatten()) for scores, error in scored]
    return {
        "calibration error": {
            "torchmetrics": lambda: streamed(tm.MulticlassCalibrationError(n_bins=BINS, **options), images),
            "torchmetrics, unchecked": lambda: streamed(
                tm.MulticlassCalibrationError(n_bins=BINS, validate_args=False, **options), images
            ),
        },
        "mean IoU": {
            "torchmetrics": lambda: streamed(tm.MulticlassJaccardIndex(**options), labeled),
            "torchmetrics, unchecked": lambda: streamed(
                tm.MulticlassJaccardIndex(validate_args=False, **options), labeled
            ),
        },
        "auroc": {
            "torchmetrics": lambda: streamed(tm.BinaryAUROC(validate_args=False), flat),
            "torchmetrics, 1000 thresholds": lambda: streamed(
                tm.BinaryAUROC(thresholds=1000, validate_args=False), flat
            ),
        },
        "aupr": {"torchmetrics": lambda: streamed(tm.BinaryAveragePrecision(validate_args=False), flat)},
    }


def of_scikit_learn(images, scored, labeled):
    if importlib.util.find_spec("sklearn") is None:
        return {}
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    def arrays():
        parts = zip(*((error.flatten().numpy(), scores.flatten().numpy()) for scores, error in scored), strict=True)
        return [np.concatenate(part) for part in parts]

    def fpr95():
        false, true, _ = roc_curve(*arrays())
        return float(false[np.argmax(true >= 0.95)])

    return {
        "auroc": {"scikit-learn": lambda: float(roc_auc_score(*arrays()))},
        "aupr": {"scikit-learn": lambda: float(average_precision_score(*arrays()))},
        "fpr95": {"scikit-learn": fpr95},
    }


def of_torch_uncertainty(images, scored, labeled):
    if importlib.util.find_spec("torch_uncertainty") is None:
        return {}
    from torch_uncertainty import metrics as tu

    def pixels():
        """Its metrics of classification take flat pixels."""
        for probs, labels in images:
            yield probs.movedim(1, -1).reshape(-1, CLASSES), labels.flatten()

    def rejected():
        """Its selective metrics take probabilities: two, of which the larger ranks as the score does."""
        for scores, error in scored:
            sure = 1 - 0.5 * scores.flatten() / np.log(CLASSES)
            yield torch.stack((sure, 1 - sure), -1), error.flatten()

    flat = [(scores.flatten(), error.flatten()) for scores, error in scored]
    options = {"num_classes": CLASSES, "num_bins": BINS, "task": "multiclass"}
    return {
        "calibration error": {"torch-uncertainty": lambda: streamed(tu.CalibrationError(**options), images)},
        "calibration error, adaptive": {
            "torch-uncertainty": lambda: streamed(tu.AdaptiveCalibrationError(**options), pixels())
        },
        "negative log-likelihood": {"torch-uncertainty": lambda: streamed(tu.CategoricalNLL(), pixels())},
        "Brier score": {"torch-uncertainty": lambda: streamed(tu.BrierScore(CLASSES), pixels())},
        "mean IoU": {"torch-uncertainty": lambda: streamed(tu.MeanIntersectionOverUnion(CLASSES), labeled)},
        "fpr95": {"torch-uncertainty": lambda: streamed(tu.FPR95(pos_label=1), flat)},
        "aurc": {"torch-uncertainty": lambda: streamed(tu.AURC(), rejected())},
    }


def of_monai(images, scored, labeled):
    if importlib.util.find_spec("monai") is None:
        return {}
    from monai.metrics import CalibrationErrorMetric, MeanIoU
    from monai.networks import one_hot

    def calibration():
        metric = CalibrationErrorMetric(num_bins=BINS, right=True)
        for probs, labels in images:
            metric(y_pred=probs, y=one_hot(labels.unsqueeze(1), CLASSES))
        return float(metric.aggregate())

    def overlap():
        metric = MeanIoU()
        for predicted, labels in labeled:
            metric(y_pred=one_hot(predicted.unsqueeze(1), CLASSES), y=one_hot(labels.unsqueeze(1), CLASSES))
        return float(metric.aggregate())

    return {
        "calibration error, classwise": {"MONAI (mean over images)": calibration},
        "mean IoU": {"MONAI (mean over images)": overlap},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 40], help="of a million pixels")
    parser.add_argument("--rounds", type=int, default=3, help="1 for more than ten images")
    parser.add_argument("--only", help="a quantity")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for number in options.images:
        images = [image(seed) for seed in range(number)]
        scored = [entropy_and_error(*each) for each in images]
        print(f"\n{number} images of a million pixels, {CLASSES} classes\n")
        print("| quantity | way | seconds | times seguq | peak, MiB | value | off by |\n|---|---|---|---|---|---|---|")
        for quantity, each in ways(images, scored).items():
            if options.only in (None, quantity):
                compare(quantity, each, options.rounds if number <= 10 else 1)


def compare(quantity, ways, rounds):
    truth = ways.pop("truth")()
    runs = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs[name].append(measured(way))
    reference = statistics.median(run["seconds"] for run in runs["seguq"])
    for name, found in runs.items():
        if "error" in found[-1]:
            print(f"| {quantity} | {name} | {found[-1]['error']} | | | | |", flush=True)
            continue
        seconds = statistics.median(run["seconds"] for run in found)
        value, peak = found[-1]["value"], max(run["MiB"] for run in found)
        print(
            f"| {quantity} | {name} | {seconds:.3f} | {seconds / reference:.2f} | {peak:.0f} | {value:.6f} "
            f"| {abs(value - truth):.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
