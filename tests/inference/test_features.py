"""What encoders make of images: seen in passes that run anyway, and the same whatever the estimator."""

import pickle
import threading
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

import seguq
from seguq.core.errors import SeguqError
from seguq.inference.features import encoder_of, last_map
from tests.inference.models import fixed, hooks, images, names, with_statistics


class Encoded(nn.Module):
    """An encoder of one's own, dropout behind it, and a head; ``inside`` stands in the encoder."""

    def __init__(self, inside=None, dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.encoder = nn.Sequential(conv(3, 6, 4, stride=4), inside or nn.ReLU(inplace=True))
        self.after, self.dropout, self.head = nn.ReLU(inplace=True), nn.Dropout(0.5), conv(6, 3, 1)

    def forward(self, x):
        return self.head(self.dropout(self.after(self.encoder(x).sub_(0.01))))  # it changes in place what was seen


class Held(nn.Module):
    """A network in an attribute, as Lightning modules have it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


class Tokens(nn.Module):
    """A transformer as Hugging Face has it: an object with tokens, the first of which is of no patch."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens.new_zeros(len(x), 1, 8), tokens), 1)
        return SimpleNamespace(last_hidden_state=tokens, attentions=(torch.zeros(len(x), 2, 9, 9),))


class HeadOnTokens(nn.Module):
    """What stands on such a one, which says its name."""

    base_model_prefix = "tokens"

    def __init__(self):
        super().__init__()
        self.tokens, self.head = Tokens(), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.tokens(x).last_hidden_state[:, 1:]
        logits = self.head(hidden).transpose(1, 2).reshape(len(x), 3, x.shape[2] // 8, x.shape[3] // 8)
        return SimpleNamespace(logits=logits)


def fcn():
    return torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3)


def unet():
    return smp.Unet("resnet18", encoder_weights=None, classes=3)


def convnext():
    return smp.FPN("tu-convnext_atto", encoder_weights=None, classes=3)


def task():
    return seguq.SegmentationTask("FPN", "resnet18", classes=3, encoder_weights=None)


# a model, its encoder, and what of its output is the last map
KNOWN = {
    "smp Unet": (unet, "encoder", lambda out: out[-1]),
    "smp Unet held by another": (lambda: Held(unet()), "model.encoder", lambda out: out[-1]),
    "timm": (convnext, "encoder", lambda out: out[-1]),
    "torchvision FCN": (fcn, "backbone", lambda out: out["out"]),
    "SegmentationTask": (task, "model.encoder", lambda out: out[-1]),
    "transformers": (HeadOnTokens, "tokens", lambda out: out.last_hidden_state[:, 1:].mT.unflatten(2, (8, 12))),
    "of one's own": (Encoded, "encoder", lambda out: out),
}


@pytest.mark.parametrize(("make", "name", "pick"), KNOWN.values(), ids=KNOWN)
def test_features_are_the_last_map_of_the_encoder(make, name, pick):
    model, x = with_statistics(make), images(2, 96)[:, :, :64]
    with torch.no_grad():
        expected = pick(model.get_submodule(name)(x.clone()))
    assert expected.ndim == 4
    found = seguq.Deterministic(model, features=True, calibrator=None)(x).features
    assert found.dtype == torch.float16 and torch.equal(found, expected.half())


def test_a_segformer_of_transformers_has_features():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=3, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    model = fixed(transformers.SegformerForSemanticSegmentation, config)
    with torch.no_grad():
        expected = model.base_model(images(2, 64)).last_hidden_state
    found = seguq.Deterministic(model, features=True, calibrator=None)(images(2, 64)).features
    assert expected.shape == (2, 16, 2, 2) and torch.equal(found, expected.half())


def swag(tmp_path, model):
    moments = seguq.inference.moments.WeightMoments(rank=2)
    for factor in (0.9, 1.0, 1.1):
        with torch.no_grad():
            model.encoder[0].weight.mul_(factor)
        moments.add(model)
    file = tmp_path / "swag.ckpt"
    torch.save({"state_dict": model.state_dict(), "seguq": {"version": 1, "swag": moments.state()}}, file)
    model.encoder[0].weight.data = moments.mean["encoder.0.weight"]
    return lambda **settings: seguq.SWAG(model, file, 3, **settings)


def of_files(tmp_path, model, lazy):
    others = [fixed(Encoded) for _ in range(2)]
    files = [tmp_path / f"{number}.pt" for number in range(3)]
    for file, member in zip(files, (model, *others), strict=True):
        torch.save(member.state_dict(), file)
        model = fixed(Encoded)
    return lambda **settings: seguq.DeepEnsemble(files, fixed(Encoded), lazy, **settings)


def members(model, **settings):
    return seguq.DeepEnsemble([model, fixed(Encoded, nn.Tanh())], **settings)


def of_estimators(model, **settings):
    return seguq.DeepEnsemble([seguq.MCDropout(model, 2, seed=0, calibrator=None), model], **settings)


ESTIMATORS = {
    "deterministic": lambda _, model: lambda **settings: seguq.Deterministic(model, **settings),
    "mc_dropout": lambda _, model: lambda **settings: seguq.MCDropout(model, 3, **settings),
    "mc_dropout with a seed": lambda _, model: lambda **settings: seguq.MCDropout(model, 3, seed=1, **settings),
    "all random layers": lambda _, model: lambda **settings: seguq.MCDropout(model, 3, layers="all", **settings),
    "one sample": lambda _, model: lambda **settings: seguq.MCDropout(model, 1, **settings),
    "deep_ensemble": lambda _, model: lambda **settings: members(model, **settings),
    "deep_ensemble of estimators": lambda _, model: lambda **settings: of_estimators(model, **settings),
    "deep_ensemble of files": lambda folder, model: of_files(folder, model, lazy=False),
    "deep_ensemble of files in turn": lambda folder, model: of_files(folder, model, lazy=True),
    "swag": swag,
}
by_estimator = pytest.mark.parametrize("kind", ESTIMATORS)


def by_hand(model, x):
    return model.encoder(x.clone())


@by_estimator
@pytest.mark.parametrize("features", [True, by_hand], ids=["seen", "by a function"])
def test_features_are_those_of_the_first_model_in_evaluation_mode(kind, features, tmp_path):
    model = fixed(Encoded).train()
    est = ESTIMATORS[kind](tmp_path, model)(features=features, calibrator=None)
    with torch.no_grad():
        expected = by_hand(model, images(3)).half()
    for _ in range(2):
        assert torch.allclose(est(images(3), names(3)).features, expected, atol=1e-3)
    assert est(images(1)[:0], []).features.shape == (0, 6, 4, 4)
    assert not any(any(counts) for counts in hooks(model).values()) and model.encoder.training


@by_estimator
def test_features_change_nothing_else(kind, tmp_path):
    model = fixed(Encoded)
    make = ESTIMATORS[kind](tmp_path, model)
    plain, est = make(calibrator=None), make(calibrator=None, features=True)
    assert (plain.tag, plain.identity(), plain.measures) == (est.tag, est.identity(), est.measures)
    assert not plain.same_as(est) and est.arguments()["features"] is True
    torch.manual_seed(0)
    expected = plain(images(), names(2))
    torch.manual_seed(0)
    found = est(images(), names(2))
    assert expected.features is None and found.names == expected.names
    assert torch.equal(found.probs, expected.probs)
    assert all(torch.equal(found[name], expected[name]) for name in found.names)


def calls_of(module):
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def test_one_pass_is_all_that_it_takes():
    model = fixed(Encoded)
    seen = calls_of(model)
    seguq.Deterministic(model, features=True, calibrator=None)(images())
    assert len(seen) == 1


class Noted(nn.Module):
    """Counts its calls, past what is seen of a pass."""

    calls = 0

    def forward(self, x):
        Noted.calls += 1
        return x


@pytest.mark.parametrize("seed", [None, 0])
def test_samples_are_replayed_all_the_same(seed):
    model = fixed(Encoded, Noted())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est = seguq.MCDropout(model, 9, seed, features=True, verify=False, calibrator=None)
        Noted.calls = 0
        est(images(2))
    assert Noted.calls == (1 if seed is None else 2)


@pytest.mark.parametrize("seed", [None, 0])
def test_what_is_random_in_an_encoder_is_not_in_its_features(seed):
    model = fixed(Encoded, nn.Dropout(0.5))
    est = seguq.MCDropout(model, 3, seed, features=True, calibrator=None)
    torch.manual_seed(0)
    found = est(images()).features
    assert torch.allclose(found, by_hand(model, images()).detach().half(), atol=1e-3)
    torch.manual_seed(0)
    seguq.MCDropout(model, 3, seed, calibrator=None)(images())
    state = torch.get_rng_state()
    torch.manual_seed(0)
    est(images())
    assert torch.equal(torch.get_rng_state(), state)  # one more pass draws nothing


def test_what_is_random_before_an_encoder_is_not_in_its_features():
    model = fixed(nn.Sequential, OrderedDict(noise=nn.Dropout(0.5), held=Encoded()))
    found = seguq.MCDropout(model, 3, seed=0, features=True, calibrator=None)(images()).features
    assert torch.allclose(found, by_hand(model.held, images()).detach().half(), atol=1e-3)


def test_a_forward_that_calls_a_part_of_the_model_is_seen_as_well():
    model = fixed(Held, Encoded())
    for est in (seguq.Deterministic, seguq.MCDropout):
        found = est(model, forward=lambda held, x: held.model(x), features=True, calibrator=None)(images()).features
        assert torch.allclose(found, by_hand(model.model, images()).detach().half(), atol=1e-3)


def test_a_compiled_model_has_features():
    model = fixed(Encoded)
    compiled = torch.compile(model, backend="eager")
    est = seguq.Deterministic(compiled, features=True, calibrator=None)
    for _ in range(2):
        assert torch.equal(est(images()).features, by_hand(model, images()).detach().half())


def test_under_autocast_and_inference_mode_there_are_features():
    est = seguq.Deterministic(fixed(Encoded), features=True, calibrator=None)
    expected = est(images()).features
    with torch.inference_mode():
        assert torch.equal(est(images()).features, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(est(images()).features, expected, atol=1e-2)


def test_volumes_have_features():
    est = seguq.Deterministic(fixed(Encoded, dims=3), features=True, calibrator=None)
    assert est(images(2, 8, dims=3)).features.shape == (2, 6, 2, 2, 2)


def test_what_float16_cannot_hold_is_its_largest_value():
    model = fixed(Encoded)
    model.encoder[0].weight.data.mul_(1e8)
    found = seguq.Deterministic(model, features=True, calibrator=None)(images()).features
    assert found.isfinite().all() and found.max() == torch.finfo(torch.float16).max


def test_an_estimator_with_a_function_is_pickled():
    est = seguq.MCDropout(fixed(Encoded), 3, seed=0, features=by_hand, calibrator=None)
    again = pickle.loads(pickle.dumps(est))
    assert torch.equal(again(images(), names(2)).features, est(images(), names(2)).features)


def test_threads_that_share_a_model_see_their_own_images():
    model, found = fixed(Encoded), {}

    def ask(number):
        x = images(3)[number : number + 1]
        found[number] = [seguq.Deterministic(model, features=True, calibrator=None)(x).features for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    expected = by_hand(model, images(3)).detach().half()
    for number, several in found.items():
        assert all(torch.allclose(one, expected[number : number + 1], atol=1e-3) for one in several)


# which module, and what of its output


def test_the_outermost_encoder_is_taken():
    inner, outer = nn.Sequential(OrderedDict(encoder=nn.Identity())), nn.Sequential(OrderedDict(backbone=nn.Identity()))
    model = nn.Sequential(OrderedDict(a=nn.Sequential(inner), b=outer))
    assert encoder_of(model) is outer.backbone
    assert encoder_of(nn.Sequential(OrderedDict(encoder=nn.ModuleList([outer])))) is outer.backbone


MAP, SMALLER = torch.rand(2, 5, 4, 6), torch.rand(2, 7, 2, 3)
OUTPUTS = {
    "a tensor": (SMALLER, SMALLER),
    "a list": ([MAP, SMALLER], SMALLER),
    "a list that ends in no map": ([MAP, SMALLER, torch.rand(2, 7)], SMALLER),
    "lists in a tuple": (([MAP], [MAP, SMALLER]), SMALLER),
    "a dict": (OrderedDict(aux=MAP, out=SMALLER), SMALLER),
    "hidden states": (OrderedDict(last=torch.rand(2, 7), hidden_states=(MAP, SMALLER)), SMALLER),
    "feature maps": (SimpleNamespace(feature_maps=(MAP, SMALLER), attentions=(torch.rand(2, 2, 3, 3),)), SMALLER),
    "tokens": (SMALLER.flatten(2).mT, SMALLER),
    "tokens behind others": (torch.cat((torch.rand(2, 5, 7), SMALLER.flatten(2).mT), 1), SMALLER),
    "a vector": (torch.rand(2, 7), None),
    "tokens of no rectangle": (torch.rand(2, 110, 7), None),
    "nothing": (None, None),
}


@pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS)
def test_the_last_map_of_an_output_is_found(output, expected):
    found = last_map(output, (64, 96))
    assert found is None if expected is None else torch.equal(found, expected)


# errors


class NeverCalled(nn.Module):
    """Its encoder is there, but unused."""

    def __init__(self):
        super().__init__()
        self.encoder, self.dropout, self.head = nn.Flatten(2), nn.Dropout(0.5), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.head(self.dropout(x))


class Flattening(NeverCalled):
    """Its encoder gives no map."""

    def forward(self, x):
        return super().forward(self.encoder(x[..., :13]).unflatten(2, (16, 13)))


@pytest.mark.parametrize("make", [seguq.Deterministic, seguq.MCDropout])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 3, 1)), "backbone, but Sequential has none: pass features="),
        (NeverCalled(), "did not call its Flatten where that is seen: pass features="),
        (Flattening(), r"\(Flatten\), but there is none of 4 dimensions in what it returned: pass features="),
    ],
    ids=["no encoder", "not called", "no map"],
)
def test_without_a_map_of_an_encoder_one_sentence_says_what_to_do(make, model, said):
    with pytest.raises(SeguqError, match=said):
        make(model, features=True, calibrator=None)(images())


def test_a_function_that_gives_something_else_is_an_error():
    for wrong in (lambda model, x: x.flatten(2), lambda model, x: x[:1], lambda model, x: [x]):
        est = seguq.Deterministic(fixed(Encoded), features=wrong, calibrator=None)
        with pytest.raises(SeguqError, match=r"features= must give \(B, D, \*spatial\) of 2 images .*, but gave"):
            est(images())


def test_another_value_is_an_error():
    with pytest.raises(SeguqError, match="features must be True, False or a function"):
        seguq.Deterministic(fixed(Encoded), features="encoder")


@pytest.mark.parametrize("kind", [seguq.TestTimeAugmentation, seguq.SlidingWindow])
def test_views_and_windows_have_no_features(kind):
    for act in (
        lambda: kind(fixed(Encoded), features=True),
        lambda: kind(seguq.MCDropout(fixed(Encoded), features=True)),
    ):
        with pytest.raises(SeguqError, match=f"{kind.__name__} has no features, as it shows a network several views"):
            act()
