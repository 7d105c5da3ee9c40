"""``seguq loop`` and ``seguq benchmark`` as they are typed, from the first round to the picture."""

from __future__ import annotations

import json

import pytest

from seguq.active import read_records
from seguq.cli import main
from tests.active.small_loop import write_data

pytestmark = pytest.mark.slow

SMALL = [
    "--model.classes", "3", "--model.encoder", "resnet18", "--model.encoder_weights", "null", "--data.steps", "2",
    "--data.batch_size", "2", "--data.num_workers", "0", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--partition", "Grid", "--partition.size", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def loop_run(root, run_dir, *more):
    words = [
        "loop",
        "run",
        "--run_dir",
        str(run_dir),
        "--pool",
        str(root / "images" / "pool"),
        "--data.root",
        str(root),
    ]
    oracle = ["--annotator", "Oracle", "--annotator.masks", str(root / "masks" / "pool")]
    return main([*words, *oracle, *SMALL, "--calibrator", "global", "--budget.regions", "4", "--rounds", "2", *more])


def test_a_loop_is_run_looked_at_and_forked(root, tmp_path, capsys):
    run = tmp_path / "run"
    assert loop_run(root, run, "--until", "1") == 0
    assert [record.round for record in read_records(run)] == [0]
    assert loop_run(root, run) == 0
    assert "was the last of 2 rounds" in capsys.readouterr().out
    assert main(["loop", "status", "--run_dir", str(run)]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert loop_run(root, run, "--strategy", "TopK") == 2
    assert "seguq loop fork --run_dir" in capsys.readouterr().err
    fork = tmp_path / "fork"
    assert main(["loop", "fork", "--run_dir", str(run), "--round", "0", "--out", str(fork)]) == 0
    assert loop_run(root, fork, "--strategy", "PowerTopK", "--strategy.beta", "2", "--data.num_workers", "1") == 0
    first, second = (json.loads((folder / "round-01" / "selection.json").read_text()) for folder in (run, fork))
    assert (first["why"]["strategy"], second["why"]["strategy"]) == ("BestOfEachImage()", "PowerTopK(beta=2.0)")
    picture = tmp_path / "curve.png"
    assert main(["loop", "plot", "--run_dir", str(run), str(fork), "--out", str(picture), "--by", "clicks"]) == 0
    assert picture.stat().st_size > 10_000


def test_a_benchmark_is_run_and_shown(root, tmp_path, capsys):
    options = tmp_path / "ways.yaml"
    options.write_text(
        "arms:\n"
        "  - {name: margin, strategy: {class_path: BestOfEachImage}, budgets: [{regions: 4}]}\n"
        "  - {name: random, strategy: {class_path: Random}, budgets: [{regions: 4}]}\n"
        "first: {regions: 6}\nseeds: [0, 1]\n"
    )
    out = tmp_path / "out"
    words = [
        "benchmark",
        "--config",
        str(options),
        "--root",
        str(root),
        "--pool_split",
        "pool",
        "--out",
        str(out),
        *SMALL,
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "--only_show"]) == 0
    assert capsys.readouterr().out == shown
    assert "margin" in shown
    assert len((out / "points.csv").read_text().splitlines()) == 1 + 2 * (2 + 2 + 1)
    assert (out / "curves-clicks.png").stat().st_size > 10_000
    assert main([*words, "--only_show", "--against", "nobody"]) == 2
    assert "--against" in capsys.readouterr().err
