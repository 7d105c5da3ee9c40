import math

import pytest
import torch

from seguq.weights import weights_sha256
from tests.calibration.test_checkpoint import Holder, altered, network, with_names

SAME = {
    "the module itself": lambda: network(),
    "held by a module": lambda: Holder(network()),
    "held twice over": lambda: Holder(Holder(network())),
    "compiled": lambda: torch.compile(network()),
    "compiled inside a module": lambda: Holder(torch.compile(network())),
    "a part compiled": lambda: with_names(lambda name: name.replace("0.", "0._orig_mod.")),
    "named by data-parallel training": lambda: with_names(lambda name: "module." + name),
    "in another order": lambda: dict(reversed(network().state_dict().items())),
    "not contiguous": lambda: {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
        for name, tensor in network().state_dict().items()
    },
    "as parameters": lambda: network().state_dict(keep_vars=True),
    "in training mode": lambda: network().train(),
}


@pytest.mark.parametrize("weights", SAME.values(), ids=SAME.keys())
def test_the_hash_is_the_same(weights):
    assert weights_sha256(weights()) == weights_sha256(network().state_dict())


def next_float(tensor):
    return torch.nextafter(tensor, torch.full_like(tensor, math.inf))


DIFFERENT = {
    "other weights": lambda: network(seed=1),
    "one weight one bit larger": lambda: altered(lambda s: s["0.bias"][:1].copy_(next_float(s["0.bias"][:1]))),
    "a floating-point buffer": lambda: altered(lambda s: s["1.running_mean"].add_(1)),
    "a name": lambda: with_names(lambda name: name.replace("3.bias", "3.offset")),
    "two tensors exchanged": lambda: altered(lambda s: s.update({"1.weight": s["1.bias"], "1.bias": s["1.weight"]})),
    "a type": lambda: altered(lambda s: s.update({"0.bias": s["0.bias"].double()})),
    "all types": lambda: network().half(),
    "a shape": lambda: altered(lambda s: s.update({"0.bias": s["0.bias"].view(2, 2)})),
    "a tensor more": lambda: altered(lambda s: s.update({"4.weight": torch.zeros(1)})),
    "a tensor less": lambda: altered(lambda s: s.pop("3.bias")),
}


@pytest.mark.parametrize("weights", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_the_hash_differs_for(weights):
    assert weights_sha256(weights()) != weights_sha256(network())


def test_the_hash_does_not_depend_on_integer_buffers():
    model = network()
    model[1].num_batches_tracked += 7
    assert weights_sha256(model) == weights_sha256(network())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_precision_have_a_hash(dtype):
    assert weights_sha256(network().to(dtype)) == weights_sha256(network().to(dtype))


def test_the_hash_differs_for_types_whose_bytes_are_the_same():
    half, brain = torch.zeros(3, dtype=torch.float16), torch.zeros(3, dtype=torch.bfloat16)
    assert weights_sha256({"weight": half}) != weights_sha256({"weight": brain})


def test_a_scalar_weight_has_a_hash():
    assert weights_sha256({"scale": torch.tensor(1.0)}) != weights_sha256({"scale": torch.tensor(2.0)})
