import logging
import math

import pytest
import torch
from torch import nn

from seguq.calibration import Calibrator, TemperatureScaling, cross_fit
from seguq.core import log
from seguq.core.errors import SeguqError
from seguq.inference import DeepEnsemble, Deterministic, MCDropout
from tests.inference.models import Count, SmallNet, fixed, flags, images, mix_flags, names, tensors

OF_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")


def model(classes=3):
    return fixed(SmallNet, classes)


@torch.no_grad()
def logits(x, classes):
    return model(classes)(x)


def batches(classes=3):
    """Three batches of two images with ids, and masks drawn from the model's own probabilities at T = 2."""
    x, ids, generator = images(6), names(6), torch.Generator().manual_seed(5)
    if classes == 1:
        y = torch.bernoulli(torch.sigmoid(logits(x, 1)[:, 0] / 2), generator=generator).long()
    else:
        probs = torch.softmax(logits(x, classes) / 2, 1).movedim(1, -1)
        y = torch.multinomial(probs.reshape(-1, classes), 1, generator=generator).view(6, 16, 16)
    return [(x[i : i + 2], y[i : i + 2], ids[i : i + 2]) for i in (0, 2, 4)]


def ready(temperature, tag=None):
    """A calibrator of a given temperature."""
    calibrator = TemperatureScaling()
    calibrator.log_temperature.fill_(math.log(temperature))
    calibrator.tag = tag
    return calibrator


ESTIMATORS = {
    "deterministic": lambda **settings: Deterministic(model(), **settings),
    "mc_dropout": lambda **settings: MCDropout(model(), samples=3, seed=0, **settings),
    "deep_ensemble": lambda **settings: DeepEnsemble([model(), fixed(SmallNet, dropout=nn.Identity())], **settings),
}
estimators = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)


# what it is fitted on


def test_a_calibrator_of_one_pass_is_fitted_on_the_logits():
    network = model()
    with torch.no_grad():
        expected = TemperatureScaling().fit([(network(x), y) for x, y, _ in batches()])
    actual = Deterministic(network).calibrate(TemperatureScaling(), batches())
    assert actual.temperature == expected.temperature
    assert 1.2 < actual.temperature < 3


@pytest.mark.parametrize("kind", ["mc_dropout", "deep_ensemble"])
def test_a_calibrator_of_samples_is_fitted_on_the_logarithm_of_their_mean(kind):
    est = ESTIMATORS[kind]()
    pooled = [(torch.stack(list(est.samples(x, ids))).mean(0).log(), y) for x, y, ids in batches()]
    expected = TemperatureScaling().fit(pooled)
    actual = est.calibrate(TemperatureScaling(), batches())
    assert actual.temperature == pytest.approx(expected.temperature, rel=1e-5)
    assert abs(actual.temperature - 1) > 0.01


def test_a_calibrator_of_a_one_logit_model_is_fitted_on_its_sigmoid():
    network = model(1)
    with torch.no_grad():
        expected = TemperatureScaling(task="binary").fit([(network(x), y) for x, y, _ in batches(1)])
    actual = Deterministic(network, task="binary").calibrate(TemperatureScaling(), batches(1))
    assert actual.temperature == pytest.approx(expected.temperature, rel=1e-5)


def label_batches():
    x = images(4)
    y = torch.bernoulli(torch.sigmoid(logits(x, 3) / 2), generator=torch.Generator().manual_seed(5)).long()
    return [(x[:2], y[:2]), (x[2:], y[2:])]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_calibrator_of_independent_labels_is_fitted_on_all_of_them(task):
    network = model(3)
    with torch.no_grad():
        expected = TemperatureScaling(task="multilabel").fit([(network(x), y) for x, y in label_batches()])
    actual = Deterministic(network, task="multilabel").calibrate(TemperatureScaling(task=task), label_batches())
    assert actual.temperature == pytest.approx(expected.temperature, rel=1e-5)


def test_a_calibrator_lowers_the_loss_on_what_it_was_fitted_on():
    calibrator = Deterministic(model()).calibrate(TemperatureScaling(), batches())
    assert calibrator.nll_after < calibrator.nll_before


@estimators
def test_a_second_fit_does_not_see_the_first(make):
    est = make()
    first = est.calibrate(TemperatureScaling(), batches()).temperature
    assert est.calibrate(TemperatureScaling(), batches()).temperature == pytest.approx(first, rel=1e-6)


@estimators
def test_calibrating_leaves_training_flags_as_they_were(make):
    est = make()
    for network in est.models:
        mix_flags(network)
    before = [flags(network) for network in est.models]
    est.calibrate(TemperatureScaling(), batches())
    assert [flags(network) for network in est.models] == before


@estimators
def test_calibrating_adds_nothing_to_the_state_dict(make):
    est = make()
    before = list(tensors(est.models[0]))
    est.calibrate(TemperatureScaling(), batches())
    assert list(est.models[0].state_dict()) == before


def test_a_batch_may_be_a_dict():
    expected = Deterministic(model()).calibrate(TemperatureScaling(), batches()).temperature
    dicts = [{"image": x, "mask": y} for x, y, _ in batches()]
    assert Deterministic(model()).calibrate(TemperatureScaling(), dicts).temperature == expected


def test_images_without_masks_are_an_error_that_says_so():
    with pytest.raises(SeguqError, match="images without masks"):
        Deterministic(model()).calibrate(TemperatureScaling(), [(images(),)])


def test_batches_that_can_be_read_only_once_are_an_error():
    with pytest.raises(SeguqError, match="read only once"):
        Deterministic(model()).calibrate(TemperatureScaling(), iter(batches()))


def test_a_failed_fit_attaches_nothing():
    est = Deterministic(model())
    with pytest.raises(SeguqError):
        est.calibrate(TemperatureScaling(), [(images(), torch.full((2, 16, 16), 255))])
    assert (est.calibrator, getattr(est.model, "calibrators", {})) == ("auto", {})


# tag and attachment


@estimators
def test_a_calibrator_is_kept_with_the_model_under_its_tag(make):
    est = make()
    calibrator = est.calibrate(TemperatureScaling(), batches())
    assert est.models[0].calibrators == {est.tag: calibrator}


def test_the_calibrators_of_two_estimators_are_kept_side_by_side():
    network = model()
    one = Deterministic(network).calibrate(TemperatureScaling(), batches())
    two = MCDropout(network, samples=2, seed=0).calibrate(TemperatureScaling(), batches())
    assert network.calibrators == {"deterministic": one, "mc_dropout(layers=dropout)": two}


def test_auto_takes_the_calibrator_with_the_tag_of_the_estimator():
    network = model()
    network.calibrators = {"deterministic": ready(3.0)}
    expected = Deterministic(model(), calibrator=ready(3.0))(images()).probs
    assert torch.equal(Deterministic(network)(images()).probs, expected)


@pytest.mark.parametrize("other", ["mc_dropout(layers=dropout)", "mc_dropout(layers=all)", "deep_ensemble(members=1)"])
def test_auto_takes_no_calibrator_of_another_tag(other):
    network = model()
    network.calibrators = {other: ready(3.0)}
    expected = Deterministic(model(), calibrator=None)(images()).probs
    assert torch.equal(Deterministic(network)(images()).probs, expected)


def test_auto_takes_the_calibrator_of_mc_dropout_whatever_the_number_of_samples():
    network = model()
    MCDropout(network, samples=2, seed=0).calibrate(TemperatureScaling(), batches())
    raw = MCDropout(network, samples=5, seed=0, calibrator=None)(images()).probs
    assert not torch.allclose(MCDropout(network, samples=5, seed=0)(images()).probs, raw)


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@pytest.fixture
def said(monkeypatch):
    """What the package's logger says, as if nothing had been said before."""
    monkeypatch.setattr(log, "_said", set())
    records = Records()
    log.logger.addHandler(records)
    yield records.said
    log.logger.removeHandler(records)


def test_auto_says_once_which_calibrator_it_took(said):
    est = Deterministic(model())
    est.model.calibrators = {"deterministic": ready(3.0)}
    est(images())
    est(images())
    assert said == ["deterministic: calibrated by TemperatureScaling from the model's calibrators"]


def test_auto_says_once_that_it_took_none_and_how_to_fit_one(said):
    est = Deterministic(model())
    est.model.calibrators = {"mc_dropout(layers=all)": ready(3.0)}
    est(images())
    est(images())
    (message,) = said
    assert "deterministic: not calibrated (there are some for mc_dropout(layers=all))" in message
    assert "est.calibrate(...)" in message


# what it changes


@estimators
def test_a_calibrator_divides_the_pooled_logits(make):
    raw = make(calibrator=None)(images(), names(2)).probs
    expected = torch.softmax(raw.log() / 3, 1)
    actual = make(calibrator=ready(3.0))(images(), names(2)).probs
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@estimators
@pytest.mark.parametrize("name", OF_PROBS)
def test_a_calibrator_changes_the_measures_of_the_probs(make, name):
    raw = make(calibrator=None)(images(), names(2))[name]
    assert not torch.allclose(make(calibrator=ready(3.0))(images(), names(2))[name], raw)


@estimators
def test_a_temperature_leaves_the_prediction_as_it_is(make):
    raw = make(calibrator=None)(images(), names(2)).prediction
    assert torch.equal(make(calibrator=ready(3.0))(images(), names(2)).prediction, raw)


@estimators
def test_samples_are_never_calibrated(make):
    raw = torch.stack(list(make(calibrator=None).samples(images(), names(2))))
    assert torch.equal(torch.stack(list(make(calibrator=ready(3.0)).samples(images(), names(2)))), raw)


def test_the_models_own_forward_is_never_changed():
    network = model()
    with torch.no_grad():
        before = network(images())
        Deterministic(network).calibrate(TemperatureScaling(), batches())
        assert torch.equal(network(images()), before)


def test_a_calibrator_changes_the_probs_of_independent_labels():
    raw = Deterministic(model(), task="multilabel", calibrator=None)(images()).probs
    actual = Deterministic(model(), task="multilabel", calibrator=ready(3.0))(images()).probs
    torch.testing.assert_close(actual, torch.sigmoid(torch.logit(raw) / 3), rtol=0, atol=1e-5)


# the network runs once


def pooled(est, memory=2**30, data=None):
    passes = est.pooled(batches() if data is None else data)
    passes.memory = memory
    return passes


def same_pass(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair, again in zip(one, other, strict=True) for a, b in zip(pair, again, strict=True)
    )


def test_fitting_runs_the_network_once_where_the_logits_fit_into_memory():
    est = Deterministic(model())
    count = Count(est.model)
    est.calibrate(TemperatureScaling(), batches())
    assert count.forwards == 3


@pytest.mark.parametrize(("kept", "forwards"), [(0, 9), (1, 7), (2, 5), (3, 3)])
def test_what_goes_beyond_the_memory_is_computed_again_in_each_pass(kept, forwards):
    est = Deterministic(model())
    count = Count(est.model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in next(iter(pooled(est))))
    count.forwards = 0
    passes = pooled(est, memory=kept * size)
    for _ in range(3):
        list(passes)
    assert count.forwards == forwards


without_ids = [(x, y) for x, y, _ in batches()]


@pytest.mark.parametrize("data", [batches(), without_ids], ids=["ids", "no ids"])
@pytest.mark.parametrize("seed", [None, 0], ids=["no seed", "seed"])
@pytest.mark.parametrize("memory", [0, 15_000, 2**30], ids=["nothing kept", "some kept", "all kept"])
def test_every_pass_sees_the_same(memory, seed, data):
    passes = pooled(MCDropout(model(), samples=2, seed=seed), memory, data)
    first = list(passes)
    assert same_pass(list(passes), first)
    assert same_pass(list(passes), first)


@pytest.mark.parametrize("memory", [0, 15_000, 2**30], ids=["nothing kept", "some kept", "all kept"])
def test_a_pass_after_one_that_was_broken_off_sees_the_same(memory):
    passes = pooled(MCDropout(model(), samples=2), memory)
    first = next(iter(passes))
    assert same_pass(list(passes)[:1], [first])
    assert len(list(passes)) == 3


def test_two_batches_of_the_same_images_have_their_own_random_numbers():
    passes = pooled(MCDropout(model(), samples=2), data=[batches()[0], batches()[0]])
    one, other = (batch.logits for batch in passes)
    assert not torch.equal(one, other)


def test_the_temperature_is_the_same_whatever_fits_into_memory():
    est = MCDropout(model(), samples=2, seed=0)
    one, other = (TemperatureScaling().fit(pooled(est, memory)).temperature for memory in (0, 2**30))
    assert one == other


def test_pooled_output_is_the_class_logits_and_the_mask():
    est = Deterministic(model())
    (logits, image, target), *_ = est.pooled(batches())
    with torch.no_grad():
        assert torch.equal(logits, est.model(batches()[0][0]))
    assert torch.equal(target, batches()[0][1])
    assert torch.equal(image, batches()[0][0])


def test_pooled_output_knows_the_ids_of_its_images():
    passes = Deterministic(model()).pooled(batches())
    expected = [tuple(names) for _, _, names in batches()]
    assert [batch.image_ids for batch in passes] == expected
    assert [batch.image_ids for batch in passes] == expected  # from memory, too
    numbered = [batch.image_ids for batch in Deterministic(model()).pooled([(x, y) for x, y, _ in batches()])]
    assert [name for names in numbered for name in names] == [str(n) for n in range(sum(map(len, expected)))]


class BrightnessTemperature(Calibrator):
    """One of another package that reads the image: T grows with its mean; what it was shown is remembered."""

    order_preserving = True

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.zeros(()))
        self.seen = []

    def fit(self, batches):
        self.seen = [image for _, image, _ in batches]
        self.slope.fill_(float(torch.cat(self.seen).std()))
        return self

    def forward(self, logits, image=None):
        brightness = image.flatten(1).mean(1).view(-1, *[1] * (logits.ndim - 1))
        return logits * torch.exp(-self.slope * brightness)


@estimators
def test_a_calibrator_that_reads_the_image_has_it_in_fit_and_when_it_is_applied(make):
    est = make()
    calibrator = est.calibrate(BrightnessTemperature(), batches())
    assert all(torch.equal(image, x) for image, (x, _, _) in zip(calibrator.seen, batches(), strict=True))
    assert calibrator.slope > 0
    x = images()
    raw = make(calibrator=None)(x, names(2)).probs.log()
    torch.testing.assert_close(est(x, names(2)).probs, calibrator(raw, x).softmax(1), rtol=0, atol=1e-5)


def test_a_calibrator_that_reads_the_image_has_it_out_of_sample_too():
    (out, *_) = cross_fit(BrightnessTemperature, Deterministic(model()).pooled(batches()))
    assert not torch.equal(out.calibrated, out.logits)


def test_no_batches_at_all_is_an_error_that_says_so():
    with pytest.raises(SeguqError, match="no batches"):
        Deterministic(model()).calibrate(TemperatureScaling(), [])


@estimators
def test_calibrating_leaves_the_global_generator_as_it_was(make):
    est = make()
    before = torch.get_rng_state()
    est.calibrate(TemperatureScaling(), batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_two_fits_without_a_seed_draw_other_random_numbers():
    est = MCDropout(model(), samples=2)
    one, other = (next(iter(est.pooled(batches()))).logits for _ in range(2))
    assert not torch.equal(one, other)


def test_a_calibrator_of_an_ensemble_is_not_applied_to_other_members():
    first, second, third = model(), model(), SmallNet()
    calibrator = DeepEnsemble([first, second]).calibrate(TemperatureScaling(), batches())
    same, other = DeepEnsemble([first, second]), DeepEnsemble([first, third])
    assert same.calibrator_in_force(same.tag) is calibrator
    assert other.calibrator_in_force(other.tag) is None


@pytest.mark.parametrize("make_one", [lambda m: Deterministic(m), lambda m: DeepEnsemble([m, SmallNet()])])
def test_a_call_reads_its_tag_once(make_one, monkeypatch):
    est = make_one(model())
    est.calibrate(TemperatureScaling(), batches())
    read, tag = [], type(est).tag
    monkeypatch.setattr(type(est), "tag", property(lambda self: read.append(self) or tag.fget(self)))
    est(next(iter(batches()))[0])
    assert len(read) == 1


def test_a_calibrator_that_moved_under_inference_mode_can_be_fitted_again_outside_of_it():
    calibrator = ready(2.0)
    with torch.inference_mode():
        Deterministic(model().to("meta"), calibrator=calibrator)(images(2).to("meta"))
    assert not calibrator.log_temperature.is_inference()


def test_an_estimator_of_another_task_than_the_model_says_is_an_error_that_names_both():
    network = model()
    network.task = "multilabel"
    with pytest.raises(SeguqError, match="its task is 'multilabel', but the estimator was made with task='multiclass'"):
        Deterministic(network)(images(2))
