"""What Calibrate logs, on modules and batches of the kinds that people have."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import seguq
from seguq.acquisition import Random
from seguq.calibration import Calibrator, TemperatureScaling, cross_fit
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.core.errors import SeguqError
from seguq.metrics import CalibrationError, NegativeLogLikelihood
from tests.callbacks.tiny import Images, both_names, files, loader, make_module, make_trainer


class TenLines(Calibrator):
    """What somebody may write who knows fit and forward only."""

    order_preserving = True

    def fit(self, batches):
        return self

    def forward(self, logits, image=None):
        return logits


class NeedsARank(TenLines):
    def __init__(self, num_classes, rank):
        super().__init__()
        self.num_classes, self.rank = num_classes, rank


class Shrinking(TemperatureScaling):
    """One of another package that streams because it is a temperature."""


CALLBACKS = [Calibrate, UncertaintyMetrics, lambda **k: HeatmapWriter("x", **k), lambda **k: RegionScorer("x", **k)]


def figures(package, folder, module, *callbacks, batches=None, **settings):
    trainer = make_trainer(package, folder, *callbacks, **settings)
    trainer.validate(module, loader(Images(7)) if batches is None else batches, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def by_hand(module, data, classes=3, **settings):
    """NLL and ECE before and after, from the forward of a module, several readings and the metrics of the library."""
    pairs = []
    with torch.no_grad():
        for batch in data:
            image, mask = (batch["image"], batch["mask"]) if isinstance(batch, dict) else batch
            pairs.append((module.eval().class_logits(image), mask))
    metrics = [kind(classes, **settings) for kind in (CalibrationError, NegativeLogLikelihood) for _ in range(2)]
    for part in cross_fit(lambda: TemperatureScaling(**settings), pairs):
        for metric, logits in zip(metrics, (part.logits, part.calibrated) * 2, strict=True):
            metric.update(logits.softmax(1), part.target)
    names = ("ece_before", "ece_after", "nll_before", "nll_after")
    return {name: float(metric.compute()) for name, metric in zip(names, metrics, strict=True)}


def of_kind(package, kind):
    """A module whose step and output are of some kind, and how its class logits are had."""

    class Plain(type(make_module(package))):
        extra = 0

        def class_logits(self, image):
            return super().forward(image)

    class TorchvisionLike(Plain):
        def forward(self, x):
            return {"out": super().forward(x), "aux": x}

        def validation_step(self, batch, batch_idx):
            self(batch["image"])

    class HuggingFaceLike(Plain):
        def forward(self, x):
            return SimpleNamespace(logits=F.avg_pool2d(super().forward(x), 4))

        def validation_step(self, batch, batch_idx):
            self(batch["image"])

        def class_logits(self, image):
            return F.interpolate(self(image).logits, size=image.shape[2:], mode="bilinear")

    class StepOfItsOwn(Plain):
        extra = 1

        def validation_step(self, batch, batch_idx):
            self.head(self.stem(batch["image"]))

    class Twice(Plain):
        def validation_step(self, batch, batch_idx):
            self(batch["image"])
            self(batch["image"].flip(-1))

    class Normalizes(Plain):
        def validation_step(self, batch, batch_idx):
            self(batch["image"] * 2 - 1)

        def class_logits(self, image):
            return super().class_logits(image * 2 - 1)

    kinds = (Plain, TorchvisionLike, HuggingFaceLike, StepOfItsOwn, Twice, Normalizes)
    return {each.__name__: each for each in kinds}[kind]()


KINDS = ("Plain", "TorchvisionLike", "HuggingFaceLike", "StepOfItsOwn", "Twice", "Normalizes")


@both_names
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_several_readings(package, kind, tmp_path):
    module = of_kind(package, kind)
    found = figures(package, tmp_path, module, Calibrate())
    expected = by_hand(module, loader(Images(7)))
    for name in ("ece_before", "nll_before", "nll_after"):
        assert found[f"val/{name}"] == pytest.approx(expected[name], abs=1e-4)
    assert found["val/ece_after"] == pytest.approx(expected["ece_after"], abs=0.02)  # some hundred pixels in 15 bins
    assert module.calibrators["deterministic"].temperature == pytest.approx(found["val/temperature"])


@pytest.mark.parametrize("calibrator", [f"{__name__}.Shrinking", Shrinking()], ids=["by import path", "an object"])
def test_a_calibrator_of_another_package_that_streams_is_fitted(calibrator, tmp_path):
    import pytorch_lightning

    module = of_kind(pytorch_lightning, "Plain")
    found = figures(pytorch_lightning, tmp_path, module, Calibrate(calibrator))
    fitted = module.calibrators["deterministic"]
    assert type(fitted) is Shrinking
    assert fitted.temperature == pytest.approx(found["val/temperature"])
    assert (fitted.summary().ece_before, fitted.summary().images) == (pytest.approx(found["val/ece_before"]), 7)


@both_names
def test_whole_groups_are_on_one_side(package, tmp_path):
    module, data = of_kind(package, "Plain"), [Images(7)[i] for i in range(7)]
    found = figures(
        package, tmp_path, module, Calibrate(group=lambda name: name in "015"), batches=loader(numbered(data))
    )
    folds = [[0, 1, 5], [2, 3, 4, 6]]
    metric = NegativeLogLikelihood(3)
    with torch.no_grad():
        pairs = [(module.eval().class_logits(item["image"][None]), item["mask"][None]) for item in data]
    for fold, other in (folds, folds[::-1]):
        calibrator = TemperatureScaling().fit([pairs[i] for i in other])
        for i in fold:
            metric.update(calibrator(pairs[i][0]).softmax(1), pairs[i][1])
    assert found["val/nll_after"] == pytest.approx(float(metric.compute()), abs=1e-4)


def numbered(data):
    return [{**item, "image_id": str(number)} for number, item in enumerate(data)]


def test_images_of_one_group_leave_the_error_out_of_sample_open_with_one_warning(tmp_path):
    import pytorch_lightning

    with pytest.warns(UserWarning, match="7 labeled images of one group .* takes images of two groups") as caught:
        found = figures(pytorch_lightning, tmp_path, make_module(pytorch_lightning), Calibrate(group=lambda _: "one"))
    assert math.isnan(found["val/ece_after"]) and math.isnan(found["val/nll_after"])
    assert found["val/temperature"] > 0
    assert sum("two groups" in str(item.message) for item in caught) == 1


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([f"a{n}" for n in range(6)], "group='video' finds nothing in the image id 'a0'"),
        (None, "group='video' tells the group of an image by its id, but the batches have no ids"),
    ],
)
def test_a_pattern_that_finds_nothing_or_has_no_ids_to_look_at_is_an_error(ids, message, tmp_path):
    import pytorch_lightning

    data = loader(Images(6, ids=ids))
    for callback in (Calibrate(group="video"), UncertaintyMetrics(group="video")):
        with pytest.raises(SeguqError, match=message):
            make_trainer(pytorch_lightning, tmp_path, callback).validate(
                make_module(pytorch_lightning), data, verbose=False
            )


def test_two_of_one_kind_of_estimator_are_an_error_before_work(tmp_path):
    import pytorch_lightning

    trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate(), Calibrate(dataloader=1))
    with pytest.raises(SeguqError, match=r"two Calibrate of one kind of estimator \(deterministic\)"):
        trainer.validate(make_module(pytorch_lightning), loader(Images(3)), verbose=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_was_seen_is_not_run_again(kind, tmp_path):
    import pytorch_lightning

    counts = []
    for callbacks in ([], [Calibrate(), UncertaintyMetrics()]):
        module = of_kind(pytorch_lightning, kind)
        make_trainer(pytorch_lightning, tmp_path, *callbacks).validate(module, loader(Images(7)), verbose=False)
        counts.append(module.forwards)
    assert counts[1] - counts[0] == 3 * module.extra


@both_names
def test_two_estimators_are_calibrated_side_by_side(package, tmp_path):
    module = make_module(package)
    found = figures(package, tmp_path, module, Calibrate(), Calibrate(estimator=seguq.MCDropout(samples=3)))
    assert set(module.calibrators) == {"deterministic", "mc_dropout(layers=dropout)"}
    assert found["val/nll_before/mc_dropout"] != found["val/nll_before"]


@both_names
def test_a_module_of_one_logit_is_a_sigmoid(package, tmp_path):
    module, data = make_module(package, classes=1), loader(Images(7, classes=1))
    found = figures(package, tmp_path, module, Calibrate(ignore_index=7), batches=data)
    with torch.no_grad():
        losses = [
            F.binary_cross_entropy_with_logits(module.eval()(batch["image"]), batch["mask"], reduction="none")
            for batch in data
        ]
    assert found["val/nll_before"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)


def test_another_ignore_index_is_left_out(tmp_path):
    import pytorch_lightning

    module = of_kind(pytorch_lightning, "Plain")
    found = figures(pytorch_lightning, tmp_path, module, Calibrate(ignore_index=0), batches=loader(clamped()))
    expected = by_hand(module, loader(clamped()), ignore_index=0)
    assert found["val/nll_before"] == pytest.approx(expected["nll_before"], abs=1e-5)


def clamped():
    data = Images(6)
    return [{**data[i], "mask": data[i]["mask"].clamp(max=2)} for i in range(6)]


def test_the_loader_that_was_asked_for_is_the_one(tmp_path):
    import pytorch_lightning

    one, other = loader(Images(7, seed=1)), loader(Images(5, seed=2, brightness=3.0))
    module = make_module(pytorch_lightning)
    alone = figures(pytorch_lightning, tmp_path, module, Calibrate(), batches=other)
    both = figures(pytorch_lightning, tmp_path, module, Calibrate(dataloader=1), batches=[one, other])
    assert both["val/nll_before"] == pytest.approx(alone["val/nll_before"], abs=1e-6)


def test_a_loader_that_it_does_not_look_at_may_give_what_it_likes(tmp_path):
    import pytorch_lightning

    class Odd(type(make_module(pytorch_lightning))):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return None

    found = figures(pytorch_lightning, tmp_path, Odd(), Calibrate(), batches=[loader(Images(4)), loader(["a", "b"])])
    assert found["val/temperature"] > 0


@both_names
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true", "64-true"])
def test_half_and_double_precision_are_close_to_single(package, precision, tmp_path):
    single = figures(package, tmp_path, make_module(package), Calibrate())
    other = figures(package, tmp_path, make_module(package), Calibrate(), precision=precision)
    assert other["val/nll_before"] == pytest.approx(single["val/nll_before"], rel=0.05)


class Nested(Images):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {"picture": item["image"].half(), "truth": {"pixels": item["mask"]}}


def test_what_is_not_understood_is_shown_with_an_example(tmp_path):
    import pytorch_lightning

    class Odd(type(make_module(pytorch_lightning))):
        def validation_step(self, batch, batch_idx):
            return None

    message = r"'picture': a tensor \(3, 3, 8, 12\), 'truth': a dict of 'pixels'.*batch_forward=lambda module, batch"
    with pytest.raises(SeguqError, match=message):
        figures(pytorch_lightning, tmp_path, Odd(), Calibrate(), batches=loader(Nested(7)))


@both_names
@pytest.mark.parametrize("estimator", [None, seguq.MCDropout(samples=2)])
def test_forward_takes_the_whole_batch_and_may_give_the_mask(package, estimator, tmp_path):
    class Odd(type(make_module(package))):
        def validation_step(self, batch, batch_idx):
            return None

    def forward(module, batch):
        return module(batch["picture"].float()), batch["truth"]["pixels"]

    callbacks = [
        Calibrate(estimator=estimator, batch_forward=forward),
        UncertaintyMetrics(estimator=estimator, batch_forward=forward),
        HeatmapWriter(tmp_path / "heat", estimator=estimator, batch_forward=forward),
    ]
    odd = figures(package, tmp_path, Odd(), *callbacks, batches=loader(Nested(7)))
    plain = figures(package, tmp_path, make_module(package), *[Calibrate(estimator=estimator)])
    ending = "" if estimator is None else "/mc_dropout"
    assert odd[f"val/nll_before{ending}"] == pytest.approx(plain[f"val/nll_before{ending}"], abs=5e-3)
    assert any(name.endswith(".npz") for name in files(tmp_path / "heat"))


@pytest.mark.parametrize("kind", ["Plain", "Normalizes"])
def test_a_step_that_changes_the_images_is_told_what_predict_needs(kind, tmp_path):
    import pytorch_lightning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figures(pytorch_lightning, tmp_path, of_kind(pytorch_lightning, kind), Calibrate(), UncertaintyMetrics())
    assert sum("changes the images before its forward" in str(item.message) for item in caught) == (kind != "Plain")


def test_what_is_not_understood_is_said_in_the_sanity_check(tmp_path):
    import pytorch_lightning

    class Odd(type(make_module(pytorch_lightning))):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained before the error")

        def validation_step(self, batch, batch_idx):
            return None

    trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate())
    with pytest.raises(SeguqError, match="'picture'"):
        trainer.fit(Odd(), loader(Nested(2)), loader(Nested(2)))


def test_a_compiled_module_without_a_predict_step_predicts(tmp_path):
    import pytorch_lightning

    module = torch.compile(make_module(pytorch_lightning), backend="eager")
    trainer = make_trainer(pytorch_lightning, tmp_path, HeatmapWriter(tmp_path / "heat"))
    ids = trainer.predict(module, loader([(item["image"], item["mask"]) for item in Images(4)]))
    assert [name for batch in ids for name in batch] == ["0", "1", "2", "3"]
    assert sum(name.endswith(".npz") for name in files(tmp_path / "heat")) == 4


def test_a_writer_beside_others_writes_its_own_measures_only(tmp_path):
    import pytorch_lightning

    trainer = make_trainer(
        pytorch_lightning, tmp_path, UncertaintyMetrics(), HeatmapWriter(tmp_path / "heat", images=1)
    )
    trainer.validate(make_module(pytorch_lightning), loader(Images(2)), verbose=False)
    (path,) = (tmp_path / "heat").rglob("*.npz")
    assert seguq.UncertaintyMaps.load(path).names == ("predictive_entropy",)


def test_two_writers_in_one_folder_are_an_error(tmp_path):
    import pytorch_lightning

    callbacks = [HeatmapWriter(tmp_path / "heat"), HeatmapWriter(tmp_path / "heat", estimator="mc_dropout")]
    trainer = make_trainer(pytorch_lightning, tmp_path, *callbacks)
    with pytest.raises(SeguqError, match="two HeatmapWriters write into"):
        trainer.validate(make_module(pytorch_lightning), loader(Images(2)), verbose=False)


def test_sanity_checks_fit_and_write_nothing(tmp_path):
    import pytorch_lightning

    seen = []

    class Watch(pytorch_lightning.Callback):
        def on_sanity_check_end(self, trainer, module):
            seen.append((dict(trainer.callback_metrics), hasattr(module, "calibrators"), files(tmp_path / "heat")))

    callbacks = [Calibrate(), UncertaintyMetrics(), HeatmapWriter(tmp_path / "heat"), Watch()]
    trainer = make_trainer(pytorch_lightning, tmp_path, *callbacks)
    trainer.fit(make_module(pytorch_lightning), loader(Images(4)), loader(Images(4, seed=1)))
    assert seen == [({}, False, [])]
    assert "val/temperature" in trainer.callback_metrics


@pytest.mark.parametrize(("every", "expected"), [(1, 5), (2, 3), (3, 3), (9, 2)])
def test_every_n_th_epoch_is_fitted_and_the_last(every, expected, tmp_path, monkeypatch):
    import pytorch_lightning

    from seguq.callbacks import calibrate

    fitted = []
    log = calibrate.log_values
    monkeypatch.setattr(calibrate, "log_values", lambda *words: (fitted.append(1), log(*words)))
    trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate(every_n_epochs=every), max_epochs=5)
    trainer.fit(make_module(pytorch_lightning), loader(Images(2)), loader(Images(2, seed=1)))
    assert len(fitted) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: loader(Images(1)), "1 labeled image in this validation: a calibrator was fitted, but .* two groups"),
        (lambda: loader(blank()), "no labeled pixel in this validation: nothing was fitted"),
        (lambda: None, "nothing to fit on: pass a validation loader"),
    ],
)
def test_too_little_to_fit_on_is_one_clear_message(data, message, tmp_path):
    import pytorch_lightning

    trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate())
    with pytest.warns(UserWarning, match=message):
        trainer.fit(make_module(pytorch_lightning), loader(Images(2)), data())
    after = [float(trainer.callback_metrics.get(f"val/{name}_after", math.nan)) for name in ("ece", "nll")]
    assert all(math.isnan(value) for value in after)


def blank():
    data = Images(3)
    return [{**data[i], "mask": torch.full_like(data[i]["mask"], 255)} for i in range(3)]


def test_a_loader_that_is_not_there_is_an_error_before_the_first_epoch(tmp_path):
    import pytorch_lightning

    trainer = make_trainer(pytorch_lightning, tmp_path, Calibrate(dataloader=2))
    with pytest.raises(SeguqError, match=r"dataloader=2.*does not go with 1 validation loader"):
        trainer.fit(make_module(pytorch_lightning), loader(Images(2)), loader(Images(2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Calibrate("globl"), "there is no Calibrator 'globl': there are .*global"),
        (lambda: Calibrate("os.path.Nothing"), "os.path.Nothing cannot be imported"),
        (lambda: Calibrate("pathlib.Path"), "pathlib.Path is no Calibrator"),
        (
            lambda: Calibrate(f"{__name__}.NeedsARank"),
            r"NeedsARank needs rank.*NeedsARank\(rank=...",
        ),
        (lambda: Calibrate(nn.Identity()), "calibrator must be a calibrator or the name of one .*, but is Identity"),
        (lambda: Calibrate(group="("), r"group='\(' is no regular expression"),
        (lambda: Calibrate(group=3), "group must be a function of the image id, a regular expression or None"),
        (lambda: Calibrate(batch_forward="x"), "batch_forward must be a function of the module and the .* is 'x'"),
        (lambda: Calibrate(every_n_epochs=0), "every_n_epochs must be a whole number of at least 1, but is 0"),
        (lambda: Calibrate(dataloader=-1), "dataloader must be a whole number of at least 0, but is -1"),
    ],
)
def test_wrong_arguments_are_one_sentence(make, message):
    with pytest.raises(SeguqError, match=message):
        make()


@pytest.mark.parametrize("make", CALLBACKS, ids=["Calibrate", "UncertaintyMetrics", "HeatmapWriter", "RegionScorer"])
def test_an_unknown_estimator_is_an_error_that_lists_those_that_exist(make):
    with pytest.raises(SeguqError, match=r"no Estimator 'mc': there are .*deterministic, .*mc_dropout, "):
        make(estimator="mc")
    with pytest.raises(SeguqError, match=r"task must be"):
        make(task="regression")


@both_names
def test_the_command_line_of_lightning_takes_them_from_a_file(package, tmp_path, monkeypatch):
    from importlib import import_module

    cli = import_module(f"{package.__name__}.cli")
    config = tmp_path / "config.yaml"
    config.write_text(
        """
trainer:
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: seguq.callbacks.Calibrate
      init_args:
        estimator: {class_path: seguq.MCDropout, init_args: {samples: 3}}
    - class_path: seguq.callbacks.UncertaintyMetrics
      init_args: {max_images: 4, estimator: mc_dropout, group: "^[^_]+"}
    - class_path: seguq.callbacks.HeatmapWriter
      init_args: {dir: heat, images: 2}
    - class_path: seguq.callbacks.RegionScorer
      init_args: {dir: regions, partition: {class_path: seguq.regions.Grid, init_args: {size: 4}},
                  budget: {class_path: seguq.acquisition.Budget, init_args: {regions: 5}},
                  strategy: {class_path: seguq.acquisition.Random}}
"""
    )
    made = cli.LightningCLI(
        type(make_module(package)), run=False, args=["--config", str(config)], save_config_callback=None
    )
    kinds = {type(callback): callback for callback in made.trainer.callbacks}
    assert kinds[Calibrate].estimator.number_of_samples == 3
    assert kinds[UncertaintyMetrics].max_images == 4
    assert kinds[UncertaintyMetrics].estimator.name == "mc_dropout"
    assert kinds[UncertaintyMetrics].group("street_1", 0) == "street"
    assert kinds[RegionScorer].budget.as_dict() == {"regions": 5}
    assert isinstance(kinds[RegionScorer].strategy, Random)
    assert (kinds[HeatmapWriter].images, kinds[RegionScorer].partition.size) == (2, 4)
