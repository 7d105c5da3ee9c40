"""What a whole loop comes to: what it asks, keeps and measures, and with what models and Trainers."""

from __future__ import annotations

from dataclasses import replace

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from seguq import SegmentationTask
from seguq.acquisition import Budget, ClaSP, KMeansPlusPlus, Random, Selection, Strategy, TopK
from seguq.active import Stop, fork
from seguq.active.run_folder import RunFolder
from seguq.active.training import default_trainer
from seguq.annotators import Annotator, Oracle
from seguq.calibration import load
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource, read_mask
from seguq.data.folder import SegmentationFolder
from seguq.inference import Deterministic, MCDropout
from seguq.regions import Boxes, Components, Grid, Partition, Pixels, RegionTable, Superpixels, WholeImage
from tests.active.small_loop import (
    CLASSES,
    IGNORED,
    SIZE,
    asked_once,
    classes_of,
    figures,
    labels_are_the_truth,
    make_data,
    make_loop,
    make_module,
    make_trainer,
    outcome,
    rounds_of,
    rows_of,
    weights,
    write_data,
    write_image,
)


@pytest.fixture(scope="module")
def root(shared_path):
    return write_data(shared_path / "data")


@pytest.fixture(scope="module")
def run_dir(root, shared_path):
    """A loop that nobody has disturbed. Tests only read it."""
    folder = shared_path / "run"
    make_loop(root, folder).run()
    return folder


# ---- what lies there ----


def test_each_round_leaves_its_files(run_dir):
    assert rounds_of(run_dir) == [0, 1, 2]
    for number in range(3):
        folder = RunFolder(run_dir)
        for file in (folder.table, folder.selection, folder.model, folder.metrics, folder.states, folder.page):
            assert file(number).stat().st_size
        assert list(folder.answers(number).glob("*.png"))
    assert not list(run_dir.rglob(".seguq-tmp-*"))


def test_labels_are_the_truth_in_what_was_asked_and_ignored_elsewhere(root, run_dir):
    labels_are_the_truth(root, run_dir)
    for number in range(3):
        labels_are_the_truth(root, run_dir, RunFolder(run_dir).answers(number), rows_of(run_dir, number))


def test_no_pixel_is_asked_twice(root, run_dir):
    asked_once(run_dir, ImageSource(root / "images" / "pool"))


def test_each_round_asks_what_its_budget_allows(run_dir):
    assert [len(rows_of(run_dir, number)) for number in range(3)] == [6, 6, 6]
    assert [figures(run_dir, number)["labeled"]["regions"] for number in range(3)] == [6, 12, 18]


def test_counts_are_those_of_the_masks_and_the_images(root, run_dir):
    for number in range(3):
        found = figures(run_dir, number)
        rows = [row for n in range(number + 1) for row in rows_of(run_dir, n)]
        assert found["labeled"]["pixels"] == 16 * len(rows)
        assert found["labeled"]["images"] == len({row["image_id"] for row in rows})
        assert found["pool"] == {"regions": 6 * 16, "pixels": 6 * SIZE * SIZE, "images": 6}
        oracle = Oracle(root / "masks" / "pool")
        clicks = 0
        for n in range(number + 1):
            oracle = Oracle(root / "masks" / "pool")
            oracle.send(Selection.load(RunFolder(run_dir).selection(n)), ImageSource(root / "images" / "pool"))
            clicks += sum(answer.clicks for answer in oracle.collect())
        assert found["labeled"]["clicks"] == clicks


def predictions(root, run_dir, number, split="test"):
    """Calibrated probabilities and masks of a split, the slow way."""
    module = load(RunFolder(run_dir).model(number), make_module()).eval()
    (calibrator,) = module.calibrators.values()
    found = SegmentationFolder(root / "images" / split, root / "masks" / split, classes_of(root))
    for image_id in found.ids:
        image = torch.from_numpy(ImageSource(root / "images" / split)[image_id]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            probs = calibrator(module((image - 0.4) / 0.25)).softmax(1)[0].double().numpy()
        yield probs, read_mask(root / "masks" / split / f"{image_id}.png", classes_of(root))


def slow_miou(confusion):
    ious = []
    for i in range(len(confusion)):
        union = confusion[i].sum() + confusion[:, i].sum() - confusion[i, i]
        if union:
            ious.append(confusion[i, i] / union)
    return float(np.mean(ious))


def confusions(root, run_dir, number):
    for probs, mask in predictions(root, run_dir, number):
        out = np.zeros((CLASSES, CLASSES))
        for true, found in zip(mask.ravel(), probs.argmax(0).ravel(), strict=True):
            if true != IGNORED:
                out[true, found] += 1
        yield out


@pytest.mark.parametrize("number", range(3))
def test_figures_are_those_of_the_calibrated_model_on_the_test_images(root, run_dir, number):
    found = figures(run_dir, number)
    assert (found["split"], found["images"], found["groups"]) == ("test", 3, 3)
    assert found["metrics"]["miou"]["value"] == pytest.approx(slow_miou(sum(confusions(root, run_dir, number))), 1e-5)
    losses = []
    for probs, mask in predictions(root, run_dir, number):
        known = mask != IGNORED
        losses += list(-np.log(np.take_along_axis(probs, np.where(known, mask, 0)[None], 0)[0][known]))
    assert found["metrics"]["nll"]["value"] == pytest.approx(np.mean(losses), rel=1e-4)
    for values in found["metrics"].values():
        assert values["low"] <= values["value"] <= values["high"]


def test_the_gain_is_paired(root, run_dir):
    """The interval is that of the differences over the same images, which a pair of intervals would not give."""
    before, after = (list(confusions(root, run_dir, number)) for number in (0, 1))
    gain = figures(run_dir, 1)["gain"]
    assert gain["since"] == 0
    assert gain["miou"]["value"] == pytest.approx(slow_miou(sum(after)) - slow_miou(sum(before)), abs=1e-5)
    draws = [
        slow_miou(sum(after[i] for i in drawn)) - slow_miou(sum(before[i] for i in drawn))
        for drawn in np.ndindex(3, 3, 3)  # all that a bootstrap of three images may draw
    ]
    assert min(draws) - 1e-5 <= gain["miou"]["low"] <= gain["miou"]["high"] <= max(draws) + 1e-5
    assert figures(run_dir, 0)["gain"] is None


def test_of_a_single_image_there_are_no_intervals(tmp_path):
    """All draws of it are alike; a target would be reached, and a gain be sure, by luck."""
    data = write_data(tmp_path / "data", judged=1)
    found = make_loop(data, tmp_path / "run", stop=Stop(metric=0.01, gain_over=1)).run()
    assert (found.round, found.ended) == (2, None)
    for number in range(3):
        content = figures(tmp_path / "run", number)
        for values in [*content["metrics"].values(), *([content["gain"]["miou"]] if number else [])]:
            assert values["value"] is not None
            assert values["low"] is values["high"] is None


@pytest.mark.parametrize("there", [True, False], ids=["root", "no root"])
def test_test_images_that_the_module_has_no_step_for_are_told_of(root, tmp_path, caplog, there):
    class NoTest(type(make_module())):
        test_step = pytorch_lightning.LightningModule.test_step

    with caplog.at_level("INFO", "seguq"):
        make_loop(root, tmp_path / "run", make_task=NoTest, rounds=1, data=make_data(root if there else None)).run()
    assert figures(tmp_path / "run", 0)["split"] == ("val" if there else None)
    told = "LabeledData gives labeled images for test, but NoTest has no test_step"
    assert (told in caplog.text) is there


# ---- again, further, not yet ----


def test_to_run_it_again_does_nothing(root, tmp_path):
    make_loop(root, tmp_path / "run", rounds=1).run()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    again = make_loop(root, tmp_path / "run", rounds=1).run()
    assert "was the last of 1 round" in again.lines()[0]
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before if before[path][1] != after[path][1]} == set()
    assert before.keys() == after.keys()


def test_until_pauses_and_further_rounds_may_be_added(root, run_dir, tmp_path):
    paused = make_loop(root, tmp_path / "run", rounds=2).run(until=1)
    assert (paused.round, paused.done) == (0, "report")
    assert make_loop(root, tmp_path / "run", rounds=2).run(until=0).round == 0
    assert make_loop(root, tmp_path / "run", rounds=2).run().round == 1
    assert make_loop(root, tmp_path / "run", rounds=3).run().round == 2
    assert outcome(tmp_path / "run") == outcome(run_dir)


def test_budgets_may_be_given_a_round_and_changed_where_none_has_begun(root, tmp_path):
    def loop(*regions):
        budgets = [Budget(regions=number) for number in regions]
        return make_loop(root, tmp_path / "run", rounds=len(regions), budget=budgets, calibrator=None)

    loop(4, 2).run(until=1)
    loop(4, 3).run()
    assert [len(rows_of(tmp_path / "run", number)) for number in (0, 1)] == [4, 3]
    with pytest.raises(UsageError, match="budget"):
        loop(4, 2).run()


# ---- with what model, Trainer, data ----


def test_a_segmentation_task_and_the_default_trainer(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make_task():
        return SegmentationTask("unet", "resnet18", classes=CLASSES, encoder_weights=None)

    data = write_data(tmp_path / "data", size=32)
    options = {"data": make_data(data, mean=None, std=None), "trainer": None, "partition": Grid(8)}
    loop = make_loop(data, tmp_path / "run", make_task=make_task, rounds=1, **options)
    assert loop.run().records[-1].metrics["miou"].value > 0
    labels_are_the_truth(data, tmp_path / "run")
    assert list((tmp_path / "run" / "round-00" / "logs").rglob("metrics.csv"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "data"}  # nothing beside the folder


def tuples(package, labeled, root):
    """Data of a user's own: batches are tuples."""
    inner = make_data(root)(labeled)

    def of(loader):
        def collate(items):
            found = loader.collate_fn(items)
            return found["image"], found["mask"] if "mask" in found else found["image_id"]

        options = {"batch_size": loader.batch_size, "sampler": loader.sampler, "collate_fn": collate}
        return DataLoader(loader.dataset, **options)

    class Data(package.LightningDataModule):
        def setup(self, stage):
            inner.setup(stage)

        def train_dataloader(self):
            return of(inner.train_dataloader())

        def test_dataloader(self):
            return of(inner.test_dataloader())

        def predict_dataloader(self):
            return of(inner.predict_dataloader())

    return Data()


@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch], ids=lambda package: package.__name__)
def test_a_foreign_module_of_either_name_with_tuples_and_its_own_trainer(root, run_dir, tmp_path, package):
    def trainer():
        return package.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False, num_sanity_val_steps=0, accelerator="cpu",
        )  # fmt: skip

    make_loop(
        root,
        tmp_path / "run",
        make_task=lambda: make_module(package),
        data=lambda labeled: tuples(package, labeled, root),
        trainer=trainer,
        calibrator=None,
    ).run()
    labels_are_the_truth(root, tmp_path / "run")
    asked_once(tmp_path / "run", ImageSource(root / "images" / "pool"))
    assert rows_of(tmp_path / "run", 0) == rows_of(run_dir, 0)
    ours, theirs = weights(run_dir, 0), weights(tmp_path / "run", 0)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # the same batches, in the same order


def test_outputs_that_are_not_understood_are_taken_by_batch_forward(root, run_dir, tmp_path):
    class Odd(make_module(pytorch_lightning).__class__):
        def forward(self, images):
            return {"answer": super().forward(images)}

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self(batch["image"])["answer"], batch["mask"], ignore_index=255)

        def validation_step(self, batch, batch_idx):
            pass

        test_step = validation_step

    def forward(module, batch):
        return module(batch["image"])["answer"], batch.get("mask")

    loop = make_loop(root, tmp_path / "run", make_task=Odd, batch_forward=forward)
    assert loop.run().records[-1].split == "test"
    assert rows_of(tmp_path / "run", 1) == rows_of(run_dir, 1)


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_a_trainer_that_starts_the_script_again_is_refused(root, tmp_path, strategy):
    with pytest.raises(UsageError, match="ddp_spawn"):
        make_loop(root, tmp_path / "run", trainer=lambda: make_trainer(devices=2, strategy=strategy)).run()


def test_a_trainer_of_the_other_package_is_refused(root, tmp_path):
    with pytest.raises(UsageError, match="a module of lightning, which a Trainer of pytorch_lightning"):
        make_loop(root, tmp_path / "run", make_task=lambda: make_module(lightning.pytorch), trainer=None).run()


def test_the_trainers_callbacks_and_loggers_are_used(root, tmp_path):
    class Counts(pytorch_lightning.Callback):
        fits = predictions = 0

        def on_fit_start(self, trainer, pl_module):
            Counts.fits += 1

        def on_predict_start(self, trainer, pl_module):
            Counts.predictions += 1

    def trainer():
        log = pytorch_lightning.loggers.CSVLogger(str(tmp_path / "logs"))
        return make_trainer(callbacks=[Counts()], logger=log, log_every_n_steps=1)

    make_loop(root, tmp_path / "run", rounds=2, trainer=trainer).run()
    assert (Counts.fits, Counts.predictions) == (2, 2)
    assert len(list((tmp_path / "logs").rglob("metrics.csv"))) >= 2


def test_the_best_weights_are_kept_where_the_trainer_watches_for_them(root, tmp_path):
    kept = []

    def trainer():
        best = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path / "best", monitor="val_loss", mode="max")
        kept.append(best)
        return make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[best])

    make_loop(root, tmp_path / "run", rounds=1, trainer=trainer, calibrator=None).run()
    (best,) = {watch.best_model_path for watch in kept if watch.best_model_path}
    expected = torch.load(best, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run", 0).items())


def test_a_list_of_callbacks_that_is_shared_by_trainers_stays_as_it_is(root, run_dir, tmp_path):
    shared = [pytorch_lightning.callbacks.Timer()]
    make_loop(root, tmp_path / "run", trainer=lambda: make_trainer(callbacks=shared)).run()
    assert len(shared) == 1
    assert outcome(tmp_path / "run") == outcome(run_dir)


def test_one_trainer_for_all_is_refused(root, tmp_path):
    one = make_trainer()
    with pytest.raises(UsageError, match=r"trainer\(\) .*new Trainer"):
        make_loop(root, tmp_path / "run", trainer=lambda: one).run()


def test_a_training_that_leaves_no_model_is_a_sentence(root, tmp_path):
    with pytest.raises(SeguqError, match=r"training .*round-00"):
        make_loop(root, tmp_path / "run", trainer=lambda: make_trainer(max_epochs=0)).run()
    make_loop(root, tmp_path / "run").run(until=1)


@pytest.mark.parametrize("calibrator", [None, "global", "auto"])
def test_each_model_carries_its_calibrator(root, tmp_path, calibrator):
    make_loop(root, tmp_path / "run", rounds=2, calibrator=calibrator).run()
    for number in range(2):
        content = torch.load(RunFolder(tmp_path / "run").model(number), weights_only=True)
        assert ("seguq" in content) is (calibrator is not None)


def test_the_choice_goes_by_calibrated_scores(root, run_dir, tmp_path):
    """Of the second round, whose model carries a calibrator; the first round's network is untrained."""
    make_loop(root, tmp_path / "run", rounds=2, calibrator=None).run()
    plain, calibrated = (RegionTable.load(RunFolder(folder).table(1)) for folder in (tmp_path / "run", run_dir))
    assert not np.allclose(plain.column("score"), calibrated.column("score"))


@pytest.mark.parametrize("splits", [("val",), ("test",), ()], ids="-".join)
def test_without_labeled_images_there_are_no_figures(root, tmp_path, splits):
    data = tmp_path / "data"
    for split in splits:
        for kind in ("images", "masks"):
            (data / kind).mkdir(parents=True, exist_ok=True)
            (data / kind / split).symlink_to(root / kind / split)
    run_dir = tmp_path / "run"
    make_loop(root, run_dir, rounds=2, data=make_data(data if splits else None)).run()
    labels_are_the_truth(root, run_dir)
    for number in range(2):
        found = figures(run_dir, number)
        assert found["split"] == (splits[0] if splits else None)
        assert bool(found["metrics"]) is bool(splits)
        assert found["images"] == (3 if splits else 0)
        assert (found["gain"] is not None) is bool(splits and number)


def test_figures_on_the_images_that_a_calibrator_was_fitted_on_are_those_without_it(root, tmp_path):
    for name, calibrator in (("with", "global"), ("without", None)):
        loop = make_loop(
            root, tmp_path / name, rounds=1, calibrator=calibrator, data=make_data(root, test_split="none")
        )
        loop.run()
    with_it, without = (figures(tmp_path / name, 0) for name in ("with", "without"))
    assert with_it["split"] == "val"
    assert with_it["metrics"] == without["metrics"]
    assert "seguq" in torch.load(RunFolder(tmp_path / "with").model(0), weights_only=True)


def test_an_estimator_of_several_passes_scores_and_judges(root, tmp_path):
    settings = {"estimator": MCDropout(samples=3, seed=1), "by": "mutual_information", "rounds": 2}
    for name in ("one", "two"):
        make_loop(root, tmp_path / name, **settings).run()
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    table = RegionTable.load(RunFolder(tmp_path / "one").table(1))
    assert table.meta["by"] == "mutual_information"
    assert (table.column("score") > 0).any()


def test_an_estimator_with_a_function_can_be_gone_on_with(root, tmp_path):
    """What tells settings apart holds no address of this process."""

    def loop():
        return make_loop(
            root,
            tmp_path / "run",
            rounds=2,
            estimator=MCDropout(samples=2, layers=lambda name, module: "head" in name, forward=lambda m, x: m(x)),
        )

    loop().run(until=1)
    assert loop().run().round == 1
    assert "0x" not in (tmp_path / "run" / "loop.json").read_text()


def test_fine_tuning_begins_with_the_last_weights(root, tmp_path):
    """A training without a step of any size leaves them as they were."""

    def frozen():
        module = make_module()
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
        return module

    tuned = make_loop(root, tmp_path / "tuned", rounds=1, fine_tune=True)
    tuned.run()
    make_loop(root, tmp_path / "tuned", rounds=2, fine_tune=True, make_task=frozen).run()
    first, second = (weights(tmp_path / "tuned", number) for number in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_it_each_round_begins_anew(root, run_dir):
    first, second = (weights(run_dir, number) for number in (0, 1))
    assert not torch.equal(first["encoder.0.weight"], second["encoder.0.weight"])


# ---- partitions, strategies, budgets ----

PARTITIONS = {
    "Grid": Grid(4),
    "Superpixels": Superpixels(8),
    "Components": Components(),
    "Boxes": Boxes(4, 6),
    "Pixels": Pixels(10),
    "WholeImage": WholeImage(),
}


def test_all_partitions_are_tried():
    assert set(PARTITIONS) == {name for name in Partition.names() if Partition.named(name).__module__[:6] == "seguq."}


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_partition_asks_no_pixel_twice(root, tmp_path, name):
    loop = make_loop(root, tmp_path / "run", partition=PARTITIONS[name], budget=Budget(regions=3), rounds=2)
    loop.run()
    asked_once(tmp_path / "run", ImageSource(root / "images" / "pool"))
    labels_are_the_truth(root, tmp_path / "run")
    found = figures(tmp_path / "run", 1)
    assert found["labeled"]["regions"] == 6
    assert found["pool"]["pixels"] == 6 * SIZE * SIZE
    assert found["labeled"]["pixels"] == sum(row["area"] for n in (0, 1) for row in rows_of(tmp_path / "run", n))


class Rest(Partition):
    """All that is left of an image, as one region: of the same number and box each time."""

    def __call__(self, image, maps=None):
        return torch.zeros(SIZE, SIZE, dtype=torch.int32)


class Corners(Partition):
    """Two opposite corners of an image as one region."""

    def __call__(self, image, maps=None):
        out = torch.full((SIZE, SIZE), -1, dtype=torch.int32)
        out[:4, :4] = out[-4:, -4:] = 0
        return out


def test_regions_of_one_number_and_box_are_told_apart(root, tmp_path):
    """The corners of an image and then the rest of it: both are region 0, and reach over all of the image."""
    budgets = [Budget(regions=6), Budget(regions=6)]
    make_loop(root, tmp_path / "run", partition=Corners(), rounds=1, budget=budgets[:1]).run()
    fork(tmp_path / "run", 0, tmp_path / "fork")
    make_loop(root, tmp_path / "fork", partition=Rest(), rounds=2, budget=budgets).run()
    asked_once(tmp_path / "fork", ImageSource(root / "images" / "pool"))
    labels_are_the_truth(root, tmp_path / "fork")
    found = figures(tmp_path / "fork", 1)
    assert found["labeled"]["pixels"] == 6 * SIZE * SIZE
    assert found["labeled"]["regions"] == 12
    assert found["selected"]["answered"] == 6


BUDGETS = {
    "regions": Budget(regions=5, per_image=2),
    "pixels": Budget(pixels=100),
    "images": Budget(images=2),
    "clicks": Budget(clicks=30),
    "cost": Budget(cost=lambda row: 2.5, limit=10.0),
}


@pytest.mark.parametrize("unit", BUDGETS)
def test_every_kind_of_budget(root, tmp_path, unit):
    def loop(rounds):
        return make_loop(root, tmp_path / "run", budget=BUDGETS[unit], rounds=rounds, calibrator=None)

    found = loop(1).run()
    assert [record.unit for record in found.records] == [unit]
    limit = {"regions": 5, "pixels": 100, "images": 2, "clicks": 30, "cost": 10.0}[unit]
    assert 0 < found.records[0].spent <= limit
    assert loop(2).run(until=1).round == 0  # the same budget is known again


STRATEGIES = [name for name in Strategy.names() if Strategy.named(name).__module__.startswith("seguq.")]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_chooses_within_a_loop(root, run_dir, tmp_path, name):
    """Those that look at features, too; without a word they are taken from the network."""
    found = Strategy.named(name)
    needed = {"share": 0.5, "a": TopK(), "b": Random(), "min_distance": 3.0}
    arguments = found.constructor_arguments()
    missing = {key: needed[key] for key, item in arguments.items() if item.default is item.empty}
    folder = tmp_path / "fork"
    fork(run_dir, 0, folder)
    loop = make_loop(root, folder, strategy=found(**missing), rounds=2, budget=Budget(regions=4))
    loop.annotator.collect = lambda: iter(())  # to choose is enough
    assert loop.run().waits
    assert len(rows_of(folder, 1)) == 4
    asked_once(folder, ImageSource(root / "images" / "pool"))


def test_a_strategy_that_asks_is_told_the_round(root, run_dir, tmp_path):
    for number, said in ((1, "rounds=4"), (2, "round=1, rounds=4")):
        folder = tmp_path / str(number)
        fork(run_dir, number - 1, folder)
        loop = make_loop(root, folder, strategy=ClaSP(), rounds=5)
        loop.annotator.collect = lambda: iter(())
        loop.run()
        assert said in Selection.load(RunFolder(folder).selection(number)).why["strategy"]


# ---- stopping ----


def test_it_stops_after_a_round_and_says_why_and_goes_on_where_it_may(root, run_dir, tmp_path):
    def loop(stop):
        return make_loop(root, tmp_path / "run", stop=stop)

    stopped = loop(Stop(regions=10)).run()
    assert stopped.round == 1
    assert "12 regions are labeled, and 10 were to be" in stopped.ended
    assert loop(Stop(regions=10)).run().ended == stopped.ended
    assert loop(Stop(regions=17)).run().round == 2
    assert outcome(tmp_path / "run") == outcome(run_dir)


def test_it_stops_where_rounds_no_longer_gain(root, tmp_path):
    found = make_loop(root, tmp_path / "run", rounds=8, stop=Stop(gain_over=1)).run()
    assert found.round < 7
    assert "gained" in found.ended


@pytest.mark.parametrize("stop", [Stop(metric=0.9), Stop(gain_over=1)], ids=repr)
def test_a_rule_that_can_never_hold_is_refused_at_once(root, tmp_path, stop):
    with pytest.raises(UsageError, match="to judge on"):
        make_loop(root, tmp_path / "run", data=make_data(None), stop=stop).run()


def test_a_cost_that_the_budget_does_not_count_is_refused(root, tmp_path):
    with pytest.raises(UsageError, match=r"Stop\(cost=\)"):
        make_loop(root, tmp_path / "run", stop=Stop(cost=3.0))


def test_it_ends_where_nothing_is_left(root, tmp_path):
    budgets = [Budget(regions=90), Budget(regions=90), Budget(regions=90)]
    found = make_loop(root, tmp_path / "run", budget=budgets).run()
    assert "nothing is left to label" in found.ended
    assert make_loop(root, tmp_path / "run", budget=budgets).run().ended == found.ended
    asked_once(tmp_path / "run", ImageSource(root / "images" / "pool"))


def test_images_that_come_once_nothing_was_left_are_asked_for(tmp_path):
    data = write_data(tmp_path / "data", pool=2)

    def loop():
        return make_loop(data, tmp_path / "run", budget=Budget(regions=40), rounds=2)

    assert "nothing is left to label" in loop().run().ended
    write_image(data, "pool", "new", 7)
    found = loop().run()
    assert (found.ended, found.round, found.done) == (None, 1, "report")
    assert {row["image_id"] for row in rows_of(tmp_path / "run", 1)} == {"new"}
    labels_are_the_truth(data, tmp_path / "run")


class Unsure(Oracle):
    """Cannot tell anything, until it knows better."""

    knows = False

    def collect(self):
        for answer in super().collect():
            yield answer if self.knows else replace(answer, mask=np.full_like(answer.mask, IGNORED))


def test_a_first_round_in_which_nothing_is_labeled_stays_open(root, tmp_path, monkeypatch):
    """Templates that were saved as they are, say: what is painted later counts."""

    def loop():
        return make_loop(root, tmp_path / "run", rounds=1, annotator=Unsure(root / "masks" / "pool"))

    for _ in range(2):
        with pytest.raises(SeguqError, match="all 6 regions of round 0 came back with no pixel labeled"):
            loop().run()
    monkeypatch.setattr(Unsure, "knows", True)
    assert loop().run().done == "report"
    labels_are_the_truth(root, tmp_path / "run")


def test_a_first_budget_that_allows_nothing_is_a_sentence(root, tmp_path):
    with pytest.raises(UsageError, match="first round"):
        make_loop(root, tmp_path / "run", budget=Budget(pixels=3)).run()
    make_loop(root, tmp_path / "other", rounds=1).run()  # and the folder is not needed


# ---- arguments ----

WRONG = {
    "make_task": {"make_task": 3},
    "rounds": {"rounds": 0},
    "budget": {"budget": 5},
    "budgets": {"budget": [Budget(regions=3)]},
    "seed": {"seed": 1.5},
    "annotator": {"annotator": "Oracle"},
    "estimator": {"estimator": 3},
    "bound": {"estimator": MCDropout(torch.nn.Sequential(torch.nn.Dropout()))},
    "partition": {"partition": 32},
    "strategy": {"strategy": "Random"},
    "start": {"start": Grid(3)},
    "calibrator": {"calibrator": "glbal"},
    "group": {"group": "("},
    "aggregate": {"aggregate": "men"},
    "by": {"by": []},
    "settings": {"settings": {"seed": 3}},
    "no plain settings": {"settings": {"mine": object()}},
    "stop": {"stop": 3},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_refused_before_anything_is_made(root, tmp_path, wrong):
    with pytest.raises(UsageError):
        make_loop(root, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"until": -1}, {"until": 1.5}, {"enough": 0}, {"enough": 2}, {"enough": "all"}])
def test_a_wrong_argument_of_run_is_refused(root, tmp_path, wrong):
    with pytest.raises(UsageError):
        make_loop(root, tmp_path / "run").run(**wrong)
    assert not (tmp_path / "run").exists()


class Nobody(Annotator):
    """Never answers."""

    classes = Classes.unnamed(2)

    def send(self, selection, images):
        pass

    def collect(self):
        return iter(())


@pytest.mark.parametrize(("task", "fits"), [("binary", True), ("multiclass", False)])
def test_a_module_of_one_logit_has_two_classes(root, tmp_path, task, fits):
    def make_task():
        module = make_module()
        module.num_classes, module.head = 1, torch.nn.Conv2d(8, 1, 1)
        return module

    loop = make_loop(
        root, tmp_path / "run", make_task=make_task, estimator=Deterministic(task=task), annotator=Nobody()
    )
    if fits:
        assert loop.run().waits
    else:
        with pytest.raises(UsageError, match="the module has 1 classes"):
            loop.run()


def test_what_is_no_module_data_or_trainer_is_a_sentence(root, tmp_path):
    for number, wrong in enumerate(
        ({"make_task": lambda: 3}, {"data": lambda labeled: 3}, {"trainer": lambda: 3}, {"trainer": lambda: None})
    ):
        with pytest.raises(SeguqError, match="must return"):
            make_loop(root, tmp_path / str(number), **wrong).run()


def test_a_default_trainer_takes_options(tmp_path):
    found = default_trainer(tmp_path, max_epochs=3, enable_progress_bar=False, logger=False)
    assert found.max_epochs == 3


def test_the_features_of_the_encoder_choose_the_first_labels(root, tmp_path):
    """Of an annotator that knows nothing beforehand, KMeansPlusPlus takes all of them."""

    class Blind(Oracle):
        def truth(self, image_id):
            return None

    for name, start in (("chance", None), ("features", KMeansPlusPlus())):
        loop = make_loop(root, tmp_path / name, rounds=1, start=start, annotator=Blind(root / "masks" / "pool"))
        loop.run()
    assert rows_of(tmp_path / "chance", 0) != rows_of(tmp_path / "features", 0)
    assert "features" in RegionTable.load(RunFolder(tmp_path / "features").table(0)).table.column_names
