import pytest
import torch
import torch.nn.functional as TF
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError
from seguq.inference import Deterministic
from tests.inference.models import (
    Count,
    DictNet,
    LabelNet,
    QuarterNet,
    Raising,
    SmallNet,
    fixed,
    flags,
    images,
    mix_flags,
    names,
)

OF_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")
OF_LOGITS = ("energy", "max_logit")


def one_pass(model, **settings):
    return Deterministic(model, **{"calibrator": None, **settings})


@torch.no_grad()
def logits_of(model, x):
    return model.eval()(x)


def test_probs_are_the_softmax_of_the_logits():
    model = fixed(SmallNet)
    assert torch.equal(one_pass(model)(images()).probs, torch.softmax(logits_of(model, images()), 1))


@pytest.mark.parametrize("name", OF_PROBS)
def test_a_measure_is_that_of_functional_on_the_probs(name):
    maps = one_pass(fixed(SmallNet))(images())
    assert torch.equal(maps[name], getattr(F, name)(maps.probs))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_measure_of_the_logits_is_that_of_functional_on_them(name):
    model = fixed(SmallNet)
    assert torch.equal(one_pass(model)(images())[name], getattr(F, name)(logits_of(model, images())))


@pytest.mark.parametrize("name", [*OF_PROBS, *OF_LOGITS])
def test_a_one_logit_model_is_the_two_logit_model_of_the_same_sigmoid(name):
    model = fixed(SmallNet, 1)
    one, two = one_pass(model, task="binary")(images()), one_pass(LabelNet(model))(images())
    torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*OF_PROBS, *OF_LOGITS])
def test_a_multilabel_map_is_the_sum_over_the_labels(name):
    model = fixed(SmallNet, 3)

    def one_label(i):
        return one_pass(model, task="binary", forward=lambda model, x: model(x)[:, i : i + 1])(images())[name]

    actual = one_pass(model, task="multilabel")(images())[name]
    torch.testing.assert_close(actual, sum(one_label(i) for i in range(3)), rtol=0, atol=1e-5)


def test_multilabel_probs_are_the_sigmoids_of_the_logits():
    model = fixed(SmallNet, 3)
    expected = torch.sigmoid(logits_of(model, images()))
    torch.testing.assert_close(one_pass(model, task="multilabel")(images()).probs, expected, rtol=0, atol=1e-6)


def test_a_multilabel_prediction_is_one_where_the_sigmoid_is_above_a_half():
    model = fixed(SmallNet, 3)
    expected = (logits_of(model, images()) > 0).long()
    assert torch.equal(one_pass(model, task="multilabel")(images()).prediction, expected)


def test_the_prediction_is_the_class_of_the_largest_logit():
    model = fixed(SmallNet)
    assert torch.equal(one_pass(model)(images()).prediction, logits_of(model, images()).argmax(1))


def test_a_model_in_training_mode_is_asked_in_evaluation_mode():
    model = fixed(SmallNet)
    expected = torch.softmax(logits_of(model, images()), 1)
    model.train()
    assert torch.equal(one_pass(model)(images()).probs, expected)


def test_an_exception_in_the_forward_leaves_the_model_as_it_was():
    model = Raising(0, fixed(SmallNet))
    mix_flags(model)
    before = flags(model)
    with pytest.raises(FloatingPointError):
        one_pass(model)(images())
    assert flags(model) == before


def test_a_call_is_one_forward():
    model = fixed(SmallNet)
    count = Count(model)
    one_pass(model)(images(5))
    assert count.sizes == [5]


def test_there_is_one_sample_and_it_is_the_probs():
    est = one_pass(fixed(SmallNet))
    (sample,) = est.samples(images())
    assert torch.equal(sample, est(images()).probs)


def test_the_one_multilabel_sample_is_the_probs_of_the_labels():
    est = one_pass(fixed(SmallNet), task="multilabel")
    (sample,) = est.samples(images())
    assert torch.equal(sample, est(images()).probs)


def test_reading_the_sample_leaves_model_and_grad_mode_as_they_were():
    model = fixed(SmallNet)
    mix_flags(model)
    before = flags(model)
    seen = [(flags(model), torch.is_grad_enabled()) for _ in one_pass(model).samples(images())]
    assert seen == [(before, True)]


def test_all_measures_of_one_pass_are_computed_by_default():
    assert one_pass(fixed(SmallNet))(images()).names == (*OF_PROBS, *OF_LOGITS)


@pytest.mark.parametrize("name", ["mutual_information", "total_entropy"])
def test_asking_one_pass_for_a_measure_of_samples_is_an_error(name):
    with pytest.raises(SeguqError, match=rf"{name}.*MCDropout, DeepEnsemble"):
        one_pass(fixed(SmallNet), measures=(name,))


def test_logits_at_a_quarter_of_the_size_are_resized_before_the_softmax():
    model = fixed(QuarterNet)
    logits = TF.interpolate(logits_of(model, images()).logits, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(one_pass(model)(images()).probs, torch.softmax(logits, 1))


def test_the_main_output_of_a_dict_is_taken():
    assert torch.equal(one_pass(fixed(DictNet))(images()).probs, one_pass(fixed(SmallNet))(images()).probs)


def test_an_output_without_logits_is_an_error_that_says_what_came():
    with pytest.raises(SeguqError, match=r"'masks'.*forward="):
        one_pass(fixed(SmallNet), forward=lambda model, x: {"masks": model(x)})(images())


def test_describe_names_measures_and_one_pass():
    assert one_pass(fixed(SmallNet), measures="energy").describe() == {
        "estimator": "deterministic",
        "measures": ("energy",),
        "layers": (),
        "passes": 1,
    }


def test_describe_with_images_sees_nothing_random():
    assert one_pass(fixed(SmallNet)).describe(images())["random"] == ()


def test_volumes_are_taken_like_images():
    model = fixed(SmallNet, dims=3, dropout=nn.Identity())
    x = images(2, 8, dims=3)
    assert torch.equal(one_pass(model)(x).probs, torch.softmax(logits_of(model, x), 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_maps_of_a_half_precision_model_are_float32(dtype):
    maps = one_pass(fixed(SmallNet).to(dtype))(images())
    assert {maps.probs.dtype, *(maps[name].dtype for name in maps.names)} == {torch.float32}


def test_too_few_ids_are_an_error_with_both_numbers():
    with pytest.raises(SeguqError, match="1 image ids were passed for 2 images"):
        one_pass(fixed(SmallNet))(images(), names(1))


def test_the_package_hands_on_the_estimator():
    assert seguq.Deterministic is Deterministic


def test_one_image_without_a_batch_dimension_is_an_error_that_says_what_is_wanted():
    network = nn.Conv2d(3, 3, 1)  # takes it, and as many classes as channels would look like a batch
    with pytest.raises(SeguqError, match=r"images must be \(B, channels, \*spatial\).*\(3, 16, 16\)"):
        Deterministic(network, calibrator=None)(torch.zeros(3, 16, 16))
