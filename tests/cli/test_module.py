"""``--module FILE.py:NAME``: checkpoints of models of one's own, on the command line."""

import json
import sys

import cv2
import pytest
import pytorch_lightning
import torch
from torch import nn

from seguq.calibration import load
from seguq.cli import main
from seguq.data import SegmentationData
from seguq.inference import UncertaintyMaps
from seguq.task import SegmentationTask
from seguq.weights import read_checkpoint
from tests.cli.conftest import write_split

OWN = """
import dataclasses
import pytorch_lightning
import torch
from torch import nn
from beside import WIDTH


@dataclasses.dataclass
class Layout:
    width: int = WIDTH


class Own(pytorch_lightning.LightningModule):
    def __init__(self, width, classes=2, rate=0.3, **others):
        super().__init__()
        self.save_hyperparameters()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, classes, 1)
        self.drop = nn.Dropout(rate)

    def forward(self, images):
        return self.last(self.drop(self.first(images).relu()))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["image"]), batch["mask"], ignore_index=255)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Normalized(Own):
    normalization = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Whole(pytorch_lightning.LightningModule):
    training_step, configure_optimizers = Own.training_step, Own.configure_optimizers

    def __init__(self, config):
        super().__init__()
        self.save_hyperparameters(config)
        self.last = nn.Conv2d(3, config.classes, 1)

    def forward(self, images):
        return self.last(images)


def bare():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def failing():
    raise RuntimeError("no luck")


def nothing():
    return 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "own.py"


def classes_of(file):
    monkeypatched = {"__name__": "own_for_tests"}
    sys.path.append(str(file.parent))
    exec(compile(file.read_text(), str(file), "exec"), monkeypatched)
    return monkeypatched


def trained(file, name, discs, **arguments):
    """A checkpoint of a Lightning training of one's own."""
    module = classes_of(file)[name](**arguments)
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, limit_train_batches=1, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=SegmentationData(discs, batch_size=2, size=32, num_workers=0))
    trainer.save_checkpoint(file.parent / "own.ckpt")
    return module.eval(), file.parent / "own.ckpt"


def predict(checkpoint, discs, out, module, *more):
    words = ["predict", "--checkpoint", str(checkpoint), "--images", str(discs / "images" / "pool"), "--out", str(out)]
    return main([*words, "--module", str(module), "--estimator", "deterministic", "--pictures", "false", *more])


@pytest.mark.parametrize(("name", "arguments"), [("Own", {"width": 3}), ("Normalized", {"width": 4})])
def test_a_module_is_made_from_its_file_and_the_checkpoint_alone(name, arguments, file, discs, tmp_path):
    module, checkpoint = trained(file, name, discs, **arguments)
    assert predict(checkpoint, discs, tmp_path / "out", f"{file}:{name}", "--save_probs", "--size", "null") == 0
    maps = UncertaintyMaps.load(tmp_path / "out" / "maps" / "pool0.npz")
    told = getattr(module, "normalization", None)
    own = {} if told is None else {"mean": told[0], "std": told[1]}
    data = SegmentationData(discs, batch_size=1, num_workers=0, **own)
    batch = next(iter(data.dataloader("pool", masks=False)))
    with torch.no_grad():
        expected = module(batch["image"]).softmax(1)
    assert torch.allclose(maps.probs, expected, atol=1e-5)


def test_hyperparameters_that_were_given_as_one_argument_are_handed_on_so(file, discs, tmp_path):
    from argparse import Namespace

    _, checkpoint = trained(file, "Whole", discs, config=Namespace(classes=2))
    assert predict(checkpoint, discs, tmp_path / "out", f"{file}:Whole") == 0


def test_a_function_makes_the_module_of_a_bare_state_dict_and_the_command_line_says_the_rest(file, discs, tmp_path):
    model = classes_of(file)["bare"]().eval()
    torch.save({"net": model.state_dict()}, tmp_path / "bare.pth")
    more = ("--mean", "[0, 0, 0]", "--std", "[1, 1, 1]", "--save_probs")
    assert predict(tmp_path / "bare.pth", discs, tmp_path / "out", f"{file}:bare", *more) == 0
    data = SegmentationData(discs, batch_size=1, num_workers=0, mean=(0, 0, 0), std=(1, 1, 1))
    with torch.no_grad():
        expected = model(next(iter(data.dataloader("pool", masks=False)))["image"]).softmax(1)
    assert torch.allclose(UncertaintyMaps.load(tmp_path / "out" / "maps" / "pool0.npz").probs, expected, atol=1e-5)


def test_a_calibrator_is_fitted_kept_and_used(file, discs, tmp_path):
    _, checkpoint = trained(file, "Own", discs, width=3)
    words = ["calibrate", "--checkpoint", str(checkpoint), "--data", str(discs), "--num_workers", "0"]
    assert main([*words, "--module", f"{file}:Own", "--samples", "3"]) == 0
    model = load(checkpoint, classes_of(file)["Own"](3))
    assert list(model.calibrators) == ["mc_dropout(layers=dropout)"]
    assert read_checkpoint(checkpoint)["hyper_parameters"]["width"] == 3


def test_members_of_an_ensemble_are_made_in_the_same_way(file, discs, tmp_path):
    _, checkpoint = trained(file, "Own", discs, width=3)
    more = ("--estimator", "deep_ensemble", "--members", f"[{checkpoint}]")
    assert predict(checkpoint, discs, tmp_path / "out", f"{file}:Own", *more) == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["estimator"].startswith("deep_ensemble(members=2")
    assert len(settings["checkpoint"]) == 2


def test_the_network_of_a_segmentation_task_is_named(file, discs, tmp_path):
    task = SegmentationTask(classes=2, model=classes_of(file)["bare"]())
    trainer = pytorch_lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=0)
    trainer.fit(task, datamodule=SegmentationData(discs, num_workers=0))
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    assert predict(tmp_path / "task.ckpt", discs, tmp_path / "out", f"{file}:bare") == 0


def hyperparameters(**more):
    def change(content):
        content["hyper_parameters"] = more

    return change


MISTAKES = {
    "no name": ("own.py", None, "name a class in a file, as FILE.py:Class"),
    "no file": ("none.py:Own", None, "there is no file"),
    "no class": ("own.py:Other", None, "has no class 'Other'"),
    "no class, but a value": ("own.py:__name__", None, "has no class '__name__'"),
    "a file that fails": ("bad.py:Own", None, "it cannot be loaded (SyntaxError"),
    "a script that ends itself": ("ends.py:Own", None, "it cannot be loaded (SystemExit"),
    "a class that needs more": ("own.py:Own", hyperparameters(rate=0.5), "needs width, which the hyperparameters"),
    "another value": ("own.py:Own", hyperparameters(width="x"), "cannot be made with the hyperparameters"),
    "a function that fails": (
        "own.py:failing",
        None,
        "cannot be made with the hyperparameters of the checkpoint (Runtime",
    ),
    "no module": ("own.py:nothing", None, "makes a int, which is no nn.Module"),
    "another network": ("own.py:bare", None, "does not fit the model"),
    "hyperparameters of another kind": ("own.py:Own", hyperparameters(), "needs width"),
    "no normalization": (
        "own.py:Own",
        lambda c: c.pop("SegmentationData"),
        "does not say how its images are normalized",
    ),
    "damaged data": ("own.py:Own", lambda c: c["SegmentationData"].update(size=[1.5, 2]), "holds of its data: 'size'"),
}


@pytest.fixture(scope="module")
def content(discs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    (folder / "beside.py").write_text("WIDTH = 5\n")
    return read_checkpoint(trained(folder / "own.py", "Own", discs, width=3)[1])


@pytest.mark.parametrize(("module", "change", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence(module, change, told, file, content, discs, tmp_path, capsys):
    content = {**content, "SegmentationData": dict(content["SegmentationData"])}
    (change or (lambda content: None))(content)
    torch.save(content, tmp_path / "a.ckpt")
    (tmp_path / "bad.py").write_text("class Own(\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n")
    assert predict(tmp_path / "a.ckpt", discs, tmp_path / "out", tmp_path / module) in (1, 2)
    error = capsys.readouterr().err
    assert told in error
    assert (error.count("\n"), "unexpected" in error) == (1, False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--mean", "[0, 0, 0]"], "--mean and --std go together"),
        (["--mean", "[0, 0]", "--std", "[1]"], "must have one number a channel"),
        (["--task", "regression"], "--task"),
    ],
)
def test_wrong_options_are_one_sentence(more, told, file, content, discs, tmp_path, capsys):
    torch.save(content, tmp_path / "a.ckpt")
    assert predict(tmp_path / "a.ckpt", discs, tmp_path / "out", f"{file}:Own", *more) in (1, 2)
    assert told in capsys.readouterr().err


def test_options_of_a_module_do_not_go_with_a_checkpoint_of_fit(discs, tmp_path, capsys):
    words = ["predict", "--checkpoint", "a.ckpt", "--images", str(discs / "images" / "pool"), "--out", str(tmp_path)]
    assert main([*words[:-1], str(tmp_path / "out"), "--task", "binary"]) == 2
    assert "--task goes with --module" in capsys.readouterr().err


def test_another_normalization_is_taken_with_a_word(file, content, discs, tmp_path, capsys):
    torch.save(content, tmp_path / "a.ckpt")
    more = ("--mean", "[0, 0, 0]", "--std", "[1, 1, 1]")
    assert predict(tmp_path / "a.ckpt", discs, tmp_path / "out", f"{file}:Own", *more) == 0
    assert "by --mean and --std images are normalized with" in capsys.readouterr().err


def test_gray_images_go_into_a_module_of_one_channel(tmp_path, capsys):
    write_split(tmp_path, "pool", 2)
    (tmp_path / "gray.py").write_text("from torch import nn\ndef made():\n    return nn.Conv2d(1, 2, 1)\n")
    torch.save(nn.Conv2d(1, 2, 1).state_dict(), tmp_path / "gray.pt")
    for path in (tmp_path / "images" / "pool").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    more = ("--mean", "[0.5]", "--std", "[0.2]")
    assert predict(tmp_path / "gray.pt", tmp_path, tmp_path / "out", f"{tmp_path / 'gray.py'}:made", *more) == 0
