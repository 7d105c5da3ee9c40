"""The guarantee of conformal objects by simulation: 1,000 times, fit on some images, and look at the loss of new ones.

Images are hard or easy as a whole, as real ones are, so that the loss of one tells little of another's. A simulation
that no error could fail shows nothing: each claim stands beside the same with a mistake in it, which must be seen.
"""

import functools
import math

import numpy as np
import pytest
import torch

from seguq import ConformalMargin, ConformalRiskControl, PredictionSets
from seguq.calibration import conformal
from tests.calibration.test_conformal import loss_of, missed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:all classes are in the set", "ignore:all sets are empty"),
]

SPLITS, NEW = 1000, 4
ALPHA = 0.1


def draw(random, task, number):
    """Predictions and targets of images."""
    hardness = random.uniform(0, 2, (number, 1, 1))
    if task == "masks":
        # a run of pixels, and the true one, which goes on at its right by more where images are hard
        more = random.poisson(2 * hardness[:, 0, 0])
        place = np.arange(32)
        predicted, true = ((place >= 8) & (place < 12 + grown) for grown in (np.zeros((number, 1)), more[:, None]))
        return torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(true.astype(np.int64))
    logits = 3 * random.normal(size=(number, 3, 24))
    noisy = logits + 3 * hardness * random.normal(size=logits.shape)
    if task == "multiclass":
        return torch.from_numpy(logits).softmax(1).float(), torch.from_numpy(noisy.argmax(1))
    probs, target = torch.from_numpy(logits).sigmoid().float(), torch.from_numpy(noisy > 0).long()
    return (probs[:, :1], target[:, 0]) if task == "binary" else (probs, target)


def mean_risk(make, task, number, frames=1, told=True):
    """The mean loss of new images over all splits, and its standard error.

    Args:
        make: gives an unfitted object.
        task: what is drawn.
        number: of images to fit on.
        frames: so many frames of each are fitted on, which differ in nothing.
        told: whether the object is told which belong together.
    """
    risks = []
    ids = [str(n // frames) for n in range(number * frames)]
    for split in range(SPLITS):
        random = np.random.default_rng([number, split])
        batch = (values.repeat_interleave(frames, 0) for values in draw(random, task, number))
        fitted = make().fit([(*batch, ids)], group=str if frames > 1 and told else None)
        losses = [loss_of(fitted, p, t) for p, t in zip(*draw(random, task, NEW), strict=True)]
        risks.append(np.mean([loss for loss in losses if loss is not None]))
    return float(np.mean(risks)), float(np.std(risks) / math.sqrt(SPLITS))


CASES = {
    "miss": (lambda: ConformalRiskControl("miss", ALPHA), "multiclass"),
    "miss, binary": (lambda: ConformalRiskControl("miss", ALPHA, "binary"), "binary"),
    "miss, multilabel": (lambda: ConformalRiskControl("miss", ALPHA, "multilabel"), "multilabel"),
    "false positive": (lambda: ConformalRiskControl("false_positive", ALPHA), "multiclass"),
    "false positive, binary": (lambda: ConformalRiskControl("false_positive", ALPHA, "binary"), "binary"),
    "own": (lambda: ConformalRiskControl(missed, ALPHA), "multiclass"),
    "prediction sets": (lambda: PredictionSets(ALPHA, 0.8), "multiclass"),
    "prediction sets, binary": (lambda: PredictionSets(ALPHA, 0.8, "binary"), "binary"),
    "margin": (lambda: ConformalMargin(ALPHA), "masks"),
}
MEANS = ("miss", "miss, binary", "miss, multilabel", "false positive", "false positive, binary", "own")
"""Losses that are means over pixels, and so hardly larger than alpha without a correction, either."""

risk_of_case = functools.cache(lambda case, number: mean_risk(*CASES[case], number))
every = pytest.mark.parametrize("case", CASES)


@every
@pytest.mark.parametrize("number", [10, 35])
def test_the_mean_risk_of_new_images_is_at_most_alpha(case, number):
    risk, error = risk_of_case(case, number)
    print(f"\n{case}, {number} images: {risk:.4f} +- {error:.4f}")
    assert risk <= ALPHA + 3 * error
    # and not by giving everything away: the correction for few images, and coarse steps of margins, are all there is
    assert risk >= ALPHA - 1 / (number + 1) - 0.06


def uncorrected(losses, units, alpha):
    """The level at which the mean loss of the images at hand is at most alpha, as if no new one would come."""
    kept = losses / units <= alpha
    return int(kept.int().argmax()) if bool(kept.any()) else None


@every
def test_without_the_correction_for_few_images_the_simulation_sees_a_larger_risk(case, monkeypatch):
    corrected, other = risk_of_case(case, 10)
    monkeypatch.setattr(conformal, "conformal_level", uncorrected)
    risk, error = mean_risk(*CASES[case], 10)
    print(f"\n{case}, 10 images: {risk:.4f} +- {error:.4f} without, {corrected:.4f} with it")
    assert risk > ALPHA + 3 * error or case in MEANS
    assert risk > corrected + 3 * math.hypot(error, other)


@pytest.mark.parametrize("case", ["prediction sets", "margin"])
def test_frames_of_one_scene_keep_the_risk_of_a_new_scene_only_where_they_are_told_to_belong_together(case):
    kind, settings = {"prediction sets": (PredictionSets, {"coverage": 0.8}), "margin": (ConformalMargin, {})}[case]
    told, untold = (mean_risk(lambda: kind(0.15, **settings), CASES[case][1], 10, 4, told=it) for it in (True, False))
    print(f"\n{case}: {told[0]:.4f} told, {untold[0]:.4f} untold")
    assert told[0] <= 0.15 + 3 * told[1]
    assert untold[0] > told[0] + 3 * math.hypot(told[1], untold[1])
    assert untold[0] > 0.15 + 3 * untold[1] or case == "margin"  # whose steps of whole pixels give some away
