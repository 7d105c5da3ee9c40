"""What an estimator costs beyond the passes through its models: ``est(images)`` against these passes alone, in turn.

The passes: the same models called as often, on images of the same size, in evaluation mode and without gradients; no
softmax, no mean over samples, no measure.

    OMP_NUM_THREADS=1 python benchmarks/estimators.py --rounds 15
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from in_turn import in_turn

import seguq
from seguq.inference.moments import WeightMoments

CLASSES = 11


def network(seed, size):
    """FPN/resnet34 with random weights, whose decoder ends in dropout."""
    torch.manual_seed(seed)
    model = smp.FPN("resnet34", encoder_weights=None, classes=CLASSES, encoder_output_stride=32).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return model


def swag_file(folder, model):
    """A checkpoint with the moments of four neighbors of a model."""
    moments = WeightMoments(rank=2)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        moments.add(model)
    model.load_state_dict(kept)
    file = Path(folder) / "swag.ckpt"
    torch.save({"state_dict": kept, "seguq": {"version": 1, "swag": moments.state()}}, file)
    return file


def estimators(folder, size, samples):
    """Each by name: an estimator with one measure, and the passes that it needs, as ``(model, images)``."""
    models = [network(seed, size) for seed in range(5)]
    model, images = models[0], torch.randn(1, 3, size, size)
    large = torch.randn(1, 3, 2 * size, 2 * size)
    one, many = {"measures": ["predictive_entropy"]}, {"measures": ["mutual_information"]}
    batches = [(torch.randn(2, 3, size, size), None)]
    swag = seguq.SWAG(model, swag_file(folder, model), samples=samples, bn_batches=batches, **many)
    windows = seguq.SlidingWindow(model, window=size, overlap=0.5, batch=1, **one)
    return {
        "Deterministic": (seguq.Deterministic(model, **one), images, [(model, images)]),
        "MCDropout": (seguq.MCDropout(model, samples=samples, **many), images, [(model, images)] * samples),
        "DeepEnsemble": (seguq.DeepEnsemble(models, **many), images, [(each, images) for each in models]),
        "SWAG": (swag, images, [(swag.mean_model, images)] * samples),
        "TestTimeAugmentation": (seguq.TestTimeAugmentation(model, **one), images, [(model, images)] * 4),
        "SlidingWindow": (windows, large, [(model, images)] * windows.forwards(large)),
    }


def calibrated(est, images):
    """The same estimator with a calibrator of its own, for the weights that it has."""
    target = torch.randint(CLASSES, (1, *images.shape[2:]))
    return est.calibrate(seguq.TemperatureScaling(), [(images, target)])


def processor_seconds(function):
    """Processor time of a call, which others on the machine do not add to."""
    begun = time.process_time()
    function()
    return time.process_time() - begun


def passes(calls):
    with torch.no_grad():
        for model, images in calls:
            model(images)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| estimator | passes | passes alone, ms | `est(images)`, ms | ratio | calibrated, ratio |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (est, images, calls) in estimators(folder, options.size, options.samples).items():
            calibrator = calibrated(est, images)

            def ask(est=est, images=images, calibrator=None):
                est.calibrator = calibrator
                est(images)

            ways = {
                "alone": lambda calls=calls: passes(calls),
                "raw": ask,
                "calibrated": lambda ask=ask, calibrator=calibrator: ask(calibrator=calibrator),
            }
            times = in_turn(ways, options.rounds, warm_up=3, clock=processor_seconds)
            ratios = {
                way: statistics.median(a / b for a, b in zip(times[way], times["alone"], strict=True))
                for way in ("raw", "calibrated")
            }
            middle = {way: 1e3 * statistics.median(seconds) for way, seconds in times.items()}
            print(
                f"| `{name}` | {len(calls)} | {middle['alone']:.1f} | {middle['raw']:.1f} | {ratios['raw']:.2f} | "
                f"{ratios['calibrated']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
