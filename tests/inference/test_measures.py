import pytest
import torch
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError, UsageError
from seguq.inference.measures import MEASURES, explained, measures_of, scored_by_default, shown_by_default

SPREAD = seguq.Measure("spread_of_samples", "samples", F.variance, None, "the same as variance, the slow way")
IMPURITY = seguq.Measure("gini_impurity", "probs", lambda probs: 1 - probs.square().sum(1))
FLAT = seguq.Measure("flat", "logits", lambda logits: logits.sum((1, 2)))


@pytest.fixture
def model():
    return nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 4, 1))


def images():
    return torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def test_what_an_estimator_has_follows_from_what_it_gives(model):
    assert seguq.Deterministic(model).measures == measures_of("probs", "logits")
    assert seguq.MCDropout(model).measures == measures_of("probs", "samples")
    around = seguq.TestTimeAugmentation(seguq.MCDropout(model))
    assert set(around.measures) == {*measures_of("probs", "samples"), "augmentation_variance"}


def test_every_measure_says_what_it_tells_and_the_help_text_holds_it():
    assert all(item.explanation and item.name in explained() for item in MEASURES)
    assert "mutual_information (nats): the model's ignorance" in explained()


@pytest.mark.parametrize("around", [lambda est: est, lambda est: seguq.DeepEnsemble([est, est])], ids=["it", "members"])
def test_a_measure_of_samples_of_ones_own_sees_all_samples(model, around):
    est = around(seguq.MCDropout(model, 5, seed=0, calibrator=None))
    est.measures = ("variance", "spread_of_samples")
    maps = est(images())
    assert torch.allclose(maps["spread_of_samples"], maps["variance"], atol=1e-6)


def test_a_measure_of_ones_own_goes_through_windows_and_views(model):
    for make in (seguq.SlidingWindow, seguq.TestTimeAugmentation):
        est = make(seguq.MCDropout(model, 5, seed=0), measures=[SPREAD, IMPURITY, "variance"], calibrator=None)
        maps = est(images())
        assert maps.names == ("spread_of_samples", "gini_impurity", "variance")
        assert torch.allclose(maps["spread_of_samples"], maps["variance"], atol=1e-6)
        assert torch.allclose(maps["gini_impurity"], 1 - maps.probs.square().sum(1))


def test_a_measure_of_views_of_ones_own_sees_all_views(model):
    spread = seguq.Measure("spread_of_views", "views", F.variance)
    for est in (
        seguq.TestTimeAugmentation(model, "d4", measures=[spread, "augmentation_variance"], calibrator=None),
        seguq.SlidingWindow(
            seguq.TestTimeAugmentation(nn.Conv2d(3, 4, 3, padding=1), "flips"),
            window=4,
            stride=1,
            measures=[spread, "augmentation_variance"],
            calibrator=None,
        ),
    ):
        maps = est(images())
        assert torch.allclose(maps["spread_of_views"], maps["augmentation_variance"], atol=1e-6)


def test_a_measure_of_ones_own_is_of_calibrated_probabilities_and_of_each_label(model):
    est = seguq.Deterministic(model, task="multilabel", measures=IMPURITY, calibrator=None)
    p = est(images()).probs
    assert torch.allclose(est(images())["gini_impurity"], (1 - p**2 - (1 - p) ** 2).sum(1), atol=1e-6)


def test_a_measure_of_ones_own_is_computed_only_where_it_is_asked_for(model):
    assert "gini_impurity" not in seguq.Deterministic(model).measures
    assert "gini_impurity" in seguq.Deterministic(model).available


def test_a_measure_is_known_by_its_import_path(model):
    est = seguq.Deterministic(model, measures=["tests.inference.test_measures.IMPURITY"], calibrator=None)
    assert est(images()).names == ("gini_impurity",)


@pytest.mark.parametrize("path", ["tests.inference.test_measures.NOTHING", "tests.inference.test_measures.images"])
def test_a_path_without_a_measure_at_its_end_is_an_error_that_names_it(model, path):
    with pytest.raises(UsageError, match=path):
        seguq.Deterministic(model, measures=[path])


def test_a_measure_that_gives_no_map_is_an_error_that_names_it_and_both_shapes(model):
    with pytest.raises(SeguqError, match=r"'flat' must give a map \(B, \*spatial\) = \(2, 5, 6\), but gave \(2, 6\)"):
        seguq.Deterministic(model, measures=[FLAT], calibrator=None)(images())


def test_an_estimator_without_samples_says_who_has_the_measure(model):
    with pytest.raises(SeguqError, match=r"spread_of_samples.*it is a measure of estimators with samples"):
        seguq.Deterministic(model, measures=[SPREAD])


def test_the_name_of_a_measure_of_seguq_cannot_be_taken():
    with pytest.raises(UsageError, match="'variance' is a measure of seguq"):
        seguq.Measure("variance", "samples", F.variance)


@pytest.mark.parametrize("name", ["two words", "features"])
def test_a_name_that_is_no_word_or_stands_for_something_else_is_refused(name):
    with pytest.raises(UsageError, match="one word, as a variable's, and not 'features'"):
        seguq.Measure(name, "samples", F.variance)


def test_the_defaults_are_those_that_the_estimator_has():
    assert shown_by_default(measures_of("probs", "samples")) == ("predictive_entropy", "mutual_information")
    assert scored_by_default(measures_of("probs", "samples")) == "smallest_margin"
    assert scored_by_default(("variance", "mutual_information", "predictive_entropy")) == "mutual_information"
    assert scored_by_default(("smallest_margin", "pairwise_dice"), of_images=True) == "pairwise_dice"
    assert shown_by_default(("energy", "max_logit")) == ("energy",) and scored_by_default(("energy",)) == "energy"
