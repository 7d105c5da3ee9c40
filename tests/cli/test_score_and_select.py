"""``seguq score`` and ``seguq select``: from maps to a table to a list."""

import json
import shutil

import pytest

from seguq.acquisition import Selection
from seguq.cli import main
from seguq.inference import UncertaintyMaps
from seguq.regions import RegionTable


@pytest.fixture(scope="module")
def table(predicted, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "regions.parquet"
    assert main(["score", "--predictions", str(predicted), "--cell", "16", "--out", str(out)]) == 0
    return out


def test_the_table_has_a_row_a_region(table):
    assert len(RegionTable.load(table)) == 5 * 16


def test_a_score_is_the_mean_of_the_map_over_its_box(table, predicted):
    row = RegionTable.load(table).rows()[37]
    maps = UncertaintyMaps.load(predicted / "maps" / f"{row['image_id']}.npz")["mutual_information"][0]
    expected = maps[row["y0"] : row["y1"], row["x0"] : row["x1"]].double().mean()
    assert row["score"] == pytest.approx(float(expected), rel=1e-6)


def test_a_table_is_not_overwritten_unasked(table, predicted, capsys):
    words = ["score", "--predictions", str(predicted), "--out", str(table)]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(RegionTable.load(table)) == 80


def test_a_table_is_overwritten_when_asked(table, predicted, tmp_path):
    out = shutil.copy(table, tmp_path / "regions.parquet")
    words = ["score", "--predictions", str(predicted), "--out", str(out), "--partition", "whole_image", "--overwrite"]
    assert main(words) == 0
    assert len(RegionTable.load(out)) == 5


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--predictions", "missing"], 2, "missing is no folder"),
        (["--by", "variance"], 2, "has no maps of 'variance'"),
        (["--cell", "0"], 2, "at least 1 pixel"),
        (["--aggregate", "median"], 2, "median"),
    ],
)
def test_a_mistake_in_score_is_one_sentence(words, status, text, predicted, tmp_path, capsys):
    base = ["score", "--predictions", str(predicted), "--out", str(tmp_path / "t.parquet")]
    assert main([*base, *words]) == status
    assert text in capsys.readouterr().err


def test_a_folder_without_predictions_is_no_input_for_score(discs, capsys):
    assert main(["score", "--predictions", str(discs)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_the_selection_is_the_highest_scores_in_order(table, tmp_path):
    out = tmp_path / "selection.json"
    assert main(["select", "--scores", str(table), "--regions", "7", "--out", str(out)]) == 0
    found = [row["score"] for row in Selection.load(out).rows]
    assert found == sorted(RegionTable.load(table).column("score"), reverse=True)[:7]


def test_the_selection_says_why(table, tmp_path):
    out = tmp_path / "selection.json"
    assert main(["select", "--scores", str(table), "--pixels", "600", "--seed", "3", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["version"] == 1
    assert content["why"] == {
        "strategy": "TopK()",
        "budget": {"pixels": 600},
        "seed": 3,
        "by": "mutual_information",
        "aggregate": "mean",
        "partition": "Grid(16)",
        "estimator": "mc_dropout(layers=dropout)",
    }
    assert sum(region["area"] for region in content["regions"]) == 512


def test_earlier_selections_are_left_out(table, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(["select", "--scores", str(table), "--regions", "5", "--out", str(first)]) == 0
    words = ["select", "--scores", str(table), "--regions", "5", "--labeled", f"[{first}]", "--out", str(second)]
    assert main(words) == 0
    assert not Selection.load(first).keys() & Selection.load(second).keys()


def test_the_selected_regions_are_drawn_on_their_images(table, predicted, tmp_path):
    out = tmp_path / "selection.json"
    words = ["select", "--scores", str(table), "--images", "2", "--predictions", str(predicted), "--out", str(out)]
    assert main(words) == 0
    drawn = {path.stem for path in (tmp_path / "selection").glob("*.png")}
    assert drawn == set(Selection.load(out).image_ids)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "exactly one of regions=, pixels=, images="),
        (["--regions", "3", "--pixels", "5"], 2, "exactly one of regions=, pixels=, images="),
        (["--regions", "0"], 2, "at least 1"),
        (["--regions", "3", "--scores", "missing.parquet"], 2, "missing.parquet does not exist"),
        (["--regions", "3", "--labeled", "[missing.json]"], 2, "missing.json does not exist"),
        (["--regions", "3", "--out", "selection.txt"], 2, ".json"),
        (["--regions", "3", "--strategy", "best"], 2, "best"),
    ],
)
def test_a_mistake_in_select_is_one_sentence(words, status, text, table, tmp_path, capsys):
    assert main(["select", "--scores", str(table), "--out", str(tmp_path / "s.json"), *words]) == status
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_an_unfinished_prediction_is_not_scored(predicted, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(predicted, part)
    (part / "maps" / "pool0.npz").unlink()
    assert main(["score", "--predictions", str(part), "--out", str(tmp_path / "t.parquet")]) == 2
    assert "holds no maps yet of 1 images" in capsys.readouterr().err


def test_pictures_of_an_earlier_selection_do_not_stay(table, predicted, tmp_path):
    words = ["select", "--scores", str(table), "--predictions", str(predicted), "--out", str(tmp_path / "s.json")]
    assert main([*words, "--images", "4"]) == 0
    assert main([*words, "--images", "1", "--overwrite"]) == 0
    assert len(list((tmp_path / "s").rglob("*.png"))) == 1
