"""The passes of an estimator over a run, and who shares them."""

import copy
import warnings

import pytest
import pytorch_lightning
import torch
from torch import nn

import seguq
from seguq.callbacks import Calibrate
from seguq.callbacks.base import EstimatorCallback
from seguq.callbacks.run import Run
from seguq.core.errors import SeguqError
from seguq.inference import Deterministic, MCDropout
from tests.callbacks.modules import Forwards, both_names, data_for, kind, loader, make, trainer_of

MEASURES = ("predictive_entropy", "mutual_information")


class Look(EstimatorCallback):
    """Notes each step, and its maps."""

    def __init__(self, *args, measures=("predictive_entropy",), **settings):
        super().__init__(*args, **settings)
        self.wanted, self.steps, self.maps = measures, [], []

    @property
    def state_key(self):
        return str(id(self))

    def start(self, trainer, module, stage, passes):
        passes.want(self.wanted)
        return Looking(self, trainer, module, stage, passes)


class Looking(Run):
    def look(self, step, dataloader):
        self.callback.steps.append(step)
        self.callback.maps.append(step.maps_of(None))


def validated(folder, *callbacks, module=None, val=None, package=pytorch_lightning):
    module = make(package) if module is None else module
    val = loader(data_for(module)) if val is None else val
    trainer_of(package, folder, *callbacks).validate(module, val, verbose=False)
    return module


class Halved(Deterministic):
    name = "halved"

    def pool(self, images, ids, names):
        logits, maps = super().pool(images, ids, names)
        return logits / 2, maps


@pytest.mark.parametrize(
    ("name", "made"),
    [("deterministic", Deterministic), ("mc_dropout", MCDropout), ("MCDropout", MCDropout), ("halved", Halved)],
)
def test_an_estimator_may_be_named(name, made):
    assert type(Look(name).estimator) is made


def test_an_estimator_of_ones_own_may_be_named_by_its_import_path(tmp_path):
    look = Look(f"{__name__}.Halved")
    module = validated(tmp_path, look)
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, module.eval()(image) / 2)


def test_an_unknown_name_is_an_error_that_lists_those_that_there_are():
    with pytest.raises(SeguqError, match=r"there is no Estimator 'mc': there are .*deterministic, .*mc_dropout, "):
        Look("mc")


def test_an_estimator_that_its_name_does_not_suffice_for_says_what_it_needs():
    with pytest.raises(SeguqError, match="DeepEnsemble needs members, which is not known where"):
        Look("deep_ensemble")


@pytest.mark.parametrize("given", [5, torch.nn.Identity()], ids=str)
def test_what_is_no_estimator_is_an_error_that_says_what_it_may_be(given):
    with pytest.raises(SeguqError, match=r"an estimator such as .*, the name of one, or None .* but is"):
        Look(given)


@both_names
def test_the_maps_are_those_of_the_estimator_called_by_hand(package, tmp_path):
    look = Look()
    module = validated(tmp_path, look, package=package)
    for (image, _), maps in zip(loader(data_for(module)), look.maps, strict=True):
        expected = Deterministic(module.eval(), calibrator=None)(image)
        torch.testing.assert_close(maps["predictive_entropy"], expected["predictive_entropy"])
        torch.testing.assert_close(maps.probs, expected.probs)


@pytest.mark.parametrize("estimator", ["mc_dropout", MCDropout(samples=20)], ids=["by name", "the same object"])
def test_callbacks_that_ask_for_the_same_share_one_run(estimator, tmp_path):
    counts = []
    for callbacks in ([Look(estimator)], [Look(estimator), Look(estimator), Calibrate(estimator=estimator)]):
        module = make(pytorch_lightning)
        forwards = Forwards(module.net)
        validated(tmp_path, *callbacks, module=module)
        counts.append(forwards.count)
    assert counts[0] == counts[1] == 2 * (1 + 20)


def test_callbacks_that_share_a_run_have_each_their_measures(tmp_path):
    one = MCDropout(samples=3)
    first, second = Look(one, measures=MEASURES[:1]), Look(one, measures=MEASURES)
    validated(tmp_path, first, second)
    assert all(set(MEASURES) <= set(maps.names) for maps in second.maps)


def test_callbacks_with_settings_of_their_own_run_by_themselves(tmp_path):
    module = make(pytorch_lightning)
    forwards = Forwards(module.net)
    validated(tmp_path, Look(MCDropout(samples=2)), Look(MCDropout(samples=3)), module=module)
    assert forwards.count == 2 * (1 + 2 + 3)


def test_samples_are_the_same_in_every_run_but_not_in_every_batch(tmp_path):
    image = data_for(make(pytorch_lightning))[0]
    looks = [Look(MCDropout(samples=2)) for _ in range(2)]
    for seed, look in enumerate(looks):
        torch.manual_seed(seed)
        validated(tmp_path, look, val=loader([image, image], batch_size=1))
    first, second = ([maps.probs for maps in look.maps] for look in looks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_images_without_ids_have_the_data_sets_index(tmp_path):
    look = Look()
    validated(tmp_path, look)
    assert [step.ids for step in look.steps] == [("0", "1", "2"), ("3", "4")]
    assert [step.numbers for step in look.steps] == [(0, 1, 2), (3, 4)]


def test_the_ids_of_a_batch_are_kept(tmp_path):
    look, module = Look(), make(pytorch_lightning, "Torchvision")
    validated(tmp_path, look, module=module)
    assert [image_id for step in look.steps for image_id in step.ids] == [f"scene {i}" for i in range(5)]


def test_without_ids_the_images_of_several_loaders_have_ids_of_their_own(tmp_path):
    look, module = Look(), make(pytorch_lightning)
    validated(tmp_path, look, module=module, val=[loader(data_for(module, 2)), loader(data_for(module, 2, seed=1))])
    assert [image_id for step in look.steps for image_id in step.ids] == ["0-0", "0-1", "1-0", "1-1"]


def test_a_step_that_changes_the_images_is_told_of_once(tmp_path):
    with pytest.warns(UserWarning, match="step changes the images") as caught:
        validated(tmp_path, Look(), module=make(pytorch_lightning, "Normalizing"))
    assert sum("step changes the images" in str(warning.message) for warning in caught) == 1


def test_a_measure_that_the_estimator_does_not_have_is_an_error_with_those_that_it_has(tmp_path):
    with pytest.raises(SeguqError, match=r"'mutual_information' is not among the measures of deterministic, which are"):
        validated(tmp_path, Look(measures=MEASURES))


def test_an_estimators_own_forward_is_used(tmp_path):
    look = Look(Deterministic(forward=lambda model, images: model(images) / 2))

    class Silent(kind(pytorch_lightning)):
        def validation_step(self, batch, batch_idx):
            return None

    module = validated(tmp_path, look, module=Silent())
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, module.eval()(image) / 2)


def test_an_estimators_own_forward_is_used_where_the_modules_was_seen_too(tmp_path):
    look = Look(Deterministic(forward=lambda model, images: model(images) / 2))
    module = validated(tmp_path, look)
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, module.eval()(image) / 2)


def test_predict_gives_ids_where_the_module_has_no_predict_step(tmp_path):
    module, look = make(pytorch_lightning), Look()
    found = trainer_of(pytorch_lightning, tmp_path, look).predict(module, loader(data_for(module)))
    assert found == [["0", "1", "2"], ["3", "4"]]
    assert "predict_step" not in vars(module)
    assert len(look.maps) == 2


def test_a_predict_step_of_ones_own_runs_as_written(tmp_path):
    class Own(kind(pytorch_lightning)):
        def predict_step(self, batch, batch_idx):
            return float(self(batch[0]).sum())

    found = []
    for callbacks in ([], [Look()]):
        module = Own()
        found.append(trainer_of(pytorch_lightning, tmp_path, *callbacks).predict(module, loader(data_for(module))))
    assert found[0] == found[1]


def test_a_task_is_taken_from_the_module_and_may_be_told(tmp_path):
    of_module, told = Look(), Look(task="multilabel")
    validated(tmp_path, of_module, module=make(pytorch_lightning, "Multilabel"))

    class Silent(kind(pytorch_lightning, "Multilabel")):
        def __init__(self):
            super().__init__()
            del self.task

    validated(tmp_path, told, module=Silent())
    assert torch.equal(of_module.maps[0].probs, told.maps[0].probs)
    assert seguq.Deterministic(task="multilabel").tag == "deterministic"


class Swapping(pytorch_lightning.Callback):
    """Puts another network into the module for the time of a validation."""

    def on_validation_start(self, trainer, module):
        self.own, module.net = module.net, flatter(module.net)

    def on_validation_end(self, trainer, module):
        module.net = self.own


def flatter(net):
    other = copy.deepcopy(net)
    other.head.weight.data.mul_(0.3)
    return other


@pytest.mark.parametrize("name", ["Plain", "WithoutForward", "PastForward"])
@pytest.mark.parametrize("first", [True, False], ids=["swapped before", "swapped after"])
def test_a_network_that_another_callback_swaps_in_is_the_one_that_is_asked(name, first, tmp_path):
    module, look, swapping = make(pytorch_lightning, name), Look(), Swapping()
    validated(tmp_path, *([swapping, look] if first else [look, swapping]), module=module)
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, flatter(module.net).eval()(image))


@pytest.mark.parametrize("name", ["Plain", "WithoutForward", "PastForward"])
def test_samples_are_of_the_network_that_another_callback_swaps_in(name, tmp_path):
    module = make(pytorch_lightning, name)
    forwards = Forwards(module.net)
    forwards_in_copies = []

    class Counting(Swapping):
        def on_validation_start(self, trainer, module):
            super().on_validation_start(trainer, module)
            forwards_in_copies.append(Forwards(module.net))

    validated(tmp_path, Look(MCDropout(samples=2)), Counting(), module=module)
    assert forwards.count == 0
    assert forwards_in_copies[0].count == 2 * (1 + 2)


def test_an_estimator_that_adds_to_the_deterministic_pass_is_called(tmp_path):
    look = Look(Halved())
    module = validated(tmp_path, look)
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, module.eval()(image) / 2)


@pytest.mark.parametrize(
    "same",
    [
        lambda image: image.contiguous(memory_format=torch.channels_last),
        lambda image: image.clone(),
        lambda image: image,
    ],
    ids=["channels last", "a copy", "the same"],
)
def test_a_step_that_only_copies_the_images_is_told_nothing(same, tmp_path):
    class Copying(kind(pytorch_lightning)):
        def evaluate(self, batch):
            return super().evaluate((same(batch[0]), batch[1]))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changes the images")
        validated(tmp_path, Look(), module=Copying())


def test_samples_are_of_images_that_the_step_has_normalized_in_place(tmp_path):
    class InPlace(kind(pytorch_lightning)):
        def evaluate(self, batch):
            batch[0].sub_(0.4).div_(0.5)
            return super().evaluate(batch)

    module, plain, sampled = InPlace(), Look(), Look(MCDropout(samples=2))
    module.net.dropout.p = 1e-12  # draws random numbers, and drops nothing
    validated(tmp_path, plain, sampled, module=module)
    torch.testing.assert_close(sampled.maps[0].probs, plain.maps[0].probs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", ["Plain", "WithoutForward"])
def test_a_scripted_network_is_asked(name, tmp_path):
    module, look = make(pytorch_lightning, name), Look()
    module.net = torch.jit.script(module.net)
    validated(tmp_path, look, module=module)
    (image, _), *_ = loader(data_for(module))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, module.net.eval()(image))


def test_volumes_are_taken(tmp_path):
    class Volumes(kind(pytorch_lightning)):
        def __init__(self):
            super().__init__()
            self.net = nn.Conv3d(3, 3, 3, padding=1)

    data = [(torch.randn(3, 4, 8, 8), torch.randint(3, (4, 8, 8))) for _ in range(4)]
    look = Look()
    validated(tmp_path, look, module=Volumes(), val=loader(data))
    assert [maps["predictive_entropy"].shape for maps in look.maps] == [(3, 4, 8, 8), (1, 4, 8, 8)]


# estimators around others


AROUND = {
    "views": lambda: seguq.TestTimeAugmentation(MCDropout(samples=2, seed=0), "flips", calibrator=None),
    "windows": lambda: seguq.SlidingWindow(MCDropout(samples=2, seed=0), window=8, calibrator=None),
    "views of one pass": lambda: seguq.TestTimeAugmentation(views="flips", calibrator=None),
}


@both_names
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_estimators_around_others_are_bound_to_the_module(package, around, tmp_path):
    module, look = make(package), Look(around())
    trainer_of(package, tmp_path, look).validate(module, loader(data_for(module)), verbose=False)
    image, _ = next(iter(loader(data_for(module))))
    maps = around().bind(module.net)(image, look.steps[0].ids)
    torch.testing.assert_close(look.steps[0].pooled.softmax(1), maps.probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_other_outputs_than_logits_go_through_estimators_around_others(around, tmp_path):
    class Quarter(type(make(pytorch_lightning))):
        def forward(self, x):
            return {"out": torch.nn.functional.avg_pool2d(self.net(x), 2)}

        def evaluate(self, batch):
            return self(batch[0])["out"].mean()

    module, look = Quarter(), Look(around())
    validated(tmp_path, look, module=module)
    assert look.steps[0].pooled.shape[2:] == look.steps[0].mask.shape[1:]


@pytest.mark.parametrize(
    "given", [*AROUND.values(), lambda: MCDropout(samples=2, seed=0)], ids=[*AROUND, "one image at a time"]
)
def test_an_estimator_that_shows_other_images_does_not_go_with_a_forward_of_a_whole_batch(given):
    """It is said where the callback is made."""
    with pytest.raises(SeguqError, match=r"shows its model other images than the batch .* which batch_forward= with a"):
        Look(given(), batch_forward=lambda module, batch: module(batch[0]))


def test_an_ensemble_of_estimators_keeps_its_members(tmp_path):
    module = make(pytorch_lightning)
    members = [MCDropout(make(pytorch_lightning, seed=s).net, samples=2, seed=0, calibrator=None) for s in (1, 2)]
    est = seguq.DeepEnsemble(members, calibrator=None)
    look = Look(est)
    validated(tmp_path, look, module=module)
    image, _ = next(iter(loader(data_for(module))))
    torch.testing.assert_close(look.steps[0].pooled.softmax(1), est(image, look.steps[0].ids).probs, rtol=0, atol=1e-5)
