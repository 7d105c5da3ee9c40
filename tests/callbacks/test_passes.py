"""The passes of an estimator over a run, and who shares them."""

import pytest
import pytorch_lightning
import torch

import seguq
from seguq.callbacks import Calibrate
from seguq.callbacks.base import EstimatorCallback
from seguq.callbacks.passes import estimator_from
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

    def _opened(self, trainer, module, stage, passes):
        passes.want(self.wanted)

    def _batch(self, trainer, module, stage, step, dataloader):
        self.steps.append(step)
        self.maps.append(step.maps_of(None))


def validated(folder, *callbacks, module=None, val=None, package=pytorch_lightning):
    module = make(package) if module is None else module
    val = loader(data_for(module)) if val is None else val
    trainer_of(package, folder, *callbacks).validate(module, val, verbose=False)
    return module


@pytest.mark.parametrize(("name", "made"), [("deterministic", Deterministic), ("mc_dropout", MCDropout)])
def test_an_estimator_may_be_named(name, made):
    assert type(estimator_from(name)) is made


@pytest.mark.parametrize("given", ["deep_ensemble", 5, torch.nn.Identity()], ids=str)
def test_what_is_no_estimator_is_an_error_that_lists_the_names(given):
    with pytest.raises(
        SeguqError, match=r"one of deterministic, mc_dropout, an estimator such as .* or None .* but is"
    ):
        estimator_from(given)


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


def test_a_seed_and_a_forward_for_whole_batches_do_not_go_together(tmp_path):
    look = Look(MCDropout(samples=2, seed=0), forward=lambda module, batch: module(batch[0]))
    with pytest.raises(SeguqError, match=r"seed= runs image by image, which forward= with a whole batch cannot"):
        validated(tmp_path, look)


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
