"""``seguq demo`` in a short form, through the real entry point; `make demo` runs the same command in full."""

import json
import re
import shutil

import pytest

from seguq.acquisition import Selection
from seguq.cli import main
from seguq.regions import RegionTable
from seguq.task import SegmentationTask
from tests.cli.conftest import run_process

SHORT = ("--steps", "3", "--samples", "2", "--images", "4", "--regions", "5")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a demo") / "out"
    done = run_process("demo", "--out", str(folder), *SHORT)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_demo_leaves_all_that_it_promises(demo):
    folder, _ = demo
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "overview.png", "model.ckpt", "regions.parquet", "selection.json", "pool"} <= names


def test_the_page_opens_without_a_network(demo):
    page = (demo[0] / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("data:image/") > 20


def test_the_commands_on_the_page_name_options_that_exist(demo, capsys):
    page = (demo[0] / "report.html").read_text()
    lines = re.findall(r"seguq (\w+) (--[^<\n]*)", page)
    assert {command for command, _ in lines} == {"fit", "calibrate", "predict", "score", "select"}
    for command, words in lines:
        assert main([command, "--help"]) == 0
        known = capsys.readouterr().out
        assert [option for option in re.findall(r"--[\w.]+", words) if option not in known] == []


def test_the_table_shows_every_figure_with_its_interval(demo):
    _, printed = demo
    content = json.loads((demo[0] / "demo.json").read_text())
    value, low, high = content["evaluations"]["one pass, test"]["mean IoU"]
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in printed
    for name in ("ECE before", "ECE after", "AUROC for wrong pixels: mutual information", "stained among the"):
        assert name in printed


def test_the_paths_to_open_are_printed_and_there(demo):
    folder, printed = demo
    for name in ("report.html", "pool/heatmaps", "regions.parquet", "selection.json", "model.ckpt"):
        assert name in printed
        assert (folder / name).exists()


def test_the_checkpoint_carries_a_temperature_for_each_estimator(demo):
    assert set(SegmentationTask.load(demo[0] / "model.ckpt").calibrators) == {
        "deterministic",
        "mc_dropout(layers=dropout)",
    }


def test_the_selection_is_taken_from_the_table(demo):
    rows = {(row["image_id"], row["region_id"]) for row in RegionTable.load(demo[0] / "regions.parquet").rows()}
    chosen = {(row["image_id"], row["region_id"]) for row in Selection.load(demo[0] / "selection.json").rows}
    assert len(chosen) == 5
    assert chosen <= rows


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds files that no demo has written" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


OTHERS = ["notes.txt", "pool/maps/mine.npz", "pool/heatmaps/mine/a.png", "selection/mask.png", "pool-images/mine.jpg"]


@pytest.mark.parametrize("other", [*OTHERS, None])
def test_an_earlier_demo_is_replaced_only_where_it_alone_is_in_the_folder(demo, tmp_path, capsys, monkeypatch, other):
    out = tmp_path / "out"
    shutil.copytree(demo[0], out)
    monkeypatch.setattr("seguq.demo.run._run", lambda folder, *_: None)
    before = sorted(path for path in out.rglob("*") if path.is_file())
    if other is not None:
        (out / other).parent.mkdir(exist_ok=True, parents=True)
        (out / other).write_text("mine")
    assert main(["demo", "--out", str(out)]) == (0 if other is None else 2)
    if other is None:
        assert list(out.iterdir()) == []
    else:
        assert other in capsys.readouterr().err
        assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted([*before, out / other])


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"finished": true}'])
def test_a_demo_json_of_something_else_makes_no_folder_a_demo(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    (tmp_path / "model.ckpt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "model.ckpt").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("--steps", "0"),
        ("--samples", "1"),
        ("--images", "1"),
        ("--regions", "0"),
        ("--seed", "-1"),
        ("--seed", "9" * 20),
    ],
)
def test_a_senseless_number_is_wrong_use(words, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "out"), *words]) == 2
    assert "must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_device_costs_no_earlier_demo(tmp_path):
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "report.html").write_text("kept")
    assert main(["demo", "--out", str(tmp_path), "--device", "abacus"]) == 2
    assert (tmp_path / "report.html").read_text() == "kept"
