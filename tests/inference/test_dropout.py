import copy
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import seguq
from seguq.core.errors import SeguqError
from seguq.inference import MCDropout, inject_dropout
from seguq.inference.dropout import is_dropout
from tests.inference.models import SmallNet, fixed, flags, images, same_tensors, tensors, with_statistics


def bare():
    """A model of smp without any dropout."""
    return with_statistics(smp.Unet, "resnet18", encoder_weights=None, classes=3)


def sampler(model, **settings):
    return MCDropout(model, samples=3, calibrator=None, **settings)


def dropped(model, x):
    """The share of values that the injected dropout sets to zero in one pass."""
    (injected,) = (module for name, module in model.named_modules() if "injected_dropout" in name)
    seen = []
    handle = injected.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model(x)
    handle.remove()
    return [float(((output == 0) & (before != 0)).float().mean()) for before, output in seen]


@torch.no_grad()
def head_input(model, x):
    """What arrives at the segmentation head."""
    seen = []
    handle = model.segmentation_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(x)
    handle.remove()
    return seen[0]


ARCHITECTURES = {
    "Unet": ("resnet18", 64),
    "UnetPlusPlus": ("resnet18", 64),
    "FPN": ("resnet18", 64),
    "DeepLabV3": ("resnet18", 64),
    "DeepLabV3Plus": ("resnet18", 64),
    "PSPNet": ("resnet18", 64),
    "Linknet": ("resnet18", 64),
    "MAnet": ("resnet18", 64),
    "PAN": ("resnet18", 128),
    "UPerNet": ("mit_b0", 64),
    "Segformer": ("mit_b0", 64),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_at_the_head_changes_nothing_in_evaluation_mode(architecture):
    encoder, size = ARCHITECTURES[architecture]
    model = fixed(getattr(smp, architecture), encoder, encoder_weights=None, classes=3)
    with torch.no_grad():
        before = model(images(1, size))
        assert torch.equal(inject_dropout(model)(images(1, size)), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_at_the_head_makes_samples_differ(architecture):
    encoder, size = ARCHITECTURES[architecture]
    model = fixed(getattr(smp, architecture), encoder, encoder_weights=None, classes=3)
    est = sampler(inject_dropout(model), layers=lambda name, module: "injected_dropout" in name)
    one, other, _ = est.samples(images(1, size))
    assert not torch.equal(one, other)


places = pytest.mark.parametrize("where", ["head", "segmentation_head", "decoder", "encoder", "encoder.layer4"])


@places
def test_dropout_at_a_place_changes_nothing_in_evaluation_mode(where):
    with torch.no_grad():
        assert torch.equal(inject_dropout(bare(), where=where)(images(1, 64)), bare()(images(1, 64)))


@places
def test_mc_dropout_works_on_dropout_at_a_place(where):
    assert sampler(inject_dropout(bare(), where=where))(images(1, 64))["mutual_information"].max() > 0


@places
def test_the_keys_of_the_state_dict_stay_as_they_are(where):
    assert list(inject_dropout(bare(), where=where).state_dict()) == list(bare().state_dict())


@places
def test_weights_saved_before_can_be_loaded(tmp_path, where):
    torch.save(bare().state_dict(), tmp_path / "old.pt")
    model = inject_dropout(smp.Unet("resnet18", encoder_weights=None, classes=3), where=where)
    model.load_state_dict(torch.load(tmp_path / "old.pt"), strict=True)
    assert same_tensors(model, tensors(bare()))


def test_a_checkpoint_from_before_can_be_loaded_by_the_package(tmp_path):
    torch.save({"state_dict": {f"model.{k}": v for k, v in bare().state_dict().items()}}, tmp_path / "old.ckpt")
    model = inject_dropout(smp.Unet("resnet18", encoder_weights=None, classes=3))
    assert same_tensors(seguq.load(tmp_path / "old.ckpt", model), tensors(bare()))


def test_the_same_model_is_given_back():
    model = bare()
    assert inject_dropout(model) is model


def test_the_injected_dropout_is_among_the_layers_that_are_switched_on():
    assert sampler(inject_dropout(bare())).describe()["layers"] == ("injected_dropout_segmentation_head",)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_of_whole_channels_is_dropped_before_the_head(p):
    model = inject_dropout(bare(), p)
    before = head_input(model, images(1, 64))
    model.injected_dropout_segmentation_head.train()
    torch.manual_seed(0)
    shares = []
    for _ in range(40):
        after = head_input(model, images(1, 64))
        zero = (after == 0).all(dim=(2, 3)) & (before != 0).any(dim=(2, 3))
        shares.append(zero.float().mean())
        kept = ~(after == 0).all(dim=(2, 3))
        torch.testing.assert_close(after[kept], before[kept] / (1 - p))
    assert abs(sum(shares) / 40 - p) < 0.1


def test_dropout_before_the_decoder_drops_from_the_deepest_feature_map_only():
    model = inject_dropout(bare(), 0.5, where="decoder")
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(images(1, 64))
        model.injected_dropout_decoder.train()
        model(images(1, 64))
    before, after = seen
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * (len(before) - 1) + [False]


def test_injected_dropout_is_switched_by_train_and_eval():
    model = inject_dropout(bare())
    injected = model.injected_dropout_segmentation_head
    seen = [injected.training, model.train() and injected.training, model.eval() and injected.training]
    assert seen == [False, True, False]


def test_dropout_injected_into_a_model_in_training_mode_is_on():
    assert inject_dropout(bare().train()).injected_dropout_segmentation_head.training


class TokenNet(nn.Module):
    """A head that takes in tokens, ``(B, tokens, channels)``."""

    def __init__(self):
        super().__init__()
        self.segmentation_head = nn.Linear(3, 3)

    def forward(self, x):
        return self.segmentation_head(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)


def test_single_values_of_tokens_are_dropped():
    model = inject_dropout(TokenNet(), 0.5).train()
    torch.manual_seed(0)
    (share,) = dropped(model, images(1))
    assert 0.4 < share < 0.6


def test_a_sequential_model_gets_no_other_dropout_than_the_one_before_the_module():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    injected = inject_dropout(model, 0.5, where="2")
    injected.train()
    assert len(dropped(injected, images(1))) == 1


# copies


def test_the_dropout_of_a_copy_drives_the_copy():
    copied = copy.deepcopy(inject_dropout(bare(), 0.5))
    copied.injected_dropout_segmentation_head.p = 0.0
    copied.train(False).injected_dropout_segmentation_head.train()
    with torch.no_grad():
        assert torch.equal(copied(images(1, 64)), bare()(images(1, 64)))


def test_a_change_of_a_copy_leaves_the_original_as_it_was():
    model = inject_dropout(bare(), 0.5)
    copied = copy.deepcopy(model)
    copied.injected_dropout_segmentation_head.p = 0.0
    model.injected_dropout_segmentation_head.train()
    assert len(dropped(model, images(1, 64))) == 1
    assert dropped(model, images(1, 64))[0] > 0


def test_a_copy_shares_no_module_with_the_original():
    model = inject_dropout(bare(), 0.5)
    copied = copy.deepcopy(model)
    (hook,) = copied.segmentation_head._forward_pre_hooks.values()
    assert hook.__self__ is copied.injected_dropout_segmentation_head
    assert not {id(module) for module in model.modules()} & {id(module) for module in copied.modules()}


def test_a_whole_model_that_was_saved_samples_the_same(tmp_path):
    model = inject_dropout(bare(), 0.5)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = images(1, 64)
    assert torch.equal(sampler(loaded, seed=0)(x).probs, sampler(model, seed=0)(x).probs)


def test_the_dropout_of_a_whole_model_that_was_saved_drives_the_loaded_model(tmp_path):
    torch.save(inject_dropout(bare(), 0.5), tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    loaded.injected_dropout_segmentation_head.train()
    loaded.injected_dropout_segmentation_head.p = 0.0
    with torch.no_grad():
        assert torch.equal(loaded(images(1, 64)), bare()(images(1, 64)))


def test_a_model_can_be_trained_with_injected_dropout():
    model = inject_dropout(bare()).train()
    model(images(2, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# wrong use


@pytest.mark.parametrize("where", ["neck", "", "encoder.layer9", "head.0"])
def test_a_module_that_is_not_there_is_an_error_that_lists_those_that_are(where):
    with pytest.raises(SeguqError, match="encoder, decoder, segmentation_head"):
        inject_dropout(bare(), where=where)


def test_head_of_a_model_without_a_segmentation_head_is_an_error_that_lists_what_it_has():
    with pytest.raises(SeguqError, match=r"'segmentation_head'.*stem, norm, dropout, head"):
        inject_dropout(fixed(SmallNet))


@pytest.mark.parametrize("second", ["head", "segmentation_head"])
def test_injecting_twice_at_the_same_place_is_an_error_that_says_how_to_change_the_rate(second):
    model = inject_dropout(bare())
    with pytest.raises(SeguqError, match=r"already injected.*model\.injected_dropout_segmentation_head\.p"):
        inject_dropout(model, 0.5, where=second)


def test_injecting_twice_in_vain_leaves_one_dropout():
    model = inject_dropout(bare(), 0.5)
    with pytest.raises(SeguqError):
        inject_dropout(model)
    model.injected_dropout_segmentation_head.train()
    assert len(dropped(model, images(1, 64))) == 1


def test_dropout_may_be_injected_at_two_places():
    model = inject_dropout(inject_dropout(bare()), where="decoder")
    assert len(sampler(model).describe(images(1, 64))["random"]) == 2


@pytest.mark.parametrize("p", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_range_is_an_error_with_the_rate(p):
    with pytest.raises(SeguqError, match=rf"p must be above 0 and below 1, but is {p}"):
        inject_dropout(bare(), p)


def test_wrong_use_leaves_the_model_as_it_was():
    model = bare()
    before = list(flags(model))
    with pytest.raises(SeguqError):
        inject_dropout(model, where="neck")
    with pytest.raises(SeguqError):
        inject_dropout(model, p=2)
    assert list(flags(model)) == before


def test_a_module_that_is_called_with_keywords_only_is_an_error_that_says_so():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.segmentation_head = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.segmentation_head(input=x)

    with pytest.raises(SeguqError, match="no positional input"):
        inject_dropout(Keywords())(images())


def test_the_package_hands_on_the_function():
    assert seguq.inject_dropout is inject_dropout


@pytest.mark.parametrize("name", ["DropPath", "SwinDropPath", "DropBlock2d", "StochasticDepth", "MyDropout"])
def test_a_module_without_parameters_that_is_called_dropout_is_dropout(name):
    made = type(name, (nn.Module,), {"__module__": "elsewhere"})
    assert is_dropout(made())
    assert is_dropout(type("Derived", (made,), {})())
    whole = made()
    whole.part = nn.Conv2d(1, 1, 1)  # a network of such a name is no layer
    assert not is_dropout(whole)


class Noise(nn.Module):
    """Random in training, and no dropout by its name; it counts, and keeps a state."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("level", torch.zeros(()))

    def forward(self, x):
        if not self.training:
            return x
        self.calls += 1
        self.level += 1
        return x + torch.randn_like(x)


def test_what_is_random_in_training_but_stays_off_is_named_once_and_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), Noise(), nn.Conv2d(4, 2, 1)).eval()
    images, before = torch.rand(1, 3, 8, 8), torch.get_rng_state()
    est = seguq.MCDropout(model, samples=2, seed=0, calibrator=None)
    with pytest.warns(UserWarning, match=r"leaves off what is random in training.*: 2 \(Noise\); pass layers='all'"):
        est(images)
    assert torch.equal(before, torch.get_rng_state())
    assert (model[2].calls, float(model[2].level)) == (0, 0)
    assert not any(part.training for part in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est(torch.rand(1, 3, 8, 8))
        quiet = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).eval()
        seguq.MCDropout(quiet, samples=2, calibrator=None)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("container", [nn.ModuleList([nn.Identity()]), nn.ModuleDict({"0": nn.Identity()})])
def test_dropout_before_a_list_that_is_never_called_is_refused(container):
    model = nn.Sequential(nn.Identity())
    model.layers = container
    with pytest.raises(SeguqError, match=r"'layers' is never called itself, only what it holds is: .* layers\.0$"):
        inject_dropout(model, where="layers")


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_all_layers_leave_a_spectral_norm_as_it_is(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Conv2d(3, 8, 3, padding=1)), nn.Dropout(0.2), nn.Conv2d(8, 4, 1)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    est = MCDropout(model, samples=3, seed=0, layers="all", calibrator=None)
    assert torch.equal(est(images(1), ["a"]).probs, est(images(1), ["a"]).probs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
