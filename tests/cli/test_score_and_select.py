"""``seguq score`` and ``seguq select``: from maps to a table to a list."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of
from seguq.cli import main
from seguq.data import read_image
from seguq.inference import UncertaintyMaps
from seguq.regions import Partition, RegionTable
from seguq.regions.rle import region_mask
from seguq.store.folder import read_run


@pytest.fixture(scope="module")
def table(predicted, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "regions.parquet"
    assert (
        main(
            [
                "score",
                "--predictions",
                str(predicted),
                "--partition",
                "Grid",
                "--partition.size",
                "16",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    return out


def test_the_table_has_a_row_a_region(table):
    assert len(RegionTable.load(table)) == 5 * 16


def test_a_score_is_the_mean_of_the_map_over_its_box(table, predicted):
    row = RegionTable.load(table).rows()[37]
    maps = UncertaintyMaps.load(predicted / "maps" / f"{row['image_id']}.npz")["smallest_margin"][0]
    expected = maps[row["y0"] : row["y1"], row["x0"] : row["x1"]].double().mean()
    assert row["score"] == pytest.approx(float(expected), rel=1e-6)


def test_a_table_is_not_overwritten_unasked(table, predicted, capsys):
    words = ["score", "--predictions", str(predicted), "--out", str(table)]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert len(RegionTable.load(table)) == 80


def test_a_table_is_overwritten_when_asked(table, predicted, tmp_path):
    out = shutil.copy(table, tmp_path / "regions.parquet")
    words = ["score", "--predictions", str(predicted), "--out", str(out), "--partition", "WholeImage", "--overwrite"]
    assert main(words) == 0
    assert len(RegionTable.load(out)) == 5


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--predictions", "missing"], 2, "missing is no folder"),
        (["--by", "variance"], 2, "has no maps of 'variance'"),
        (["--partition.size", "0"], 2, "at least 1 pixel"),
        (["--partition", "grid"], 2, "--partition: there is no Partition 'grid': there are "),
        (["--partition", "Grid", "--partition.cell", "3"], 2, "Grid has no option --partition.cell; its options: "),
        (["--partition", "WholeImage", "--partition", "Grid"], 2, "score: Grid needs --partition.size"),
        (["--partition", "nowhere.Mine"], 2, "nowhere.Mine cannot be imported"),
        (["--aggregate", "median"], 2, "aggregate must be one of mean, sum, max, quantile(q)"),
        (["--aggregate", "quantile(2)"], 2, "'quantile' takes a share from 0 to 1"),
        (["--by", "[smallest_margin,smallest_margin]"], 2, "by names 'smallest_margin' twice"),
        (["--by", "no.such"], 2, "no.such cannot be imported"),
        (["--columns", "shares"], 2, "columns are a list of class_shares"),
        (["--columns", "class_scores"], 1, "predict again, keeping them (--save_probs)"),
        (["--columns", "features"], 1, "seguq predict --features"),
        (["--worst", "0"], 2, "--worst"),
        (["--out", "table.csv"], 2, "a table of regions is a .parquet file"),
    ],
)
def test_a_mistake_in_score_is_one_sentence(words, status, text, predicted, tmp_path, capsys):
    base = ["score", "--predictions", str(predicted), "--out", str(tmp_path / "t.parquet")]
    assert main([*base, *words]) == status
    assert text in capsys.readouterr().err


def test_several_measures_columns_and_another_aggregate_are_asked_for_in_words(predicted, tmp_path):
    out = tmp_path / "regions.parquet"
    words = ["--by", "[smallest_margin,ripu,region_impurity]", "--columns", "class_shares", "--aggregate"]
    assert main(["score", "--predictions", str(predicted), "--out", str(out), *words, "quantile(0.9)"]) == 0
    table = RegionTable.load(out)
    more = ["ripu", "region_impurity", "class_shares", "height", "width", "path"]
    assert table.table.column_names[-6:] == more
    assert table.meta["by"] == "smallest_margin" and table.meta["aggregate"] == "quantile(0.9)"
    row = table.rows()[3]
    maps = UncertaintyMaps.load(predicted / "maps" / f"{row['image_id']}.npz")
    inside = (slice(row["y0"], row["y1"]), slice(row["x0"], row["x1"]))
    assert row["score"] == pytest.approx(np.quantile(maps["smallest_margin"][0][inside].double(), 0.9))
    assert row["class_shares"][1] == pytest.approx(float((maps.prediction[0][inside] == 1).double().mean()))
    assert Path(row["path"]).stem == row["image_id"] and (row["height"], row["width"]) == (64, 64)


def test_strategies_find_what_the_predictions_hold_without_a_further_word(discs, trained, tmp_path):
    out = tmp_path / "pool"
    words = ["predict", "--checkpoint", str(trained / "best.ckpt"), "--images", str(discs / "images" / "pool")]
    assert main([*words, "--out", str(out), "--samples", "2", "--save_probs", "--features", "--pictures", "false"]) == 0
    assert main(["score", "--predictions", str(out), "--partition", "Grid", "--partition.size", "16"]) == 0
    table = out / "regions.parquet"
    for strategy in ("ClaSP", "CoreSet", "ClassAwareRandom"):
        words = ["--budget.pixels", "2000", "--strategy", strategy, "--out", str(tmp_path / f"{strategy}.json")]
        assert main(["select", "--scores", str(table), *words]) == 0
        assert 0 < sum(row["area"] for row in Selection.load(tmp_path / f"{strategy}.json").rows) <= 2000


def test_images_are_scored_by_their_worst_regions(predicted, tmp_path):
    out = tmp_path / "images.parquet"
    words = ["--partition", "Grid", "--partition.size", "16", "--worst", "2"]
    assert main(["score", "--predictions", str(predicted), "--out", str(out), *words]) == 0
    row = RegionTable.load(out).rows()[0]
    margin = UncertaintyMaps.load(predicted / "maps" / f"{row['image_id']}.npz")["smallest_margin"][0].double()
    cells = margin.unfold(0, 16, 16).unfold(1, 16, 16).mean((2, 3)).flatten().sort(descending=True).values
    assert row["score"] == pytest.approx(float(cells[:2].mean()), rel=1e-6)
    assert (row["y1"], row["x1"], row["area"]) == (64, 64, 4096)


def test_pixels_that_are_labeled_already_are_in_no_region(table, predicted, tmp_path):
    first = tmp_path / "first.json"
    assert main(["select", "--scores", str(table), "--budget.regions", "5", "--out", str(first)]) == 0
    words = ["score", "--predictions", str(predicted), "--partition", "Grid", "--partition.size", "24"]
    assert main([*words, "--labeled", str(first), "--out", str(tmp_path / "next.parquet")]) == 0
    areas = RegionTable.load(tmp_path / "next.parquet").column("area")
    assert areas.sum() == 5 * 64 * 64 - sum(row["area"] for row in Selection.load(first).rows)


def test_images_that_are_gone_are_told_of_as_pixels_without_data_may_be(predicted, tmp_path, capsys):
    part = shutil.copytree(predicted, tmp_path / "part")
    content = json.loads((part / "run.json").read_text())
    content["settings"]["images"] = str(tmp_path / "gone")
    (part / "run.json").write_text(json.dumps(content))
    assert main(["score", "--predictions", str(part)]) == 0
    assert "5 of the 5 images are not in" in capsys.readouterr().err


def test_pixels_without_data_are_in_no_region(predicted, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    work = tmp_path / "pool"
    shutil.copytree(predicted, work)
    run = json.loads((work / "run.json").read_text())
    images = tmp_path / "images"
    images.mkdir()
    for image_id in run["images"]:
        pixels = read_image(Path(run["settings"]["images"]) / f"{image_id}.png").transpose(2, 0, 1).copy()
        pixels[pixels == 0] = 1
        pixels[:, :32] = 0  # no data
        with rasterio.open(images / f"{image_id}.tif", "w", "GTiff", 64, 64, 3, dtype="uint8", nodata=0) as file:
            file.write(pixels)
    run["settings"]["images"] = str(images)
    (work / "run.json").write_text(json.dumps(run))
    assert main(["score", "--predictions", str(work)]) == 0
    assert {(row["y0"], row["area"]) for row in RegionTable.load(work / "regions.parquet").rows()} == {(32, 1024)}


def test_a_folder_without_predictions_is_no_input_for_score(discs, capsys):
    assert main(["score", "--predictions", str(discs)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_the_selection_is_the_best_of_each_image_in_order(table, tmp_path):
    out = tmp_path / "selection.json"
    assert main(["select", "--scores", str(table), "--budget.regions", "5", "--out", str(out)]) == 0
    best: dict[str, float] = {}
    for row in RegionTable.load(table).rows():
        best[row["image_id"]] = max(row["score"], best.get(row["image_id"], 0))
    expected = sorted(((score, image_id) for image_id, score in best.items()), reverse=True)
    assert [(row["score"], row["image_id"]) for row in Selection.load(out).rows] == expected


def test_the_highest_scores_are_selected_when_asked_for(table, tmp_path):
    out = tmp_path / "selection.json"
    words = ["--strategy", "TopK", "--budget.regions", "7", "--out", str(out)]
    assert main(["select", "--scores", str(table), *words]) == 0
    found = [row["score"] for row in Selection.load(out).rows]
    assert found == sorted(RegionTable.load(table).column("score"), reverse=True)[:7]


def test_the_selection_says_why(table, tmp_path):
    out = tmp_path / "selection.json"
    assert main(["select", "--scores", str(table), "--budget.pixels", "600", "--seed", "3", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["version"] == 1
    assert content["why"] == {
        "strategy": "BestOfEachImage()",
        "budget": {"pixels": 600},
        "spent": 512,
        "seed": 3,
        "regions": 80,
        "labeled": 0,
        "considered": 80,
        "by": "smallest_margin",
        "aggregate": "mean",
        "partition": "Grid(size=16)",
        "estimator": "mc_dropout(layers=dropout)",
    }
    assert sum(region["area"] for region in content["regions"]) == 512


def test_a_strategy_is_named_by_its_class_with_its_options_after_a_dot(table, tmp_path):
    out = tmp_path / "selection.json"
    words = ["--strategy", "PowerTopK", "--strategy.beta", "2", "--budget.regions", "5", "--budget.per-image", "1"]
    assert main(["select", "--scores", str(table), *words, "--out", str(out)]) == 0
    found = Selection.load(out)
    assert found.why["strategy"] == "PowerTopK(beta=2.0)"
    assert found.why["budget"] == {"regions": 5, "per_image": 1}
    assert len(found.image_ids) == 5


MINE = """
import numpy as np
import torch
from seguq.acquisition import Ranked
from seguq.regions import Partition

class Lowest(Ranked):
    def __init__(self, first: int = 0):
        self.first = first

    def rank(self, pool, generator):
        return np.argsort(pool.column("score"))[self.first :]

class Bright(Partition):
    needs_image = True

    def __init__(self, above: float = 0.5):
        self.above = above

    def __call__(self, image, maps=None):
        assert image.dtype == np.uint8 and image.shape[-1] == 3
        return torch.from_numpy(np.where(image[..., 0] > 255 * self.above, 0, -1))
"""


def test_classes_of_ones_own_are_found_in_the_current_folder(table, predicted, tmp_path):
    (tmp_path / "my_classes.py").write_text(MINE)
    script = "import sys; sys.path.remove(''); from seguq.cli import main; sys.exit(main())"  # as the console script

    def run(*words):
        paths = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-c", script, *words]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert done.returncode == 0, done.stderr

    lowest = ["--strategy", "my_classes.Lowest", "--strategy.first", "2", "--budget.regions", "3"]
    run("select", "--scores", str(table), *lowest, "--out", "s.json")
    found = [row["score"] for row in Selection.load(tmp_path / "s.json").rows]
    assert found == sorted(RegionTable.load(table).column("score"))[2:5]
    bright = ["--partition", "my_classes.Bright", "--partition.above", "0.6"]
    run("score", "--predictions", str(predicted), *bright, "--out", "t.parquet")
    regions = RegionTable.load(tmp_path / "t.parquet")
    assert regions.meta["partition"] == "Bright(above=0.6)"
    for row in regions.rows():
        (path,) = Path(read_run(predicted)["settings"]["images"]).glob(f"{row['image_id']}.*")
        y0, x0, y1, x1 = box_of(row)
        assert np.array_equal(region_mask(row), (read_image(path)[..., 0] > 255 * 0.6)[y0:y1, x0:x1])


def test_neither_command_loads_what_only_a_training_needs(predicted, tmp_path):
    script = """
import sys
from seguq.cli import main
from tests.test_imports import TRAINING
assert main(["score", "--predictions", sys.argv[1], "--out", "t.parquet"]) == 0
assert main(["select", "--scores", "t.parquet", "--budget.regions", "2", "--predictions", sys.argv[1]]) == 0
print([name for name in TRAINING if name in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-c", script, str(predicted)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_partition_that_looks_at_images_that_are_gone_is_an_error_that_names_one(predicted, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(predicted, part)
    content = json.loads((part / "run.json").read_text())
    content["settings"]["images"] = str(tmp_path / "gone")
    (part / "run.json").write_text(json.dumps(content))
    base = ["score", "--predictions", str(part), "--out", str(tmp_path / "t.parquet")]
    assert main([*base, "--partition", "tests.cli.test_score_and_select.Looking"]) == 2
    told = capsys.readouterr().err
    assert "Looking() looks at the images, but 'pool0' is not in" in told and "pass as --images" in told
    assert main([*base, "--partition", "tests.cli.test_score_and_select.Reading"]) == 2
    assert "Reading() reads maps of 'energy', but" in capsys.readouterr().err
    assert main(base) == 0


PARTITIONS = {
    "Superpixels": ({"count": 20, "method": "slic_zero"}, "Superpixels(count=20, method='slic_zero')"),
    "Components": ({"min_area": 50, "connectivity": 4}, "Components(min_area=50, connectivity=4)"),
    "Boxes": ({"size": 12, "count": 5, "by": "mutual_information"}, "Boxes(size=12, count=5, by='mutual_information')"),
    "Pixels": ({"count": 7, "min_distance": 9}, "Pixels(count=7, min_distance=9)"),
    "Grid": ({"size": 16, "stride": 20}, "Grid(size=16, stride=20)"),
    "WholeImage": ({}, "WholeImage()"),
}


@pytest.mark.parametrize("in_yaml", [False, True], ids=["typed", "yaml"])
@pytest.mark.parametrize("name", PARTITIONS)
def test_any_partition_is_chosen_by_its_name(name, in_yaml, predicted, tmp_path):
    options, told = PARTITIONS[name]
    words = ["score", "--predictions", str(predicted), "--out", str(tmp_path / "t.parquet")]
    if in_yaml:
        (tmp_path / "c.yaml").write_text(json.dumps({"partition": {"class_path": name, "init_args": options}}))
        words += ["--config", str(tmp_path / "c.yaml")]
    else:
        words += ["--partition", name]
        words += [word for option, value in options.items() for word in (f"--partition.{option}", str(value))]
    assert main(words) == 0
    table = RegionTable.load(tmp_path / "t.parquet")
    assert table.meta["partition"] == told
    kind = Partition.named(name)
    (images,) = {Path(read_run(predicted)["settings"]["images"])}
    for image_id in set(table.column("image_id")):
        maps = UncertaintyMaps.load(predicted / "maps" / f"{image_id}.npz")
        labels = kind(**options)(read_image(images / f"{image_id}.png"), maps).numpy()
        found = np.full(labels.shape, -1)
        for row in table.rows():
            if row["image_id"] == image_id:
                y0, x0, y1, x1 = box_of(row)
                found[y0:y1, x0:x1][region_mask(row)] = row["region_id"]
        assert np.array_equal(found, labels)


def test_regions_of_images_are_cut_once_and_kept_with_the_predictions(predicted, tmp_path, monkeypatch):
    part = shutil.copytree(predicted, tmp_path / "part")
    words = ["score", "--predictions", str(part), "--partition", "Superpixels", "--partition.count", "20"]
    assert main([*words, "--out", str(tmp_path / "1.parquet")]) == 0
    kept = sorted((part / "partitions").iterdir())
    assert len(kept) >= 5
    kept[0].write_text("damaged")
    assert main([*words, "--out", str(tmp_path / "2.parquet")]) == 0
    monkeypatch.setattr(Partition.named("Superpixels"), "__call__", None)
    assert main([*words, "--out", str(tmp_path / "3.parquet")]) == 0
    first, *others = (RegionTable.load(tmp_path / f"{i}.parquet").rows() for i in (1, 2, 3))
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["Superpixels"], "Superpixels needs --partition.count"),
        (["Superpixels", "--partition.count", "0"], "count of Superpixels must be a whole number of at least 1"),
        (
            ["Superpixels", "--partition.count", "9", "--partition.method", "quickshift"],
            "--partition.method must be one of slic, slic_zero, but is 'quickshift'",
        ),
        (["Grid", "--partition.size", "9", "--partition.stride", "x"], "stride must be a whole number, but is 'x'"),
        (["Boxes", "--partition.size", "9"], "Boxes needs --partition.count"),
        (["Boxes", "--partition.size", "9", "--partition.count", "2", "--partition.by", "energy"], "'energy'"),
        (["Components", "--partition.connectivity", "6"], "connectivity must be one of 4, 8, but is '6'"),
        (["Grid", "--partition.size", "9", "--partition.stride", "8"], "stride of a grid must be"),
    ],
)
def test_a_mistake_in_a_partition_is_one_sentence(words, text, predicted, tmp_path, capsys):
    base = ["score", "--predictions", str(predicted), "--out", str(tmp_path / "t.parquet")]
    assert main([*base, "--partition", *words]) == 2
    error = capsys.readouterr().err
    assert text in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "t.parquet").exists()


def test_images_that_have_moved_are_told_of(predicted, discs, tmp_path, capsys):
    part, moved = shutil.copytree(predicted, tmp_path / "part"), tmp_path / "moved"
    shutil.copytree(discs / "images" / "pool", moved)
    shutil.copy(moved / "pool0.png", moved / "another.png")
    content = json.loads((part / "run.json").read_text())
    content["settings"]["images"] = str(tmp_path / "gone")
    (part / "run.json").write_text(json.dumps(content))
    words = ["score", "--partition", "Superpixels", "--partition.count", "20", "--out", str(tmp_path / "1.parquet")]
    assert main([*words, "--predictions", str(part), "--images", str(moved)]) == 0
    words[-1] = str(tmp_path / "2.parquet")
    assert main([*words, "--predictions", str(predicted)]) == 0
    one, other = (RegionTable.load(tmp_path / f"{number}.parquet").table for number in (1, 2))
    assert one.drop_columns("path").equals(other.drop_columns("path"))
    assert {Path(path).parent for path in one["path"].to_pylist()} == {moved}
    words[-1] = str(tmp_path / "3.parquet")
    assert main([*words, "--predictions", str(part), "--images", str(tmp_path / "nowhere")]) == 2
    assert "--images" in capsys.readouterr().err
    cv2.imwrite(str(moved / "pool1.png"), np.zeros((30, 64, 3), np.uint8))
    assert main([*words, "--predictions", str(part), "--images", str(moved)]) == 1
    told = "is stored with 30 x 64 pixels (height x width), but the maps of 'pool1' have 64 x 64"
    assert told in capsys.readouterr().err


class Looking(Partition):
    """It looks at the image."""

    needs_image = True

    def __call__(self, image, maps=None):
        raise AssertionError


class Reading(Partition):
    """It reads a map that is not there."""

    needs = ("energy",)

    def __call__(self, image, maps=None):
        raise AssertionError


def test_help_lists_the_classes_and_the_options_of_one(capsys):
    assert main(["select", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--budget.per_image" in printed
    for name in ("TopK", "Random", "PowerTopK"):
        assert f"seguq.acquisition.{name}" in printed
    assert main(["select", "--strategy.help", "PowerTopK"]) == 0
    assert "--strategy.beta" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["{class_path: PowerTopK, init_args: {beta: 3}}", "PowerTopK"])
def test_a_yaml_file_names_a_class_alone(strategy, table, tmp_path):
    out = tmp_path / "selection.json"
    (tmp_path / "c.yaml").write_text(f"strategy: {strategy}\nbudget: {{regions: 3, per_image: 2}}\n")
    assert main(["select", "--scores", str(table), "--config", str(tmp_path / "c.yaml"), "--out", str(out)]) == 0
    found = Selection.load(out).why
    assert found["strategy"].startswith("PowerTopK(") and found["budget"] == {"regions": 3, "per_image": 2}


def test_a_wrong_name_in_a_yaml_file_is_one_sentence_too(table, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("strategy: {class_path: Best}\nbudget: {regions: 3}\n")
    assert main(["select", "--scores", str(table), "--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert "--strategy: there is no Strategy 'Best': there are " in error
    assert [name for name in ("PowerTopK", "Random", "TopK", "my_module.MyClass") if name not in error] == []


def test_earlier_selections_are_left_out(table, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(["select", "--scores", str(table), "--budget.regions", "5", "--out", str(first)]) == 0
    words = ["select", "--scores", str(table), "--budget.regions", "5", "--labeled", f"[{first}]", "--out", str(second)]
    assert main(words) == 0
    assert not Selection.load(first).keys() & Selection.load(second).keys()


def test_earlier_selections_are_given_as_a_shell_expands_them(table, tmp_path):
    words = ["select", "--scores", str(table), "--budget.regions", "5"]
    rounds: list[str] = []
    for number in range(3):
        out = tmp_path / f"{number}.json"
        labeled = ["--labeled", *rounds] if rounds else []
        assert main([*words, *labeled, "--seed", "1", "--out", str(out)]) == 0
        rounds.append(str(out))
    found = [Selection.load(path) for path in rounds]
    assert len(set().union(*(one.keys() for one in found))) == 15
    assert found[2].why["labeled"] == 10


def test_a_selection_goes_to_a_spreadsheet_and_a_contact_sheet_too(table, predicted, discs, tmp_path, capsys):
    words = ["select", "--scores", str(table), "--budget.clicks", "50", "--classes", str(discs / "classes.json")]
    for name, images in (("a", ["--images", str(discs / "images" / "pool")]), ("b", ["--predictions", str(predicted)])):
        out, csv, sheet = (tmp_path / name / f"s.{kind}" for kind in ("json", "csv", "png"))
        assert main([*words, *images, "--out", str(out), "--csv", str(csv), "--sheet", str(sheet)]) == 0
        assert len(csv.read_text(encoding="utf-8-sig").splitlines()) == 11
        assert read_image(sheet).shape[1] > 1000
    printed = capsys.readouterr().out
    for words in ("by predicted class", "│ ground ", "by image", "│ pool0 "):
        assert words in printed
    rows = Selection.load(tmp_path / "a" / "s.json").rows
    assert rows[0]["reason"].startswith("best of its image: smallest_margin 0.")
    assert {row["reason"].rpartition(" ")[2] for row in rows} <= {"ground", "disc"}


def test_a_contact_sheet_finds_the_images_where_the_table_says_that_they_were(table, tmp_path, capsys):
    known = RegionTable.load(table)
    RegionTable(known.table.drop_columns("path"), known.meta).save(tmp_path / "t.parquet")
    words = ["--budget.regions", "3", "--out", str(tmp_path / "s.json"), "--sheet", str(tmp_path / "s.png")]
    assert main(["select", "--scores", str(table), *words]) == 0
    assert (tmp_path / "s.png").exists()
    assert (
        main(["select", "--scores", str(tmp_path / "t.parquet"), *words[:2], "--sheet", str(tmp_path / "x.png")]) == 2
    )
    assert "--sheet shows images: pass --images FOLDER" in capsys.readouterr().err


def test_a_page_of_an_earlier_contact_sheet_is_said_to_be_none_of_this_one(table, discs, tmp_path, capsys):
    (tmp_path / "s-2.png").write_bytes(b"somebody's")
    words = ["--budget.regions", "3", "--out", str(tmp_path / "s.json"), "--sheet", str(tmp_path / "s.png")]
    assert main(["select", "--scores", str(table), *words, "--images", str(discs / "images" / "pool")]) == 0
    assert "s-2.png is no page of this contact sheet" in capsys.readouterr().err
    assert (tmp_path / "s-2.png").read_bytes() == b"somebody's"


def test_strategies_are_composed_by_words_and_by_yaml(table, tmp_path):
    words = ["--strategy", "Mixed", "--strategy.share", "0.5", "--strategy.a", "PowerTopK", "--strategy.a.beta", "2"]
    words += ["--strategy.b", "Random", "--budget.regions", "6", "--out", str(tmp_path / "a.json")]
    assert main(["select", "--scores", str(table), *words]) == 0
    init = {"share": 0.5, "a": {"class_path": "PowerTopK", "init_args": {"beta": 2}}, "b": {"class_path": "Random"}}
    content = {"strategy": {"class_path": "Mixed", "init_args": init}, "budget": {"regions": 6}}
    (tmp_path / "c.yaml").write_text(json.dumps(content))
    config = ["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "b.json")]
    assert main(["select", "--scores", str(table), *config]) == 0
    one, other = (Selection.load(tmp_path / f"{name}.json") for name in "ab")
    assert one.why["strategy"] == "Mixed(share=0.5, a=PowerTopK(beta=2.0), b=Random())"
    assert one.rows == other.rows


def hours(row):
    """What a region costs."""
    return row["area"] / 100


def test_a_cost_of_ones_own_is_named_by_its_import_path(table, tmp_path):
    words = ["--budget.cost", f"{__name__}.hours", "--budget.limit", "10.5", "--out", str(tmp_path / "s.json")]
    assert main(["select", "--scores", str(table), *words]) == 0
    found = Selection.load(tmp_path / "s.json")
    assert len(found) == 4 and found.why["budget"] == {"cost": "hours", "limit": 10.5}


def test_a_folder_of_tables_is_selected_from(table, tmp_path):
    known = RegionTable.load(table)
    (tmp_path / "shards").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(known)), 3)):
        known.take(rows).save(tmp_path / "shards" / f"{number}.parquet")
    for name, scores in (("a", table), ("b", tmp_path / "shards")):
        words = ["--budget.regions", "9", "--out", str(tmp_path / f"{name}.json")]
        assert main(["select", "--scores", str(scores), *words]) == 0
    assert Selection.load(tmp_path / "a.json").rows == Selection.load(tmp_path / "b.json").rows


def test_two_runs_in_nested_folders_leave_each_others_files(table, predicted, tmp_path):
    outer, inner = tmp_path / "s.json", tmp_path / "s" / "inner.json"
    words = ["select", "--scores", str(table), "--budget.images", "2", "--predictions", str(predicted)]
    assert main([*words, "--out", str(outer)]) == 0
    assert main([*words, "--seed", "5", "--strategy", "Random", "--out", str(inner)]) == 0
    nested = [path for path in (tmp_path / "s").rglob("*") if "inner" in str(path) and path.is_file()]
    before = [path.read_bytes() for path in nested]
    assert main([*words, "--out", str(outer), "--overwrite"]) == 0
    assert [path.read_bytes() for path in nested] == before and len(before) >= 3
    assert main([*words, "--out", str(inner), "--overwrite"]) == 0
    drawn = {path.stem for path in (tmp_path / "s").glob("*.png")}
    assert drawn == set(Selection.load(outer).image_ids)


def test_nothing_is_written_where_a_later_file_is_in_the_way(table, predicted, tmp_path, capsys):
    (tmp_path / "s.csv").write_text("mine")
    words = ["select", "--scores", str(table), "--budget.regions", "3", "--out", str(tmp_path / "s.json")]
    words += ["--csv", str(tmp_path / "s.csv"), "--sheet", str(tmp_path / "s.png"), "--predictions", str(predicted)]
    assert main(words) == 2
    assert "s.csv exists already: pass --overwrite to replace it, or another --csv" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]


def test_the_selected_regions_are_drawn_on_their_images(table, predicted, tmp_path):
    out = tmp_path / "selection.json"
    words = [
        "select",
        "--scores",
        str(table),
        "--budget.images",
        "2",
        "--predictions",
        str(predicted),
        "--out",
        str(out),
    ]
    assert main(words) == 0
    drawn = {path.stem for path in (tmp_path / "selection").glob("*.png")}
    assert drawn == set(Selection.load(out).image_ids)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "exactly one of regions=, pixels=, images="),
        (["--budget.regions", "3", "--budget.pixels", "5"], 2, "exactly one of regions=, pixels=, images="),
        (["--budget.regions", "0"], 2, "at least 1"),
        (["--budget.regions", "3", "--scores", "missing.parquet"], 2, "missing.parquet does not exist"),
        (["--budget.regions", "3", "--labeled", "[missing.json]"], 2, "missing.json does not exist"),
        (["--budget.regions", "3", "--out", "selection.txt"], 2, ".json"),
        (["--budget.regions", "3", "--budget.per_image", "0"], 2, "at least 1"),
        (["--budget.regions", "3", "--csv", "a.xlsx"], 2, "is a .csv file, but --csv is a.xlsx"),
        (["--budget.regions", "3", "--sheet", "a.jpg"], 2, "is a .png file, but --sheet is a.jpg"),
        (["--budget.regions", "3", "--images", "missing", "--sheet", "a.png"], 2, "--images missing is no folder"),
        (["--budget.regions", "3", "--classes", "missing.json"], 1, "missing.json is missing"),
        (["--budget.cost", "nowhere.hours", "--budget.limit", "3"], 2, "nowhere.hours"),
        (["--budget.clicks", "x"], 2, "--budget.clicks must be a whole number"),
        (["--budget.regions", "3", "--strategy", "CoreSet"], 2, "predict with --features, and score again"),
        (["--budget.regions", "3", "--strategy", "ClaSP"], 2, "predict with --save_probs, and score again"),
        (["--budget.regions", "3", "--strategy", "Mixed", "--strategy.a", "best"], 2, "no Strategy 'best'"),
        (["--budget.regions", "3", "--strategy", "best"], 2, "no Strategy 'best': there are "),
        (["--budget.regions", "3", "--strategy", "topk"], 2, "no Strategy 'topk'"),
        (["--budget.regions", "3", "--strategy", "Ranked"], 2, "no Strategy 'Ranked'"),
        (["--budget.regions", "3", "--strategy", "nowhere.Mine"], 2, "nowhere.Mine cannot be imported"),
        (["--budget.regions", "3", "--strategy", "os.path"], 2, "os.path is no Strategy"),
        (["--budget.regions", "3", "--strategy", "PowerTopK", "--strategy.beta", "-1"], 2, "beta of PowerTopK must be"),
        (["--budget.regions", "3", "--strategy", "PowerTopK", "--strategy.beta", "x"], 2, "--strategy.beta must be a"),
        (["--budget.regions", "3", "--strategy", "PowerTopK", "--strategy.alpha", "1"], 2, "PowerTopK has no option"),
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
    assert "holds no maps any more of 1 of its 5 images" in capsys.readouterr().err


def test_a_prediction_that_was_killed_is_not_scored_wherever_its_images_are_now(predicted, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(predicted, part)
    run = json.loads((part / "run.json").read_text())
    run["settings"]["images"], run["complete"] = str(tmp_path / "moved"), False
    (part / "run.json").write_text(json.dumps(run))
    assert main(["score", "--predictions", str(part), "--out", str(tmp_path / "t.parquet")]) == 2
    assert "part is not finished" in capsys.readouterr().err
    (part / "run.json").write_text(json.dumps({**run, "complete": True}))
    assert main(["score", "--predictions", str(part), "--out", str(tmp_path / "t.parquet")]) == 0
    (part / "maps" / "pool0.npz").unlink()
    words = ["score", "--predictions", str(part), "--out", str(tmp_path / "t.parquet"), "--overwrite"]
    assert main(words) == 2
    assert "holds no maps any more of 1 of its 5 images, such as 'pool0'" in capsys.readouterr().err


def test_pictures_of_an_earlier_selection_do_not_stay(table, predicted, tmp_path):
    words = ["select", "--scores", str(table), "--predictions", str(predicted), "--out", str(tmp_path / "s.json")]
    assert main([*words, "--budget.images", "4"]) == 0
    assert main([*words, "--budget.images", "1", "--overwrite"]) == 0
    assert len(list((tmp_path / "s").rglob("*.png"))) == 1


def test_masks_that_lie_where_pictures_would_are_neither_removed_nor_replaced(table, predicted, tmp_path, capsys):
    out, words = tmp_path / "s.json", ["select", "--scores", str(table), "--budget.images", "9", "--overwrite"]
    assert main([*words, "--out", str(out)]) == 0
    (tmp_path / "s").mkdir()
    masks = [tmp_path / "s" / f"{image_id}.png" for image_id in Selection.load(out).image_ids]
    for mask in masks:
        mask.write_text("an annotator's")
    before = out.read_bytes()
    assert main([*words, "--out", str(out)]) == 0
    assert main([*words, "--out", str(out), "--predictions", str(predicted)]) == 1
    assert "by somebody else" in capsys.readouterr().err
    assert all(mask.read_text() == "an annotator's" for mask in masks)
    assert out.read_bytes() == before


@pytest.mark.parametrize("bad", ["../x", "{tmp}/x"])
def test_an_edited_selection_removes_nothing_elsewhere(table, tmp_path, capsys, bad):
    folder = tmp_path / "inner"
    folder.mkdir()
    out, words = folder / "s.json", ["select", "--scores", str(table), "--budget.regions", "3", "--overwrite"]
    assert main([*words, "--out", str(out)]) == 0
    victims = [tmp_path / "x.png", folder / "x.png"]
    for victim in victims:
        victim.touch()
    content = json.loads(out.read_text())
    content["regions"][0]["image_id"] = bad.format(tmp=tmp_path)
    out.write_text(json.dumps(content))
    assert main([*words, "--out", str(out)]) == 1
    assert "cannot be the name of a file" in capsys.readouterr().err
    assert all(victim.exists() for victim in victims)


def test_a_selection_of_nothing_is_a_failure_that_writes_nothing(table, tmp_path, capsys):
    words = ["select", "--scores", str(table), "--budget.pixels", "10", "--out", str(tmp_path / "s.json")]
    assert main(words) == 1
    assert "nothing was selected" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
