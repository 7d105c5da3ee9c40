"""What an import brings along, seen in a fresh interpreter."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "pytorch_lightning",
    "lightning",
    "cv2",
    "segmentation_models_pytorch",
    "albumentations",
    "matplotlib",
    "torchmetrics",
    "pyarrow",
)


@cache
def loaded_by(statement):
    """The top-level names in ``sys.modules`` after ``statement``."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(json.loads(out))


@pytest.mark.parametrize("name", ["torch", "numpy", *HEAVY])
def test_import_seguq_does_not_load(name):
    assert name not in loaded_by("import seguq")


@pytest.mark.parametrize("name", HEAVY)
def test_import_seguq_functional_does_not_load(name):
    assert name not in loaded_by("import seguq.functional")


def test_import_seguq_functional_loads_torch():
    assert "torch" in loaded_by("import seguq.functional")


@pytest.mark.parametrize("name", HEAVY)
def test_asking_the_package_for_functional_does_not_load(name):
    assert name not in loaded_by("from seguq import functional\nfunctional.predictive_entropy")


# the commands between a prediction and a list: what they do without is most of the time of a help text
TRAINING = (
    "pytorch_lightning",
    "lightning",
    "torchmetrics",
    "segmentation_models_pytorch",
    "torchvision",
    "albumentations",
)
HELP = """
import contextlib, io
from seguq.cli import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    main(["WORDS", "--help"])
assert "--config" in printed.getvalue()"""


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("command", ["score", "select", "loop status", "loop plot"])
@pytest.mark.parametrize("statement", ["import seguq.cli.COMMAND", HELP], ids=["import", "help"])
def test_the_commands_of_regions_do_not_load(statement, command, name):
    assert name not in loaded_by(
        statement.replace("COMMAND", command.replace(" ", "_")).replace("WORDS", command.replace(" ", '", "'))
    )


def test_the_check_sees_a_module_that_is_loaded_inside_another():
    assert {"cv2", "seguq"} <= loaded_by("import seguq\ndef f():\n    import cv2\nf()")
