"""Samples from a tape: to the bit those of a plain loop, with the prefix run once; and what is not run from a tape."""

import copy
import functools
import gc
import itertools
import pickle
import random
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import seguq
from seguq.inference.dropout import is_dropout
from seguq.inference.replay import Replay
from seguq.inference.replay.recorder import Recorder

pytestmark = pytest.mark.filterwarnings("error:every sample of")
SAMPLES = 4


class Function(nn.Module):
    """A module that is a function of itself and its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def net(middle):
    """A convolution, what is looked at (a module or a function), and another convolution."""
    middle = middle if isinstance(middle, nn.Module) else Function(middle)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), middle, nn.Conv2d(8, 3, 3, padding=1)).eval()


def images(count=2, size=(12, 10), seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


class Calls:
    """Counts the calls of a module's forward, unseen by its hooks.

    With ``evaluating``, without the one pass in training mode that looks for what stays off.
    """

    def __init__(self, module, evaluating=False):
        self.count, forward = 0, module.forward

        def counted(*args, **kwargs):
            self.count += not (evaluating and module.training)
            return forward(*args, **kwargs)

        module.forward = counted


def plain_loop(est, x, count=SAMPLES):
    """Logits of passes through the whole model, and where they leave the generator."""
    with torch.no_grad():
        out = [est._pass(x) for _ in range(count)]
    return out, torch.get_rng_state()


def sampled(est, x):
    with torch.no_grad():
        out = list(est.sample_logits(x, tuple(str(i) for i in range(len(x)))))
    return out, torch.get_rng_state()


def require_equal(model, x=None, count=SAMPLES, **settings):
    """The samples of two batches are those of a plain loop to the bit; gives how often the first module was called."""
    x = images() if x is None else x
    est = seguq.MCDropout(model, samples=count, calibrator=None, **settings)
    torch.manual_seed(7)
    (expected, end), (expected_again, end_again) = plain_loop(est, x, count), plain_loop(est, x, count)
    torch.manual_seed(7)
    first_part = next(part for part in model.modules() if not list(part.children()))
    calls = Calls(first_part, evaluating=settings.get("layers") is None and not is_dropout(first_part))
    (found, state), first = sampled(est, x), calls.count
    assert len(found) == count
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(state, end)
    (found, state) = sampled(est, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected_again, strict=True))
    assert torch.equal(state, end_again)
    return first, calls.count - first


def replayed(model, x=None, **settings):
    """... and whether the first module was called once a batch, and twice more while the tape was verified."""
    return require_equal(model, x, **settings) == (3, 1)


def said_and_run_as_a_whole(model, told, x=None, **settings):
    """... and whether all was run again for each sample, with one warning that says why."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first, again = require_equal(model, x, **settings)
    ours = [str(one.message) for one in said if str(one.message).startswith("every sample of")]
    assert len(ours) == 1 and told in ours[0], ours
    return (first, again) == (SAMPLES, SAMPLES)


# what draws


DRAWING = {
    "Dropout": nn.Dropout(0.4),
    "Dropout in place": nn.Dropout(0.4, inplace=True),
    "Dropout2d": nn.Dropout2d(0.4),
    "Dropout2d in place": nn.Dropout2d(0.4, inplace=True),
    "AlphaDropout": nn.AlphaDropout(0.4),
    "FeatureAlphaDropout": nn.FeatureAlphaDropout(0.4),
    "RReLU": nn.RReLU(),
    "RReLU in place": nn.RReLU(inplace=True),
    "F.dropout": lambda self, x: F.dropout(x, 0.4, self.training),
    "rand": lambda self, x: x + torch.rand_like(x),
    "rand of a shape": lambda self, x: x * torch.rand(x.shape[1], 1, 1),
    "randn and randint": lambda self, x: x + torch.randn(1) * torch.randint(5, (1,)),
    "randperm": lambda self, x: x[:, torch.randperm(8)],
    "multinomial": lambda self, x: x[:, torch.multinomial(torch.ones(8), 8)],
    "normal_": lambda self, x: x + torch.empty_like(x).normal_(),
    "twice": nn.Sequential(nn.Dropout(0.2), nn.Conv2d(8, 8, 1), nn.Dropout(0.2)),
    "a draw that nobody reads": lambda self, x: (torch.rand(3), F.dropout(x, 0.4, True))[1],
    "only a draw that nobody reads": lambda self, x: (torch.rand(3), x)[1],
}


@pytest.mark.parametrize("middle", DRAWING.values(), ids=DRAWING)
def test_samples_are_those_of_a_plain_loop(middle):
    assert replayed(net(copy.deepcopy(middle)), layers="all")


def shared():
    layer, dropout = nn.Conv2d(8, 8, 1), nn.Dropout(0.4)
    return nn.Sequential(layer, dropout, layer, dropout, layer)


def test_layers_that_are_used_twice_are_run_as_often():
    assert replayed(net(shared()))


def test_layers_of_torchvision_and_timm_are_seen():
    from timm.layers import DropBlock2d, DropPath
    from torchvision.ops import StochasticDepth

    for layer in (StochasticDepth(0.5, "row"), StochasticDepth(0.5, "batch"), DropPath(0.5), DropBlock2d(0.3, 3)):
        assert replayed(net(layer), layers="all")


def test_attention_with_dropout_is_seen():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True)
    assert replayed(net(lambda self, x: layer(x.flatten(2).mT).mT.reshape(x.shape)), layers="all")
    encoder = nn.Sequential(
        Function(lambda self, x: x.flatten(2).mT), layer, Function(lambda self, x: x.mT.unflatten(2, (12, 10)))
    )
    assert replayed(net(encoder))


class Keyed(nn.Module):
    """Takes its images by a keyword, and gives a dict."""

    def __init__(self):
        super().__init__()
        self.net = net(nn.Dropout(0.4))

    def forward(self, *, pixel_values):
        return {"out": self.net(pixel_values), "other": 3}


def test_a_forward_of_keywords_that_gives_a_dict_is_recorded():
    assert replayed(Keyed(), forward=lambda model, x: model(pixel_values=x))


def test_smaller_logits_are_resized_in_every_sample():
    model = nn.Sequential(net(nn.Dropout(0.4)), nn.AvgPool2d(2)).eval()
    assert replayed(model, images(size=(12, 16)))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_are_recorded(task):
    model = nn.Sequential(net(nn.Dropout(0.4)), nn.Conv2d(3, 1 if task == "binary" else 3, 1)).eval()
    assert replayed(model, task=task)


# memory that is written in place, and views of it


def halves(self, x):
    out = torch.zeros(len(x), 16, *x.shape[2:])
    out[:, :8] = x
    out[:, 8:] = F.dropout(x, 0.4, True)
    window = out[:, 4:12]
    out.mul_(2)
    return window


def view_before(self, x):
    x = x * 1
    view = x[:, 1:3]
    x.add_(torch.rand(1))
    return torch.cat((view, x[:, :6]), 1)


def changed_later(self, x):
    x = x * 1
    dropped = F.dropout(x, 0.4, True)
    x.add_(1)
    return dropped + x


def changed_later_by_a_draw(self, x):
    x = x * 1
    added = torch.rand(1) + x
    x.mul_(torch.rand(1))
    return added + x


def set_where_drawn(self, x):
    x = x * 1
    x[torch.rand_like(x) > 0.5] = 0
    return x


def into_a_part(self, x):
    out = x * 2
    out[:, :4].copy_(F.dropout(x, 0.4, True)[:, 4:])
    return out


def given_out(self, x):
    out = torch.empty_like(x)
    torch.mul(x, torch.rand(1), out=out)
    return out


def of_several(self, x):
    pair = [F.dropout(x, 0.4, True), x * 1]
    torch._foreach_mul_(pair, 2.0)
    return pair[0] + pair[1]


def transposed_in_place(self, x):
    return F.dropout(x, 0.4, True).transpose_(2, 3).mul_(2).transpose_(2, 3)


def constant_written_between(self, x):
    x = x * 1
    first = F.dropout(x, 0.4, True)
    x[:, :2] = 3
    second = F.dropout(x, 0.4, True)
    x.zero_()
    return first + second + x


IN_PLACE = [halves, view_before, changed_later, changed_later_by_a_draw, set_where_drawn, into_a_part, given_out,
            of_several, transposed_in_place, constant_written_between]  # fmt: skip


@pytest.mark.parametrize("middle", IN_PLACE, ids=lambda middle: middle.__name__)
def test_what_is_written_in_place_is_written_anew_in_every_sample(middle):
    assert replayed(net(middle))


@pytest.mark.parametrize(
    "middle",
    [
        lambda self, x: torch.cat(F.dropout(x, 0.4, True).chunk(2, 1)[::-1], 1),
        lambda self, x: F.dropout(x, 0.4, True)[None].squeeze_(0),
        lambda self, x: F.dropout(x, 0.4, True).unbind(1)[3][:, None] + x,
        lambda self, x: F.dropout(x, 0.4, True).reshape(len(x), 4, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
        lambda self, x: torch.stack([F.dropout(x, 0.4, True), x]).mean(0),
        lambda self, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.rand(1), s=x.shape[2:]).contiguous(),
        lambda self, x: F.dropout(x, 0.4, True).sort(1, descending=True).values,
        lambda self, x: F.dropout(x, 0.4, True).expand(len(x), 8, *x.shape[2:]).contiguous(),
        lambda self, x: torch.einsum("bchw,cd->bdhw", x, torch.rand(8, 8)),
        lambda self, x: x.masked_fill(torch.rand_like(x) > 0.5, 0),
        lambda self, x: torch.where(torch.rand_like(x) > 0.5, x, x.mean()),
    ],
)
def test_views_and_operations_of_many_kinds_are_run_again(middle):
    assert replayed(net(middle))


def test_random_programs_are_replayed():
    """Operations picked at random, that read and write in place any of the tensors before them."""
    for seed in range(60):
        picks = random.Random(seed)
        program = [(picks.randrange(9), picks.randrange(99), picks.randrange(99)) for _ in range(14)]

        def run(self, x, program=program):
            held = [x * 1, F.dropout(x, 0.4, True)]
            for kind, one, other in program:
                a, b = held[one % len(held)], held[other % len(held)]
                if kind == 0:
                    held.append(a + b)
                elif kind == 1:
                    a.mul_(0.9)
                elif kind == 2:
                    a.add_(b.clone(), alpha=0.5)
                elif kind == 3:
                    a[:, 2:5] = b[:, 3:6].clone()
                elif kind == 4:
                    held.append(a.flip(1))
                elif kind == 5:
                    held.append(a.view_as(a))  # the same memory
                elif kind == 6:
                    F.dropout(a, 0.1, True, inplace=True)
                elif kind == 7:
                    held.append(torch.cat((a[:, 4:], b[:, :4]), 1))
                else:
                    a[:, one % 8 : one % 8 + 1].copy_(torch.rand_like(b[:, :1]))
            return sum(held)

        assert replayed(net(run), images(1, (4, 5)))


# numbers of other kinds


def test_double_precision_and_channels_last_are_recorded():
    assert replayed(net(nn.Dropout(0.4)).double(), images().double())
    assert replayed(net(nn.Dropout(0.4)).to(memory_format=torch.channels_last),
                     images().contiguous(memory_format=torch.channels_last))  # fmt: skip


def test_half_precision_is_recorded():
    assert replayed(net(nn.Dropout(0.4)).bfloat16(), images().bfloat16())


def test_under_autocast_the_tape_is_of_what_was_cast():
    def forced(self, x):
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(F.dropout(x.float(), 0.4, True), torch.ones(8, 8, 1, 1))

    with torch.autocast("cpu", torch.bfloat16):
        assert replayed(net(nn.Dropout(0.4)))
        assert replayed(net(forced))


def test_under_inference_mode_it_works():
    with torch.inference_mode():
        assert replayed(net(nn.Dropout(0.4, inplace=True)))
        assert replayed(net(halves))


def test_volumes_are_recorded():
    model = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.Dropout3d(0.4), nn.Conv3d(4, 3, 1)).eval()
    assert replayed(model, torch.randn(1, 3, 4, 6, 5))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_are_right_too(count):
    first, again = require_equal(net(nn.Dropout(0.4)), count=count)
    assert first == {1: 1, 2: 2, 3: 3}[count]
    assert again == {1: 1, 2: 2, 3: 1}[count]  # two samples have to be verified


# what is not run from a tape


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.dropout = nn.Dropout(0.4)

    def forward(self, x):
        self.calls += 1
        return self.dropout(x) * self.calls


class OwnStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(8), nn.Dropout(0.4)

    def forward(self, x):
        self.norm.training = True
        return self.dropout(self.norm(x))


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()
        self.dropout = nn.Dropout(0.4)

    def forward(self, x):
        return self.dropout(x * torch.rand(1, generator=self.generator))


def branching(self, x):
    return x * 2 if torch.rand(1).item() > 0.5 else x


def forked(self, x):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        fixed = torch.rand_like(x)
    return F.dropout(x, 0.4, True) + fixed


NOT_RECORDED = {
    "branching": (branching, "does something else depending on a random draw (aten::_local_scalar_dense)"),
    "as many as drawn": (
        lambda self, x: x + (torch.rand(10) > 0.5).nonzero().sum(),
        "does something else depending on a random draw (aten::nonzero)",
    ),
    "numpy": (
        lambda self, x: x + torch.from_numpy(torch.rand(2, 8, 1, 1).numpy() * 2),
        "takes values that depend on a random draw out of torch (numpy)",
    ),
    "tolist": (
        lambda self, x: x + torch.tensor(torch.rand(2).tolist()).sum(),
        "takes values that depend on a random draw out of torch (tolist)",
    ),
    "forked": (forked, "draws random numbers by other means than torch's operations"),
    "resized": (
        lambda self, x: F.dropout(x, 0.4, True).resize_(x.shape),
        "calls aten::resize_ on what depends on a random draw",
    ),
    "own statistics": (OwnStatistics(), "its part '2.norm' (BatchNorm2d) changes in place a tensor that it did not"),
}


@pytest.mark.filterwarnings("default:every sample of")
@pytest.mark.parametrize(("middle", "told"), NOT_RECORDED.values(), ids=NOT_RECORDED)
def test_what_cannot_be_recorded_is_run_as_a_whole_and_said_once(middle, told):
    assert said_and_run_as_a_whole(net(copy.deepcopy(middle)), told)


def those_of_a_loop(model, told, count=SAMPLES, start=lambda: None):
    """What depends on more than the generator: whether samples are those of a plain loop over a copy of the model."""
    copied, x = copy.deepcopy(model), images()
    start()
    torch.manual_seed(7)
    expected, end = plain_loop(seguq.MCDropout(copied, calibrator=None), x, count)
    start()
    torch.manual_seed(7)
    with pytest.warns(UserWarning) as said:
        found, state = sampled(seguq.MCDropout(model, samples=count, calibrator=None), x)
    assert [told in str(one.message) for one in said] == [True]
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and torch.equal(state, end)


@pytest.mark.filterwarnings("default:every sample of")
def test_a_module_that_counts_its_calls_is_found_out_by_name():
    assert those_of_a_loop(
        net(Counter()), "its part '2' (Counter) does something else in a second pass than in the first"
    )


@pytest.mark.filterwarnings("default:every sample of")
def test_a_module_with_a_generator_of_its_own_is_run_as_a_whole():
    class Copied(OwnGenerator):
        def __deepcopy__(self, memo):
            return OwnGenerator()

    assert those_of_a_loop(net(Copied()), "its part '2' (Copied) draws from a generator of its own")


@pytest.mark.filterwarnings("default:every sample of")
def test_a_module_that_draws_from_python_is_found_out():
    class Python(nn.Module):
        def forward(self, x):
            return F.dropout(x * random.random(), 0.4, True)

    assert those_of_a_loop(
        net(Python()),
        "its part '2' (Python) draws random numbers by Python's or numpy's generator",
        start=lambda: random.seed(3),
    )


@pytest.mark.filterwarnings("default:every sample of")
@pytest.mark.parametrize("place", ["module", "everywhere"])
def test_hooks_are_called_in_every_pass(place):
    model, seen = net(nn.Dropout(0.4)), []

    def note(*_):
        seen.append(1)

    handle = (
        model[0].register_forward_hook(note)
        if place == "module"
        else nn.modules.module.register_module_forward_hook(note)
    )
    try:
        with pytest.warns(UserWarning, match="has a hook"):
            sampled(seguq.MCDropout(model, samples=SAMPLES, calibrator=None), images())
    finally:
        handle.remove()
    assert len(seen) == SAMPLES * (1 if place == "module" else 5)


def test_injected_dropout_is_recorded():
    import segmentation_models_pytorch as smp

    for where in ("head", "decoder", "encoder.layer3"):
        model = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
        assert replayed(seguq.inject_dropout(model, p=0.3, where=where), images(1, (64, 64)))


def test_hooks_that_transformers_puts_on_by_itself_are_recorded():
    def output_capturing_hook(module, args, output):
        return None

    output_capturing_hook.__module__ = "transformers.utils.output_capturing"
    model = net(nn.Dropout(0.4))
    model[0].register_forward_hook(output_capturing_hook)
    assert replayed(model)


def test_hooks_of_torch_itself_are_recorded():
    model = net(nn.Dropout(0.4))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.spectral_norm(model[3])
    assert require_equal(model.eval())[1] == 1


@pytest.mark.filterwarnings("default:every sample of")
def test_a_part_that_is_a_script_is_run_as_a_whole():
    model = net(nn.Dropout(0.4))
    model[0] = torch.jit.script(model[0])
    with pytest.warns(UserWarning, match=r"its part '0' \(.*\) is a script, inside of which nothing is seen"):
        sampled(seguq.MCDropout(model, samples=SAMPLES, calibrator=None), images())


@pytest.mark.filterwarnings("default:every sample of")
def test_a_part_that_is_compiled_is_run_as_a_whole():
    model = net(nn.Dropout(0.4))
    model[0].compile(backend="eager")
    with pytest.warns(UserWarning, match=r"its part '0' \(Conv2d\) is compiled, inside of which nothing is seen"):
        sampled(seguq.MCDropout(model, samples=SAMPLES, calibrator=None), images())


@pytest.mark.filterwarnings("default:every sample of")
def test_what_runs_in_threads_of_its_own_is_run_as_a_whole():
    model = nn.DataParallel(net(nn.Dropout(0.4)))
    with pytest.warns(UserWarning, match="it runs in several threads, which are not seen"):
        sampled(seguq.MCDropout(model, samples=SAMPLES, calibrator=None), images())


def test_without_verifying_the_prefix_is_run_once_from_the_start():
    assert require_equal(net(nn.Dropout(0.4)), verify=False) == (1, 1)


# nothing stays


def test_the_weights_are_those_of_the_time_of_the_call():
    model, x = net(nn.Dropout(0.4)), images()
    est = seguq.MCDropout(model, samples=SAMPLES, calibrator=None)
    sampled(est, x)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[3].load_state_dict({name: value * 3 for name, value in model[3].state_dict().items()})
    torch.manual_seed(1)
    expected, _ = plain_loop(est, x)
    torch.manual_seed(1)
    found, _ = sampled(est, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_held_after_a_call():
    model = net(nn.Dropout(0.4))
    held = []

    class Noting(nn.Module):
        def forward(self, x):
            held.append(weakref.ref(x))
            return x

    model[1] = Noting()
    est = seguq.MCDropout(model, samples=SAMPLES, calibrator=None)
    maps = est(images())
    del maps
    gc.collect()
    assert held and all(ref() is None for ref in held)


def test_a_stream_that_is_left_in_the_middle_leaves_the_model_as_it_was():
    model = net(nn.Dropout(0.4))
    est = seguq.MCDropout(model, samples=SAMPLES, calibrator=None)
    stream = est.samples(images())
    next(stream), next(stream)
    assert not any(part.training for part in model.modules())
    stream.close()
    assert replayed(model)


def test_estimators_can_be_copied_and_pickled():
    est = seguq.MCDropout(net(nn.Dropout(0.4)), samples=SAMPLES, seed=0, calibrator=None)
    expected = est(images(), ["a", "b"])
    for again in (copy.deepcopy(est), pickle.loads(pickle.dumps(est))):
        assert torch.equal(again(images(), ["a", "b"]).probs, expected.probs)


def test_two_threads_with_two_copies_do_not_disturb_each_other():
    model, found = net(nn.Sequential(nn.Dropout(0.4), nn.Conv2d(8, 8, 3, padding=1))), {}
    expected = seguq.MCDropout(model, samples=8, seed=0, calibrator=None)(images(), ["a", "b"])

    def work(name):
        est = seguq.MCDropout(copy.deepcopy(model), samples=8, seed=0, calibrator=None)
        found[name] = [est(images(), ["a", "b"]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for maps in itertools.chain(*found.values()):
        assert torch.equal(maps.probs, expected.probs)


def test_with_a_seed_the_prefix_is_run_once_for_each_image():
    model = net(nn.Dropout(0.4))
    calls = Calls(model[0])
    est = seguq.MCDropout(model, samples=9, seed=0, calibrator=None, verify=False)
    est(images(3))
    assert calls.count == 3


# what a tape holds


def recorded(model, x):
    est = seguq.MCDropout(model, calibrator=None)
    recorder = Recorder(x.device)
    with torch.no_grad(), recorder:
        output = est._pass(x)
    return recorder.finish(output)


def test_a_tape_holds_what_depends_on_a_draw_and_no_more():
    """Dropout on a CPU is three operations: memory, its draw, its scale; then the product, and the last convolution."""
    tape = recorded(net(nn.Dropout(0.4)), images())
    assert tape.problem is None
    assert len(tape) == 5


def test_a_branch_beside_the_draw_is_not_on_the_tape():
    side = nn.Conv2d(8, 8, 3, padding=1)
    deeper = recorded(net(lambda self, x: F.dropout(x, 0.4, True) + side(side(x)).relu()), images())
    assert len(deeper) == 6


def test_what_nothing_draws_has_an_empty_tape():
    tape = recorded(net(nn.Identity()), images())
    assert len(tape) == 0 and torch.equal(tape.run(), tape.run())


def dropped(layer, x):
    return F.dropout(layer(x), 0.4, True)


def test_a_verdict_dies_with_its_model():
    replay, model, x = Replay(), net(nn.Dropout(0.4)), images()
    with torch.no_grad():
        list(replay.samples(model, functools.partial(dropped, model[0], x), 3, torch.device("cpu")))
    assert len(replay._verified) == 1
    del model
    gc.collect()
    assert len(replay._verified) == 0
