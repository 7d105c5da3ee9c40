"""The command line as a whole: overview, wrong commands, exit status, and what an error looks like."""

import shlex
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from seguq.cli import loop, main
from seguq.core.errors import SeguqError
from tests.cli.conftest import run_process

COMMANDS = ("demo", "fit", "calibrate", "predict", "score", "select", *(f"loop {word}" for word in loop.COMMANDS))


def test_the_console_script_is_the_main_function():
    (script,) = entry_points(group="console_scripts", name="seguq")
    assert script.load() is main


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [command for command in COMMANDS if command.split()[0] not in printed] == []


def test_the_overview_of_a_group_names_its_commands(capsys):
    assert main(["loop", "--help"]) == 0
    printed = capsys.readouterr().out
    assert [word for word in loop.COMMANDS if word not in printed] == []


@pytest.mark.parametrize("words", [["loop"], ["loop", "statsu"], ["loop", "--run_dir", "x"]])
def test_a_group_without_one_of_its_commands_is_wrong_use(words, capsys):
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_misspelled_second_word_gets_the_nearest_one(capsys):
    assert main(["loop", "statsu"]) == 2
    assert capsys.readouterr().err == "seguq loop: there is no command 'statsu'; did you mean 'status'?\n"


def test_no_command_is_wrong_use():
    assert main([]) == 2


def test_a_misspelled_command_gets_the_nearest_one(capsys):
    assert main(["pridict"]) == 2
    assert "did you mean 'predict'?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "seguq 0.1.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_the_options(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"usage: seguq {command}" in printed
    assert "--config" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_wrong_use_in_one_sentence(command, capsys):
    assert main([*command.split(), "--no_such_option", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"seguq {command}: ")
    assert "no_such_option" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_missing_options_are_wrong_use_in_one_sentence(command, capsys):
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert "required" in error
    assert "Traceback" not in error


def _raise(error):
    def run(_):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (SeguqError("the mask is wrong"), 1, "seguq score: the mask is wrong"),
        (SeguqError("seguq score: the mask is wrong"), 1, "seguq score: the mask is wrong"),
        (OSError(28, "No space left on device", "x.npz"), 1, "seguq score: No space left on device (x.npz)"),
        (RuntimeError("boom"), 1, "seguq score: unexpected RuntimeError: boom (--debug shows where)"),
        (KeyboardInterrupt(), 130, "seguq score: stopped"),
    ],
)
def test_an_error_is_one_sentence_and_a_status(error, status, text, monkeypatch, capsys):
    monkeypatch.setattr("seguq.cli.score.run", _raise(error))
    assert main(["score"]) == status
    assert capsys.readouterr().err.strip() == text


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr("seguq.cli.score.run", _raise(SeguqError("the mask is wrong")))
    with pytest.raises(SeguqError):
        main(["score", "--debug"])


def test_the_process_exits_with_the_status():
    done = run_process("select", "--scores", "missing.parquet", "--budget.regions", "3")
    assert (done.returncode, done.stderr.strip()) == (2, "seguq select: missing.parquet does not exist")


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m seguq --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["select", "--scores", "x", "--budget.regions", "five"],
            "--budget.regions must be a whole number, but is 'five'",
        ),
        (["select", "--budget.regions", "5"], "are required: --scores"),
        (["fit"], "are required: --model.classes, --data.root"),
        (
            ["select", "--scores", "x", "--budget.regions", "5", "--strategy", "best"],
            "--strategy: there is no Strategy 'best': there are ",
        ),
        (["select", "--scores", "x", "--budget", "5"], "--budget takes a YAML file; its options by themselves"),
        (["select", "--strategy.help", "best"], "--strategy: there is no Strategy 'best': there are "),
        (["score", "--predictions", "x", "--partition", "Grid", "--partition.size", "big"], "--partition.size must be"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_option_as_typed(words, text, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line


@pytest.mark.parametrize(("content", "told"), [("raise SystemExit(0)", "SystemExit"), ("def (", "SyntaxError")])
def test_a_module_that_cannot_be_imported_is_one_line(content, told, tmp_path, monkeypatch, capsys):
    (tmp_path / f"of_{told.lower()}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["score", "--import", f"of_{told.lower()}", "--predictions", "x"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "it cannot be loaded" in line
    assert told in line


def test_options_count_whether_they_stand_before_or_after_the_config(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("budget:\n  regions: 50\n")
    words = ["--scores", "x", "--budget.regions", "7", "--config", str(tmp_path / "c.yaml"), "--print_config"]
    assert main(["select", *words]) == 0
    assert "regions: 7" in capsys.readouterr().out


def test_a_list_option_takes_one_word(capsys):
    assert main(["select", "--scores", "x", "--labeled", "a b.json", "--print_config"]) == 0
    assert "- a b.json" in capsys.readouterr().out
