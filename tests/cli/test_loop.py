"""``seguq loop status`` and ``seguq loop plot``: what they print and write, and what they refuse."""

import csv
import json

import pytest
from PIL import Image

from seguq.cli import main
from tests.active.runs import Run, finished


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "a b", rounds=3, per_round=6)


def waiting(folder):
    made = finished(folder, rounds=1, per_round=6)
    made.answer(1, made.select(1), images=2)
    return made


def test_status_says_how_a_loop_stands_with_a_table_of_its_rounds(tmp_path, capsys):
    made = waiting(tmp_path / "run")
    assert main(["loop", "status", "--run_dir", str(made.folder)]) == 0
    printed = capsys.readouterr().out
    assert "round 1 waits for 3 of 6 regions in 2 images to come back: run it again then" in printed
    assert "mean IoU 0.4" in printed
    assert [word for word in ("round", "regions", "clicks", "images", "gain", "time") if word not in printed] == []
    assert "…" not in printed  # no column is too narrow


def test_a_table_of_many_digits_hides_none(tmp_path, capsys):
    made = Run(tmp_path / "run")
    content = made.metrics(1)
    content["labeled"] = {"regions": 10**9, "pixels": 10**12, "clicks": 10**9, "images": 10**9}
    for number in range(2):
        (made.round(number) / "metrics.json").write_text(json.dumps(content | {"round": number, "gain": None}))
    made.step(1, "report")
    assert main(["loop", "status", "--run_dir", str(made.folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1,000,000,000") >= 6 and "…" not in printed


def test_status_of_a_run_that_has_only_begun(tmp_path, capsys):
    assert main(["loop", "status", "--run_dir", str(Run(tmp_path / "run").folder)]) == 0
    assert "has not begun its first round" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_writes_a_picture_of_its_kind(suffix, run, tmp_path):
    out = tmp_path / f"curve.{suffix}"
    assert main(["loop", "plot", "--run_dir", str(run.folder), "--out", str(out), "--by", "clicks"]) == 0
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert out.read_bytes().startswith(begins[suffix])


def test_plot_takes_several_runs_and_writes_them_as_a_table(run, tmp_path):
    other = finished(tmp_path / "other", rounds=2, per_round=6)
    words = ["--run_dir", str(run.folder), str(other.folder), "--out", str(tmp_path / "c.png")]
    assert main(["loop", "plot", *words, "--csv", str(tmp_path / "c.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [(row["run"], row["round"]) for row in rows] == [
        ("a b", "0"), ("a b", "1"), ("a b", "2"), ("other", "0"), ("other", "1"),
    ]  # fmt: skip
    assert Image.open(tmp_path / "c.png").width > 1000


def test_nothing_is_replaced_without_a_word(run, tmp_path, capsys):
    out = tmp_path / "curve.png"
    out.write_text("mine")
    words = ["loop", "plot", "--run_dir", str(run.folder), "--out", str(out)]
    assert main(words) == 2
    assert "exists already: pass --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0


def _file(path):
    path.write_text("")


def _damaged(path):
    Run(path)
    (path / "journal.sqlite").write_bytes(b"no journal at all" * 99)


@pytest.mark.parametrize("command", ["status", "plot"])
@pytest.mark.parametrize(
    ("make", "status", "told"),
    [
        (lambda path: None, 2, "there is no folder"),
        (_file, 2, "is no folder"),
        (lambda path: path.mkdir(), 2, "is no run of seguq loop: it has no loop.json"),
    ],
    ids=["missing", "file", "other"],
)
def test_what_is_no_run_is_one_sentence(make, status, told, command, tmp_path, capsys):
    make(tmp_path / "x")
    words = ["loop", command, "--run_dir", str(tmp_path / "x")]
    assert main([*words, *(["--out", str(tmp_path / "c.png")] if command == "plot" else [])]) == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"seguq loop {command}: ") and told in line
    assert not (tmp_path / "c.png").exists()


def test_a_damaged_journal_is_one_sentence(tmp_path, capsys):
    _damaged(tmp_path / "x")
    assert main(["loop", "status", "--run_dir", str(tmp_path / "x")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "journal.sqlite cannot be read as a journal" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--by", "nonsense"], "by must be one of pixels, regions, clicks, images, share, but is 'nonsense'"),
        (["--metric", "dice"], "has no metric 'dice': there are miou, accuracy, ece, nll"),
        (["--out", "curve.jpg"], "a picture is a .png or .svg or .pdf file, but --out is curve.jpg"),
        (["--csv", "curve.txt"], "a table for spreadsheets is a .csv file, but --csv is curve.txt"),
    ],
)
def test_a_wrong_option_is_one_sentence(words, told, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["loop", "plot", "--run_dir", str(run.folder), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_judged_round_cannot_be_drawn(tmp_path, capsys):
    words = ["loop", "plot", "--run_dir", str(Run(tmp_path / "run").folder), "--out", str(tmp_path / "c.png")]
    assert main(words) == 2
    assert "has no round that was judged yet" in capsys.readouterr().err
