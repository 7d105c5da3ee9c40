# ruff: noqa: NPY002 - the global generator of numpy is what these tests are of
"""Models that behave in ways which a recording could miss: each is exact, or recognized and said."""

import copy
import gc
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import seguq
from seguq import functional
from tests.inference.replay.test_samples import (
    SAMPLES,
    images,
    net,
    replayed,
    require_equal,
    said_and_run_as_a_whole,
    those_of_a_loop,
)

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.filterwarnings("default:every sample of")
OTHERS = "draws random numbers by Python's or numpy's generator"


def streams(model, batches, count=SAMPLES, start=lambda: None):
    """Samples of several batches by the estimator and by a plain loop over a copy of the model, and the messages."""
    found = []
    for one, looped in ((copy.deepcopy(model), True), (model, False)):
        est = seguq.MCDropout(one, samples=count, calibrator=None)
        start()
        torch.manual_seed(7)
        with warnings.catch_warnings(record=True) as said, torch.no_grad():
            warnings.simplefilter("always")
            out = [
                [est._pass(x) for _ in range(count)] if looped else list(est.sample_logits(x, ("",) * len(x)))
                for x in batches
            ]
        found.append((out, torch.get_rng_state()))
    (expected, end), (got, state) = found
    equal = all(
        torch.equal(a, b) for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    return equal and torch.equal(state, end), [str(each.message) for each in said]


# randomness of others


@pytest.mark.parametrize(
    "rare", [lambda: random.random() < 0.1, lambda: np.random.rand() < 0.1], ids=["Python", "numpy"]
)
def test_a_draw_of_others_that_rarely_matters_is_found_in_the_first_pass(rare):
    def start():
        random.seed(3)
        np.random.seed(3)

    model = net(lambda module, x: F.dropout(torch.relu(x - 1) if rare() else x, 0.4, True))
    equal, said = streams(model, [images()] * 3, count=12, start=start)
    assert equal
    assert len(said) == 1 and OTHERS in said[0]


@pytest.mark.parametrize(
    "make", [np.random.default_rng, np.random.RandomState, random.Random], ids=["Generator", "RandomState", "Python"]
)
def test_a_generator_that_a_module_holds_is_watched(make):
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = make(0)

        def forward(self, x):
            value = self.generator.random_sample() if make is np.random.RandomState else self.generator.random()
            return 2 * x if value < 0.1 else x

    assert those_of_a_loop(net(nn.Sequential(nn.Dropout(0.4), Rare())), "draws from a generator of its own", count=20)


class AnswersAnyName(dict):
    __getattr__ = dict.__getitem__


class ReadsSettings(nn.Module):
    settings = AnswersAnyName(factor=2.0)
    any_name = torch.ops

    def forward(self, x):
        return self.settings.factor * x


def test_what_has_an_attribute_of_any_name_is_not_taken_for_compiled():
    import torch._dynamo  # noqa: F401 - only then it is looked for

    assert replayed(net(nn.Sequential(nn.Dropout(0.4), ReadsSettings())))


IN_A_BARE_PROCESS = """
import warnings
import torch, seguq
warnings.filterwarnings("error", message="every sample of")
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Dropout(0.3), torch.nn.Conv2d(4, 3, 1))
seguq.MCDropout(network, samples=3, calibrator=None)(torch.ones(1, 3, 8, 8))
"""


def test_numpys_generator_that_is_loaded_late_is_not_taken_for_a_draw():
    done = subprocess.run([sys.executable, "-c", IN_A_BARE_PROCESS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_with_a_seed_the_draws_of_python_and_numpy_are_keyed_too_and_their_generators_left():
    model = net(lambda module, x: F.dropout(x * random.random() + np.random.rand(), 0.4, True))
    before = random.getstate(), np.random.get_state()[1].copy()
    one, again = (seguq.MCDropout(model, samples=3, seed=1, calibrator=None)(images(), ["a", "b"]) for _ in range(2))
    alone = seguq.MCDropout(model, samples=3, seed=1, calibrator=None)(images()[1:], ["b"])
    assert torch.equal(one.probs, again.probs)
    torch.testing.assert_close(alone.probs, one.probs[1:], rtol=0, atol=1e-5)
    assert before[0] == random.getstate() and (before[1] == np.random.get_state()[1]).all()


# models that go another way in a later batch


def test_another_way_in_a_later_batch_is_verified_when_it_comes():
    model = net(lambda module, x: F.dropout(x * (np.random.rand() if x.shape[-1] > 40 else 1.0), 0.4, True))
    equal, said = streams(model, [images(), images(size=(12, 50))], start=lambda: np.random.seed(3))
    assert equal
    assert len(said) == 1 and OTHERS in said[0]


def test_noise_that_is_made_once_for_each_size():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = {}

        def forward(self, x):
            size = x.shape[2:]
            if size not in self.tables:
                self.tables[size] = torch.randn(size)
            return F.dropout(x + self.tables[size], 0.4, True)

    model = net(Noise())
    with torch.no_grad():
        model(images())
    equal, said = streams(model, [images(), images(size=(8, 8))])
    assert equal
    assert len(said) == 1 and "does something else in a second pass than in the first" in said[0]


# writing through views of what came from elsewhere


class Counting(nn.Module):
    """Adds to a buffer through a view of it, and looks at it."""

    def __init__(self, write):
        super().__init__()
        self.register_buffer("calls", torch.zeros(8, 1, 1))
        self.write = write

    def forward(self, x):
        self.write(self.calls)
        return F.dropout(x * (1 + (self.calls % 4 == 0) * 0.5), 0.4, True)


def add_to_data(calls):
    calls.data.add_(1)


def add_to_view(calls):
    calls.view(-1).add_(1)


def add_to_row(calls):
    calls[0] += 1


def draw_into_part(calls):
    calls[:4].uniform_()


@pytest.mark.parametrize("write", [add_to_data, add_to_view, add_to_row, draw_into_part])
def test_a_buffer_that_is_written_through_a_view_ends_as_in_a_loop(write):
    model = net(Counting(write))
    looped = copy.deepcopy(model)
    equal, said = streams(model, [images()] * 2)
    with torch.no_grad():
        torch.manual_seed(7)
        est = seguq.MCDropout(looped, calibrator=None)
        for _ in range(2 * SAMPLES):
            est._pass(images())
    assert equal and torch.equal(model[2].calls, looped[2].calls)
    assert len(said) == 1 and "changes in place a tensor that it did not make in the same pass" in said[0]


def test_an_image_that_is_written_through_a_view():
    class Shifting(nn.Module):
        def forward(self, x):
            x[:, 0] -= 0.1
            return F.dropout(x, 0.4, True)

    model, x = nn.Sequential(Shifting(), nn.Conv2d(3, 3, 1)), images()
    expected = images()
    with pytest.warns(UserWarning, match="changes in place a tensor"), torch.no_grad():
        list(seguq.MCDropout(model, samples=3, verify=False, calibrator=None).sample_logits(x, ("", "")))
    torch.testing.assert_close(x[:, 0], expected[:, 0] - 0.3)


# what a recording itself would change, or cannot take


def doubled(x):
    return F.dropout(2 * x, 0.4, True)


class WithCompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.function = torch.compile(doubled, backend="eager")

    def forward(self, x):
        return self.function(x)


compiled = torch.compile(doubled, backend="eager")


class NamesCompiled(nn.Module):
    def forward(self, x):
        return compiled(x)


class DecoratedStatic(nn.Module):
    @staticmethod
    @torch.compile(backend="eager")
    def inner(x):
        return doubled(x)

    def forward(self, x):
        return self.inner(x)


class Decorated(nn.Module):
    @torch.compile(backend="eager")
    def inner(self, x):
        return doubled(x)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("module", [WithCompiled, NamesCompiled, Decorated, DecoratedStatic])
def test_a_compiled_function_is_recognized(module):
    assert said_and_run_as_a_whole(net(module()), "has a compiled function, inside of which nothing is seen")


def test_a_module_beside_a_function_that_is_compiled_elsewhere_is_recorded():
    assert require_equal(net(nn.Dropout(0.4))) == (3, 1)


UNUSUAL = {
    "an out of no size": lambda module, x: torch.mul(F.dropout(x, 0.4, True), 2, out=torch.empty(0)),
    "an out of another size": lambda module, x: torch.mul(F.dropout(x, 0.4, True), 2, out=torch.empty(x.shape[1:])),
    "sparse": lambda module, x: F.dropout(x, 0.4, True).to_sparse().to_dense(),
    "mkldnn": lambda module, x: F.dropout(x, 0.4, True).to_mkldnn().to_dense(),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("function", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_falls_back_and_is_the_loop(function):
    equal, said = streams(net(function), [images()] * 2)
    assert equal
    assert sum(message.startswith("every sample of") for message in said) == 1


def test_an_error_of_the_recording_itself_falls_back_with_its_name():
    class Refuses(nn.Module):
        """Works, but not where a mode is on."""

        def forward(self, x):
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise NotImplementedError("no modes here")
            return F.dropout(x, 0.4, True)

    equal, said = streams(net(Refuses()), [images()] * 2)
    assert equal
    assert len(said) == 1
    assert "its part '2' (Refuses) cannot be recorded (NotImplementedError: no modes here)" in said[0]


def test_an_error_of_the_model_is_its_own():
    def fails(module, x):
        raise ValueError("of my own")

    with warnings.catch_warnings(), pytest.raises(ValueError, match="of my own"):
        warnings.simplefilter("error")
        seguq.MCDropout(net(fails), samples=3, calibrator=None)(images())


def test_a_script_has_its_dropout_switched_on_and_is_run_as_a_whole():
    model = net(nn.Dropout(0.4))
    script = torch.jit.script(copy.deepcopy(model))
    with pytest.warns(UserWarning, match="is a script, inside of which nothing is seen"):
        maps = seguq.MCDropout(script, samples=3, seed=0, calibrator=None)(images())
    expected = seguq.MCDropout(model, samples=3, seed=0, calibrator=None)(images())
    torch.testing.assert_close(maps.probs, expected.probs)


def test_a_frozen_script_gives_its_one_answer():
    model = net(nn.Dropout(0.4))
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(model)))
    maps = seguq.Deterministic(frozen, calibrator=None)(images())
    torch.testing.assert_close(maps.probs, seguq.Deterministic(model, calibrator=None)(images()).probs)


class Subclass(torch.Tensor):
    pass


def test_images_of_a_subclass_are_taken_as_plain_tensors():
    model = net(nn.Dropout(0.4))
    est = seguq.MCDropout(model, samples=3, seed=0, calibrator=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = est(images().as_subclass(Subclass), ["a", "b"])
    assert type(found.probs) is torch.Tensor
    assert torch.equal(found.probs, est(images(), ["a", "b"]).probs)


# threads and memory


def test_an_estimator_without_a_seed_leaves_one_with_a_seed_alone_in_another_thread():
    model = net(nn.Sequential(*[nn.Dropout(0.3) for _ in range(6)]))
    other, x = copy.deepcopy(model), images(size=(48, 48))
    expected = seguq.MCDropout(model, samples=5, seed=3, calibrator=None)(x, ["a", "b"]).probs
    wrong, stop = [], threading.Event()

    def without():
        while not stop.is_set():
            seguq.MCDropout(other, samples=4, calibrator=None)(x)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        thread = threading.Thread(target=without)
        thread.start()
        try:
            for _ in range(60):
                probs = seguq.MCDropout(model, samples=5, seed=3, calibrator=None)(x, ["a", "b"]).probs
                wrong.append(float((probs - expected).abs().max()) > 1e-5)
        finally:
            stop.set()
            thread.join()
    assert not any(wrong)
    assert not told


class Alive(TorchDispatchMode):
    """Weak references to the memory of what convolutions and activations give."""

    def __init__(self):
        super().__init__()
        self.references = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "convolution" in str(func) or "relu" in str(func):
            self.references.append(torch.multiprocessing.reductions.StorageWeakRef(out.untyped_storage()))
        return out


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("abandoned", [False, True])
def test_what_a_call_has_made_is_freed_without_the_collector(seed, abandoned):
    est = seguq.MCDropout(net(nn.Dropout(0.4)), samples=3, seed=seed, calibrator=None)
    est(images())
    gc.collect()
    gc.disable()
    try:
        with Alive() as alive:
            for _ in range(5):
                if abandoned:
                    next(iter(est.samples(images())))
                else:
                    est(images())
        assert len(alive.references) >= 10
        assert sum(not reference.expired() for reference in alive.references) == 0
    finally:
        gc.enable()


# calibrators


def calibrated(est):
    masks = torch.randint(3, (2, 12, 10), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        est.calibrate(seguq.TemperatureScaling(), [(images(), masks)])
    return est


def test_weights_that_are_changed_past_the_counter_of_changes_are_seen():
    model = net(nn.Identity())
    est = calibrated(seguq.Deterministic(model))
    for parameter in model.parameters():
        parameter.data.mul_(1.01)  # as many averages of weights do
    with pytest.warns(UserWarning, match="fitted for other weights than the model has now"):
        est(images())


def test_another_member_of_an_ensemble_is_seen_to_change():
    members = [net(nn.Identity()), net(nn.Identity())]
    est = calibrated(seguq.DeepEnsemble(members))
    est(images())
    with torch.no_grad():
        members[1][0].weight.mul_(1.01)
    with pytest.raises(seguq.core.errors.SeguqError, match="the calibrator was fitted for deep_ensemble"):
        est(images())


@pytest.mark.parametrize(
    "outer",
    [
        lambda inner: seguq.TestTimeAugmentation(inner, "flips"),
        lambda inner: seguq.SlidingWindow(inner, 8),
        lambda inner: seguq.DeepEnsemble([inner]),
    ],
    ids=["augmentation", "windows", "ensemble"],
)
def test_a_calibrator_of_an_inner_estimator_is_said_not_to_be_applied(outer):
    inner = calibrated(seguq.Deterministic(net(nn.Identity())))
    with pytest.warns(UserWarning, match="the calibrator of deterministic is not applied inside of another"):
        outer(inner)


def test_members_of_different_precision():
    single, double = net(nn.Identity()), net(nn.Identity()).double()
    maps = seguq.DeepEnsemble([single, double], calibrator=None)(images())
    assert float(maps["mutual_information"].max()) < 1e-6
    expected = functional.predictive_entropy(torch.softmax(single(images()), 1))
    torch.testing.assert_close(maps["predictive_entropy"].float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["one weight", "numpy", "pruned"])
def test_a_change_of_few_weights_past_the_counter_is_seen(change):
    model = net(nn.Identity())
    est = calibrated(seguq.Deterministic(model))
    weight = model[0].weight
    if change == "one weight":
        weight.data[1, 1, 1, 1] += 0.5
    elif change == "numpy":
        weight.detach().numpy()[3, 2, 0, 1] = 0
    else:
        weight.data[5] = 0
    with pytest.warns(UserWarning, match="fitted for other weights than the model has now"):
        est(images())


def test_a_file_of_a_lazy_ensemble_that_is_replaced_is_seen(tmp_path):
    paths = [tmp_path / f"{i}.ckpt" for i in range(3)]
    for i, path in enumerate(paths):
        model = net(nn.Identity())
        with torch.no_grad():
            model[0].weight.mul_(1 + i)
        torch.save(model.state_dict(), path)
    est = calibrated(seguq.DeepEnsemble(paths, model=net(nn.Identity()), lazy=True))
    before = est.tag
    torch.save(net(nn.Identity()).state_dict(), paths[1])
    assert est.tag != before
    with pytest.raises(seguq.core.errors.SeguqError, match="the calibrator was fitted for deep_ensemble"):
        est(images())
