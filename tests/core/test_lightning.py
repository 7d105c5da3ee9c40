"""One class for both names of Lightning, and which methods a module has of its own."""

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn

from seguq.callbacks.hooks import stand_in
from seguq.core.lightning import Callback, LightningDataModule, WholeCheckpointIO, has_own, quiet, whole_checkpoints

ROOT = Path(__file__).parents[2]
PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning.pytorch": lightning.pytorch}
both_names = pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
STEPS = ("forward", "training_step", "validation_step", "predict_step", "on_save_checkpoint")


@both_names
def test_a_callback_is_one_of_each_package(package):
    assert issubclass(Callback, package.Callback)


@both_names
def test_a_data_module_is_one_of_each_package(package):
    assert issubclass(LightningDataModule, package.LightningDataModule)


@both_names
@pytest.mark.parametrize("name", STEPS)
def test_a_module_that_defines_nothing_has_nothing_of_its_own(package, name):
    assert not has_own(package.LightningModule(), name)


def defining(package, name):
    return type("Defining", (package.LightningModule,), {name: lambda self, *words: None})()


@both_names
@pytest.mark.parametrize("name", STEPS)
def test_a_method_of_the_class_is_its_own(package, name):
    assert has_own(defining(package, name), name)


@both_names
def test_a_method_of_a_class_in_between_is_its_own(package):
    middle = type(defining(package, "predict_step"))
    assert has_own(type("Last", (middle,), {})(), "predict_step")


@both_names
def test_a_method_that_was_set_on_the_module_is_its_own(package):
    module = package.LightningModule()
    module.predict_step = lambda batch, batch_idx: batch
    assert has_own(module, "predict_step")


def test_a_bare_module_has_a_forward_where_its_class_defines_one():
    assert has_own(nn.Identity(), "forward")
    assert not has_own(nn.Module(), "forward")


@both_names
def test_compiling_gives_a_module_no_step_of_its_own(package):
    compiled = torch.compile(defining(package, "training_step"), backend="eager")
    module = package.utilities.compile.from_compiled(compiled)  # what a Trainer hands to callbacks
    assert "predict_step" in vars(module)
    assert has_own(module, "training_step")
    assert not has_own(module, "predict_step")


@both_names
def test_a_copy_of_a_module_with_a_stand_in_has_no_method_of_its_own(package):
    module = package.LightningModule()
    stop = stand_in(module, "predict_step", lambda batch, batch_idx: None)
    copied = copy.deepcopy(module)
    stop()
    assert not has_own(copied, "predict_step")
    assert not has_own(module, "predict_step")


IMPORT = """
import sys
from pathlib import Path
import {first}
from seguq.core.lightning import Callback
import pytorch_lightning, lightning.pytorch
print([issubclass(Callback, package.Callback) for package in (pytorch_lightning, lightning.pytorch)])
print([base.__module__.partition(".")[0] for base in Callback.__bases__])
"""


@pytest.mark.parametrize("first", ["pytorch_lightning", "lightning.pytorch"])
def test_it_makes_no_difference_which_package_was_imported_first(first):
    code = IMPORT.format(first=first)
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["[True, True]", "['pytorch_lightning', 'lightning']"]


WITHOUT = """
import sys
from pathlib import Path
sys.modules["lightning"] = sys.modules["lightning.pytorch"] = None
import pytorch_lightning
from seguq.callbacks import Calibrate
from seguq.core.lightning import Callback, has_own
print(Callback.__bases__ == (pytorch_lightning.Callback,), has_own(pytorch_lightning.LightningModule(), "forward"))
pytorch_lightning.Trainer(callbacks=[Calibrate()], logger=False, accelerator="cpu", enable_checkpointing=False)
"""


def test_one_package_is_enough():
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"])
def test_quiet_keeps_lightning_to_warnings(name):
    logger = logging.getLogger(name)
    level = logger.level
    try:
        logger.setLevel(logging.INFO)
        quiet()
        assert logger.level == logging.WARNING
    finally:
        logger.setLevel(level)


LIMITED = """
import importlib, resource, signal, sys, warnings
import torch
from seguq.core.lightning import WholeCheckpointIO, whole_checkpoints
package = importlib.import_module(sys.argv[1])
class Module(package.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(300, 300)
plugins = [WholeCheckpointIO()] if sys.argv[3] == "plugin" else []
trainer = package.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, plugins=plugins)
trainer.strategy.connect(Module())
trainer.strategy.setup_environment()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def save():
    with whole_checkpoints(trainer):
        trainer.save_checkpoint(sys.argv[2], weights_only=True)
save()
before = open(sys.argv[2], "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save()
except OSError as error:
    print(error)
print(open(sys.argv[2], "rb").read() == before)
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits are those of POSIX")
@pytest.mark.parametrize("given", ["plugin", "block"])
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path, package, given):
    pytest.importorskip(package)
    path, other = tmp_path / "a.ckpt", "/dev/shm" if os.path.isdir("/dev/shm") else str(tmp_path)
    command = [sys.executable, "-c", LIMITED, package, str(path), given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "TMPDIR": other})
    assert done.stdout.splitlines()[-2:] == [f"[Errno 27] File too large: '{path}'", "True"], done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_plugin_of_the_users_own_for_checkpoints_is_used(tmp_path):
    class Mine(WholeCheckpointIO):
        pass

    trainer = pytorch_lightning.Trainer(logger=False, enable_checkpointing=False, plugins=[Mine()], accelerator="cpu")
    with whole_checkpoints(trainer):
        assert type(trainer.strategy.checkpoint_io) is Mine


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_a_checkpoint_is_read_by_whoever_the_plugin_was_given(tmp_path, package):
    trainer = pytest.importorskip(package).Trainer(
        logger=False, enable_checkpointing=False, plugins=[WholeCheckpointIO(load=lambda path: path)], accelerator="cpu"
    )
    assert trainer.strategy.load_checkpoint(tmp_path / "a.ckpt") == tmp_path / "a.ckpt"
