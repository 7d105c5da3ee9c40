"""Test-time augmentation against a loop over its views, and estimators inside of each other."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError
from seguq.inference import DeepEnsemble, Deterministic, MCDropout, TestTimeAugmentation, tta
from tests.inference.models import Count, SmallNet, fixed, images

VIEWS = {"none": 1, "hflip": 2, "flips": 4, "d4": 8}
views = pytest.mark.parametrize("kind", VIEWS)


def around(inner, kind="flips", **settings):
    return TestTimeAugmentation(inner, kind, **{"calibrator": None, **settings})


def by_hand(kind, dims=2):
    """The views as pairs of functions, made without the code under test."""
    if kind == "none":
        return [(lambda x: x, lambda x: x)]
    if kind == "hflip":
        return [(lambda x: x,) * 2, (lambda x: x.flip(-1),) * 2]
    if kind == "flips":
        axes = [-1 - axis for axis in range(dims)]
        sets = [flips for count in range(dims + 1) for flips in itertools.combinations(axes, count)]
        return [((lambda x, f=f: x.flip(f) if f else x),) * 2 for f in sets]
    pairs = []
    for mirrored, turns in itertools.product((False, True), range(4)):

        def apply(x, mirrored=mirrored, turns=turns):
            return torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1))

        def undo(x, mirrored=mirrored, turns=turns):
            x = torch.rot90(x, 4 - turns, (-2, -1))
            return x.flip(-1) if mirrored else x

        pairs.append((apply, undo))
    return pairs


@torch.no_grad()
def probs_of_views(model, x, kind, dims=2):
    return torch.stack([undo(torch.softmax(model(apply(x)), 1)) for apply, undo in by_hand(kind, dims)])


def rectangle(count=2):
    return images(count, 16)[:, :, :, :10]


@views
def test_probs_are_the_mean_over_the_views(kind):
    model = fixed(SmallNet)
    expected = probs_of_views(model, rectangle(), kind)
    assert len(expected) == VIEWS[kind]
    maps = around(model, kind)(rectangle())
    torch.testing.assert_close(maps.probs, expected.mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(maps["augmentation_variance"], F.variance(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(maps["predictive_entropy"], F.predictive_entropy(expected.mean(0)), rtol=0, atol=1e-5)


def test_there_is_nothing_to_see_that_these_tests_do_not_know():
    assert set(tta.VIEWS) == set(VIEWS)


@pytest.mark.parametrize("dims", [2, 3])
def test_hflip_is_the_mean_of_the_image_and_its_mirror_image(dims):
    model, x = fixed(SmallNet, dims=dims).double(), images(2, 8, dims=dims).double()
    with torch.no_grad():
        seen, mirrored = (torch.softmax(model(images), 1) for images in (x, x.flip(-1)))
    expected = (seen + mirrored.flip(-1)) / 2
    torch.testing.assert_close(around(model, "hflip")(x).probs, expected, rtol=0, atol=1e-15)
    assert float((expected - seen).abs().max()) > 1e-3


def test_volumes_are_flipped_along_three_axes():
    model, x = fixed(SmallNet, dims=3), images(1, 6, dims=3)[..., :4]
    expected = probs_of_views(model, x, "flips", 3)
    assert len(expected) == 8
    torch.testing.assert_close(around(model)(x).probs, expected.mean(0), rtol=0, atol=1e-6)
    with pytest.raises(SeguqError, match="views='d4' is for 2-D images"):
        around(model, "d4")(x)


class Pointwise(nn.Module):
    """What a pixel gets depends on the pixel alone: equivariant to every flip and turn."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return (x[:, :, None] * self.table[:, :, None, None]).sum(1)


@views
@pytest.mark.parametrize("size", [(16, 16), (7, 13), (1, 9), (33, 5)], ids=str)
def test_an_equivariant_model_has_no_disagreement_to_the_bit(kind, size):
    model, x = fixed(Pointwise), torch.rand(2, 3, *size)
    maps = around(model, kind)(x)
    assert float(maps["augmentation_variance"].abs().max()) == 0
    torch.testing.assert_close(maps.probs, torch.softmax(model(x), 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "scale"), [((64, 96), 0.75), ((64, 64), 1.25), ((17, 20), 0.5), ((10, 10), 1.2)])
def test_scaled_views_have_sizes_that_can_be_halved_as_often(size, scale):
    seen = []

    class Noting(Pointwise):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return super().forward(x)

    maps = around(fixed(Noting), "none", scales=(scale,))(torch.rand(1, 3, *size))
    halved = [next(k for k in range(6, -1, -1) if side % 2**k == 0) for side in size]
    assert all(side % 2 ** min(k, 5) == 0 for side, k in zip(seen[0], halved, strict=True))
    assert all(
        abs(side - whole * scale) <= 2 ** min(k, 5) / 2 for side, whole, k in zip(seen[0], size, halved, strict=True)
    )
    assert maps.probs.shape == (1, 5, *size)


@pytest.mark.parametrize("kind", ["none", "d4"])
def test_scaled_views_are_resampled(kind):
    model, x = fixed(SmallNet), images(1, 128)[:, :, :64]
    size = x.shape[2:]
    expected = []
    for scale in (0.5, 1.0, 2.0):
        for apply, undo in by_hand(kind):
            seen = apply(x)
            turned = seen.shape[2:]
            if scale != 1:
                seen = functional.interpolate(seen, size=[int(side * scale) for side in turned], mode="bilinear")
            with torch.no_grad():
                logits = model(seen)
            if scale != 1:
                logits = functional.interpolate(logits, size=turned, mode="bilinear")
            expected.append(undo(torch.softmax(logits, 1)))
    maps = around(model, kind, scales=(0.5, 1.0, 2.0))(x)
    assert maps.probs.shape[2:] == size
    torch.testing.assert_close(maps.probs, torch.stack(expected).mean(0), rtol=0, atol=1e-5)


def test_each_view_is_asked_once_whatever_the_measures():
    for measures in (None, ("predictive_entropy",), ("augmentation_variance", "energy")):
        model = fixed(SmallNet)
        count = Count(model)
        maps = around(model, "d4", measures=measures)(images())
        assert count.forwards == 8
        assert measures is None or maps.names == measures


def test_energy_is_the_mean_over_the_views():
    model = fixed(SmallNet)
    with torch.no_grad():
        expected = torch.stack([undo(F.energy(model(apply(rectangle())))) for apply, undo in by_hand("flips")]).mean(0)
    torch.testing.assert_close(around(model)(rectangle())["energy"], expected, rtol=0, atol=1e-5)


# estimators inside of each other


class PointwiseDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout2d(0.5), nn.Conv2d(8, 3, 1))

    def forward(self, x):
        return self.net(x)


def test_mutual_information_is_that_of_each_view_averaged():
    model = fixed(PointwiseDropout)
    inner = MCDropout(model, samples=5, seed=0, calibrator=None)
    maps = around(inner)(rectangle(), ["a", "b"])
    expected = []
    for number, (apply, undo) in enumerate(by_hand("flips")):
        ids = ["a", "b"] if number == 0 else [f"{name}\x1fview{number}" for name in "ab"]
        expected.append(undo(inner(apply(rectangle()), ids)["mutual_information"]))
    torch.testing.assert_close(maps["mutual_information"], torch.stack(expected).mean(0), rtol=0, atol=1e-6)
    assert float(maps["mutual_information"].max()) > 0.01


def test_views_do_not_count_as_knowledge_of_the_model():
    """A network without randomness inside MC dropout's measures: flips disagree, and mutual information is 0."""
    model = fixed(SmallNet)
    maps = around(DeepEnsemble([model, model], calibrator=None), "d4")(images())
    assert float(maps["mutual_information"].max()) < 1e-6
    assert float(maps["augmentation_variance"].max()) > 1e-4


def test_a_seeded_estimator_draws_other_masks_in_each_view_and_its_own_in_the_first():
    model = fixed(PointwiseDropout)
    inner = MCDropout(model, samples=3, seed=0, calibrator=None)
    samples = list(around(inner).samples(images(1), ["a"]))
    alone = list(inner.samples(images(1), ["a"]))
    assert len(samples) == 12
    assert all(torch.equal(one, other) for one, other in zip(samples, alone, strict=False))
    assert not torch.allclose(samples[3], samples[0])


@torch.no_grad()
def all_samples(estimators, x, ids):
    return torch.stack([probs for est in estimators for probs in est.samples(x, ids)])


def test_an_ensemble_of_dropout_members_has_all_their_samples():
    inner = [MCDropout(fixed(SmallNet, dropout=nn.Dropout(p)), samples=n, seed=0, calibrator=None)
             for p, n in ((0.2, 3), (0.6, 5))]  # fmt: skip
    est = DeepEnsemble(inner, calibrator=None)
    samples = all_samples(inner, images(), ["a", "b"])
    assert torch.equal(torch.stack(list(est.samples(images(), ["a", "b"]))), samples)
    maps = est(images(), ["a", "b"])
    for name in ("mutual_information", "expected_entropy", "variance", "variation_ratio"):
        torch.testing.assert_close(maps[name], getattr(F, name)(samples), rtol=0, atol=1e-5)
    assert est.describe()["passes"] == 8 and est.describe(images())["random"] == ("dropout",)


def test_members_with_views_are_one_sample_each():
    inner = [around(fixed(SmallNet)), Deterministic(fixed(SmallNet), calibrator=None), fixed(SmallNet)]
    est = DeepEnsemble(inner, calibrator=None)
    first, second, third = list(est.samples(images()))
    torch.testing.assert_close(first, around(fixed(SmallNet))(images()).probs, rtol=0, atol=1e-6)
    assert torch.equal(second, third)


def test_three_deep():
    members = [around(MCDropout(fixed(SmallNet), samples=2, seed=s, calibrator=None)) for s in (0, 1)]
    est = around(DeepEnsemble(members, calibrator=None), "none", scales=(1.0, 0.5))
    maps = est(images(), ["a", "b"])
    assert torch.allclose(maps.probs.sum(1), torch.ones(2, 16, 16), atol=1e-5)
    assert "deep_ensemble" in est.tag and maps["mutual_information"].min() >= 0


def test_a_task_of_the_members_that_is_another_is_an_error():
    with pytest.raises(SeguqError, match="a member has task='binary', but the ensemble task='multiclass'"):
        DeepEnsemble([Deterministic(fixed(SmallNet), task="binary")])


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_have_views_too(task):
    model = fixed(SmallNet, 1 if task == "binary" else 4)
    maps = around(MCDropout(model, samples=3, seed=0, task=task, calibrator=None), "d4")(rectangle())
    assert maps["augmentation_variance"].shape == (2, 16, 10)
    assert maps.probs.shape == ((2, 2, 16, 10) if task == "binary" else (2, 4, 16, 10))
    of_model = TestTimeAugmentation(model, task=task, calibrator=None)
    assert of_model.task == of_model.inner.task == task


def test_a_calibrator_is_for_the_views_and_the_estimator_inside():
    model = fixed(SmallNet)
    est = TestTimeAugmentation(MCDropout(model, samples=3, seed=0), "flips")
    batches = [{"image": images(), "mask": torch.randint(3, (2, 16, 16)), "image_id": ["a", "b"]}]
    calibrator = est.calibrate(seguq.TemperatureScaling(), batches)
    assert calibrator.tag == est.tag == "test_time_augmentation(views=flips, of=mc_dropout(layers=dropout))"
    assert model.calibrators == {est.tag: calibrator}
    assert not torch.allclose(est(images(), ["a", "b"]).probs, around(est.inner)(images(), ["a", "b"]).probs)


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (("rotations",), {}, "views"),
        (("flips",), {"scales": ()}, "scales must be at least one number above 0"),
        (("flips",), {"scales": (1, -0.5)}, "scales must be at least one number above 0"),
        (("flips",), {"measures": ["mutual_information"]}, "'mutual_information' is not among the measures"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(arguments, settings, told):
    with pytest.raises(SeguqError, match=told):
        TestTimeAugmentation(fixed(SmallNet), *arguments, **settings)


def test_what_belongs_to_the_estimator_inside_is_said():
    with pytest.raises(SeguqError, match="task= belongs to the estimator inside: pass it to MCDropout"):
        TestTimeAugmentation(MCDropout(fixed(SmallNet)), task="binary")


def test_describe_counts_the_passes():
    assert around(fixed(SmallNet), "d4").describe(images())["forwards"] == 8
    dropout = around(MCDropout(fixed(SmallNet), samples=5, calibrator=None))
    assert dropout.describe(images())["forwards"] == 4  # one recorded pass for each view


def test_no_image_has_an_answer_at_every_scale():
    est = around(SmallNet().eval(), scales=(1, 2))
    assert est(images()[:0]).probs.shape[0] == 0 and est(images()[:0])["augmentation_variance"].shape[0] == 0


@pytest.mark.parametrize("scales", ["a", None, ["a"], 0, (), float("inf"), True])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(SeguqError, match="scales must be at least one number above 0"):
        around(SmallNet(), scales=scales)


@pytest.mark.parametrize("inner", ["model.ckpt", [SmallNet()]])
def test_something_else_than_a_model_is_refused_at_once(inner):
    with pytest.raises(SeguqError, match="asks a module, but was given a"):
        around(inner)


def test_what_stands_inside_may_be_named():
    est = TestTimeAugmentation("mc_dropout", "hflip")
    assert type(est.inner) is MCDropout and est.unbound
    bound = est.bind(fixed(SmallNet))
    expected = around(MCDropout(fixed(SmallNet), seed=0), "hflip")
    bound.inner.seed = 0
    torch.testing.assert_close(bound(images(), ["a", "b"]).probs, expected(images(), ["a", "b"]).probs)
