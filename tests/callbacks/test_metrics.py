"""UncertaintyMetrics through real Trainers of both names."""

import csv
import io
import warnings

import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from torch import nn

import seguq
from seguq.callbacks import Calibrate, UncertaintyMetrics
from seguq.core.errors import SeguqError
from seguq.export.metrics_figure import Row, uncertainty_figure
from seguq.metrics import BrierScore, CalibrationError, ErrorDetection, NegativeLogLikelihood, RiskCoverage
from seguq.weights import weights_sha256
from tests.callbacks.tiny import (
    Images,
    both_names,
    files,
    loader,
    make_module,
    make_trainer,
    runs_of,
    traces,
    with_predict_step,
)

ALL = seguq.Deterministic().measures
MEASURES = ("predictive_entropy", "energy")  # of the many tests that are not about them: fewer take less time
SAMPLED = ("predictive_entropy", "mutual_information")


def by_hand(estimator, data, keep=None, measures=MEASURES, classes=3):
    """The figures of the library's metrics over the images of a data set, each by itself, unprefixed."""
    brier, nll, ece = (kind(classes, n_boot=2) for kind in (BrierScore, NegativeLogLikelihood, CalibrationError))
    detection = {name: ErrorDetection(n_boot=2) for name in measures}
    coverage = {name: RiskCoverage(n_boot=2) for name in measures}
    for i in range(len(data) if keep is None else keep):
        image, mask = data[i]["image"][None], data[i]["mask"]
        mask = mask.long() if mask.ndim == 3 and classes == 2 and mask.shape[0] == 1 else mask[None]
        maps = estimator(image, [str(i)])
        for metric in (brier, nll, ece):
            metric.update(maps.probs, mask)
        error = (maps.prediction != mask).long().masked_fill(mask == 255, 255)
        for name in measures:
            detection[name].update(maps[name], error)
            coverage[name].update(maps[name], error)
    out = {"ece": ece.compute(), "brier": brier.compute(), "nll": nll.compute()}
    out |= {f"auroc_error/{name}": metric.compute()["auroc"] for name, metric in detection.items()}
    out |= {f"aurc/{name}": metric.compute()["aurc"] for name, metric in coverage.items()}
    return {name: float(value) for name, value in out.items()}


def logged(trainer, prefix="val/"):
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}


def run(folder, data=None, module=None, package=pytorch_lightning, stage="validate", trainer_settings=None, **settings):
    """Validate (or test) seven images, or the data set or loaders given; gives the Trainer."""
    module = make_module(package) if module is None else module
    data = Images(7) if data is None else data
    sampled = settings.get("estimator") not in (None, "deterministic")
    settings = {"measures": SAMPLED if sampled else MEASURES, **settings}
    trainer = make_trainer(package, folder, UncertaintyMetrics(**settings), **(trainer_settings or {}))
    getattr(trainer, stage)(module, data if isinstance(data, list) else loader(data), verbose=False)
    return trainer


def raw(module, **settings):
    return seguq.Deterministic(module, calibrator=None, **settings)


def close(found, expected):
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6, nan_ok=True)


# the figures


@both_names
@pytest.mark.parametrize("estimator", [None, "deterministic", seguq.Deterministic()], ids=["none", "name", "object"])
@pytest.mark.parametrize(("stage", "prefix"), [("validate", "val/"), ("test", "test/")])
def test_the_figures_are_those_of_the_librarys_metrics(tmp_path, package, estimator, stage, prefix):
    module = make_module(package)
    trainer = run(tmp_path, module=module, package=package, stage=stage, estimator=estimator, measures=None)
    close(logged(trainer, prefix), by_hand(raw(module), Images(7), measures=ALL))


def test_the_likelihood_is_that_of_the_logits_and_not_of_probabilities_rounded_to_0(tmp_path):
    module = make_module(pytorch_lightning)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(40)
    trainer = run(tmp_path, module=module)
    images, masks = zip(*((item["image"], item["mask"]) for item in Images(7)), strict=True)
    with torch.no_grad():
        logits = raw(module).pooled_logits(torch.stack(images)).double()
    losses = torch.nn.functional.cross_entropy(logits, torch.stack(masks), ignore_index=255, reduction="none")
    assert losses.max() > 100  # a probability of float32 stops at 87
    assert logged(trainer)["nll"] == pytest.approx(float(losses[torch.stack(masks) != 255].mean()), rel=1e-5)


def test_no_pass_is_run_beyond_the_modules_own(tmp_path):
    module = make_module(pytorch_lightning)
    run(tmp_path, module=module)
    assert module.forwards == 3


@pytest.mark.parametrize("keep", [1, 3, 4, 100])
def test_max_images_are_the_first_ones(tmp_path, keep):
    module = make_module(pytorch_lightning)
    trainer = run(tmp_path, module=module, max_images=keep)
    close(logged(trainer), by_hand(raw(module), Images(7), min(keep, 7)))


def test_no_sample_is_drawn_for_batches_beyond_max_images(tmp_path):
    module = make_module(pytorch_lightning)
    run(tmp_path, module=module, max_images=3, estimator=seguq.MCDropout(samples=2))
    assert module.forwards == 3 + 2 * 1


def test_only_the_measures_that_were_asked_for_are_logged(tmp_path):
    trainer = run(tmp_path, measures=["energy"])
    assert set(logged(trainer)) == {"ece", "brier", "nll", "auroc_error/energy", "aurc/energy"}


def test_one_measure_may_be_given_by_its_name(tmp_path):
    assert set(logged(run(tmp_path, measures="energy"))) == set(logged(run(tmp_path, measures=["energy"])))


@both_names
def test_images_of_unequal_size_count_by_their_pixels(tmp_path, package):
    data = Images(4, [(8, 12), (16, 8), (9, 9), (8, 8)])
    module = make_module(package)
    trainer = run(tmp_path, [loader(data, 1)], module, package)
    close(logged(trainer), by_hand(raw(module), data))


@pytest.mark.parametrize("estimator", ["mc_dropout", seguq.MCDropout(samples=4)], ids=["name", "object"])
def test_samples_have_their_own_measures(tmp_path, estimator):
    found = logged(run(tmp_path, estimator=estimator, measures=None))
    assert {f"aurc/{name}" for name in seguq.MCDropout().measures} <= set(found)
    assert all(np.isfinite(value) for value in found.values())


def test_seeded_mc_dropout_gives_the_figures_of_direct_calls(tmp_path):
    module = make_module(pytorch_lightning)
    data = Images(5, ids=[str(i) for i in range(5)])
    trainer = run(tmp_path, data, module, estimator=seguq.MCDropout(samples=3, seed=2))
    direct = seguq.MCDropout(module, samples=3, seed=2, calibrator=None)
    close(logged(trainer), by_hand(direct, data, measures=SAMPLED))


def test_a_deep_ensemble_gives_the_figures_of_direct_calls(tmp_path):
    members = [make_module(pytorch_lightning, seed=i).eval() for i in range(3)]
    trainer = run(tmp_path, module=members[0], estimator=seguq.DeepEnsemble(members))
    direct = seguq.DeepEnsemble(members, calibrator=None)
    close(logged(trainer), by_hand(direct, Images(7), measures=SAMPLED))


def test_one_logit_is_measured_as_the_sigmoid_of_two_classes(tmp_path):
    module = make_module(pytorch_lightning, classes=1)
    data = Images(5, classes=1)
    trainer = run(tmp_path, data, module)
    close(logged(trainer), by_hand(raw(module, task="binary"), data, classes=2))


@pytest.mark.parametrize("told", ["argument", "attribute"])
def test_multilabel_pixels_are_wrong_where_one_label_is(tmp_path, told):
    module = make_module(pytorch_lightning, classes=2, **({"task": "multilabel"} if told == "attribute" else {}))
    data = Images(5, classes=2, labels=2)
    trainer = run(tmp_path, data, module, **({"task": "multilabel"} if told == "argument" else {}))
    brier, ranking = BrierScore(2), RiskCoverage()
    for i in range(5):
        maps = raw(module, task="multilabel")(data[i]["image"][None])
        mask = data[i]["mask"][None]
        brier.update(torch.stack((1 - maps.probs, maps.probs), 1), mask)
        wrong = ((maps.prediction != mask) & (mask != 255)).any(1).long()
        ranking.update(maps["energy"], wrong.masked_fill((mask == 255).all(1), 255))
    found = logged(trainer)
    assert found["brier"] == pytest.approx(float(brier.compute()), rel=1e-5)
    assert found["aurc/energy"] == pytest.approx(float(ranking.compute()["aurc"]), rel=1e-5)


def test_another_value_than_255_can_be_ignored(tmp_path):
    class Other(Images):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item | {"mask": item["mask"].masked_fill(item["mask"] == 255, -1)}

    module = make_module(pytorch_lightning)
    module._loss = lambda batch: module(batch["image"]).sum()
    trainer = run(tmp_path, Other(7), module, ignore_index=-1)
    close(logged(trainer), by_hand(raw(module), Images(7)))


@both_names
def test_figures_of_several_loaders_stand_apart(tmp_path, package):
    module = make_module(package)
    data = [Images(4), Images(5, seed=1)]
    trainer = run(tmp_path, [loader(one) for one in data], module, package)
    for n, one in enumerate(data):
        ending = f"/dataloader_idx_{n}"
        found = {k.removesuffix(ending): v for k, v in logged(trainer).items() if k.endswith(ending)}
        close(found, by_hand(raw(module), one))
    assert all(name[-1] in "01" for name in logged(trainer))


def test_max_images_are_those_of_each_loader(tmp_path):
    module = make_module(pytorch_lightning)
    data = [Images(4), Images(5, seed=1)]
    trainer = run(tmp_path, [loader(one) for one in data], module, max_images=2)
    assert logged(trainer)["nll/dataloader_idx_1"] == pytest.approx(by_hand(raw(module), data[1], 2)["nll"], rel=1e-5)


def test_names_of_several_loaders_do_not_depend_on_one_of_them_being_empty(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = run(tmp_path, [loader(Images(4)), loader(Images(0))])
    assert "ece/dataloader_idx_0" in logged(trainer)


def test_a_fit_logs_the_figures_of_each_epoch(tmp_path):
    seen = []

    class Look(pytorch_lightning.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                seen.append((logged(trainer), by_hand(raw(module), Images(5))))

    trainer = make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics(measures=MEASURES), Look(), max_epochs=2)
    trainer.fit(make_module(pytorch_lightning), loader(Images(4, seed=9)), loader(Images(5)))
    assert len(seen) == 2 and seen[0][0] != seen[1][0]
    for found, expected in seen:
        close(found, expected)


@pytest.mark.parametrize(("epochs", "expected"), [(4, [0, 2, 3]), (3, [0, 2])])
def test_every_n_epochs_and_the_last_are_measured(tmp_path, epochs, expected):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    trainer = make_trainer(
        pytorch_lightning,
        tmp_path,
        UncertaintyMetrics(every_n_epochs=2, measures=MEASURES),
        max_epochs=epochs,
        logger=logger,
    )
    trainer.fit(make_module(pytorch_lightning), loader(Images(4)), loader(Images(3)))
    logger.save()
    with open(logger.experiment.metrics_file_path) as content:
        rows = [row for row in csv.DictReader(content) if row["val/ece"]]
    assert [int(row["epoch"]) for row in rows] == expected


def test_the_training_is_the_same_to_the_last_bit(tmp_path):
    weights = []
    for callbacks in ([UncertaintyMetrics(estimator="mc_dropout", measures=SAMPLED)], []):
        torch.manual_seed(0)
        module = make_module(pytorch_lightning)
        trainer = make_trainer(pytorch_lightning, tmp_path, *callbacks, max_epochs=2)
        trainer.fit(module, loader(Images(6), shuffle=True), loader(Images(5)))
        weights.append(weights_sha256(module))
    assert weights[0] == weights[1]


def test_two_callbacks_of_one_estimator_share_its_run(tmp_path):
    module, estimator = make_module(pytorch_lightning), seguq.MCDropout(samples=3)
    callbacks = [Calibrate(estimator=estimator), UncertaintyMetrics(estimator=estimator, measures=SAMPLED)]
    make_trainer(pytorch_lightning, tmp_path, *callbacks).validate(module, loader(Images(7)), verbose=False)
    assert module.forwards == 3 + 3 + 2  # the step, one recorded pass a batch, two that are verified


def test_callbacks_of_two_estimators_stand_side_by_side(tmp_path):
    module = make_module(pytorch_lightning)
    callbacks = [
        UncertaintyMetrics(measures=MEASURES),
        UncertaintyMetrics(estimator=seguq.MCDropout(samples=4), measures=SAMPLED),
    ]
    trainer = make_trainer(pytorch_lightning, tmp_path, *callbacks)
    trainer.validate(module, loader(Images(7)), verbose=False)
    alone = logged(run(tmp_path, module=make_module(pytorch_lightning)))
    sampled = logged(run(tmp_path, module=make_module(pytorch_lightning), estimator=seguq.MCDropout(samples=4)))
    assert logged(trainer) == alone | {f"{name}/mc_dropout": value for name, value in sampled.items()}


def test_two_callbacks_of_one_kind_of_estimator_are_an_error_as_their_names_would_clash(tmp_path):
    trainer = make_trainer(
        pytorch_lightning, tmp_path, UncertaintyMetrics(measures=MEASURES), UncertaintyMetrics("deterministic")
    )
    with pytest.raises(SeguqError, match=r"two UncertaintyMetrics of one kind of estimator \(deterministic\)"):
        trainer.validate(make_module(pytorch_lightning), loader(Images(2)), verbose=False)


# calibrators


def calibrated(module, tag_from=seguq.Deterministic, temperature=3.0):
    """Put a calibrator of these weights into the module; gives the estimator with it, and without."""
    calibrator = seguq.TemperatureScaling()
    calibrator.log_temperature.fill_(float(np.log(temperature)))
    calibrator.tag, calibrator.weights_sha256 = tag_from().tag, weights_sha256(module)
    module.calibrators = {calibrator.tag: calibrator}
    fixed = seguq.TemperatureScaling()
    fixed.log_temperature.fill_(float(np.log(temperature)))
    return fixed


def test_validation_is_measured_raw_and_test_calibrated(tmp_path):
    module = make_module(pytorch_lightning)
    fixed = calibrated(module)
    with_it = by_hand(seguq.Deterministic(module, calibrator=fixed), Images(7))
    without = by_hand(raw(module), Images(7))
    close(logged(run(tmp_path, module=module)), without)
    close(logged(run(tmp_path, module=module, stage="test"), "test/"), with_it)
    assert with_it["nll"] != pytest.approx(without["nll"], rel=1e-2)


def test_a_calibrator_that_was_passed_is_applied_in_validation_too(tmp_path):
    module = make_module(pytorch_lightning)
    fixed = calibrated(module)
    module.calibrators = {}
    found = logged(run(tmp_path, module=module, calibrator=fixed))
    close(found, by_hand(seguq.Deterministic(module, calibrator=fixed), Images(7)))


def test_without_a_calibrator_test_is_measured_raw(tmp_path):
    module = make_module(pytorch_lightning)
    calibrated(module)
    close(logged(run(tmp_path, module=module, stage="test", calibrator=None), "test/"), by_hand(raw(module), Images(7)))


def test_a_calibrator_of_another_estimator_is_not_applied(tmp_path):
    module = make_module(pytorch_lightning)
    calibrated(module, tag_from=seguq.MCDropout)
    close(logged(run(tmp_path, module=module, stage="test"), "test/"), by_hand(raw(module), Images(7)))


def test_a_calibrator_of_other_weights_is_not_applied_and_a_warning_says_so(tmp_path):
    module = make_module(pytorch_lightning)
    calibrated(module)
    with torch.no_grad():
        module.head.bias.add_(0.5)
    with pytest.warns(UserWarning, match="is not applied: it was fitted for other weights"):
        trainer = run(tmp_path, module=module, stage="test")
    close(logged(trainer, "test/"), by_hand(raw(module), Images(7)))


@both_names
def test_what_calibrate_fitted_beside_it_is_applied_in_test(tmp_path, package):
    module = make_module(package)
    trainer = make_trainer(package, tmp_path, Calibrate(), UncertaintyMetrics(measures=MEASURES), max_epochs=1)
    trainer.fit(module, loader(Images(4, seed=9)), loader(Images(6)))
    trainer.test(module, loader(Images(7, seed=1)), verbose=False)
    fixed = module.calibrators["deterministic"]
    assert fixed.temperature != pytest.approx(1, abs=1e-2)
    expected = by_hand(seguq.Deterministic(module, calibrator=fixed), Images(7, seed=1))
    close(logged(trainer, "test/"), expected)


# loggers


def table_of(path):
    with path.open() as content:
        return {row["name"]: [float(row[name]) for name in ("value", "low", "high")] for row in csv.DictReader(content)}


@both_names
def test_a_csv_logger_gets_the_figure_and_a_table_with_intervals(tmp_path, package):
    logger = package.loggers.CSVLogger(tmp_path, name="run", version=0)
    trainer = run(tmp_path, package=package, trainer_settings={"logger": logger})
    folder = tmp_path / "run" / "version_0"
    rows = table_of(folder / "tables" / "val" / "uncertainty-step=000000.csv")
    close({name: value for name, (value, _, _) in rows.items()}, logged(trainer))
    assert all(low <= high for _, low, high in rows.values()) and rows["ece"][1] < rows["ece"][2]
    picture = np.asarray(Image.open(folder / "figures" / "val" / "uncertainty-step=000000.png").convert("RGB"))
    assert picture.shape == (400, 1200, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@both_names
def test_tensorboard_gets_the_figure_a_table_and_the_numbers(tmp_path, package):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = package.loggers.TensorBoardLogger(tmp_path)
    trainer = run(tmp_path, package=package, stage="test", trainer_settings={"logger": logger})
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    (image,) = events.Images("test/uncertainty")
    (text,) = events.Tensors("test/uncertainty/text_summary")
    assert Image.open(io.BytesIO(image.encoded_image_string)).size == (1200, 400)
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| name | value | low | high |" and lines[2].startswith("| ece | ")
    assert events.Scalars("test/ece")[0].value == pytest.approx(logged(trainer, "test/")["ece"])


def test_several_loggers_each_get_their_own_and_each_loader_its_own(tmp_path):
    loggers = [pytorch_lightning.loggers.CSVLogger(tmp_path, name=name) for name in "ab"]
    run(tmp_path, [loader(Images(2)), loader(Images(2, seed=1))], trainer_settings={"logger": loggers})
    for name in "ab":
        found = [path for path in files(tmp_path / name) if path.endswith((".png", "000000.csv"))]
        assert found == [
            f"version_0/{kind}/val/uncertainty/dataloader_idx_{n}-step=000000.{suffix}"
            for kind, suffix in (("figures", "png"), ("tables", "csv"))
            for n in (0, 1)
        ]


class Numbers:
    """The least that Lightning asks of a logger, which keeps the numbers."""

    name, version = "own", 0

    def __init__(self):
        super().__init__()
        self.metrics = {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@both_names
def test_a_logger_that_can_take_no_figure_gets_the_numbers_and_no_error(tmp_path, package):
    logger = type("Own", (Numbers, package.loggers.Logger), {})()
    trainer = run(tmp_path, package=package, trainer_settings={"logger": logger})
    found = {name[4:]: value for name, value in logger.metrics.items() if name.startswith("val/")}
    close(found, logged(trainer))


@both_names
def test_without_a_logger_no_file_is_written(tmp_path, package):
    assert "ece" in logged(run(tmp_path, package=package)) and files(tmp_path) == []


def test_a_fast_dev_run_works_without_a_file(tmp_path):
    trainer = make_trainer(
        pytorch_lightning, tmp_path, UncertaintyMetrics(measures=MEASURES), logger=True, fast_dev_run=True
    )
    trainer.fit(make_module(pytorch_lightning), loader(Images(4)), loader(Images(4)))
    assert "ece" in logged(trainer) and files(tmp_path) == []


def test_the_sanity_check_measures_nothing(tmp_path):
    seen = []

    class Look(pytorch_lightning.Callback):
        def on_sanity_check_end(self, trainer, module):
            seen.append(logged(trainer))

    trainer = make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics(measures=MEASURES), Look())
    trainer.fit(make_module(pytorch_lightning), loader(Images(4)), loader(Images(4)))
    assert seen == [{}]


def test_the_figure_shows_every_value_that_it_is_given():
    calibration = CalibrationError(2)
    probs = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calibration.update(torch.cat((probs, 1 - probs), 1), torch.zeros(20, 8, 8).long(), [str(i) for i in range(20)])
    rows = [Row(name, None, 0.25, 0.125, 0.5) for name in ("ece", "brier", "nll")]
    rows += [Row(f, m, 0.75, 0.7, 0.8) for f in ("auroc_error", "aurc") for m in ("energy", "max_logit")]
    figure = uncertainty_figure(calibration, rows, "a title")
    reliability, auroc, aurc = figure.axes
    assert reliability.get_title() == "ECE 0.250 [0.125, 0.500]\nBrier 0.250 [0.125, 0.500]\nNLL 0.250 [0.125, 0.500]"
    for axes in (auroc, aurc):
        assert [label.get_text() for label in axes.get_yticklabels()] == ["energy", "max logit"]
        assert [list(line.get_xdata()) for line in axes.lines] == [[0.7, 0.8], [0.75]] * 2
    assert figure.get_suptitle() == "a title"


# what goes wrong, and what is left


@both_names
def test_the_module_is_left_as_it_was_found(tmp_path, package):
    module = make_module(package)
    before = traces(module)
    run(tmp_path, module=module, package=package, estimator="mc_dropout")
    assert traces(module) == before


def test_after_an_error_in_a_step_nothing_is_left(tmp_path):
    module = make_module(pytorch_lightning)
    handle = module.head.register_forward_hook(lambda *_: 1 / 0 if module.forwards > 2 else None)
    before = traces(module)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, module=module)
    found = traces(module)
    assert found[:2] == before[:2]
    handle.remove()


def test_images_without_masks_are_one_clear_error(tmp_path):
    module = make_module(pytorch_lightning)
    module.validation_step = lambda batch, batch_idx: None
    with pytest.raises(
        SeguqError, match="UncertaintyMetrics needs labels, but a batch has no mask that it understands"
    ):
        run(tmp_path, [loader([{"image": torch.rand(3, 8, 8)}])], module)


def test_a_run_without_a_labeled_pixel_gives_nan_and_a_table(tmp_path):
    class Unlabeled(Images):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return item | {"mask": torch.full_like(item["mask"], 255)}

    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    found = logged(run(tmp_path, Unlabeled(2), trainer_settings={"logger": logger}))
    assert all(np.isnan(value) for value in found.values()) and "ece" in found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_images": 0}, "max_images must be a whole number of at least 1"),
        ({"every_n_epochs": True}, "every_n_epochs must be a whole number"),
        ({"calibrator": "global"}, "calibrator must be a calibrator, 'auto' or None"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(settings, told):
    with pytest.raises(SeguqError, match=told):
        UncertaintyMetrics(**settings)


def test_a_measure_that_the_estimator_has_not_is_an_error_before_the_first_batch(tmp_path):
    module = make_module(pytorch_lightning)
    with pytest.raises(SeguqError, match="'variance' is not among the measures of deterministic"):
        run(tmp_path, module=module, measures=["variance"])
    assert module.forwards == 0


def test_predict_is_none_of_its_business(tmp_path):
    module = with_predict_step(pytorch_lightning)
    returned = make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics(measures=MEASURES)).predict(
        module, loader(Images(3))
    )
    assert [item["batch"] for item in returned] == [0]


def test_a_transformer_of_quarter_size_is_measured_at_the_size_of_the_mask(tmp_path):
    class Quarter(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.inner = module

        def forward(self, images):
            return type("Output", (), {"logits": nn.functional.avg_pool2d(self.inner(images), 4)})()

    module = make_module(pytorch_lightning)
    net = Quarter(module.head.__class__(3, 3, 1))
    module.forward = net.forward
    module._loss = lambda batch: module(batch["image"]).logits.sum()
    module.net = net
    close(logged(run(tmp_path, module=module)), by_hand(raw(net), Images(7)))


# intervals


def drawn(folder, monkeypatch, data, **settings):
    """The groups that each image was drawn in, in a set of the images' numbers each."""
    seen, update = [], NegativeLogLikelihood.update

    def note(self, probs, target, group=None):
        seen.extend(group)
        update(self, probs, target, group=group)

    monkeypatch.setattr(NegativeLogLikelihood, "update", note)
    run(folder, data, **settings)
    return [[i for i, group in enumerate(seen) if group == each] for each in dict.fromkeys(seen)]


def test_whole_groups_are_drawn_where_the_ids_tell_them(tmp_path, monkeypatch):
    ids = ["street_1", "street_2", "park_1", "street_3", "park_2"]
    found = drawn(tmp_path, monkeypatch, Images(5, ids=ids), group="^[a-z]+")
    assert found == [[0, 1, 3], [2, 4]]


def test_contiguous_blocks_are_drawn_where_nothing_is_told(tmp_path, monkeypatch):
    found = drawn(tmp_path, monkeypatch, Images(130, size=(2, 2)))
    assert found == [list(range(first, min(first + 3, 130))) for first in range(0, 130, 3)]


@pytest.mark.parametrize(
    "settings", [{"max_images": 70}, {"trainer_settings": {"limit_val_batches": 23}}], ids=["max_images", "limit"]
)
def test_blocks_are_those_of_the_images_that_are_looked_at(tmp_path, monkeypatch, settings):
    found = drawn(tmp_path, monkeypatch, Images(3000, size=(2, 2)), **settings)
    assert {len(block) for block in found} <= {1, 2} and len(found) >= 35


def test_a_data_set_of_one_group_has_an_interval_of_no_width(tmp_path):
    metrics = UncertaintyMetrics(measures=MEASURES, group=lambda image_id: "the one patient")
    runs = runs_of(metrics)
    trainer = make_trainer(pytorch_lightning, tmp_path, metrics)
    trainer.validate(make_module(pytorch_lightning), loader(Images(7)), verbose=False)
    low, high = runs[0].sums[0]["nll"].compute_interval()
    assert float(low) == pytest.approx(float(high), rel=1e-9)


def test_an_id_without_a_group_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"group='\^x' finds nothing in the image id 'a'"):
        run(tmp_path, Images(1, ids=["a"]), group="^x")


def test_a_group_that_is_none_is_an_error_at_once():
    with pytest.raises(SeguqError, match="group must be a function of the image id, a regular expression or None"):
        UncertaintyMetrics(group=3)
