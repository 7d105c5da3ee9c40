"""Scores of whole images, beside maps: which estimators have them, and where they go."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError, UsageError
from seguq.inference.measures import explained, measures_of, scored_by_default, shown_by_default
from tests.inference.models import SmallNet, fixed, images, names
from tests.testing.test_estimators import MADE

SAMPLED = ("mc_dropout", "deep_ensemble", "swag")
LARGEST = seguq.Measure("largest_uncertainty", "probs", lambda p: (1 - p.amax(1)).flatten(1).amax(1), per_image=True)
SPREAD = seguq.Measure("spread_of_images", "samples", lambda p: F.variance(p).flatten(1).mean(1), per_image=True)


def model(classes=3, dims=2):
    return fixed(SmallNet, classes, dims=dims)


def dropout(classes=3, **settings):
    return seguq.MCDropout(model(classes), **{"samples": 5, "seed": 0, "calibrator": None, **settings})


@pytest.mark.parametrize("name", SAMPLED)
def test_an_estimator_with_samples_scores_images_by_them(name, tmp_path):
    est = MADE[name](tmp_path)(calibrator=None, measures=["mutual_information", "pairwise_dice"])
    maps = est(images(3), names(3))
    labels = torch.stack([probs.argmax(1) for probs in est.samples(images(3), names(3))])
    assert torch.equal(maps.image_scores["pairwise_dice"], F.pairwise_dice(labels, 3))
    assert maps.names == ("mutual_information",) and maps.image_scores["pairwise_dice"].min() > 0


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_labels_of_other_tasks_are_compared_as_they_are_predicted(task):
    est = dropout(1 if task == "binary" else 2, task=task, measures=["pairwise_dice"])
    samples = torch.stack(list(est.samples(images(), names(2))))
    labels = samples.argmax(2) if task == "binary" else samples > 0.5
    expected = F.pairwise_dice(labels, 2) if task == "binary" else F.multilabel_pairwise_dice(labels)
    assert torch.equal(est(images(), names(2)).image_scores["pairwise_dice"], expected)


def test_volumes_have_scores_too():
    est = seguq.MCDropout(model(dims=3), 3, seed=0, measures=["pairwise_dice"], calibrator=None)
    assert est(images(2, 6, dims=3)).image_scores["pairwise_dice"].shape == (2,)


def test_scores_are_of_raw_samples_whatever_the_calibrator():
    est = dropout(measures=["pairwise_dice"])
    before = est(images(), names(2)).image_scores["pairwise_dice"]
    est.calibrate(seguq.TemperatureScaling(), [(images(), torch.zeros(2, 16, 16, dtype=torch.long))])
    assert torch.equal(est(images(), names(2)).image_scores["pairwise_dice"], before)


def test_they_are_on_request_alone():
    assert "pairwise_dice" not in dropout().measures and not dropout()(images()).image_scores
    assert "pairwise_dice" not in measures_of("probs", "samples")
    assert "pairwise_dice: how little the samples' masks overlap, one score for each whole image" in explained()


@pytest.mark.parametrize("make", [seguq.Deterministic, seguq.TestTimeAugmentation, seguq.SlidingWindow])
@pytest.mark.parametrize("inner", [model, dropout], ids=["model", "estimator"])
def test_an_estimator_without_them_says_who_has_them(make, inner):
    if make is seguq.Deterministic:
        inner = model
    said = r"'pairwise_dice' is not among .* estimators with samples .*SWAG\), on request"
    with pytest.raises(SeguqError, match=said):
        make(inner(), measures=["pairwise_dice"])


def test_a_score_that_was_not_asked_for_is_a_key_error_that_says_how_to_ask():
    maps = dropout()(images())
    for ask in (lambda: maps.image_scores["pairwise_dice"], lambda: maps["pairwise_dice"]):
        with pytest.raises(KeyError, match=r"on request: measures=\['pairwise_dice'\]"):
            ask()
    with pytest.raises(KeyError, match=r"no map, but one score for each whole image: maps.image_scores"):
        dropout(measures=["pairwise_dice"])(images())["pairwise_dice"]


def test_one_sample_cannot_be_compared():
    with pytest.raises(SeguqError, match=r"two are needed \(samples=2\)"):
        dropout(samples=1, measures=["pairwise_dice"])(images())


def test_label_maps_are_all_that_is_kept_of_samples(monkeypatch):
    kept = []
    add = seguq.inference.label_maps.LabelMaps.add

    def noted(self, logits):
        add(self, logits)
        kept.append(self._maps[-1])

    monkeypatch.setattr("seguq.inference.label_maps.LabelMaps.add", noted)
    dropout(measures=["pairwise_dice"])(images())
    assert {(one.dtype, tuple(one.shape)) for one in kept} == {(torch.uint8, (2, 16, 16))} and len(kept) == 5


def test_scores_of_ones_own_are_of_images_and_go_through_views_where_they_are_of_probs():
    est = dropout(measures=[LARGEST, SPREAD, "variance"])
    maps = est(images())
    assert maps.names == ("variance",) and tuple(maps.image_scores) == ("largest_uncertainty", "spread_of_images")
    assert torch.allclose(maps.image_scores["spread_of_images"], maps["variance"].flatten(1).mean(1), atol=1e-6)
    maps = seguq.TestTimeAugmentation(model(), "hflip", measures=[LARGEST], calibrator=None)(images())
    largest = (1 - maps.probs.amax(1)).flatten(1).amax(1)
    assert torch.allclose(maps.image_scores["largest_uncertainty"], largest)
    with pytest.raises(SeguqError, match="'spread_of_images' is not among the measures of SlidingWindow"):
        seguq.SlidingWindow(dropout(), measures=[SPREAD])


def test_a_score_of_ones_own_that_is_no_number_an_image_is_an_error():
    wrong = seguq.Measure("a_map_after_all", "probs", lambda p: p[:, 0], per_image=True)
    with pytest.raises(SeguqError, match=r"must give a score for each image \(B,\) = \(2,\), but gave \(2, 16, 16\)"):
        seguq.Deterministic(model(), measures=[wrong], calibrator=None)(images())


def test_a_stream_of_rows_has_no_whole_image():
    est, reader = seguq.SlidingWindow(model(), measures=[LARGEST], calibrator=None), seguq.data.ArrayReader
    with pytest.raises(UsageError, match="takes maps, but 'largest_uncertainty' is one score for each whole image"):
        est.stream(reader(np.zeros((8, 8, 3), np.uint8)), seguq.store.MapFiles("nowhere"))


def test_defaults_are_maps():
    assert shown_by_default(("pairwise_dice", "variance")) == ("variance",)
    assert shown_by_default(("pairwise_dice",)) == ()
    with pytest.raises(UsageError, match="scored by a map, but of the measures pairwise_dice none is one"):
        scored_by_default(("pairwise_dice",))


class Encoded(nn.Module):
    """An encoder, dropout and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU())
        self.dropout, self.head = nn.Dropout(0.5), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.head(self.dropout(self.encoder(x)))


@pytest.fixture(scope="module")
def maps():
    measures = ["variance", "pairwise_dice"]
    return seguq.MCDropout(fixed(Encoded), 5, seed=0, measures=measures, calibrator=None, features=True)(images(3))


def loaded(maps, tmp_path, **settings):
    maps.save(tmp_path / "maps.npz", **settings)
    return seguq.UncertaintyMaps.load(tmp_path / "maps.npz")


WAYS = {
    "split": lambda maps, _: maps.split(),
    "to": lambda maps, _: [maps.to("cpu")],
    "cpu": lambda maps, _: [maps.cpu()],
    "resized": lambda maps, _: [maps.resized((7, 9))],
    "a file": lambda maps, folder: [loaded(maps, folder)],
    "a file without probs": lambda maps, folder: [loaded(maps, folder, probs=False)],
    "a file twice": lambda maps, folder: [loaded(loaded(maps, folder), folder)],
    "a pickle": lambda maps, _: [pickle.loads(pickle.dumps(maps))],
}


@pytest.mark.parametrize("way", WAYS)
def test_scores_and_features_go_where_maps_go(way, maps, tmp_path):
    found = WAYS[way](maps, tmp_path)
    scores = torch.cat([one.image_scores["pairwise_dice"] for one in found])
    assert torch.equal(scores, maps.image_scores["pairwise_dice"]) and len(scores) == 3
    assert all(one.names == ("variance",) and one.features.dtype == torch.float16 for one in found)
    assert torch.equal(torch.cat([one.features for one in found]), maps.features)
    with pytest.raises(KeyError, match=r"no measure: .* has pairwise_dice"):
        found[0].image_scores["surprise"]


def test_a_file_without_them_is_read_as_before(tmp_path):
    found = loaded(dropout()(images()), tmp_path)
    assert dict(found.image_scores) == {} and found.features is None


def test_they_count_in_bytes_and_are_named_by_repr(maps):
    plain = seguq.UncertaintyMaps(
        maps.probs, {"variance": maps["variance"]}, maps.image_ids, prediction=maps.prediction
    )
    assert maps.nbytes == plain.nbytes + maps.features.nbytes + 3 * 4
    assert "maps variance, image scores pairwise_dice, features (3, 6, 4, 4))" in repr(maps)


@pytest.mark.parametrize("what", ["image_scores", "features"])
def test_of_another_number_of_images_they_are_an_error(what):
    given = {"image_scores": {"pairwise_dice": torch.zeros(3)}, "features": torch.zeros(3, 1, 1, 1)}
    with pytest.raises(SeguqError, match=r"(pairwise_dice'|features) holds 3 images, but there are 2 image ids"):
        seguq.UncertaintyMaps(torch.zeros(2, 3, 4, 4), {}, ["a", "b"], **{what: given[what]})


@pytest.mark.parametrize("what", ["image_scores", "features"])
def test_of_the_wrong_shape_in_a_file_they_are_an_error_that_names_it(what, tmp_path):
    given = {"image_scores": {"pairwise_dice": torch.zeros(2, 1)}, "features": torch.zeros(2, 1, 1)}
    wrong = seguq.UncertaintyMaps(torch.zeros(2, 3, 4, 4), {}, ["a", "b"], **{what: given[what]})
    with pytest.raises(SeguqError, match=r"maps.npz.*of shape \(2, 1"):
        loaded(wrong, tmp_path)


@pytest.mark.parametrize("what", ["image_scores", "features"])
def test_not_finite_they_are_an_error_that_names_the_image(what):
    given = {"image_scores": {"pairwise_dice": torch.tensor([0, torch.nan])}, "features": torch.ones(2, 1, 1, 1)}
    given["features"][1] = torch.inf
    wrong = seguq.UncertaintyMaps(torch.zeros(2, 3, 4, 4), {}, ["a", "b"], **{what: given[what]})
    with pytest.raises(SeguqError, match=r"(pairwise_dice|features) of image 'b' holds NaN"):
        wrong.require_finite()
