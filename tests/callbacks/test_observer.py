"""What is noted of a network's calls in somebody else's step."""

import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seguq.callbacks.observer import ForwardObserver, network_of
from seguq.core.errors import SeguqError
from tests.callbacks.modules import both_names

IMAGE = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(2, 1, 8, 12)


class Network(nn.Module):
    """Gives ``made`` of its own logits; takes whatever comes."""

    def __init__(self, made=lambda logits: logits):
        super().__init__()
        self.conv, self.made = nn.Conv2d(3, 4, 1), made
        self.eval()

    def forward(self, x=None, mask=None, again=None):
        logits = self.conv(x)
        if again is not None:  # calls itself, as some wrappers do
            return self(again)
        return self.made(logits)


def observed(step, network=None, batch=None, image=IMAGE):
    """What is seen of a step."""
    network = Network() if network is None else network
    observer = ForwardObserver(network, (image, MASK) if batch is None else batch, image)
    with torch.no_grad():
        step(network)
    seen = observer.seen()
    observer.close()
    return seen


@pytest.mark.parametrize(
    "made",
    [
        lambda logits: logits,
        lambda logits: {"out": logits, "aux": logits},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: (logits, "features"),
        lambda logits: logits[..., ::4, ::4],
    ],
    ids=["tensor", "dict", "object", "tuple", "a quarter of the size"],
)
def test_the_one_call_with_the_images_is_seen_with_its_output(made):
    outputs = []

    def keep(logits):
        outputs.append(made(logits))
        return outputs[0]

    seen = observed(lambda network: network(IMAGE), Network(keep))
    assert seen.image is IMAGE
    assert seen.output is outputs[0]


@pytest.mark.parametrize(
    "step",
    [
        lambda network: network(mask=MASK.expand(2, 3, 8, 12), x=IMAGE),
        lambda network: network(mask=MASK, x=IMAGE),
        lambda network: network(IMAGE, MASK),
    ],
    ids=["a mask with as many channels first", "a mask first", "a mask after"],
)
def test_the_images_are_known_among_other_tensors(step):
    assert observed(step).image is IMAGE


def test_of_tensors_that_are_all_made_of_the_batch_the_one_of_the_images_shape_is_taken():
    normalized = IMAGE - 0.5
    assert observed(lambda network: network(mask=MASK, x=normalized)).image is normalized


def test_the_call_with_the_images_counts_beside_calls_with_others():
    def step(network):
        network(IMAGE.flip(-1))
        network(IMAGE)
        network(IMAGE.flip(-2))

    assert observed(step).image is IMAGE


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "step",
    [
        lambda network: None,
        lambda network: (network(IMAGE), network(IMAGE)),
        lambda network: network(IMAGE[:1]),
        lambda network: network(IMAGE[:, :, :4].repeat(2, 1, 1, 1)),
    ],
    ids=["none", "two of the same images", "a part of the batch", "more images than the batch has"],
)
def test_where_it_is_not_clear_which_call_gives_the_logits_none_is_seen(step):
    assert observed(step) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "made",
    [
        lambda logits: logits.mean(),
        lambda logits: logits.mean((2, 3)),
        lambda logits: logits.argmax(1, keepdim=True),
        lambda logits: {"loss": logits},
    ],
    ids=["a loss", "a vector", "class indices", "no logits"],
)
def test_an_output_that_is_no_logits_is_not_seen(made):
    assert observed(lambda network: network(IMAGE), Network(made)) is None


def test_several_calls_with_none_of_the_images_are_said_in_a_warning():
    def step(network):
        network(IMAGE - 0.5)
        network(IMAGE.flip(-1) - 0.5)

    with pytest.warns(UserWarning, match=r"forward 2 times, never with the images .* batch_forward=lambda module"):
        assert observed(step) is None


@pytest.mark.parametrize("part", ["the network", "a part of it"])
def test_of_a_call_in_training_mode_the_images_are_seen_without_the_output(part):
    network = Network()

    def step(network):
        (network if part == "the network" else network.conv).train()
        network(IMAGE)
        network.eval()

    seen = observed(step, network)
    assert seen.image is IMAGE
    assert seen.output is None


def test_a_call_in_evaluation_mode_counts_whatever_the_mode_is_afterwards():
    def step(network):
        network(IMAGE)
        network.train()

    assert observed(step).output is not None


@pytest.mark.parametrize(
    "change",
    [lambda logits: logits.sigmoid_(), lambda logits: logits.add_(1), lambda logits: logits.neg_()],
    ids=["sigmoid", "a shift", "a change of sign"],
)
def test_of_an_output_that_the_step_changes_in_place_the_images_are_seen(change):
    seen = observed(lambda network: change(network(IMAGE)))
    assert seen.image is IMAGE
    assert seen.output is None


def test_a_call_with_others_does_not_count_beside_one_with_the_images_whose_output_was_changed():
    def step(network):
        network(IMAGE).sigmoid_()
        network(IMAGE.flip(-1))

    seen = observed(step)
    assert seen.image is IMAGE
    assert seen.output is None


def test_of_many_calls_no_output_is_kept():
    network, alive = Network(), []
    observer = ForwardObserver(network, (IMAGE, MASK), IMAGE)
    with torch.no_grad():
        alive += [weakref.ref(network(IMAGE - shift)) for shift in range(5)]
    assert all(reference() is None for reference in alive)
    observer.close()


def test_an_output_that_the_step_changes_in_a_copy_is_seen():
    assert observed(lambda network: network(IMAGE).clone().sigmoid_()).output is not None


@pytest.mark.parametrize("batch", [(IMAGE, MASK), {"x": IMAGE}], ids=["tuple", "dict"])
def test_a_step_that_a_strategy_hands_on_through_forward_is_no_call(batch):
    class Stepping(nn.Module):
        def forward(self, batch, batch_idx):
            return IMAGE

    assert observed(lambda network: network(batch, 0), Stepping().eval(), batch) is None


def test_of_a_step_that_is_handed_on_through_forward_the_call_inside_is_seen():
    class Redirected(Network):
        def forward(self, first, batch_idx=None):
            return self(first[0]).mean() if batch_idx is not None else super().forward(first)

    batch = (IMAGE, MASK)
    assert observed(lambda network: network(batch, 0), Redirected(), batch).image is IMAGE


def test_of_a_forward_that_calls_itself_the_inner_call_is_seen():
    assert observed(lambda network: network(IMAGE - 1, again=IMAGE)).image is IMAGE


def test_closing_takes_the_hooks_away():
    network = Network()
    observer = ForwardObserver(network, (IMAGE, MASK), IMAGE)
    assert len(network._forward_hooks) == len(network._forward_pre_hooks) == 1
    observer.close()
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_closing_lets_go_of_the_batch_and_of_the_outputs():
    network, image = Network(), IMAGE.clone()
    observer = ForwardObserver(network, (image,), image)
    held = [weakref.ref(image), weakref.ref(network(image))]
    assert all(reference() is not None for reference in held)
    observer.close()
    del image
    assert all(reference() is None for reference in held)


def test_an_error_inside_a_call_does_no_harm_to_the_next():
    network = Network()
    observer = ForwardObserver(network, (IMAGE, MASK), IMAGE)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2, 7, 8, 12))
    with torch.no_grad():
        network(IMAGE)
    assert observer.seen().image is IMAGE
    observer.close()


# what is called with images


@both_names
def test_a_module_with_a_forward_is_its_own_network(package):
    class Module(package.LightningModule):
        def forward(self, x):
            return x

    module = Module()
    assert network_of(module) is module


@both_names
def test_without_a_forward_the_one_part_with_weights_is_the_network(package):
    module = package.LightningModule()
    module.loss, module.net = nn.CrossEntropyLoss(), nn.Conv2d(3, 2, 1)
    assert network_of(module) is module.net


@both_names
@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ((), "no part with weights"),
        (("encoder", "decoder"), r"2 parts with weights \(encoder, decoder\)"),
    ],
    ids=["none", "two"],
)
def test_without_a_forward_and_one_network_the_error_tells_what_to_do(package, parts, found):
    module = package.LightningModule()
    for name in parts:
        setattr(module, name, nn.Conv2d(3, 2, 1))
    message = rf"LightningModule defines no forward, and has {found}: define .* batch_forward=lambda module"
    with pytest.raises(SeguqError, match=message):
        network_of(module)


def test_no_warning_comes_of_a_single_call():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert observed(lambda network: network(IMAGE - 0.5)) is not None
