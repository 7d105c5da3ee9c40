"""Which calibrator is applied to which checkpoint: in runs on a file, after a resumption, in files of any kind."""

import warnings

import pytest
import pytorch_lightning
import torch

import seguq
from seguq.callbacks import Calibrate
from seguq.callbacks.base import EstimatorCallback
from seguq.callbacks.run import Run
from seguq.core.errors import SeguqError
from tests.callbacks.modules import both_names, data_for, fit, kind, loader, make, trainer_of

MC = "mc_dropout(layers=dropout)"

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture(autouse=True)
def _same_dropout():
    torch.manual_seed(0)


class Answers(EstimatorCallback):
    """Notes the probabilities of every image, calibrated as the callbacks are."""

    def __init__(self, *words, **settings):
        super().__init__(*words, **settings)
        self.probs, self.applied = [], []

    @property
    def state_key(self):
        return f"answers {self.estimator}"

    def start(self, trainer, module, stage, passes):
        return Answering(self, trainer, module, stage, passes)


class Answering(Run):
    def look(self, step, dataloader):
        self.callback.applied.append(self.calibrator)
        self.callback.probs.append(step.maps_of(self.calibrator).probs.float())


def doubled(self, trainer, module):
    """Changes the weights, as a hook of a callback."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)


def keep(package, folder, name="kept", **settings):
    return package.callbacks.ModelCheckpoint(folder, filename=name, enable_version_counter=False, **settings)


def trained(package, folder, *callbacks, module=None, **settings):
    """A training with checkpoints; gives the module."""
    module = make(package) if module is None else module
    fit(package, folder, module, *callbacks, **{"enable_checkpointing": True, "max_epochs": 2, **settings})
    return module


def refitted(path, package):
    """T by the slow way: the weights of a file, and several readings of the validation data."""
    model = seguq.load(path, make(package))
    batches = loader(data_for(model))
    return seguq.Deterministic(model, calibrator=None).calibrate(seguq.TemperatureScaling(), batches).temperature


def kept(path, package, tag="deterministic"):
    """T of the calibrator of a file; one that is not applied is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not applied")
        return seguq.load(path, make(package)).calibrators[tag].temperature


def asked(package, folder, path, *callbacks, stage="predict", module=None, **settings):
    """Run test or predict on a file."""
    module = make(package, seed=9) if module is None else module
    trainer = trainer_of(package, folder, *callbacks, **settings)
    verbose = {"verbose": False} if stage == "test" else {}
    getattr(trainer, stage)(module, loader(data_for(module, seed=4)), ckpt_path=path, **verbose)
    return module


# what a run on a file applies


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_a_run_on_a_file_is_calibrated_by_the_files_calibrator_in_any_precision(package, stage, precision, tmp_path):
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    answers = Answers()
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, stage=stage, precision=precision)
    expected = kept(tmp_path / "kept.ckpt", package)
    assert [one.temperature for one in answers.applied] == pytest.approx([expected] * 2, rel=1e-6)
    estimator = seguq.Deterministic(seguq.load(tmp_path / "kept.ckpt", make(package)))
    by_hand = torch.cat([estimator(image).probs for image, _ in loader(data_for(make(package), seed=4))])
    tolerance = 0.1 if "16" in precision else 1e-5
    assert torch.cat(answers.probs).sub(by_hand).abs().max() < tolerance


@pytest.mark.parametrize("written", ["bf16-true", "64-true"])
@pytest.mark.parametrize("read", ["32-true", "64-true", "bf16-true", "16-true"])
def test_a_file_of_one_precision_is_calibrated_in_another(written, read, tmp_path):
    package = pytorch_lightning
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path), precision=written)
    answers = Answers()
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, precision=read)
    assert None not in answers.applied


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize(("ours", "asks"), [(None, "mc_dropout"), ("mc_dropout", None)], ids=str)
def test_a_calibrator_of_another_estimator_is_not_applied(package, stage, ours, asks, tmp_path):
    trained(package, tmp_path, Calibrate(estimator=ours), keep(package, tmp_path))
    answers, same = Answers(asks), Answers(ours)
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, same, stage=stage)
    assert answers.applied == [None, None]
    assert None not in same.applied


@both_names
@pytest.mark.parametrize("stage", ["test", "predict"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_calibrator_is_not_applied_to_weights_that_were_changed_since(package, stage, precision, tmp_path):
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    answers = Answers()
    changing = type("Changing", (package.Callback,), {f"on_{stage}_start": doubled})()
    with pytest.warns(UserWarning, match="'deterministic' is not applied: it was fitted for other weights"):
        asked(package, tmp_path, tmp_path / "kept.ckpt", answers, changing, stage=stage, precision=precision)
    assert answers.applied == [None, None]


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_calibrator_of_another_model_is_not_applied_to_the_modules_own_output(stage, tmp_path):
    package = pytorch_lightning
    teacher = seguq.Deterministic(make(package, seed=5).net)
    trained(package, tmp_path, Calibrate(estimator=teacher), keep(package, tmp_path))
    of_module, of_teacher = Answers(), Answers(teacher)
    with pytest.warns(UserWarning, match="'deterministic' is not applied"):
        asked(package, tmp_path, tmp_path / "kept.ckpt", of_module, of_teacher, stage=stage)
    assert of_module.applied == [None, None]
    assert None not in of_teacher.applied


def test_an_estimator_that_was_made_of_a_part_of_the_module_is_calibrated_for_the_module(tmp_path):
    package = pytorch_lightning

    class Weighted(kind(package)):
        """Has weights beside its network, too."""

        def __init__(self, **settings):
            super().__init__(**settings)
            self.scale = torch.nn.Parameter(torch.ones(3))

    module = Weighted()
    trained(
        package, tmp_path, Calibrate(estimator=seguq.Deterministic(module.net)), keep(package, tmp_path), module=module
    )
    answers = Answers()
    asked(package, tmp_path, tmp_path / "kept.ckpt", answers, module=Weighted(seed=9))
    expected = module.calibrators["deterministic"].temperature
    assert [one.temperature for one in answers.applied] == pytest.approx([expected] * 2, rel=1e-6)


@both_names
def test_a_second_run_without_a_file_judges_by_the_weights_in_hand(package, tmp_path):
    module = trained(package, tmp_path, Calibrate())
    first, second = Answers(), Answers()
    asked(package, tmp_path, None, first, module=module)
    module.net.head.weight.data.mul_(2)
    with pytest.warns(UserWarning, match="not applied"):
        asked(package, tmp_path, None, second, module=module)
    assert [one.temperature for one in first.applied] == [module.calibrators["deterministic"].temperature] * 2
    assert second.applied == [None, None]


# what files hold


@both_names
@pytest.mark.parametrize("averaging", ["before", "after"])
def test_two_estimators_beside_averaged_weights_are_each_in_the_file(package, averaging, tmp_path):
    ours = [Calibrate(), Calibrate(estimator="mc_dropout")]
    average = package.callbacks.EMAWeightAveraging(decay=0.5)
    callbacks = [average, *ours] if averaging == "before" else [*ours, average]
    trained(package, tmp_path, *callbacks, keep(package, tmp_path))
    path = tmp_path / "kept.ckpt"
    assert kept(path, package) == pytest.approx(refitted(path, package), abs=1e-3)
    assert kept(path, package, MC) != kept(path, package)


@both_names
def test_each_of_several_files_carries_the_calibrator_of_its_weights(package, tmp_path):
    several = keep(package, tmp_path, "{epoch}", save_top_k=-1)
    trained(package, tmp_path, several, Calibrate(), max_epochs=3)
    paths = [tmp_path / f"epoch={epoch}.ckpt" for epoch in range(3)]
    found = [kept(path, package) for path in paths]
    assert found == pytest.approx([refitted(path, package) for path in paths], abs=1e-3)
    assert len({round(one, 3) for one in found}) == 3


@both_names
@pytest.mark.parametrize("early", [True, False], ids=["before ours", "after ours"])
def test_a_file_saved_because_of_an_error_right_after_validation_carries_it(package, early, tmp_path):
    class Failing(kind(package)):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                raise FloatingPointError("stop here")

    rescue = package.callbacks.OnExceptionCheckpoint(tmp_path, filename="rescued")
    callbacks = [rescue, Calibrate()] if early else [Calibrate(), rescue]
    with pytest.raises(FloatingPointError):
        trained(package, tmp_path, *callbacks, module=Failing())
    path = tmp_path / "rescued.ckpt"
    assert kept(path, package) == pytest.approx(refitted(path, package), abs=1e-3)


@both_names
def test_validating_a_file_and_saving_it_again_calibrates_what_was_not(package, tmp_path):
    trained(package, tmp_path, keep(package, tmp_path, "raw"))
    module, trainer = make(package, seed=9), trainer_of(package, tmp_path, Calibrate())
    trainer.validate(module, loader(data_for(module)), ckpt_path=tmp_path / "raw.ckpt", verbose=False)
    trainer.save_checkpoint(tmp_path / "calibrated.ckpt")
    path = tmp_path / "calibrated.ckpt"
    assert kept(path, package) == pytest.approx(refitted(path, package), abs=1e-3)


@both_names
@pytest.mark.parametrize("save_weights_only", [False, True])
def test_lightnings_own_loading_takes_the_file(package, save_weights_only, tmp_path):
    module = trained(package, tmp_path, Calibrate(), keep(package, tmp_path, save_weights_only=save_weights_only))
    loaded = kind(package).load_from_checkpoint(tmp_path / "kept.ckpt", map_location="cpu", weights_only=True, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True))


def test_a_segmentation_task_loads_by_seguq_load_into_its_bare_network(tmp_path):
    package = pytorch_lightning
    net = make(package).net
    task = seguq.SegmentationTask(model=net, classes=3, mean=[0, 0, 0], std=[1, 1, 1], lr=0.05)
    task.form = kind(package).form
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path), module=task)
    loaded = seguq.load(tmp_path / "kept.ckpt", make(package, seed=9).net)
    batches = loader(data_for(task))
    found = loaded.calibrators["deterministic"].temperature
    by_hand = seguq.Deterministic(loaded, calibrator=None).calibrate(seguq.TemperatureScaling(), batches).temperature
    assert found == pytest.approx(by_hand, abs=1e-3)


@both_names
@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_file_of_a_compiled_module_is_applied_in_a_compiled_module(package, where, stage, tmp_path):
    def compiled(seed):
        module = make(package, seed=seed)
        if where == "outside":
            return torch.compile(module, backend="eager")
        module.net = torch.compile(module.net, backend="eager")
        return module

    trained(package, tmp_path, Calibrate(), keep(package, tmp_path), module=compiled(0), max_epochs=1)
    answers, module = Answers(), compiled(9)
    trainer = trainer_of(package, tmp_path, answers)
    verbose = {"verbose": False} if stage == "test" else {}
    data = loader(data_for(make(package), seed=4))
    getattr(trainer, stage)(module, data, ckpt_path=tmp_path / "kept.ckpt", **verbose)
    expected = kept(tmp_path / "kept.ckpt", package)
    assert [one.temperature for one in answers.applied] == pytest.approx([expected] * 2, rel=1e-6)


# going on from a file


@both_names
@pytest.mark.parametrize("averaging", ["none", "before", "after"])
def test_a_training_resumed_without_a_validation_writes_the_calibrators_that_it_was_given(package, averaging, tmp_path):
    def callbacks():
        ours = [Calibrate(), Calibrate(estimator="mc_dropout")]
        average = [] if averaging == "none" else [package.callbacks.EMAWeightAveraging(decay=0.5)]
        return [*average, *ours] if averaging == "before" else [*ours, *average]

    trained(package, tmp_path, *callbacks(), keep(package, tmp_path))
    module = make(package, seed=9)
    trainer = trainer_of(package, tmp_path, *callbacks(), max_epochs=2)
    trainer.fit(
        module, loader(data_for(module, 6, seed=1), 2), loader(data_for(module)), ckpt_path=tmp_path / "kept.ckpt"
    )
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    for tag in ("deterministic", MC):
        assert module.calibrators[tag].temperature == kept(tmp_path / "kept.ckpt", package, tag)
        assert kept(tmp_path / "again.ckpt", package, tag) == kept(tmp_path / "kept.ckpt", package, tag)


@both_names
def test_a_training_that_goes_on_forgets_the_old_calibrator_for_its_new_weights(package, tmp_path):
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    path = tmp_path / "last.ckpt"
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path, "last"), ckpt_path=tmp_path / "kept.ckpt",
            module=make(package, seed=9), max_epochs=4)  # fmt: skip
    assert kept(path, package) == pytest.approx(refitted(path, package), abs=1e-3)
    assert kept(path, package) != pytest.approx(kept(tmp_path / "kept.ckpt", package), abs=1e-3)


# files that are not as they should be


def broken(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("what", ["text", 5, {"version": 1, "calibrators": [1]}], ids=str)
@pytest.mark.parametrize("how", ["load", "predict"])
def test_a_damaged_section_is_one_clear_error(what, how, tmp_path):
    package = pytorch_lightning
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    path = broken(tmp_path / "kept.ckpt", lambda content: content.update(seguq=what))
    with pytest.raises(SeguqError, match="what the checkpoint holds under 'seguq' is damaged"):
        seguq.load(path, make(package)) if how == "load" else asked(package, tmp_path, path, Answers())


@pytest.mark.parametrize(
    "change",
    [lambda packed: packed.pop("weights_sha256"), lambda packed: packed.update(weights_sha256=None)],
    ids=["missing", "None"],
)
@pytest.mark.filterwarnings("ignore:.*not applied")
def test_a_calibrator_that_does_not_say_its_weights_is_not_applied(change, tmp_path):
    package = pytorch_lightning
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    path = broken(tmp_path / "kept.ckpt", lambda content: change(content["seguq"]["calibrators"]["deterministic"]))
    answers = Answers()
    asked(package, tmp_path, path, answers)
    assert answers.applied == [None, None]
    assert seguq.load(path, make(package)).calibrators == {}


@pytest.mark.parametrize("how", ["load", "predict"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_calibrator_of_numbers_that_are_none_is_an_error_at_once(value, how, tmp_path):
    package = pytorch_lightning
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))

    def damage(content):
        content["seguq"]["calibrators"]["deterministic"]["tensors"]["log_temperature"].fill_(value)

    path = broken(tmp_path / "kept.ckpt", damage)
    with pytest.raises(SeguqError, match=r"'deterministic' in the checkpoint is damaged: .*NaN or infinite"):
        seguq.load(path, make(package)) if how == "load" else asked(package, tmp_path, path, Answers())


def test_a_later_versions_file_is_an_error_that_says_so(tmp_path):
    package = pytorch_lightning
    trained(package, tmp_path, Calibrate(), keep(package, tmp_path))
    path = broken(tmp_path / "kept.ckpt", lambda content: content["seguq"].update(version=2))
    with pytest.raises(SeguqError, match=r"another version of seguq \(schema 2\)"):
        asked(package, tmp_path, path, Answers())
