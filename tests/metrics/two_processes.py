"""What each of two processes does in the tests of synchronized metrics; a module of its own, so that it starts fast."""

import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from seguq.core.errors import SeguqError
from seguq.metrics import BrierScore, CalibrationError, ErrorDetection, MeanIoU, NegativeLogLikelihood
from tests.metrics.builders import ids, probs_and_target, uncertainty_and_error

IMAGES = 7
SHARES = {"even": [range(0, 7, 2), range(1, 7, 2)], "all on the first": [range(7), range(0)]}


def metrics_and_batches(keep=range(IMAGES)):
    """Each metric, and the arguments of its update for the images to keep."""
    keep = list(keep)
    group = [ids(IMAGES)[n] for n in keep]
    probs, target = (tensor[keep] for tensor in probs_and_target(images=IMAGES))
    uncertainty, error = (tensor[keep] for tensor in uncertainty_and_error(images=IMAGES))
    return {
        "CalibrationError": (CalibrationError(3), (probs, target, group)),
        "NegativeLogLikelihood": (NegativeLogLikelihood(3), (probs, target, group)),
        "BrierScore": (BrierScore(3), (probs, target, group)),
        "MeanIoU": (MeanIoU(3), (probs.argmax(1), target, group)),
        "ErrorDetection": (ErrorDetection(n_boot=20), (uncertainty, error, group)),
    }


def results(keep=range(IMAGES)):
    """Of each metric the value and the interval, as plain lists."""
    out = {}
    for name, (metric, batch) in metrics_and_batches(keep).items():
        if len(keep):
            metric.update(*batch)
        out[name] = [plain(metric.compute()), plain(metric.compute_interval()), plain(metric.compute())]
        if isinstance(metric, CalibrationError):
            out[name].append(plain(metric.compute_debiased()))
    return out


def plain(value):
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [float(item) for item in value] if isinstance(value, tuple) else float(value)


def ungrouped_on_the_second(rank):
    """What an interval raises where only the second process was given no ids."""
    metric, (probs, target, group) = metrics_and_batches()["BrierScore"]
    metric.update(probs, target, group=group if rank == 0 else None)
    try:
        metric.compute_interval()
    except (SeguqError, RuntimeError) as error:
        return type(error).__name__
    return "no error"


def run(rank, folder):
    """One of the two processes; it leaves what it found in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {share: results(keep[rank]) for share, keep in SHARES.items()}
    dist.barrier()
    found["ungrouped"] = ungrouped_on_the_second(rank)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
