"""What somebody adds works everywhere, with no edit in the package: Python, callbacks, YAML, commands, checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from torch import nn

import seguq
from seguq import acquisition, callbacks, regions
from seguq.calibration import Calibrator
from seguq.cli import main
from seguq.core.errors import SeguqError
from seguq.inference import Estimator
from seguq.testing import check_calibrator, check_estimator
from seguq.weights import read_checkpoint
from tests.extension import things
from tests.extension.things import GINI, Brightness, HalfWay, Halves, LargestFirst, Shades

ROOT = Path(__file__).parents[2]
HERE = "tests.extension.things"


QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(*own, **settings):
    return pytorch_lightning.Trainer(callbacks=list(own), enable_checkpointing=False, **QUIET, **settings)


def loader():
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 6, 8), torch.randint(0, 2, (4, 6, 8)))
    return torch.utils.data.DataLoader(data, batch_size=2)


@pytest.fixture(scope="session")
def checkpoint(trained, discs, tmp_path_factory):
    """A checkpoint with the calibrator of one's own for the estimator of one's own, by the command line."""
    path = shutil.copy(trained / "best.ckpt", tmp_path_factory.mktemp("own") / "model.ckpt")
    words = ["calibrate", "--checkpoint", str(path), "--data", str(discs), "--num_workers", "0"]
    own = ["--method", f"{HERE}.HalfWay", "--estimator", f"{HERE}.Brightness", "--estimator.step", "0.2"]
    assert main([*words, *own]) == 0
    return path


@pytest.fixture(scope="session")
def maps_folder(checkpoint, discs, tmp_path_factory):
    """A folder of predictions by the estimator and with the measure of one's own."""
    out = tmp_path_factory.mktemp("own") / "maps"
    words = ["predict", "--checkpoint", str(checkpoint), "--images", str(discs / "images" / "pool"), "--out", str(out)]
    own = ["--estimator", "brightness", "--import", HERE, "--measures", "[gini, mutual_information]"]
    assert main([*words, *own]) == 0
    return out


# in Python


def test_each_is_known_by_its_name_and_keeps_what_all_of_its_kind_promise():
    assert Calibrator.named("half_way") is HalfWay and Estimator.named("brightness") is Brightness
    assert regions.Partition.named("Halves") is Halves and acquisition.Strategy.named("LargestFirst") is LargestFirst
    check_calibrator(HalfWay())
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    check_estimator(lambda **settings: Brightness(model, **settings), torch.rand(3, 3, 8, 9))


def test_from_an_estimator_to_a_selection_in_python():
    model = nn.Conv2d(3, 2, 1)
    est = Brightness(model, samples=2, measures=[GINI, "mutual_information"])
    images, masks = torch.rand(4, 3, 6, 8), torch.randint(0, 2, (4, 6, 8))
    est.calibrate(HalfWay(share=0.4), [(images, masks)])
    maps = est(images)
    assert torch.allclose(maps["gini"], 1 - maps.probs.square().sum(1))
    table = regions.score(maps, Halves(at=0.25), by="gini")
    strategy = LargestFirst(least=0.01)
    selection = acquisition.select(table, budget=acquisition.Budget(regions=4), strategy=strategy)
    assert {row["area"] for row in selection.rows} == {6 * 6}
    assert selection.why["strategy"] == "LargestFirst(least=0.01)" and table.meta["partition"] == "Halves(at=0.25)"


# in callbacks


def test_a_calibrator_is_fitted_in_validation_and_goes_through_the_checkpoint(tmp_path):
    fitting, module = trainer(callbacks.Calibrate(f"{HERE}.HalfWay", estimator="brightness"), max_epochs=1), Module()
    fitting.fit(module, loader(), loader())
    fitting.save_checkpoint(tmp_path / "a.ckpt")
    again = seguq.load(tmp_path / "a.ckpt", Module())
    found = again.calibrators["brightness"]
    assert isinstance(found, HalfWay) and found.factor == module.calibrators["brightness"].factor != 1


def test_an_estimator_a_measure_a_partition_and_a_strategy_work_in_a_callback(tmp_path):
    budget, words = acquisition.Budget(regions=2), {"by": GINI.name, "estimator": f"{HERE}.Brightness"}
    scorer = callbacks.RegionScorer(tmp_path, Halves(), budget=budget, strategy=LargestFirst(), **words)
    heat = callbacks.HeatmapWriter(tmp_path / "heat", measures=[f"{HERE}.GINI"], estimator="brightness")
    trainer(scorer, heat).predict(Module(), loader(), return_predictions=False)
    assert regions.RegionTable.load(tmp_path / "regions.parquet").meta["partition"] == "Halves()"
    assert len(acquisition.Selection.load(tmp_path / "selection.json")) == 2
    assert len(list((tmp_path / "heat").rglob("overlays/gini/*.png"))) == 4


def test_a_partition_that_looks_at_images_as_stored_works_everywhere(maps_folder, discs, tmp_path):
    files = sorted((discs / "images" / "pool").iterdir())
    (tmp_path / "images").mkdir()
    for number, file in enumerate(files[:4]):
        shutil.copy(file, tmp_path / "images" / f"{number}.png")
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.int64))
    scorer = callbacks.RegionScorer(tmp_path / "pool", Shades(3), images=tmp_path / "images")
    trainer(scorer).predict(Module(), torch.utils.data.DataLoader(data, batch_size=2), return_predictions=False)
    shape = {"class_path": f"{HERE}.Shades", "init_args": {"count": 3}}
    (tmp_path / "score.yaml").write_text(yaml.safe_dump({"partition": shape}))
    words = ["score", "--predictions", str(maps_folder), "--by", "gini", "--out"]
    assert main([*words, str(tmp_path / "1.parquet"), "--partition", f"{HERE}.Shades", "--partition.count", "3"]) == 0
    assert main([*words, str(tmp_path / "2.parquet"), "--config", str(tmp_path / "score.yaml")]) == 0
    maps = seguq.UncertaintyMaps.load(maps_folder / "maps" / f"{files[0].stem}.npz")
    (image,) = images = [seguq.data.read_image(files[0])]
    expected = regions.score(maps, Shades(3), images=images, by="gini").rows()
    assert [row["area"] for row in expected] == np.bincount(Shades(3)(image).flatten()).tolist()
    for table, image_id in (("pool/regions", "0"), ("1", files[0].stem), ("2", files[0].stem)):
        found = regions.RegionTable.load(tmp_path / f"{table}.parquet")
        rows = [row for row in found.rows() if row["image_id"] == image_id]
        assert [(row["region_id"], row["rle"]) for row in rows] == [(row["region_id"], row["rle"]) for row in expected]
        assert found.meta["partition"] == "Shades(count=3)"


# in YAML


def test_everything_is_named_in_yaml_of_a_training(discs, tmp_path):
    own = {"class_path": f"{HERE}.Brightness", "init_args": {"samples": 2}}
    content = {
        "data": {"root": str(discs), "batch_size": 4, "num_workers": 0},
        "model": {"classes": 2, "encoder": "resnet18", "encoder_weights": None},
        "out": str(tmp_path / "run"),
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "callbacks": [
                {
                    "class_path": "seguq.callbacks.Calibrate",
                    "init_args": {"calibrator": f"{HERE}.HalfWay", "estimator": own, "group": "^[a-z]+"},
                },
                {
                    "class_path": "seguq.callbacks.HeatmapWriter",
                    "init_args": {"dir": str(tmp_path / "heat"), "estimator": own, "measures": [f"{HERE}.GINI"]},
                },
                {
                    "class_path": "seguq.callbacks.RegionScorer",
                    "init_args": {
                        "dir": str(tmp_path / "pool"),
                        "partition": {"class_path": f"{HERE}.Shades", "init_args": {"count": 3}},
                        "images": str(discs / "images" / "pool"),
                        "strategy": f"{HERE}.LargestFirst",
                    },
                },
            ],
        },
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml")]) == 0
    (kept,) = (tmp_path / "run").rglob("config.yaml")
    *_, scorer = again = yaml.safe_load(kept.read_text())["trainer"]["callbacks"]
    assert again[0]["init_args"]["group"] == "^[a-z]+"
    assert scorer["init_args"]["images"] == str(discs / "images" / "pool")
    packed = read_checkpoint(tmp_path / "run" / "best.ckpt")["seguq"]["calibrators"]["brightness"]
    assert (packed["class"], packed["defined_in"]) == ("half_way", HERE)
    assert list((tmp_path / "heat").rglob("overlays/gini/*.png"))


def test_everything_is_named_in_yaml_of_a_command(maps_folder, tmp_path):
    score = {
        "predictions": str(maps_folder),
        "by": "gini",
        "partition": {"class_path": f"{HERE}.Halves", "init_args": {"at": 0.25}},
        "out": str(tmp_path / "table.parquet"),
    }
    (tmp_path / "score.yaml").write_text(yaml.safe_dump(score))
    assert main(["score", "--config", str(tmp_path / "score.yaml")]) == 0
    strategy = {"class_path": f"{HERE}.LargestFirst", "init_args": {"least": 1e-9}}
    select = {"scores": score["out"], "budget": {"regions": 3}, "strategy": strategy, "out": str(tmp_path / "s.json")}
    (tmp_path / "select.yaml").write_text(yaml.safe_dump(select))
    assert main(["select", "--config", str(tmp_path / "select.yaml")]) == 0
    assert acquisition.Selection.load(tmp_path / "s.json").why["strategy"] == "LargestFirst(least=1e-09)"


# on the command line


def test_the_checkpoint_of_the_command_has_the_calibrator_and_the_prediction_applies_it(checkpoint, maps_folder, capfd):
    calibrator = seguq.SegmentationTask.load(checkpoint).calibrators["brightness"]
    assert isinstance(calibrator, HalfWay) and 0.5 <= calibrator.factor < 1
    settings = json.loads((maps_folder / "run.json").read_text())["settings"]
    assert settings["estimator"] == "brightness" and settings["measures"] == ["gini", "mutual_information"]
    assert len(list((maps_folder / "overlays" / "gini").glob("*.png"))) == 5


def test_scores_and_selection_by_the_command_line(maps_folder, tmp_path):
    table, out = tmp_path / "table.parquet", tmp_path / "s.json"
    words = ["score", "--predictions", str(maps_folder), "--by", "gini", "--out", str(table)]
    assert main([*words, "--partition", f"{HERE}.Halves", "--partition.at", "0.25"]) == 0
    words = ["select", "--scores", str(table), "--out", str(out), "--budget.regions", "3"]
    assert main([*words, "--import", HERE, "--strategy", "LargestFirst", "--strategy.least", "1e-9"]) == 0
    rows = acquisition.Selection.load(out).rows
    assert [row["region_id"] for row in rows] == [1, 1, 1]
    mixed = ["--strategy", "Mixed", "--strategy.share", "0.5", "--strategy.a", f"{HERE}.LargestFirst"]
    mixed += ["--strategy.a.least", "1e-9", "--strategy.b", "ClassBalanced", "--overwrite"]
    assert main([*words, *mixed]) == 0
    found = acquisition.Selection.load(out).why["strategy"]
    assert found == "Mixed(share=0.5, a=LargestFirst(least=1e-09), b=ClassBalanced())"


def test_in_a_process_that_does_not_know_the_calibrator_the_error_says_what_to_import(checkpoint, discs, tmp_path):
    words = ["predict", "--checkpoint", str(checkpoint), "--images", str(discs / "images" / "pool")]
    words += ["--out", str(tmp_path / "maps"), "--samples", "2"]
    done = subprocess.run([sys.executable, "-m", "seguq", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    (sentence,) = done.stderr.strip().splitlines()
    assert f"nobody here knows a 'half_way': import {HERE} first (on the command line: --import {HERE})" in sentence
    done = subprocess.run(
        [sys.executable, "-m", "seguq", *words, "--import", HERE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_imported_because_a_checkpoint_says_so(checkpoint, tmp_path):
    content = read_checkpoint(checkpoint)
    packed = content["seguq"]["calibrators"]["brightness"]
    (tmp_path / "harmful.py").write_text("raise SystemExit('was run')")
    packed["class"] = packed["defined_in"] = "harmful.Thing"
    torch.save(content, tmp_path / "a.ckpt")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(SeguqError, match=r"nobody here knows a 'harmful\.Thing'"):
            seguq.SegmentationTask.load(tmp_path / "a.ckpt")
    finally:
        sys.path.remove(str(tmp_path))
    assert "harmful" not in sys.modules


def test_a_module_that_is_not_there_is_one_sentence(capsys):
    assert main(["score", "--import", "no_such_module", "--predictions", "x"]) == 2
    assert capsys.readouterr().err.startswith("seguq score: --import no_such_module: it cannot be loaded")


def test_the_things_stay_short():
    import inspect

    for thing in (HalfWay, Halves, Shades, LargestFirst, Brightness):
        lines = [line for line in inspect.getsource(thing).splitlines() if line.strip()]
        assert len(lines) <= 26
    assert len(inspect.getsource(things).splitlines()) < 125
