"""Samples from a tape are to the bit those of a plain loop, over the architectures and encoders that people use."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

import seguq

ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "mit_b0")
ARCHITECTURES = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN",
                 "UPerNet", "Segformer", "DPT")  # fmt: skip
NOT_BUILT = {("UnetPlusPlus", "mit_b0"), ("Linknet", "mit_b0"), *(("DPT", encoder) for encoder in ENCODERS)}
PAIRS = [(name, encoder) for name in ARCHITECTURES for encoder in ENCODERS if (name, encoder) not in NOT_BUILT]
SAMPLES = 3


def build(name, encoder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(smp, name)(encoder, encoder_weights=None, classes=3).eval()


class DropFirst(nn.Module):
    """A decoder, whose deepest feature is dropped of; by a function or by a layer."""

    def __init__(self, decoder, function=False):
        super().__init__()
        self.decoder, self.dropout, self.function = decoder, nn.Dropout2d(0.3), function

    def forward(self, features, *others):
        last = features[-1]
        last = F.dropout(last, 0.3, self.training) if self.function else self.dropout(last)
        return self.decoder([*features[:-1], last], *others)


def at_the_head(model):
    model.segmentation_head = nn.Sequential(nn.Dropout2d(0.3), model.segmentation_head)


def before_the_decoder(model):
    model.decoder = DropFirst(model.decoder)


def by_a_function(model):
    model.decoder = DropFirst(model.decoder, function=True)


def inside_the_encoder(model):
    """After the convolution in the middle of the encoder."""
    found = [name for name, part in model.encoder.named_modules() if isinstance(part, nn.Conv2d)]
    owner, _, name = found[len(found) // 2].rpartition(".")
    owner = model.encoder.get_submodule(owner)
    convolution = getattr(owner, name)
    setattr(owner, name, nn.Sequential(convolution, nn.Dropout(0.3)))


def forwards_of(module):
    count, forward = [], module.forward

    def counted(*args, **kwargs):
        count.append(1)
        return forward(*args, **kwargs)

    module.forward = counted
    return count


@pytest.mark.parametrize(("name", "encoder"), sorted(NOT_BUILT))
def test_what_is_left_out_cannot_be_built(name, encoder):
    with pytest.raises(ValueError, match="support"):
        build(name, encoder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_of_the_library_is_looked_at(name):
    known = {kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    assert name in known and known == set(ARCHITECTURES)


@pytest.mark.filterwarnings("error:every sample of")
@pytest.mark.parametrize("place", [at_the_head, before_the_decoder, by_a_function, inside_the_encoder])
@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_samples_are_those_of_a_plain_loop(name, encoder, place):
    model = build(name, encoder)
    place(model)
    size = 128 if name == "PAN" else 64  # whose pooling needs as much
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    layers = "all" if place is by_a_function else "dropout"
    est = seguq.MCDropout(model, samples=SAMPLES, layers=layers, calibrator=None, verify=False)
    torch.manual_seed(5)
    with torch.no_grad():
        expected = [est._pass(x) for _ in range(SAMPLES)]
    end = torch.get_rng_state()
    torch.manual_seed(5)
    encoder_runs, last_runs = forwards_of(model.encoder), forwards_of(model.segmentation_head)
    with torch.no_grad():
        found = list(est.sample_logits(x, ("a",)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), end)
    assert (len(encoder_runs), len(last_runs)) == (1, 1)  # no fall-back to the loop
