import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import timm.layers
import torch
import torch.nn.functional as TF
import torchvision
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError
from seguq.inference import MCDropout
from tests.inference.models import (
    DROPOUTS,
    SAMPLED,
    Count,
    DictNet,
    FunctionalNet,
    LabelNet,
    LiveBytes,
    Operations,
    QuarterNet,
    Raising,
    SmallNet,
    fixed,
    flags,
    hooks,
    images,
    mix_flags,
    names,
    plain_loop,
    same_tensors,
    segformer,
    smp_fpn,
    tensors,
)

ROOT = Path(__file__).parents[2]
OF_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")
OF_SAMPLES = ("total_entropy", "expected_entropy", "mutual_information", "variance", "variation_ratio")

sampled = pytest.mark.parametrize(("make", "layers", "size"), SAMPLED.values(), ids=SAMPLED)
seeds = pytest.mark.parametrize("seed", [None, 0], ids=["no seed", "seed"])


def sampler(model, samples=3, **settings):
    return MCDropout(model, samples=samples, **{"calibrator": None, **settings})


def stacked(estimator, x, ids=None):
    return torch.stack(list(estimator.samples(x, ids)))


# without a seed: a plain loop


@sampled
def test_without_a_seed_the_samples_are_those_of_a_plain_loop(make, layers, size):
    x = images(2, size)
    torch.manual_seed(3)
    expected = plain_loop(make(), x, 3, layers)
    torch.manual_seed(3)
    assert torch.equal(stacked(sampler(make(), layers=layers), x), expected)


@sampled
def test_without_a_seed_the_generator_ends_where_a_plain_loop_leaves_it(make, layers, size):
    x = images(2, size)
    torch.manual_seed(3)
    plain_loop(make(), x, 3, layers)
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    sampler(make(), layers=layers)(x)
    assert torch.equal(torch.get_rng_state(), expected)


@sampled
def test_without_a_seed_the_samples_differ_from_each_other(make, layers, size):
    one, other = stacked(sampler(make(), samples=2, layers=layers), images(2, size))
    assert not torch.equal(one, other)


def test_without_a_seed_two_calls_differ():
    est = sampler(fixed(SmallNet))
    assert not torch.equal(est(images()).probs, est(images()).probs)


def test_without_a_seed_a_sample_is_one_pass_of_the_whole_batch():
    model = fixed(SmallNet)
    count = Count(model)
    sampler(model)(images(5))
    assert count.sizes == [5, 5, 5]


# with a seed: a function of seed, image id and sample

seeded_models = pytest.mark.parametrize(
    ("make", "size"), [(smp_fpn, 64), (segformer, 64), (partial(fixed, SmallNet), 16)], ids=["FPN", "mit_b0", "small"]
)


@seeded_models
def test_with_a_seed_an_image_is_sampled_the_same_alone_and_in_a_batch(make, size):
    x, ids, est = images(7, size), names(7), sampler(make(), seed=1)
    together = stacked(est, x, ids)
    alone = torch.cat([stacked(est, x[i : i + 1], ids[i : i + 1]) for i in range(7)], 1)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


@seeded_models
def test_with_a_seed_the_order_of_the_images_does_not_matter(make, size):
    x, ids, est = images(7, size), names(7), sampler(make(), seed=1)
    order = [3, 6, 0, 2, 5, 1, 4]
    shuffled = stacked(est, x[order], [ids[i] for i in order])
    torch.testing.assert_close(shuffled, stacked(est, x, ids)[:, order], rtol=0, atol=1e-5)


@seeded_models
def test_with_a_seed_the_size_of_the_batches_does_not_matter(make, size):
    x, ids, est = images(7, size), names(7), sampler(make(), seed=1)
    chunks = [est(x[i : i + 3], ids[i : i + 3])["mutual_information"] for i in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(chunks), est(x, ids)["mutual_information"], rtol=0, atol=1e-5)


IN_A_PROCESS = """
import sys, torch
from seguq.inference import MCDropout
model, images, ids = torch.load(sys.argv[1], weights_only=False)
torch.rand(17)
torch.save(MCDropout(model, samples=3, seed=1, calibrator=None)(images, ids).probs, sys.argv[2])
"""


def test_with_a_seed_another_process_gives_the_same(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Conv2d(8, 3, 1))
    content = model, images(3), names(3)
    torch.save(content, tmp_path / "in.pt")
    command = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, cwd=ROOT, check=True)
    expected = sampler(model, seed=1)(*content[1:]).probs
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=0, atol=1e-5)


def in_threads(*calls):
    """What calls that run at once come to, as futures."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(call) for call in calls]


def test_with_a_seed_two_threads_at_once_give_the_same():
    x, ids = images(4, 32), names(4)
    expected = sampler(fixed(SmallNet), samples=8, seed=1)(x, ids).probs
    estimators = [sampler(fixed(SmallNet), samples=8, seed=1) for _ in range(2)]
    for future in in_threads(*(partial(est, x, ids) for est in estimators)):
        torch.testing.assert_close(future.result().probs, expected, rtol=0, atol=1e-5)


class Slow(SmallNet):
    """Gives another thread time to come in between in its first forward."""

    def __init__(self):
        super().__init__()
        self.started, self.first = threading.Event(), True

    def forward(self, x):
        if self.first:
            self.first = False
            self.started.set()
            threading.Event().wait(0.3)
        return super().forward(x)


def two_threads_on_one_model():
    model, x, ids = fixed(Slow), images(2), names(2)
    est = sampler(model, seed=1)

    def second():
        model.started.wait()
        return est(x, ids)

    return model, in_threads(partial(est, x, ids), second)


def test_with_a_seed_two_threads_on_the_same_model_give_the_same():
    _, futures = two_threads_on_one_model()
    expected = sampler(fixed(SmallNet), seed=1)(images(2), names(2)).probs
    for future in futures:
        torch.testing.assert_close(future.result().probs, expected, rtol=0, atol=1e-5)


def test_two_threads_on_the_same_model_leave_it_as_it_was():
    model, _ = two_threads_on_one_model()
    assert not any(flags(model).values())


@seeded_models
def test_with_a_seed_the_global_generator_does_not_move(make, size):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sampler(make(), seed=1)(images(2, size))
    assert torch.equal(torch.get_rng_state(), before)


def test_with_a_seed_the_global_generator_does_not_move_between_samples():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for _ in sampler(fixed(SmallNet), seed=1).samples(images()):
        assert torch.equal(torch.get_rng_state(), before)


def test_with_a_seed_the_state_of_the_global_generator_does_not_matter():
    est = sampler(fixed(SmallNet), seed=1)
    torch.manual_seed(3)
    one = est(images(), names(2)).probs
    torch.manual_seed(4)
    assert torch.equal(est(images(), names(2)).probs, one)


def test_with_a_seed_the_first_samples_do_not_depend_on_how_many_follow():
    few, many = (stacked(sampler(fixed(SmallNet), samples=s, seed=1), images(), names(2)) for s in (2, 5))
    assert torch.equal(many[:2], few)


def test_different_seeds_give_different_samples():
    one, other = (stacked(sampler(fixed(SmallNet), seed=seed), images(), names(2)) for seed in (1, 2))
    assert not torch.equal(one, other)


def test_different_image_ids_give_different_samples():
    x = images(1).expand(2, -1, -1, -1)
    one, other = stacked(sampler(fixed(SmallNet), seed=1), x, ["a", "b"]).unbind(1)
    assert not torch.equal(one, other)


def test_the_samples_of_an_image_differ():
    one, two, three = stacked(sampler(fixed(SmallNet), seed=1), images(1), ["a"])
    assert not (torch.equal(one, two) or torch.equal(one, three) or torch.equal(two, three))


def test_describing_an_estimator_does_not_change_its_next_samples():
    x, est = images(2), sampler(fixed(SmallNet), seed=1)
    est.describe(x)
    assert torch.equal(est(x).probs, sampler(fixed(SmallNet), seed=1)(x).probs)


# which layers


class Own(nn.Module):
    """Somebody's own module that only shares its name with timm's."""

    def forward(self, x):
        return x


Own.__name__ = "DropPath"


class Zoo(nn.Module):
    """One of everything that behaves differently in training, or sounds like it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)
        self.dropout_1d = nn.Dropout1d(0.5)
        self.dropout_2d = nn.Dropout2d(0.5)
        self.dropout_3d = nn.Dropout3d(0.5)
        self.alpha = nn.AlphaDropout(0.5)
        self.feature_alpha = nn.FeatureAlphaDropout(0.5)
        self.drop_path = timm.layers.DropPath(0.5)
        self.stochastic_depth = torchvision.ops.StochasticDepth(0.5, "row")
        self.of_a_subclass = type("MyDropout", (nn.Dropout,), {})(0.5)
        self.deep = nn.Sequential(nn.ModuleDict({"inner": nn.ModuleList([nn.Dropout(0.5)])}))
        self.batch_norm = nn.BatchNorm2d(3)
        self.timm_norm = timm.layers.BatchNormAct2d(3)
        self.instance_norm = nn.InstanceNorm2d(3, track_running_stats=True)
        self.group_norm = nn.GroupNorm(1, 3)
        self.random_relu = nn.RReLU()
        self.own = Own()

    def forward(self, x):
        x = self.conv(x)
        for layer in (self.dropout, self.dropout_2d, self.alpha, self.feature_alpha, self.drop_path):
            x = layer(x)
        x = self.dropout_1d(x.flatten(2)).view_as(x)
        x = self.dropout_3d(x[:, :, None]).squeeze(2)
        x = self.of_a_subclass(self.deep[0]["inner"][0](self.stochastic_depth(x)))
        for layer in (self.batch_norm, self.timm_norm, self.instance_norm, self.group_norm, self.random_relu):
            x = layer(x)
        return self.own(x)


ZOO_DROPOUTS = {
    "dropout",
    "dropout_1d",
    "dropout_2d",
    "dropout_3d",
    "alpha",
    "own",
    "feature_alpha",
    "drop_path",
    "stochastic_depth",
    "of_a_subclass",
    "deep.0.inner.0",
}
ZOO_STATISTICS = {"batch_norm", "timm_norm", "instance_norm"}


def switched_on(model, **settings):
    """The modules that were in training mode in the passes of MC dropout."""
    count = Count(model)
    sampler(model, **settings)(images())
    (seen,) = {frozenset(name for name, on in seen.items() if on) for seen in count.flags}
    return seen


@seeds
def test_layers_dropout_switches_on_dropout_of_every_kind_and_nothing_else(seed):
    model = fixed(Zoo)
    model.train()
    assert switched_on(model, seed=seed) == ZOO_DROPOUTS


@seeds
def test_layers_all_switches_on_everything_but_running_statistics(seed):
    model = fixed(Zoo)
    kept = {name for name in flags(model) if name.split(".")[0] in ZOO_STATISTICS}
    # timm's BatchNormAct2d holds an activation and a dropout of its own
    on = switched_on(model, layers="all", seed=seed)
    assert on | kept == set(flags(model))
    assert not on & ZOO_STATISTICS


def test_a_predicate_switches_on_what_it_picks():
    assert switched_on(fixed(Zoo), layers=lambda name, module: name == "dropout_2d") == {"dropout_2d"}


def test_a_predicate_sees_the_module_of_each_name():
    model = fixed(Zoo)
    seen = {}

    def pick(name, module):
        seen[name] = module
        return isinstance(module, nn.AlphaDropout)

    assert switched_on(model, layers=pick) == {"alpha"}
    assert len(seen) > 10
    assert seen.items() <= dict(model.named_modules()).items()


class Flat(nn.Dropout1d):
    """Dropout1d takes in no more than one spatial dimension."""

    def forward(self, x):
        return super().forward(x.flatten(2)).view_as(x)


@pytest.mark.parametrize("kind", DROPOUTS, ids=lambda kind: kind.__name__)
def test_a_model_may_have_no_other_randomness_than(kind):
    dropout = {nn.Dropout1d: Flat, torchvision.ops.StochasticDepth: partial(kind, mode="row")}.get(kind, kind)(0.5)
    assert sampler(fixed(SmallNet, dropout=dropout), samples=8, seed=0)(images())["variance"].max() > 0


@seeds
@pytest.mark.parametrize("layers", ["dropout", "all", lambda name, module: True], ids=["dropout", "all", "predicate"])
def test_running_statistics_stay_as_they_are(layers, seed):
    model = fixed(Zoo)
    before = tensors(model)
    model.train()
    sampler(model, layers=layers, seed=seed)(images())
    assert same_tensors(model, before)


class AttentionNet(nn.Module):
    """torch's own transformer, whose fast path for prediction has no dropout in it."""

    def __init__(self, stack):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.TransformerEncoder(layer, 2) if stack else layer
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        tokens = self.attention(x.flatten(2).transpose(1, 2))
        return self.head(tokens.transpose(1, 2).view_as(x))


@seeds
@pytest.mark.parametrize("stack", [False, True], ids=["TransformerEncoderLayer", "TransformerEncoder"])
def test_dropout_inside_of_torchs_own_transformer_is_drawn(stack, seed):
    assert sampler(fixed(AttentionNet, stack), seed=seed)(images())["variance"].max() > 0


def test_the_tag_names_the_layers_and_not_the_number_of_samples():
    assert {sampler(fixed(SmallNet), samples=s).tag for s in (3, 20)} == {"mc_dropout(layers=dropout)"}
    assert sampler(fixed(SmallNet), layers="all").tag == "mc_dropout(layers=all)"


# nothing random

nothing_random = pytest.mark.parametrize(
    ("make", "layers"),
    [
        (lambda: SmallNet(dropout=nn.Identity()), "dropout"),
        (lambda: SmallNet(dropout=nn.Identity()), "all"),
        (lambda: SmallNet(dropout=nn.Dropout(0.0)), "dropout"),
        (lambda: SmallNet(dropout=nn.Dropout(0.0)), "all"),
        (FunctionalNet, "dropout"),
        (lambda: FunctionalNet(p=0.0), "all"),
        (SmallNet, lambda name, module: name == "norm"),
    ],
    ids=["none", "none, all", "p=0", "p=0, all", "function", "function p=0, all", "predicate picks another"],
)


@seeds
@nothing_random
def test_a_call_in_which_nothing_is_random_is_an_error_that_says_how_to_add_dropout(make, layers, seed):
    with pytest.raises(SeguqError, match="inject_dropout"):
        sampler(fixed(make), layers=layers, seed=seed)(images())


@nothing_random
def test_samples_in_which_nothing_is_random_are_an_error_that_says_how_to_add_dropout(make, layers):
    with pytest.raises(SeguqError, match="inject_dropout"):
        next(sampler(fixed(make), layers=layers).samples(images()))


@seeds
def test_the_error_that_nothing_is_random_leaves_the_model_as_it_was(seed):
    model = fixed(FunctionalNet)
    mix_flags(model)
    before = flags(model)
    with pytest.raises(SeguqError):
        sampler(model, seed=seed)(images())
    assert flags(model) == before


def test_the_error_that_nothing_is_random_comes_after_one_pass():
    model = fixed(FunctionalNet)
    count = Count(model)
    with pytest.raises(SeguqError):
        sampler(model, samples=50)(images())
    assert count.forwards == 1


# the measures

tasks = pytest.mark.parametrize(
    ("task", "classes"),
    [("multiclass", 3), ("binary", 1), ("binary", 2), ("multilabel", 3)],
    ids=["multiclass", "one logit", "two logits", "multilabel"],
)


def by_functional(name, probs, task):
    """A measure by its function, from the probabilities ``(S, B, C, *spatial)`` that samples() gave."""
    if task == "multilabel":
        per_label = [by_functional(name, torch.stack((1 - p, p), 2), "binary") for p in probs.unbind(2)]
        return torch.stack(per_label).sum(0)
    return getattr(F, name)(probs.mean(0) if name in OF_PROBS else probs)


@tasks
@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("name", [*OF_PROBS, *OF_SAMPLES])
def test_a_measure_is_that_of_functional_on_the_stacked_samples(name, samples, task, classes):
    est = sampler(fixed(SmallNet, classes), samples=samples, seed=0, task=task)
    expected = by_functional(name, stacked(est, images(), names(2)), task)
    torch.testing.assert_close(est(images(), names(2))[name], expected, rtol=0, atol=1e-6)


@tasks
def test_probs_are_the_mean_of_the_samples(task, classes):
    est = sampler(fixed(SmallNet, classes), seed=0, task=task)
    expected = stacked(est, images(), names(2)).mean(0)
    torch.testing.assert_close(est(images(), names(2)).probs, expected, rtol=0, atol=1e-6)


def test_probs_are_finite_where_the_model_is_certain_beyond_floating_point():
    model = fixed(SmallNet)
    model.head.weight.data.mul_(1e4)
    maps = sampler(model, seed=0)(images())
    assert all(torch.isfinite(values).all() for values in (maps.probs, *(maps[name] for name in maps.names)))


def test_all_measures_of_mc_dropout_are_computed_by_default():
    assert sampler(fixed(SmallNet))(images()).names == (*OF_PROBS, *OF_SAMPLES)


def test_one_measure_may_be_named_without_a_tuple():
    assert sampler(fixed(SmallNet), measures="variance")(images()).names == ("variance",)


@pytest.mark.parametrize("name", ["expected_entropy", "variance", "variation_ratio"])
def test_a_measure_that_was_not_asked_for_costs_nothing_in_a_sample(name):
    def operations(*measures):
        few, many = Operations(), Operations()
        for samples, seen in ((3, few), (4, many)):
            with seen:
                sampler(fixed(SmallNet), samples=samples, measures=measures)(images())
        return many.calls.total() - few.calls.total()

    assert operations("least_confidence") < operations("least_confidence", name)


def test_an_unknown_measure_is_an_error_before_any_pass():
    with pytest.raises(SeguqError, match=r"'surprise' is no measure.*mutual_information"):
        sampler(fixed(SmallNet), measures=("variance", "surprise"))


@pytest.mark.parametrize("name", ["energy", "max_logit"])
def test_a_measure_of_another_estimator_is_an_error_that_says_whose_it_is(name):
    with pytest.raises(SeguqError, match=f"{name}.*Deterministic"):
        sampler(fixed(SmallNet), measures=(name,))


def test_a_map_that_was_not_asked_for_is_a_key_error_that_lists_those_there_are():
    with pytest.raises(KeyError, match=r"mutual_information.*variance.*MCDropout, DeepEnsemble"):
        sampler(fixed(SmallNet), measures="variance")(images())["mutual_information"]


# memory


def peak(samples, seed, read=lambda est, x: est(x)):
    est = sampler(fixed(SmallNet), samples=samples, seed=seed)
    x = images(2, 64)
    with LiveBytes() as live, torch.no_grad():
        read(est, x)
    return live.peak


@seeds
def test_memory_does_not_grow_with_the_number_of_samples(seed):
    assert peak(40, seed) <= peak(4, seed)


@seeds
def test_memory_of_reading_samples_does_not_grow_with_their_number(seed):
    def read(est, x):
        for probs in est.samples(x):
            del probs

    assert peak(40, seed, read) <= peak(4, seed, read)


def test_the_count_of_bytes_sees_a_stack():
    assert peak(40, None, stacked) > 3 * peak(4, None, stacked)


# samples()


def test_samples_are_computed_one_at_a_time():
    model = fixed(SmallNet)
    count = Count(model)
    seen = [count.forwards for _ in sampler(model, samples=4).samples(images())]
    assert seen == [1, 2, 3, 4]


def test_there_are_as_many_samples_as_were_asked_for():
    assert len(list(sampler(fixed(SmallNet), samples=5).samples(images()))) == 5


@tasks
def test_a_sample_is_a_distribution(task, classes):
    sample = next(sampler(fixed(SmallNet, classes), task=task).samples(images()))
    assert tuple(sample.shape) == (2, {"binary": 2}.get(task, classes), 16, 16)
    assert sample.min() >= 0 and sample.max() <= 1
    if task != "multilabel":
        torch.testing.assert_close(sample.sum(1), torch.ones(2, 16, 16))


@seeds
def test_between_samples_the_model_is_as_it_was(seed):
    model = fixed(SmallNet)
    mix_flags(model)
    before = flags(model)
    seen = [flags(model) for _ in sampler(model, seed=seed).samples(images())]
    assert seen == [before] * 3


@pytest.mark.parametrize("mode", [True, False])
def test_between_samples_the_grad_mode_is_as_it_was(mode):
    with torch.set_grad_enabled(mode):
        seen = [torch.is_grad_enabled() for _ in sampler(fixed(SmallNet)).samples(images())]
        assert [*seen, torch.is_grad_enabled()] == [mode] * 4


def test_samples_carry_no_gradient():
    assert not any(sample.requires_grad for sample in sampler(fixed(SmallNet)).samples(images()))


@seeds
def test_abandoned_samples_leave_model_and_modes_as_they_were(seed):
    model = fixed(SmallNet)
    mix_flags(model)
    before = flags(model)
    stream = sampler(model, seed=seed).samples(images())
    next(stream)
    stream.close()
    assert (flags(model), torch.is_grad_enabled()) == (before, True)


def test_two_streams_of_samples_may_be_read_in_turn():
    est, x = sampler(fixed(SmallNet), seed=1), images()
    pairs = list(zip(est.samples(x, names(2)), est.samples(x, names(2)), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)


# the model is left as it was


@seeds
@sampled
def test_a_call_leaves_training_flags_as_they_were(make, layers, size, seed):
    model = make()
    mix_flags(model)
    before = flags(model)
    sampler(model, samples=1, layers=layers, seed=seed)(images(1, size))
    assert flags(model) == before


@seeds
def test_a_call_leaves_hooks_as_they_were(seed):
    model = fixed(SmallNet)
    before = hooks(model)
    est = sampler(model, seed=seed)
    est(images())
    est.describe(images())
    assert hooks(model) == before


@seeds
def test_a_call_leaves_weights_and_gradients_as_they_were(seed):
    model = fixed(SmallNet)
    model(images()).sum().backward()
    weights, gradients = tensors(model), [p.grad.clone() for p in model.parameters()]
    sampler(model, seed=seed)(images())
    assert same_tensors(model, weights)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("number", [0, 1, 2])
@seeds
def test_an_exception_in_a_forward_leaves_training_flags_as_they_were(seed, number):
    model = Raising(number, fixed(SmallNet))
    mix_flags(model)
    before = flags(model)
    with pytest.raises(FloatingPointError):
        sampler(model, seed=seed)(images(1))
    assert flags(model) == before


def test_an_exception_in_a_forward_with_a_seed_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    with pytest.raises(FloatingPointError):
        sampler(Raising(1, fixed(SmallNet)), seed=0)(images(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exception_while_describing_leaves_hooks_as_they_were():
    model = Raising(0, fixed(SmallNet))
    before = hooks(model)
    with pytest.raises(FloatingPointError):
        sampler(model).describe(images())
    assert hooks(model) == before


def test_an_exception_in_a_forward_leaves_the_grad_mode_as_it_was():
    with pytest.raises(FloatingPointError):
        list(sampler(Raising(0, fixed(SmallNet))).samples(images()))
    assert torch.is_grad_enabled()


# tasks


@pytest.mark.parametrize("name", [*OF_PROBS, *OF_SAMPLES])
def test_a_one_logit_model_is_the_two_logit_model_of_the_same_sigmoid(name):
    one_logit = fixed(SmallNet, 1)
    one = sampler(one_logit, seed=0, task="binary")(images(), names(2))
    two = sampler(LabelNet(one_logit), seed=0)(images(), names(2))
    torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)


def test_the_second_probability_of_a_one_logit_model_is_the_mean_of_its_sigmoids():
    model = fixed(SmallNet, 1)
    torch.manual_seed(3)
    maps = sampler(model, task="binary")(images())
    torch.manual_seed(3)
    model.dropout.train()
    with torch.no_grad():
        expected = torch.stack([torch.sigmoid(model(images())[:, 0]) for _ in range(3)]).mean(0)
    torch.testing.assert_close(maps.probs[:, 1], expected, rtol=0, atol=1e-6)


def test_multilabel_probs_are_those_of_the_labels():
    maps = sampler(fixed(SmallNet, 5), task="multilabel")(images())
    assert tuple(maps.probs.shape) == (2, 5, 16, 16)
    assert (maps.probs.sum(1) - 1).abs().max() > 0.1  # they are independent, and do not sum to 1


@pytest.mark.parametrize("name", [*OF_PROBS, *OF_SAMPLES])
def test_a_multilabel_map_is_the_sum_over_the_labels(name):
    model = fixed(SmallNet, 3)
    maps = sampler(model, seed=0, task="multilabel")(images(), names(2))

    def one_label(i):
        est = sampler(model, seed=0, task="binary", forward=lambda model, x: model(x)[:, i : i + 1])
        return est(images(), names(2))[name]

    torch.testing.assert_close(maps[name], sum(one_label(i) for i in range(3)), rtol=0, atol=1e-5)


def test_one_logit_under_multiclass_is_an_error_that_names_the_task():
    with pytest.raises(SeguqError, match="task='binary'"):
        sampler(fixed(SmallNet, 1))(images())


# numbers of another type, other modes of torch, other shapes


@seeds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_maps_of_a_half_precision_model_are_float32(dtype, seed):
    maps = sampler(fixed(SmallNet).to(dtype), seed=seed)(images())
    assert {maps.probs.dtype, *(maps[name].dtype for name in maps.names)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_gives_nearly_the_same(dtype):
    expected = sampler(fixed(SmallNet), seed=0)(images()).probs
    actual = sampler(fixed(SmallNet).to(dtype), seed=0)(images()).probs
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.05)


def test_the_maps_of_a_float64_model_are_computed_in_float64():
    est = sampler(fixed(SmallNet).double(), seed=0)
    maps, probs = est(images(), names(2)), stacked(est, images(), names(2))
    for name in OF_SAMPLES:
        torch.testing.assert_close(maps[name], getattr(F, name)(probs), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_images_are_brought_to_the_type_of_the_model(dtype):
    x = (images() * 255).to(dtype)
    est = sampler(fixed(SmallNet), seed=0)
    assert torch.equal(est(x, names(2)).probs, est(x.float(), names(2)).probs)


@seeds
def test_under_inference_mode_the_answer_is_the_same(seed):
    torch.manual_seed(3)
    expected = sampler(fixed(SmallNet), seed=seed)(images())
    torch.manual_seed(3)
    with torch.inference_mode():
        actual = sampler(fixed(SmallNet), seed=seed)(images())
    assert all(torch.equal(actual[name], expected[name]) for name in expected.names)


def test_samples_may_be_read_under_inference_mode():
    expected = stacked(sampler(fixed(SmallNet), seed=0), images())
    with torch.inference_mode():
        assert torch.equal(stacked(sampler(fixed(SmallNet), seed=0), images()), expected)


def test_under_autocast_maps_are_float32():
    with torch.autocast("cpu", torch.bfloat16):
        maps = sampler(fixed(SmallNet), seed=0)(images())
    assert {maps.probs.dtype, *(maps[name].dtype for name in maps.names)} == {torch.float32}


def test_under_autocast_the_answer_is_nearly_the_same():
    expected = sampler(fixed(SmallNet), seed=0)(images()).probs
    with torch.autocast("cpu", torch.bfloat16):
        actual = sampler(fixed(SmallNet), seed=0)(images()).probs
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.05)


def test_a_training_step_after_a_call_under_autocast_has_gradients():
    layer = torch.nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            layer(torch.ones(1, 2))
        if not layer(torch.ones(1, 2)).requires_grad:
            pytest.skip("this torch keeps what was cast without gradients for those who need them")
    model = fixed(SmallNet)
    with torch.autocast("cpu", torch.bfloat16):
        sampler(model)(images())
        loss = model(images()).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@seeds
def test_volumes_are_sampled_like_images(seed):
    x = images(2, 8, dims=3)
    est = sampler(fixed(SmallNet, dropout=nn.Dropout3d(0.5), dims=3), seed=seed)
    maps = est(x)
    assert tuple(maps["mutual_information"].shape) == (2, 8, 8, 8)
    assert maps["mutual_information"].max() > 0


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_measure_of_volumes_is_that_of_functional(name):
    est = sampler(fixed(SmallNet, dropout=nn.Dropout3d(0.5), dims=3), seed=0)
    x = images(2, 8, dims=3)
    expected = getattr(F, name)(stacked(est, x, names(2)))
    torch.testing.assert_close(est(x, names(2))[name], expected, rtol=0, atol=1e-6)


def test_logits_at_a_quarter_of_the_size_are_resized_before_the_softmax():
    model = fixed(QuarterNet)
    torch.manual_seed(3)
    actual = stacked(sampler(model), images())
    torch.manual_seed(3)
    model.dropout.train()
    with torch.no_grad():
        logits = [model(images()).logits for _ in range(3)]
    resized = [TF.interpolate(z, size=(16, 16), mode="bilinear", align_corners=False) for z in logits]
    assert torch.equal(actual, torch.stack([torch.softmax(z, 1) for z in resized]))


def test_the_main_output_of_a_dict_is_taken():
    assert torch.equal(
        stacked(sampler(fixed(DictNet), seed=0), images()), stacked(sampler(fixed(SmallNet), seed=0), images())
    )


def test_forward_says_how_to_get_the_logits():
    def forward(model, x):
        return [None, model(x)][1] * 0.5

    model = fixed(SmallNet)
    actual = stacked(sampler(model, seed=0, forward=forward), images(), names(2))
    logits = stacked(sampler(model, seed=0), images(), names(2)).log()
    torch.testing.assert_close(actual, torch.softmax(logits * 0.5, 2), rtol=0, atol=1e-6)


@seeds
def test_a_model_without_parameters_is_sampled(seed):
    assert sampler(nn.Dropout(0.5), seed=seed)(images())["variance"].max() > 0


# describe()


def test_describe_names_layers_measures_and_passes():
    assert sampler(fixed(Zoo), samples=7, measures="variance").describe() == {
        "estimator": "mc_dropout(layers=dropout)",
        "measures": ("variance",),
        "layers": tuple(name for name in flags(Zoo()) if name in ZOO_DROPOUTS),
        "passes": 7,
        "seed": None,
    }


def test_describe_without_images_does_not_run_the_model():
    model = fixed(SmallNet)
    count = Count(model)
    sampler(model).describe()
    assert count.forwards == 0


def test_describe_with_images_names_what_was_seen_to_be_random():
    assert set(sampler(fixed(Zoo)).describe(images())["random"]) == ZOO_DROPOUTS - {"own"}  # which does nothing


def test_describe_with_images_names_the_module_around_a_random_function():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), fixed(FunctionalNet))
    assert sampler(model, layers="all").describe(images())["random"] == ("1",)


def test_describe_with_images_names_a_layer_that_is_used_twice_once():
    dropout = nn.Dropout(0.5)
    model = nn.Sequential(dropout, nn.Conv2d(3, 3, 1), dropout)
    assert sampler(model).describe(images())["random"] == ("0",)


def test_describe_with_images_names_nothing_where_nothing_is_random():
    assert sampler(fixed(SmallNet, dropout=nn.Dropout(0.0))).describe(images())["random"] == ()


def test_describe_with_images_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    sampler(fixed(SmallNet)).describe(images())
    assert torch.equal(torch.get_rng_state(), before)


def test_describe_with_images_leaves_training_flags_as_they_were():
    model = fixed(SmallNet)
    mix_flags(model)
    before = flags(model)
    sampler(model).describe(images())
    assert flags(model) == before


# wrong use


@pytest.mark.parametrize("samples", [0, -1, 2.5, True, "3", None])
def test_a_number_of_samples_that_is_none_is_an_error(samples):
    with pytest.raises(SeguqError, match="samples must be a whole number of at least 1"):
        sampler(fixed(SmallNet), samples=samples)


@pytest.mark.parametrize("layers", ["Dropout", "", None, 3])
def test_unknown_layers_are_an_error_that_lists_the_choice(layers):
    with pytest.raises(SeguqError, match="layers must be 'dropout', 'all' or a predicate"):
        sampler(fixed(SmallNet), layers=layers)


def test_an_unknown_task_is_an_error_that_lists_the_choice():
    with pytest.raises(SeguqError, match="multiclass, binary, multilabel"):
        sampler(fixed(SmallNet), task="regression")


def test_a_calibrator_that_is_none_is_an_error():
    with pytest.raises(SeguqError, match="calibrator must be"):
        sampler(fixed(SmallNet), calibrator="automatic")


def test_the_package_hands_on_the_estimator():
    assert seguq.MCDropout is MCDropout


@pytest.mark.parametrize("seed", [None, 0])
def test_a_batch_without_images_has_maps_without_images(seed):
    maps = MCDropout(fixed(SmallNet), samples=2, seed=seed, calibrator=None)(images(2)[:0])
    assert len(maps) == 0 and tuple(maps.probs.shape) == (0, 3, 16, 16)
