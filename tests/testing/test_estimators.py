"""Every estimator that there is keeps what all of them promise; and a promise that is not kept is found."""

import pytest
import torch
from torch import nn

import seguq
from seguq.inference import Deterministic, Estimator, MCDropout
from seguq.inference.moments import WeightMoments
from seguq.testing import check_estimator
from tests.inference.models import SmallNet, fixed, images


def net(seed=0, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(classes).eval()


def swag(folder):
    model, moments = net(), WeightMoments(rank=2)
    generator = torch.Generator().manual_seed(0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        moments.add(model)
    file = folder / "swag.ckpt"
    torch.save({"state_dict": state, "seguq": {"version": 1, "swag": moments.state()}}, file)
    batches = [(images(4), None)]
    return lambda **settings: seguq.SWAG(model, file, **{"samples": 3, "bn_batches": batches, **settings})


def ensemble(folder):
    members = [net(0), net(1), MCDropout(net(2), samples=2, seed=0, calibrator=None)]
    return lambda **settings: seguq.DeepEnsemble(members, **settings)


def dropout(folder):
    model = net()
    return lambda **settings: MCDropout(model, **{"samples": 4, "seed": 0, **settings})


def around(kind, **own):
    def made(folder):
        model = net()
        return lambda **settings: kind(MCDropout(model, samples=2, seed=0, calibrator=None), **own, **settings)

    return made


def one_pass(**own):
    def made(folder):
        model = net()
        return lambda **settings: Deterministic(model, **own, **settings)

    return made


MADE = {
    "deterministic": one_pass(),
    "mc_dropout": dropout,
    "deep_ensemble": ensemble,
    "swag": swag,
    "test_time_augmentation": around(seguq.TestTimeAugmentation),
    "sliding_window": around(seguq.SlidingWindow, window=8, stride=4),
}


def of_ours():
    return [name for name in Estimator.names() if Estimator.named(name).__module__.startswith("seguq.")]


@pytest.mark.parametrize("name", of_ours())
def test_an_estimator_keeps_what_all_of_them_promise(name, tmp_path):
    assert name in MADE, f"say in MADE how {name} is made"
    check_estimator(MADE[name](tmp_path), images(3))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_promises_hold_for_other_tasks(task, tmp_path):
    check_estimator(one_pass(task=task)(tmp_path) if task == "multilabel" else one_logit(), images(3))


def one_logit():
    model = net(classes=1)
    return lambda **settings: Deterministic(model, task="binary", **settings)


def test_the_promises_hold_for_volumes():
    model = fixed(SmallNet, dims=3)
    check_estimator(lambda **settings: Deterministic(model, **settings), images(2, size=6, dims=3))


class Broken(Deterministic):
    """Changes what it pools, or its model."""

    name = tag = "broken"

    def change(self, logits, maps):
        return logits, maps

    def pool(self, images, ids, names):
        return self.change(*super().pool(images, ids, names))

    def samples(self, images, image_ids=None):
        yield torch.softmax(self.pooled_logits(images, image_ids), 1)


def broken(change):
    kind = type("Broken", (Broken,), {"change": change, "name": "broken", "__module__": __name__})
    return lambda model, **settings: kind(model, **settings)


def hooked(self, logits, maps):
    self.network.register_forward_hook(lambda *_: None)
    return logits, maps


def drawing(self, logits, maps):
    return logits + torch.rand(()), maps


def by_batch(self, logits, maps):
    return logits / len(logits), maps


def training(self, logits, maps):
    self.network.train()
    return logits, maps


def with_weights(self, logits, maps):
    with torch.no_grad():
        self.network.head.bias += 1
    return logits, maps


BROKEN = {
    "a hook that stays": (hooked, "the hooks of its models are left"),
    "random numbers": (drawing, "the global generator is left as it was found"),
    "an answer that depends on the batch": (by_batch, "of an image is the same alone and in a batch"),
    "a model left in training": (training, "the modes of its models are left"),
    "weights changed": (with_weights, "the same as among all|mean of the samples|the tensors of its models"),
    "a map that is gone": (lambda self, logits, maps: (logits, {}), None),
    "nan": (lambda self, logits, maps: (logits * float("nan"), maps), "probs are from 0 to 1"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_promise_that_is_not_kept_is_found(change, said):
    model, make = net(), broken(change)
    with pytest.raises(AssertionError if said else KeyError, match=said):
        check_estimator(lambda **settings: make(model, **settings), images(3))


def test_random_numbers_without_a_seed_are_found():
    model = net()
    with pytest.raises(AssertionError, match=r"MCDropout .*make\(\) must give one with a seed"):
        check_estimator(lambda **settings: MCDropout(model, **{"samples": 3, **settings}), images(2))


def test_a_model_carries_no_calibrator_of_a_check(tmp_path):
    model = net()
    check_estimator(lambda **settings: Deterministic(model, **settings), images(2))
    assert not hasattr(model, "calibrators")
    assert isinstance(model, nn.Module)
