"""The callbacks on two processes: what they find and write is what one process finds and writes."""

import contextlib
import copy
import csv
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

import seguq
from seguq.acquisition import Budget, Selection
from seguq.callbacks import Calibrate, HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.data.reading import read_image
from seguq.inference import UncertaintyMaps
from seguq.regions import RegionTable
from tests.callbacks import ddp_script
from tests.callbacks.tiny import Images, files, loader, make_module, make_trainer

ROOT = Path(__file__).parents[2]
VALIDATIONS = [
    "odd",
    "odd of lightning",
    "unequal",
    "one image",
    "groups",
    "two loaders",
    "max_images",
    "samples",
    *ddp_script.CALIBRATORS,
]
PREDICTIONS = {
    "predict": sorted(ddp_script.IDS),
    "predict of lightning": list("01234"),
    "predict unequal": list("01234"),
    "predict samples": sorted(ddp_script.IDS),
}
both_ranks = pytest.mark.parametrize("rank", [0, 1])


@pytest.fixture(scope="module")
def two_and_alone(tmp_path_factory):
    """Of two processes and of one: the folder, and what each process found; a hang is an error after two minutes."""
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo, with which two processes on a CPU talk")
    folder, folder_alone = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("alone")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(  # Lightning starts the second
            [sys.executable, "-m", "tests.callbacks.ddp_script", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            found_alone = ddp_script.run(folder_alone, 1)
            code = process.wait(120)
        except subprocess.TimeoutExpired:
            code = "it hangs"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # both: they are a group of their own
            process.wait()
    assert code == 0, (code, (folder / "log").read_text()[-5000:])
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return (folder, found), (folder_alone, found_alone)


@pytest.fixture(scope="module")
def two(two_and_alone):
    """The folder of two processes, and what each of them found."""
    return two_and_alone[0]


@pytest.fixture(scope="module")
def alone(two_and_alone):
    """The folder of one process, and what it found."""
    return two_and_alone[1]


# figures


@both_ranks
@pytest.mark.parametrize("claim", VALIDATIONS)
def test_the_figures_of_a_validation_are_those_of_one_process(two, alone, claim, rank):
    found, expected = two[1][rank][claim], alone[1][claim]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)
    unknown = {name for name, value in expected.items() if not np.isfinite(value)}
    assert unknown == ({"val/ece_after", "val/nll_after"} if claim == "one image" else set())


def test_what_is_compared_are_the_figures_of_both_callbacks(alone):
    assert {"val/ece_before", "val/ece_after", "val/temperature", "val/ece", "val/nll"} <= set(alone[1]["odd"])
    assert "val/nll/dataloader_idx_1" in alone[1]["two loaders"]


@both_ranks
@pytest.mark.parametrize("claim", ["fit", "fit on one image", "swag", "snapshots"])
def test_a_training_logs_and_keeps_what_one_process_does(two, alone, claim, rank):
    assert two[1][rank][claim] == alone[1][claim]


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_the_table_with_its_intervals_is_that_of_one_process(two, alone, package):
    tables = []
    for folder in (two[0], alone[0]):
        (file,) = (folder / "odd" / "logs" / package / "tables" / "val").iterdir()
        tables.append(
            {row[0]: [float(value) for value in row[1:]] for row in csv.reader(file.open()) if row[1] != "value"}
        )
    assert tables[0].keys() == tables[1].keys() and len(tables[0]) == 7
    for name in tables[0]:
        assert tables[0][name] == pytest.approx(tables[1][name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_the_figure_is_that_of_one_process(two, alone, package):
    pictures = []
    for folder in (two[0], alone[0]):
        (file,) = (folder / "odd" / "logs" / package / "figures" / "val").iterdir()
        pictures.append(read_image(file).astype(int))
    assert (abs(pictures[0] - pictures[1]) > 8).mean() < 1e-3


# files


@pytest.mark.parametrize(("claim", "ids"), PREDICTIONS.items())
def test_every_image_is_written_once_whichever_process_had_it(two, alone, claim, ids):
    assert files(two[0] / claim) == files(alone[0] / claim)
    written = [name for name in files(two[0] / claim) if "/maps/" in name]
    assert written == [f"heat/predict/maps/{image_id}.npz" for image_id in ids]


@pytest.mark.parametrize("claim", PREDICTIONS)
def test_the_processes_give_the_ids_of_their_own_images(two, claim):
    given = [image_id for rank in (0, 1) for batch in two[1][rank][claim] for image_id in batch]
    assert sorted(given) == PREDICTIONS[claim]


@pytest.mark.parametrize(("claim", "ids"), PREDICTIONS.items())
def test_the_maps_are_those_of_one_process(two, alone, claim, ids):
    for image_id in ids:
        found, expected = (
            UncertaintyMaps.load(folder / claim / "heat" / "predict" / "maps" / f"{image_id}.npz")
            for folder in (two[0], alone[0])
        )
        assert found.names == expected.names and torch.equal(found.prediction, expected.prediction)
        for name in found.names:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("claim", PREDICTIONS)
def test_the_color_scale_is_that_of_one_process(two, alone, claim):
    one, other = ((folder / claim / "heat" / "predict" / "scale.json").read_text() for folder in (two[0], alone[0]))
    assert one == other


@pytest.mark.parametrize("claim", PREDICTIONS)
def test_the_region_table_is_that_of_one_process(two, alone, claim):
    found, expected = (RegionTable.load(folder / claim / "pool" / "regions.parquet") for folder in (two[0], alone[0]))
    assert found.meta == expected.meta
    assert found.column("score") == pytest.approx(expected.column("score"), rel=1e-5, abs=1e-7)
    for name in set(found.table.column_names) - {"score"}:
        assert list(found.column(name)) == list(expected.column(name)), name


@pytest.mark.parametrize("claim", PREDICTIONS)
def test_the_selection_is_that_of_one_process(two, alone, claim):
    found, expected = (Selection.load(folder / claim / "pool" / "selection.json") for folder in (two[0], alone[0]))
    assert [row["region_id"] for row in found.rows] == [row["region_id"] for row in expected.rows]
    assert (found.image_ids, found.why) == (expected.image_ids, expected.why) and len(found) == 9


@pytest.mark.parametrize("claim", ["fit", "fit on one image"])
def test_validations_show_the_images_that_one_process_shows(two, alone, claim):
    def shown(folder):
        return sorted({path.stem for path in (folder / claim / "heat" / "val").rglob("*.npz")})

    assert shown(two[0]) == shown(alone[0]) == (["0", "2", "4"] if claim == "fit" else ["0"])


def test_no_temporary_file_is_left(two):
    assert not [name for name in files(two[0]) if ".seguq-tmp" in name]


# errors


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("same id in heat maps", "HeatmapWriter: two images have the id 'same'"),
        ("same id in regions", "two images had the same id 'same'"),
        ("other folder", "holds other files already: choose a new folder"),
        ("other table", "regions.parquet exists already"),
        ("full disk of the second", "the disk is full"),
        ("no mask on the second", "Calibrate needs labels, but a validation batch has no mask"),
        ("no mask for the metrics of the second", "UncertaintyMetrics needs labels, but a batch has no mask"),
        ("no place for the scale", "was not written by HeatmapWriter: give it another folder"),
        ("numbers of other data", "no ids by which those of other data could be told apart"),
    ],
)
def test_an_error_of_one_process_ends_both_and_one_says_why(two, name, told):
    errors = [found["errors"][name] for found in two[1]]
    assert all(errors), errors
    assert any(told in error for error in errors), errors
    assert all(told in error or error == "another process has failed, and says why" for error in errors)


def test_a_refused_folder_is_not_harmed(two):
    assert files(two[0] / "other") == ["predict/thesis.txt"]


# copies


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)
def test_callbacks_can_be_handed_to_processes_that_are_spawned(tmp_path, duplicate):
    callbacks = [
        Calibrate(),
        UncertaintyMetrics(estimator="mc_dropout"),
        HeatmapWriter(tmp_path / "heat", estimator=seguq.MCDropout(samples=2)),
        RegionScorer(tmp_path / "pool", budget=Budget(regions=1)),
    ]
    again = [duplicate(callback) for callback in callbacks]
    make_trainer(pytorch_lightning, tmp_path, *again).predict(make_module(pytorch_lightning), loader(Images(2)))
    assert {"pool/selection.json", "heat/predict/maps/1.npz"} <= set(files(tmp_path))
