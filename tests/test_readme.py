"""What the README and configs/ say is run: the two commands, and every file and option they name."""

import importlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from seguq.cli import main

ROOT = Path(__file__).parent.parent


def readme():
    return (ROOT / "README.md").read_text()


def dry_run(target):
    return subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "command"), [("demo", "-m seguq demo --out demo-out"), ("test", "-m pytest")])
def test_the_two_commands_of_the_readme_install_and_run(target, command):
    assert f"make {target} " in readme()
    printed = dry_run(target).stdout
    assert "scripts/install.sh" in printed
    assert command in printed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_without_python_make_says_what_is_missing_in_one_sentence(tmp_path):
    project = tmp_path / "a copy"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", project)
    shutil.copy(ROOT / "scripts" / "install.sh", project / "scripts")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "echo"):
        (tools / name).symlink_to(shutil.which(name))
    make = shutil.which("make")
    done = subprocess.run([make, "demo"], cwd=project, capture_output=True, text=True, env={"PATH": str(tools)})
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert "Python 3.10 or later is missing" in sentence


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_every_config_is_understood_by_its_command(name, capsys):
    words = [*_WORDS.get(name, [name]), "--config", str(ROOT / "configs" / f"{name}.yaml")]
    assert main([*words, "--print_config", *_required(name)]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    plain = {key: value for key, value in given.items() if not isinstance(value, dict) and key != "arms"}
    assert {key: printed[key] for key in plain} == plain
    assert [arm["name"] for arm in printed.get("arms", [])] == [arm["name"] for arm in given.get("arms", [])]


_WORDS = {"loop": ["loop", "run"]}  # commands of two words


def _required(name):
    return {
        "fit": ["--data.root", "d", "--model.classes", "2"],
        "calibrate": ["--checkpoint", "c", "--data", "d"],
        "predict": ["--checkpoint", "c", "--images", "i", "--out", "o"],
        "score": ["--predictions", "p"],
        "select": ["--scores", "s"],
        "loop": ["--run_dir", "r", "--pool", "p", "--model.classes", "2"],
        "benchmark": ["--root", "r", "--out", "o", "--model.classes", "2"],
    }.get(name, [])


def test_there_is_a_config_for_every_command():
    commands = set(re.findall(r"^\| `seguq (\w+)\b", readme(), re.MULTILINE))
    assert commands == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_every_command_line_of_the_readme_names_options_that_exist(capsys):
    lines = re.findall(r"^seguq (\w+) (.*)$", readme(), re.MULTILINE)
    assert len(lines) == 5
    for command, words in lines:
        assert main([command, "--help"]) == 0
        known = capsys.readouterr().out
        assert [option for option in re.findall(r"--[\w.]+", words) if option not in known] == []


def test_every_file_that_the_readme_names_is_there():
    names = re.findall(r"\]\(([\w./-]+)\)|`((?:configs|seguq|docs)/[\w./-]*|CONTRIBUTING\.md)`", readme())
    paths = [a or b for a, b in names]
    assert len(paths) >= 3
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_the_yaml_of_the_readme_makes_the_callbacks(package, tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", readme(), re.MULTILINE | re.DOTALL)
    (tmp_path / "config.yaml").write_text(block)
    cli = importlib.import_module(f"{package}.cli")
    demo = importlib.import_module(f"{package}.demos.boring_classes").BoringModel
    made = cli.LightningCLI(
        demo, run=False, args=["--config", str(tmp_path / "config.yaml")], save_config_callback=None
    )
    by_name = {type(callback).__name__: callback for callback in made.trainer.callbacks}
    assert by_name["Calibrate"].estimator.number_of_samples == 10
    assert by_name["HeatmapWriter"].estimator.name == "mc_dropout"


@pytest.mark.parametrize("name", ["predict", "calibrate"])
def test_what_a_config_offers_in_comments_is_understood_too(name, tmp_path, capsys):
    text = (ROOT / "configs" / "predict.yaml").read_text()
    offered = re.findall(r"^# (estimator: .*)$", text, re.MULTILINE)
    assert len(offered) == 2
    for line in offered:
        (tmp_path / "options.yaml").write_text(line)
        assert main([name, "--config", str(tmp_path / "options.yaml"), "--print_config", *_required(name)]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)["estimator"]
        assert printed["init_args"].items() >= yaml.safe_load(line)["estimator"]["init_args"].items()
