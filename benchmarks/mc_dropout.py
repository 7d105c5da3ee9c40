"""What MC dropout costs: seguq, a plain loop, and what else there is, in units of one deterministic forward.

python benchmarks/mc_dropout.py                     # T = 20, one image of 256 x 256, 11 classes, one thread
python benchmarks/mc_dropout.py --device cuda --size 512 --batch 8 --dtype bfloat16

All ways run on the same images in turn; given are medians of the rounds. The lower bound is one pass without the tail
(what depends on a random draw) and T tails, each with its share of the running sums of all default measures, measured
by running those parts alone. torch-uncertainty and BaaL are measured where they are installed (`make bench-peers`).
"""

import argparse
import contextlib
import copy
import platform
import statistics
import warnings

import segmentation_models_pytorch as smp
import torch
from in_turn import in_turn, wall_seconds
from torch import nn

import seguq
from seguq.inference.replay.recorder import Recorder
from seguq.inference.running import RunningMeasures

T = 20


def with_dropout(model, place):
    """A model without dropout, with some before its head or in its decoder."""
    if place == "head":
        model.segmentation_head = nn.Sequential(nn.Dropout2d(0.3), model.segmentation_head)
    else:
        block = model.decoder.blocks[0]
        block.conv1 = nn.Sequential(block.conv1, nn.Dropout(0.3))
    return model


def models(classes):
    settings = {"encoder_weights": None, "classes": classes}
    return {
        "FPN/resnet18": lambda: smp.FPN("resnet18", **settings),
        "PSPNet/resnet18": lambda: smp.PSPNet("resnet18", **settings),
        "DeepLabV3+/resnet18": lambda: smp.DeepLabV3Plus("resnet18", **settings),
        "Unet/resnet18, before the head": lambda: with_dropout(smp.Unet("resnet18", **settings), "head"),
        "UPerNet/resnet18, before the head": lambda: with_dropout(smp.UPerNet("resnet18", **settings), "head"),
        "DeepLabV3+/mit_b0": lambda: smp.DeepLabV3Plus("mit_b0", **settings),
        "Unet/resnet18, in the decoder": lambda: with_dropout(smp.Unet("resnet18", **settings), "decoder"),
    }


def mean_of(samples, batch):
    """The mean probabilities of stacked logits (T, B, ...) or (T B, ...), as users of the peers compute them."""
    probs = torch.softmax(samples, 1 if samples.ndim == 4 else 2)
    return probs.view(-1, batch, *probs.shape[-3:]).mean(0)


def peers(model, x):
    """Other libraries' ways, by name; each a function without arguments."""
    found = {}
    with contextlib.suppress(ImportError):
        try:
            from torch_uncertainty.methods import mc_dropout
        except ImportError:
            from torch_uncertainty.models import mc_dropout
        wrapped = mc_dropout(copy.deepcopy(model), num_estimators=T, on_batch=False).eval()
        found["torch-uncertainty"] = lambda: mean_of(wrapped(x), len(x))
    with contextlib.suppress(ImportError):
        from baal import ModelWrapper
        from baal.bayesian.caching_utils import MCCachingModule
        from baal.bayesian.dropout import MCDropoutModule
        from baal.modelwrapper import TrainingArgs

        args = TrainingArgs(use_cuda=False, replicate_in_memory=False)
        plain = ModelWrapper(MCDropoutModule(copy.deepcopy(model)).eval(), args)
        cached = ModelWrapper(MCCachingModule(MCDropoutModule(copy.deepcopy(model))).eval(), args)
        found["BaaL"] = lambda: mean_of(plain.predict_on_batch(x, T).movedim(-1, 0), len(x))
        found["BaaL, cached"] = lambda: mean_of(cached.predict_on_batch(x, T).movedim(-1, 0), len(x))
    return found


def seconds(function, device):
    if device.type != "cuda":
        return wall_seconds(function)
    torch.cuda.synchronize()
    return wall_seconds(lambda: (function(), torch.cuda.synchronize()))


def measured(model, x, rounds):
    """Seconds of each way by name, medians of the rounds."""
    est = seguq.MCDropout(model, samples=T, calibrator=None)
    bare = seguq.MCDropout(model, samples=T, calibrator=None, measures=["predictive_entropy"])
    seeded = seguq.MCDropout(model, samples=T, seed=0, calibrator=None)
    recorder = Recorder(x.device)
    with recorder:
        output = est._pass(x)
    tape = recorder.finish(output)
    assert tape.problem is None, tape.problem
    running = RunningMeasures(est.measures)

    def loop():
        probs = 0
        for _ in range(T):
            probs = probs + torch.softmax(est._pass(x), 1)

    def tails():
        for _ in range(T):
            running.add(tape.run())

    ways = {
        "forward": lambda: model(x),
        "tail": tape.run,
        "tails": tails,
        "plain loop": loop,
        "seguq, mean and entropy": lambda: bare(x),
        "seguq, all measures": lambda: est(x),
        "seguq, seeded": lambda: seeded(x),
        **peers(model, x),
    }
    # the round for warming up verifies, too
    times = in_turn(ways, rounds, warm_up=1, clock=lambda way: seconds(way, x.device))
    return {name: statistics.median(spent) for name, spent in times.items()}


def main():
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{machine}, {options.threads} threads, torch {torch.__version__}, {options.dtype}")
    print(f"T = {T}, {options.batch} images of {options.size} x {options.size}, {options.classes} classes\n")
    rows = []
    for name, make in models(options.classes).items():
        try:
            model = make().eval().to(device, dtype)
        except (ValueError, KeyError) as error:
            print(f"{name}: not built ({error})")
            continue
        x = torch.randn(options.batch, 3, options.size, options.size, device=device, dtype=dtype)
        with torch.no_grad():
            times = measured(model, x, options.rounds)
        forward = times.pop("forward")
        tail, tails = times.pop("tail"), times.pop("tails")
        bound = forward - tail + tails
        row = {"model": name, "forward, ms": f"{1e3 * forward:.0f}", "bound": f"{bound / forward:.2f}"}
        row |= {way: f"{spent / forward:.2f}" for way, spent in times.items()}
        row["seguq / bound"] = f"{times['seguq, all measures'] / bound:.2f}"
        row["sums of the measures in it"] = f"{100 * max(0, tails - T * tail) / times['seguq, all measures']:.0f} %"
        if not rows:
            print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(row.values()) + " |", flush=True)
        rows.append(row)


if __name__ == "__main__":
    main()
