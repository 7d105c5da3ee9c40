import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.agreement import annotator_disagreement, generalized_energy_distance
from seguq.metrics import HumanAgreement


def images(seed=0, count=6, size=(5, 4)):
    """Uncertainty ``(B, *spatial)``, masks of four annotators and samples of five."""
    random = np.random.default_rng(seed)
    masks, samples = (torch.from_numpy(random.integers(0, 3, (count, n, *size))) for n in (4, 5))
    masks[torch.from_numpy(random.random(masks.shape) < 0.1)] = 255
    return torch.from_numpy(random.random((count, *size))).float(), masks, samples


def test_values_are_the_means_over_the_images_that_have_them():
    uncertainty, masks, samples = images()
    masks[2] = 1  # no disagreement, so no correlation
    metric = HumanAgreement(3)
    metric.update(uncertainty[:4], masks[:4], samples[:4])
    metric.update(uncertainty[4:], masks[4:])  # no samples
    correlations = []
    for one, variance in zip(uncertainty, annotator_disagreement(masks, 3), strict=True):
        kept = ~variance.isnan()
        if variance[kept].std() > 0:
            correlations.append(np.corrcoef(one[kept], variance[kept])[0, 1])
    found = metric.compute()
    assert len(correlations) == 5
    assert float(found["ncc"]) == pytest.approx(np.mean(correlations), abs=1e-6)
    assert float(found["ged"]) == pytest.approx(float(generalized_energy_distance(samples, masks, 3)[:4].mean()))


def test_without_samples_there_is_no_distance():
    metric = HumanAgreement(3)
    metric.update(*images()[:2])
    assert math.isnan(metric.compute()["ged"]) and not math.isnan(metric.compute()["ncc"])


def test_a_model_that_samples_what_people_say_is_best():
    uncertainty, masks, samples = images()
    masks = masks.clamp_max(2)
    good, bad = HumanAgreement(3), HumanAgreement(3)
    good.update(annotator_disagreement(masks, 3), masks, masks)
    bad.update(uncertainty, masks, samples)
    assert float(good.compute()["ncc"]) == pytest.approx(1) and float(good.compute()["ged"]) == pytest.approx(0)
    assert float(bad.compute()["ncc"]) < 0.5 and float(bad.compute()["ged"]) > 0.05


def test_where_nobody_says_anything_uncertainty_may_hold_nan():
    uncertainty, masks, _ = images()
    masks[:, 1:, 0, 0], uncertainty[:, 0, 0] = 255, math.nan  # at most one says anything there
    metric = HumanAgreement(3)
    metric.update(uncertainty, masks)
    assert not math.isnan(metric.compute()["ncc"])
    uncertainty[0, 2, 2] = math.nan
    masks[0, :, 2, 2] = 1
    with pytest.raises(SeguqError, match="uncertainty holds NaN"):
        metric.update(uncertainty, masks)


def test_infinite_uncertainty_is_an_error_where_annotators_say_something():
    uncertainty, masks, _ = images()
    masks[0, :, 0, 0], uncertainty[0, 0, 0] = 255, math.inf
    metric = HumanAgreement(3)
    metric.update(uncertainty[:1], masks[:1])
    assert not math.isnan(metric.compute()["ncc"])
    with pytest.raises(SeguqError, match="NaN or infinity"):
        metric.update(uncertainty[:1], masks[1:2] % 3)


def test_images_that_nobody_labeled_change_nothing():
    uncertainty, masks, samples = images()
    metric = HumanAgreement(3)
    metric.update(uncertainty, masks, samples)
    before = metric.compute()
    metric.update(uncertainty, torch.full_like(masks, 255), samples)
    assert metric.compute() == before


@pytest.mark.parametrize("change", ["size", "class", "samples", "sizes"])
def test_what_does_not_go_together_is_an_error(change):
    uncertainty, masks, samples = images()
    if change == "size":
        uncertainty = uncertainty[:, 1:]
    elif change == "class":
        masks[0, 0, 0, 0] = 3
    elif change == "samples":
        samples[0, 0, 0, 0] = 255
    else:
        samples = samples[..., 1:]
    with pytest.raises(SeguqError, match=r"shape|class"):
        HumanAgreement(3).update(uncertainty, masks, samples)
