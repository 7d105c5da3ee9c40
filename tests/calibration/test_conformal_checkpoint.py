"""Conformal objects in checkpoints: they come back, or a sentence says why not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from seguq import ConformalMargin, ConformalRiskControl, PredictionSets, TemperatureScaling
from seguq.calibration import Conformal, load, save_conformal
from seguq.calibration.checkpoint import KEY, save_calibrator
from seguq.core.errors import SeguqError
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint
from tests.calibration.test_checkpoint import edit, network, with_other_weights
from tests.calibration.test_conformal import CASES, data, every, images, missed

TAG = "deterministic"
pytestmark = pytest.mark.filterwarnings("ignore:all classes are in the set")


def sets(alpha=0.2):
    return PredictionSets(alpha, 0.8).fit([images(0)])


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "bare.pt"
    torch.save({"state_dict": network().state_dict(), "global_step": 3}, path)
    return path


def loaded(path, model=None):
    return load(path, network() if model is None else model).conformal


@every
def test_each_kind_comes_back_through_a_checkpoint(make, task, bare):
    fitted = make(0.2).fit([data(task)])
    save_conformal(bare, fitted, TAG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loaded(bare)[TAG][fitted.name]
    assert torch.equal(found(data(task, seed=1)[0]), fitted(data(task, seed=1)[0]))
    assert found.summary().fitted == fitted.summary().fitted
    assert (found.tag, found.global_step, found.alpha) == (TAG, 3, 0.2)


def test_a_risk_of_ones_own_comes_back_by_its_name_alone(bare):
    fitted = ConformalRiskControl(missed, 0.2).fit([images(0)])
    save_conformal(bare, fitted, TAG)
    found = loaded(bare)[TAG]["conformal_risk_control"]
    assert found.risk == "tests.calibration.test_conformal.missed"
    assert "test_conformal.missed" in found.summary().promise
    with pytest.raises(SeguqError, match="pass the function itself"):
        found.fit([images(0)])


def test_objects_stand_beside_each_other_by_tag_and_name_and_one_of_the_same_name_is_replaced(bare):
    save_calibrator(bare, TemperatureScaling(), TAG)
    save_conformal(bare, sets(), TAG)
    save_conformal(bare, sets(0.1), TAG, name="careful")
    save_conformal(bare, ConformalMargin(0.2).fit([data("masks")]), "mc_dropout(layers=dropout)")
    save_conformal(bare, sets(0.3), TAG)
    found = {tag: {name: item.alpha for name, item in items.items()} for tag, items in loaded(bare).items()}
    assert found == {
        TAG: {"prediction_sets": 0.3, "careful": 0.1},
        "mc_dropout(layers=dropout)": {"conformal_margin": 0.2},
    }
    assert list(load(bare, network()).calibrators) == [TAG]


def test_objects_are_neither_in_the_state_dict_nor_modules_of_the_model_and_survive_a_copy(bare):
    save_conformal(bare, sets(), TAG)
    model = load(bare, network())
    assert model.state_dict().keys() == network().state_dict().keys()
    assert not any(isinstance(module, Conformal) for module in model.modules())
    assert copy.deepcopy(model).conformal[TAG]["prediction_sets"].alpha == 0.2


def test_a_checkpoint_without_any_gives_none_and_replaces_what_the_model_had(bare, tmp_path):
    before = tmp_path / "before.pt"
    before.write_bytes(bare.read_bytes())
    save_calibrator(before, TemperatureScaling(), TAG)
    save_conformal(bare, sets(), TAG)
    model = load(bare, network())
    assert model.conformal
    assert load(before, model).conformal == {}


def test_a_module_with_a_conformal_of_its_own_keeps_it(bare):
    save_conformal(bare, sets(), TAG)
    model = network()
    model.conformal = nn.Identity()
    assert isinstance(load(bare, model).conformal, nn.Identity)


def test_a_save_into_another_file_leaves_the_first(bare, tmp_path):
    before = bare.read_bytes()
    save_conformal(bare, sets(), TAG, out=tmp_path / "new.pt")
    assert bare.read_bytes() == before
    assert list(loaded(tmp_path / "new.pt")) == [TAG]


def test_all_else_in_a_checkpoint_stays(bare):
    save_calibrator(bare, TemperatureScaling(), TAG)
    before = read_checkpoint(bare)
    save_conformal(bare, sets(), TAG)
    after = read_checkpoint(bare)
    assert after[KEY].keys() - before[KEY].keys() == {"conformal"}
    assert after["global_step"] == 3
    assert after[KEY]["calibrators"].keys() == before[KEY]["calibrators"].keys()


# --- those that promise nothing any more


def test_of_other_weights_an_object_is_not_given_and_a_warning_says_so_where_load_is_called(bare):
    save_conformal(bare, sets(), TAG)
    with_other_weights(bare)
    with pytest.warns(UserWarning, match="'prediction_sets' of 'deterministic' .* other weights .*step 3") as caught:
        assert load(bare, network()).conformal == {}
    assert [warning.filename for warning in caught] == [__file__]


def scaled(value):
    cal = TemperatureScaling()
    cal.log_temperature.fill_(value)
    return cal


CHANGES = {
    "a first calibrator": (None, scaled(0.5)),
    "one of another temperature": (scaled(0.5), scaled(0.7)),
    "one with other arguments": (scaled(0.5), TemperatureScaling(ignore_index=0)),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES.keys())
def test_once_the_estimator_has_another_calibrator_an_object_is_not_given_and_a_warning_says_so(bare, before, after):
    if before is not None:
        save_calibrator(bare, before, TAG)
    save_conformal(bare, sets(), TAG)
    assert loaded(bare)
    save_calibrator(bare, after, TAG)
    with pytest.warns(UserWarning, match="another calibrator than the estimator has now"):
        assert loaded(bare) == {}


def test_a_calibrator_of_another_estimator_takes_nothing_from_an_object(bare):
    save_conformal(bare, sets(), TAG)
    save_calibrator(bare, scaled(0.5), "mc_dropout(layers=dropout)")
    save_calibrator(bare, scaled(0.5), "another")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(loaded(bare)) == [TAG]


def test_the_same_calibrator_saved_again_takes_nothing_from_an_object(bare):
    save_calibrator(bare, scaled(0.5), TAG)
    save_conformal(bare, sets(), TAG)
    save_calibrator(bare, scaled(0.5), TAG)
    assert list(loaded(bare)) == [TAG]


def test_what_is_not_fitted_is_not_saved(bare):
    before = bare.read_bytes()
    with pytest.raises(SeguqError, match="not fitted yet"):
        save_conformal(bare, PredictionSets(), TAG)
    assert bare.read_bytes() == before


def test_an_object_is_not_put_beside_weights_that_were_replaced(bare):
    with pytest.raises(SeguqError, match="was replaced while the conformal object was fitted"):
        save_conformal(bare, sets(), TAG, weights="those of before")


# --- damaged ones

PACKED = {
    "an unknown class": lambda packed: packed.update({"class": "CrystalBall"}),
    "the class of a calibrator": lambda packed: packed.update({"class": "global"}),
    "an unknown argument": lambda packed: packed["arguments"].update(color="red"),
    "a tensor that is missing": lambda packed: packed["tensors"].clear(),
    "a threshold that is NaN": lambda packed: packed["tensors"].update(threshold=torch.tensor(float("nan"))),
    "a threshold beyond all bounds": lambda packed: packed["tensors"].update(threshold=torch.tensor(-0.5)),
    "a threshold of another shape": lambda packed: packed["tensors"].update(threshold=torch.zeros(3)),
    "a risk above alpha": lambda packed: packed["tensors"].update(empirical_risk=torch.tensor(0.9)),
    "a risk that is NaN": lambda packed: packed["tensors"].update(empirical_risk=torch.tensor(float("nan"))),
    "fewer images than the promise needs": lambda packed: packed["tensors"].update(groups=torch.tensor(2)),
    "more groups than images": lambda packed: packed["tensors"].update(groups=torch.tensor(1000)),
    "no images": lambda packed: packed["tensors"].update(images=torch.tensor(0)),
    "a number in the place of a tensor": lambda packed: packed["tensors"].update(threshold=0.5),
    "arguments that are none": lambda packed: packed.update(arguments=5),
    "no word on its calibrator": lambda packed: packed.pop("calibrated_by"),
    "a step that is text": lambda packed: packed.update(global_step="one"),
}


@pytest.mark.parametrize("damage", PACKED.values(), ids=PACKED.keys())
def test_an_object_that_cannot_be_understood_is_an_error_that_names_it(bare, damage):
    save_conformal(bare, sets(), TAG)
    edit(bare, lambda section: damage(section["conformal"][TAG]["prediction_sets"]))
    with pytest.raises(SeguqError, match=r"'prediction_sets' of 'deterministic' in the checkpoint (is damaged|cannot)"):
        loaded(bare)


def test_a_margin_beyond_all_bounds_is_damage(bare):
    save_conformal(bare, ConformalMargin(0.2).fit([data("masks")]), TAG)
    edit(bare, lambda s: s["conformal"][TAG]["conformal_margin"]["tensors"].update(margin=torch.tensor(-1)))
    with pytest.raises(SeguqError, match="is damaged: its 'margin' is -1"):
        loaded(bare)


@pytest.mark.parametrize("wrong", [5, None, [], {3: {}}, {TAG: 5}, {TAG: {3: {}}}, {TAG: {"a": 5}}])
def test_a_section_that_is_none_is_one_sentence_that_names_the_file(bare, wrong):
    save_conformal(bare, sets(), TAG)
    edit(bare, lambda section: section.update(conformal=wrong))
    with pytest.raises(SeguqError, match=r"bare\.pt.* is damaged") as caught:
        loaded(bare)
    assert "\n" not in str(caught.value)


# --- a task


def test_a_task_loads_its_objects_and_saves_them_with_its_weights_alone(tmp_path):
    torch.manual_seed(0)
    task = SegmentationTask(classes=2, model=nn.Conv2d(3, 2, 1))

    def saved(path):
        checkpoint = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
        task.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        return SegmentationTask.load(path, nn.Conv2d(3, 2, 1)).conformal

    task.conformal = {TAG: {"mine": sets()}}
    assert saved(tmp_path / "a.pt")[TAG]["mine"].alpha == 0.2
    with torch.no_grad():
        task.model.bias.add_(1)
    assert saved(tmp_path / "b.pt") == {}


def test_the_cases_here_are_those_of_all_kinds():
    assert {make(0.2).name for make, _ in CASES.values()} == set(Conformal.names())
