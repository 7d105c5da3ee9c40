"""Networks by name, and the weights of their encoders, on a machine without a network."""

import os
import pickle
import socket
import warnings

import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants
from torch import nn

from seguq import networks
from seguq.core.errors import SeguqError
from seguq.networks import build_network

TU = "tu-mobilenetv3_small_050"


def build(architecture="FPN", encoder="resnet18", **settings):
    return build_network(architecture, encoder, **{"classes": 2, "encoder_weights": None, **settings})


def dropouts(network):
    """The dropout modules outside the encoder."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and not name.startswith("encoder.")
    ]


def injected(network):
    return [module for name, module in network.named_modules() if "injected_dropout" in name]


def same(first, second):
    assert list(first) == list(second)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def encoders():
    """State dicts of two encoders, other than the random weights that a new one has."""
    torch.manual_seed(1)
    return {name: build(encoder=name).encoder.state_dict() for name in ("resnet18", TU)}


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FPN", "fpn", "Fpn"])
def test_letter_case_of_an_architecture_does_not_matter(name):
    assert isinstance(build(name), smp.FPN)


@pytest.mark.parametrize(("name", "meant"), [("FNP", "FPN"), ("unett", "Unet"), ("deeplabv3+", "DeepLabV3Plus")])
def test_a_mistyped_architecture_is_an_error_with_the_nearest_name(name, meant):
    with pytest.raises(SeguqError, match=rf"architecture '{name.replace('+', chr(92) + '+')}' is unknown: .*{meant}"):
        build(name)


def test_an_architecture_like_no_other_is_an_error_with_all_names():
    with pytest.raises(SeguqError) as error:
        build("zzz")
    assert all(cls.__name__ in str(error.value) for cls in smp.MODEL_ARCHITECTURES_MAPPING.values())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet81", "resnet18"),
        ("mobilenetv2", "mobilenet_v2"),
        ("tu-mobilenetv3_smal_050", TU),
        ("ResNet18", "resnet18"),
    ],
)
def test_a_mistyped_encoder_is_an_error_with_the_nearest_name(name, meant):
    with pytest.raises(SeguqError, match=f"encoder '{name}' is unknown: did you mean .*{meant}"):
        build(encoder=name)


def test_an_encoder_of_timm_may_carry_a_tag_of_weights():
    assert build(encoder=f"{TU}.lamb_in1k").encoder is not None


@pytest.mark.parametrize(("encoder", "there"), [("resnet18", "imagenet, ssl, swsl"), ("mobilenet_v2", "imagenet")])
def test_unknown_weights_are_an_error_with_those_there_are(encoder, there):
    with pytest.raises(
        SeguqError, match=f"encoder '{encoder}' has no weights 'imagenett': it has {there}, None, or a file"
    ):
        build(encoder=encoder, encoder_weights="imagenett")


def test_what_an_architecture_cannot_be_built_of_is_one_sentence():
    with pytest.raises(SeguqError, match=r"^UnetPlusPlus with encoder 'mit_b0' cannot be built: ") as error:
        build("UnetPlusPlus", "mit_b0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_and_classes_are_as_asked(channels):
    network = build(in_channels=channels, classes=4).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, channels, 64, 64)).shape == (1, 4, 64, 64)


# --- weights that cannot be downloaded ----------------------------------------------------------------------------


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """No name can be resolved, no proxy is set, and nothing was downloaded before."""

    def unresolved(*args, **kwargs):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(networks, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "mit_b0", TU])
def test_weights_that_cannot_be_downloaded_are_an_error_that_names_the_other_two_ways(no_network, encoder):
    told = rf"'imagenet' of encoder '{encoder}' cannot be downloaded .*encoder_weights=None .* file with the encoder's"
    with pytest.raises(SeguqError, match=told):
        build(encoder=encoder, encoder_weights="imagenet")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("encoder", ["resnet18", TU])
def test_the_flag_of_the_hub_is_as_before(no_network, monkeypatch, encoder, before):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", before)
    with pytest.raises(SeguqError):
        build(encoder=encoder, encoder_weights="imagenet")
    assert constants.HF_HUB_OFFLINE is before


def test_where_the_hub_has_an_address_it_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with networks._offline_where_unreachable():
        assert constants.HF_HUB_OFFLINE is False


def test_behind_a_proxy_the_hub_is_asked_although_its_name_has_no_address(no_network, monkeypatch):
    monkeypatch.setattr(networks, "getproxies", lambda: {"https": "proxy.example:3128"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with networks._offline_where_unreachable():
        assert constants.HF_HUB_OFFLINE is False


def test_without_named_weights_no_name_is_resolved(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("resolved"))
    assert isinstance(build(), smp.FPN)


# --- weights in a file --------------------------------------------------------------------------------------------

LAYOUTS = {
    "the encoder's own": lambda state: state,
    "in a model": lambda state: {f"encoder.{name}": value for name, value in state.items()},
    "in a model of a task": lambda state: {f"model.encoder.{name}": value for name, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "in a checkpoint": lambda state: {"state_dict": state, "global_step": 3},
    "without counts of batches": lambda state: {
        n: v for n, v in state.items() if not n.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoder", ["resnet18", TU])
def test_a_file_of_the_encoders_weights_is_loaded(tmp_path, encoders, encoder, layout):
    torch.save(LAYOUTS[layout](encoders[encoder]), tmp_path / "weights.pth")
    network = build(encoder=encoder, encoder_weights=str(tmp_path / "weights.pth"))
    assert same(network.encoder.state_dict(), encoders[encoder])


def test_a_file_with_the_names_of_timm_is_loaded(tmp_path, encoders):
    of_timm = {name.removeprefix("model."): value for name, value in encoders[TU].items()}
    assert not set(of_timm) & set(encoders[TU])
    torch.save(of_timm, tmp_path / "weights.pth")
    network = build(encoder=TU, encoder_weights=str(tmp_path / "weights.pth"))
    assert same(network.encoder.state_dict(), encoders[TU])


def test_a_file_of_safetensors_is_loaded(tmp_path, encoders):
    from safetensors.torch import save_file

    save_file(encoders["resnet18"], tmp_path / "weights.safetensors")
    network = build(encoder_weights=str(tmp_path / "weights.safetensors"))
    assert same(network.encoder.state_dict(), encoders["resnet18"])


def test_a_file_that_fits_gives_no_warning(tmp_path, encoders):
    torch.save(encoders["resnet18"], tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(encoder_weights=str(tmp_path / "weights.pth"))


def test_what_the_encoder_has_no_place_for_is_named_in_a_warning(tmp_path, encoders):
    more = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save({**encoders["resnet18"], **more}, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="2 tensors that the encoder has no place for: fc.weight, fc.bias$"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


def test_a_warning_of_many_names_is_cut_short(tmp_path, encoders):
    more = {f"more.{i}": torch.zeros(1) for i in range(20)}
    torch.save({**encoders["resnet18"], **more}, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"20 tensors .*more\.7, \.\.\.$"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


def test_a_missing_tensor_is_named(tmp_path, encoders):
    state = {name: value for name, value in encoders["resnet18"].items() if name != "layer3.0.conv2.weight"}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(SeguqError, match=r"weights\.pth does not fit .* missing, such as 'layer3\.0\.conv2\.weight'"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, encoders):
    torch.save({**encoders["resnet18"], "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "weights.pth")
    with pytest.raises(SeguqError, match=r"'conv1\.weight' has shape \(64, 1, 7, 7\) .*, \(64, 3, 7, 7\) in the model"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


def test_weights_of_another_encoder_are_an_error_that_shows_their_names(tmp_path, encoders):
    torch.save(encoders[TU], tmp_path / "weights.pth")
    with pytest.raises(SeguqError, match=r"are missing, such as 'conv1\.weight'; the checkpoint has names like 'model"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2]])
def test_a_file_without_weights_is_an_error_that_names_it(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(SeguqError, match=r"weights\.pth holds"):
        build(encoder_weights=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02 half of it")
    with pytest.raises(SeguqError, match=name):
        build(encoder_weights=str(tmp_path / name))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.ckpt", "weights.bin", "weights.safetensors"])
def test_a_missing_file_is_an_error_that_names_it(name):
    with pytest.raises(SeguqError, match=f"encoder_weights='{name}' looks like a file, but there is none"):
        build(encoder_weights=name)


def test_a_path_is_a_file_whatever_its_suffix(tmp_path):
    with pytest.raises(SeguqError, match="looks like a file, but there is none"):
        build(encoder_weights=str(tmp_path / "imagenet"))


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_code_in_a_file_of_weights_is_not_run(tmp_path, save):
    save({"conv1.weight": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(SeguqError, match=r"weights\.pth"):
        build(encoder_weights=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


# --- dropout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["FPN", "DeepLabV3Plus", "PSPNet"])
def test_the_rate_of_the_decoders_dropout_is_set(architecture):
    network = build(architecture, dropout=0.37)
    assert {module.p for module in dropouts(network)} == {0.37} and not injected(network)


@pytest.mark.parametrize("architecture", ["Unet", "Linknet", "MAnet"])
def test_dropout_is_added_where_an_architecture_has_none(architecture):
    assert [module.p for module in injected(build(architecture, dropout=0.37))] == [0.37]


def test_added_dropout_drops_in_training_only():
    network, image = build("Unet", dropout=0.5), torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    network.eval()
    with torch.no_grad():
        still = torch.equal(network(image), network(image))
        injected(network)[0].train()
        assert still and not torch.equal(network(image), network(image))


def test_the_rates_of_the_encoder_are_left_alone():
    before, after = build(encoder="mit_b0"), build(encoder="mit_b0", dropout=0.37)
    rates = [
        [m.p for n, m in net.named_modules() if n.startswith("encoder") and isinstance(m, nn.Dropout)]
        for net in (before, after)
    ]
    assert rates[0] == rates[1] != []


@pytest.mark.parametrize("architecture", ["FPN", "Unet"])
def test_without_a_rate_dropout_is_as_the_architecture_has_it(architecture):
    plain = smp.create_model(architecture, "resnet18", encoder_weights=None)
    assert [module.p for module in dropouts(build(architecture))] == [module.p for module in dropouts(plain)]


def test_a_rate_of_0_switches_the_decoders_dropout_off():
    assert {module.p for module in dropouts(build("FPN", dropout=0))} == {0}


def test_a_rate_of_0_adds_nothing():
    assert not dropouts(build("Unet", dropout=0))


@pytest.mark.parametrize("architecture", ["FPN", "Unet"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_out_of_range_is_an_error(architecture, rate):
    with pytest.raises(SeguqError, match="dropout must be at least 0 and below 1"):
        build(architecture, dropout=rate)


def test_weights_of_a_network_without_added_dropout_load_into_one_with_it():
    plain, with_dropout = build("Unet"), build("Unet", dropout=0.2)
    with_dropout.load_state_dict(plain.state_dict(), strict=True)
    assert same(with_dropout.state_dict(), plain.state_dict())
