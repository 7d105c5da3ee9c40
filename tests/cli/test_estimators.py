"""Every estimator within every other one, by the command line and by files of options; what does not go together."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from seguq.cli import main
from seguq.cli.model import load_model
from seguq.core import log
from seguq.data import SegmentationFolder
from seguq.data.transforms import evaluation_transform
from seguq.inference import Estimator, MCDropout, TestTimeAugmentation, UncertaintyMaps
from seguq.inference.moments import WeightMoments
from seguq.inference.wrapping import WrappingEstimator

NET = """
from torch import nn

class Net(nn.Sequential):
    normalization = ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])

    def __init__(self):
        block = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5)]
        super().__init__(*block, nn.Conv2d(8, 2, 3, padding=1))
"""
DROPOUT = "mc_dropout(layers=dropout)"
MIRRORED = "test_time_augmentation(views=hflip, of={})"
WINDOW = "sliding_window(window=32, overlap=0.5, blend=gaussian, margin=0, stride=32, of={})"


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> str:
    """A network with batch statistics and dropout, as ``--module`` takes it."""
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return f"{file}:Net"


@pytest.fixture
def checkpoint(net, tmp_path) -> Path:
    """A checkpoint of it, with SWAG's part, and beside it another member."""
    space: dict = {}
    exec(NET, space)
    torch.manual_seed(0)
    model, moments = space["Net"](), WeightMoments(rank=2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        moments.add(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "member.ckpt")
    held = {**moments.state(), "statistics": ["1"]}
    torch.save({"state_dict": state, "seguq": {"version": 1, "swag": held}}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@pytest.fixture
def run(checkpoint, net, discs, tmp_path):
    """Run a command on it; its status."""

    def run(command, *more, out="out"):
        words = ["--checkpoint", str(checkpoint), "--module", net, "--num_workers", "0"]
        predicting = ["--images", str(discs / "images" / "pool"), "--pictures", "false", "--out", str(tmp_path / out)]
        return main([command, *words, *(predicting if command == "predict" else ["--data", str(discs)]), *more])

    return run


@pytest.fixture
def settings(run, tmp_path):
    """The settings that a prediction has written down."""

    def settings(*more, out="out"):
        assert run("predict", *more, out=out) == 0
        return json.loads((tmp_path / out / "run.json").read_text())["settings"]

    return settings


@pytest.fixture
def said(monkeypatch, caplog):
    """What is logged, also what was said before in this process."""
    monkeypatch.setattr(log, "_said", set())
    log.logger.addHandler(caplog.handler)
    yield caplog
    log.logger.removeHandler(caplog.handler)


def maps_of(folder):
    return {path.stem: UncertaintyMaps.load(path) for path in sorted((folder / "maps").glob("*.npz"))}


def needs(name, checkpoint, discs):
    """What a command has to be told beside the name of an estimator."""
    takes = Estimator.named(name).constructor_arguments()
    return [
        *(["--members", str(checkpoint.with_name("member.ckpt"))] if "members" in takes else []),
        *(["--bn_images", str(discs / "images" / "train")] if "bn_batches" in takes else []),
        *(["--samples", "2"] if "samples" in takes else []),
    ]


OURS = [name for name in Estimator.names() if Estimator.named(name).__module__.startswith("seguq.")]
AROUND = [name for name in OURS if issubclass(Estimator.named(name), WrappingEstimator)]


@pytest.mark.parametrize("inner", OURS)
@pytest.mark.parametrize("outer", AROUND)
def test_every_estimator_stands_within_every_wrapper_and_is_calibrated_there(
    outer, inner, run, settings, checkpoint, discs, tmp_path, capsys
):
    words = ["--estimator", outer, "--estimator.inner", inner, *needs(inner, checkpoint, discs)]
    raw = settings(*words, out="raw")
    kind = Estimator.named(inner)
    assert raw["estimator"].startswith(f"{outer}(") and f"of={inner}" in raw["estimator"]
    assert raw["samples"] == (2 if "samples" in kind.constructor_arguments() else None)
    assert raw["seed"] == (0 if "seed" in kind.constructor_arguments() else None)
    assert ("mutual_information" in raw["measures"]) == ("samples" in kind.gives)
    assert run("calibrate", *words) == 0
    assert settings(*words, out="calibrated")["estimator"] == raw["estimator"]
    before, after = maps_of(tmp_path / "raw"), maps_of(tmp_path / "calibrated")
    capsys.readouterr()
    assert settings(*words, "--calibrated", "false", out="again")["calibrated"] is False
    for image_id, maps in maps_of(tmp_path / "again").items():
        assert torch.allclose(maps["predictive_entropy"], before[image_id]["predictive_entropy"], atol=1e-6)
        assert not torch.allclose(maps["predictive_entropy"], after[image_id]["predictive_entropy"], atol=1e-4)
        if "mutual_information" in maps.names:  # of the raw samples
            assert torch.allclose(maps["mutual_information"], after[image_id]["mutual_information"], atol=1e-6)


def test_the_answer_is_that_of_the_estimator_made_in_python(run, checkpoint, net, tmp_path, discs):
    words = ["--estimator", "test_time_augmentation", "--estimator.views", "hflip", "--estimator.inner", "mc_dropout"]
    words += ["--samples", "3", "--seed", "7"]
    assert run("calibrate", *words, "--samples", "3") == 0
    assert run("predict", *words, "--save_probs", "--batch_size", "1") == 0
    model = load_model(str(checkpoint), net, torch.device("cpu"))
    est = TestTimeAugmentation(MCDropout(model.network, samples=3, seed=7), "hflip")
    data = SegmentationFolder(discs / "images" / "pool", transform=evaluation_transform(model.normalization, None))
    assert list(model.network.calibrators) == [est.tag]
    for i, (image_id, maps) in enumerate(maps_of(tmp_path / "out").items()):
        expected = est(data[i]["image"][None], [image_id])
        torch.testing.assert_close(maps.probs, expected.probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["--estimator", "mc_dropout", "--samples", "3"],
        ["--estimator", "MCDropout", "--samples", "3"],
        ["--estimator", "seguq.MCDropout", "--estimator.samples", "3"],
        ["--estimator", "mc_dropout", "--estimator.samples", "3"],
        ["--estimator.samples", "3", "--estimator", "mc_dropout"],
        ["--estimator=mc_dropout", "--estimator.samples=3"],
        ["--estimator.samples", "3"],
        {"estimator": "mc_dropout", "samples": 3},
        {"estimator": {"class_path": "seguq.MCDropout", "init_args": {"samples": 3}}},
        {"estimator": {"class_path": "MCDropout", "init_args": {"samples": 3}}, "samples": 20},
        [{"estimator": "mc_dropout", "samples": 20}, "--estimator.samples", "3"],
        [{"estimator": "deterministic", "samples": 20}, "--estimator", "mc_dropout", "--samples", "3"],
    ],
    ids=str,
)
def test_one_estimator_has_one_name_and_one_answer_however_it_is_asked_for(words, settings, tmp_path):
    expected = settings("--samples", "3", out="expected")
    assert settings(*typed(words, tmp_path)) == expected
    for image_id, maps in maps_of(tmp_path / "expected").items():
        torch.testing.assert_close(
            maps_of(tmp_path / "out")[image_id]["mutual_information"], maps["mutual_information"]
        )


WINDOWS_OF_DROPOUT = [
    ["--estimator", "sliding_window", "--estimator.window", "32", "--estimator.inner", "mc_dropout", "--samples", "2"],
    ["--estimator.inner.samples", "2", "--estimator.inner", "MCDropout", "--estimator.window", "32", "--estimator",
     "SlidingWindow"],
    {"estimator": {"class_path": "seguq.SlidingWindow", "init_args": {"window": 32, "inner": {
        "class_path": "seguq.MCDropout", "init_args": {"samples": 2}}}}},
    {"estimator": {"class_path": "SlidingWindow", "init_args": {"window": 32, "inner": "mc_dropout"}}, "samples": 2},
    [{"estimator": {"class_path": "seguq.SlidingWindow", "init_args": {"inner": "mc_dropout"}}},
     "--estimator.window", "32", "--estimator.inner.samples", "2"],
    [{"estimator": "sliding_window", "samples": 2}, "--estimator.inner", "mc_dropout", "--estimator.window", "32"],
]  # fmt: skip


@pytest.mark.parametrize("words", WINDOWS_OF_DROPOUT, ids=str)
def test_what_stands_inside_may_be_said_in_several_ways(words, settings, tmp_path):
    found = settings(*typed(words, tmp_path))
    assert (found["estimator"], found["samples"], found["seed"]) == (WINDOW.format(DROPOUT), 2, 0)


def test_three_deep(settings, checkpoint):
    inner = ["--estimator.inner", "test_time_augmentation", "--estimator.inner.views", "hflip"]
    words = ["--estimator", "sliding_window", "--estimator.window", "32", *inner]
    found = settings(*words, "--estimator.inner.inner", "mc_dropout", "--samples", "2")
    assert found["estimator"] == WINDOW.format(MIRRORED.format(DROPOUT))


def typed(words, tmp_path):
    """Words, in which options stand in a file."""
    found = []
    for word in [words] if isinstance(words, dict) else words:
        if isinstance(word, dict):
            (tmp_path / "options.yaml").write_text(yaml.safe_dump(word))
            found += ["--config", str(tmp_path / "options.yaml")]
        else:
            found.append(word)
    return found


WRONG = {
    "--estimator.inner: there is no Estimator 'foo': there are ": [
        "--estimator", "sliding_window", "--estimator.inner", "foo"],
    "a name that no estimator has (there is no Estimator 'foo'": [
        {"estimator": {"class_path": "seguq.SlidingWindow", "init_args": {"inner": "foo"}}}],
    "--estimator.inner names the Estimator: pass one of ": [
        "--estimator", "sliding_window", "--estimator.inner"],
    "MCDropout has its model by --checkpoint": ["--estimator", "mc_dropout", "--estimator.model", "torch.nn.Identity"],
    "Deterministic has its model by --checkpoint": [
        {"estimator": {"class_path": "SlidingWindow", "init_args": {"inner": {"class_path": "torch.nn.Identity"}}}}],
    "--estimator.calibrator must be the import path of a class, but is 'global'": [
        "--estimator", "mc_dropout", "--estimator.calibrator", "global"],
    "--estimator: as class_path 'mc_dropout' is written as its class, MCDropout": [
        {"estimator": {"class_path": "mc_dropout", "init_args": {"samples": 2}}}],
    "--estimator.inner: as class_path 'mc_dropout' is written as its class": [
        {"estimator": {"class_path": "SlidingWindow", "init_args": {"inner": {"class_path": "mc_dropout"}}}}],
    "--estimator takes a name, or class_path with the options of the class below init_args": [
        {"estimator": {"window": 3}}],
    "SlidingWindow has no option --estimator.windw": [
        {"estimator": {"class_path": "SlidingWindow", "init_args": {"windw": 3}}}],
    "--estimator.inner is given twice": [
        "--estimator", "sliding_window", "--estimator.inner", "mc_dropout", "--estimator.inner", "deterministic"],
    "MCDropout has no option --estimator.inner.sampls; its options: --estimator.inner.model, --estimator.inner.sa": [
        "--estimator", "sliding_window", "--estimator.inner", "mc_dropout", "--estimator.inner.sampls", "3"],
    "MCDropout has no option --estimator.window": ["--estimator", "mc_dropout", "--estimator.window", "3"],
    "--estimator.inner.samples must be a whole number, but is 'x'": [
        "--estimator", "sliding_window", "--estimator.inner", "mc_dropout", "--estimator.inner.samples", "x"],
    "--estimator.scales must be a list, as [a, b], but is '0.5'": [
        "--estimator", "test_time_augmentation", "--estimator.scales", "0.5"],
    "--estimator.inner.samples is an option of a class that is not named: pass --estimator.inner NAME, too": [
        "--estimator", "sliding_window", "--estimator.inner.samples", "3"],
    "views must be one of none, hflip, flips, d4, but is 'vflip'": [
        "--estimator", "test_time_augmentation", "--estimator.views", "vflip"],
    "window=(32, 32, 32) has 3 sides, but the images have 2 dimensions": [
        "--estimator", "sliding_window", "--estimator.window", "[32, 32, 32]"],
    "an ensemble needs --members": ["--estimator", "sliding_window", "--estimator.inner", "deep_ensemble"],
    "on the command line the members beside --checkpoint are given by --members": [
        "--estimator", "sliding_window", "--estimator.inner", "deep_ensemble", "--estimator.inner.members", "[a.ckpt]"],
    "SWAG has its checkpoint by --checkpoint": ["--estimator", "swag", "--estimator.checkpoint", "a.ckpt"],
    "the task of MCDropout is that of the model, multiclass": [
        "--estimator", "mc_dropout", "--estimator.task", "binary"],
    "--members does not go with mc_dropout": ["--members", "a.ckpt"],
    "--bn_images does not go with mc_dropout": ["--bn_images", "."],
    "--bn_images nowhere is no folder": ["--estimator", "swag", "--bn_images", "nowhere"],
    "--samples 3 does not go with deterministic": ["--estimator", "deterministic", "--samples", "3"],
    "--samples 3 does not go with SlidingWindow(": [
        "--estimator", "sliding_window", "--estimator.window", "32", "--samples", "3"],
    "--samples 3, but SlidingWindow(inner=MCDropout(samples=4)) has samples=4: give it once": [
        "--estimator", "sliding_window", "--estimator.inner", "mc_dropout", "--estimator.inner.samples", "4",
        "--samples", "3"],
}  # fmt: skip


@pytest.mark.parametrize("command", ["predict", "calibrate"])
@pytest.mark.parametrize(("told", "words"), WRONG.items(), ids=list(WRONG))
def test_what_does_not_go_together_is_one_sentence_before_any_work(command, told, words, run, tmp_path, capsys):
    before = (tmp_path / "model.ckpt").read_bytes()
    assert run(command, *typed(words, tmp_path)) in (1, 2)
    error = capsys.readouterr().err
    assert told in error and error.count(f"seguq {command}: ") == 1 and "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "model.ckpt").read_bytes() == before


def test_swag_of_a_training_that_collected_nothing_is_one_sentence(run, tmp_path, capsys):
    torch.save({"state_dict": torch.load(tmp_path / "model.ckpt")["state_dict"]}, tmp_path / "model.ckpt")
    assert run("predict", "--estimator", "sliding_window", "--estimator.inner", "swag") == 1
    assert "holds nothing for SWAG: train with seguq.callbacks.SWAG()" in capsys.readouterr().err


def test_swag_without_the_images_that_it_needs_says_what_to_pass(run, capsys):
    assert run("predict", "--estimator", "swag") == 2
    assert "--bn_images, a folder of them" in capsys.readouterr().err


def test_what_a_file_of_options_says_of_samples_is_taken_where_it_is_of_use(settings, tmp_path):
    config = typed({"samples": 20, "seed": 0}, tmp_path)
    assert settings(*config, "--estimator", "deterministic")["samples"] is None
    assert settings(*config, "--estimator", "mc_dropout", "--estimator.samples", "2", out="own")["samples"] == 2


def test_other_samples_inside_are_other_settings(run, capsys):
    words = ["--estimator", "test_time_augmentation", "--estimator.views", "hflip", "--estimator.inner", "mc_dropout"]
    assert run("predict", *words, "--samples", "2") == 0
    assert run("predict", *words, "--samples", "3") == 2
    assert "samples was 2, now 3" in capsys.readouterr().err
    assert run("predict", *words, "--samples", "2", "--seed", "1") == 2
    assert "seed was 0, now 1" in capsys.readouterr().err


def test_one_sample_disagrees_with_none_and_has_no_map_of_it_unless_it_is_asked_for(settings, capsys):
    assert settings("--samples", "1")["measures"] == ["predictive_entropy", "smallest_margin"]
    assert "0 everywhere" not in capsys.readouterr().err
    assert settings("--samples", "1", "--measures", "[mutual_information]", out="asked")["measures"] == [
        "mutual_information"
    ]
    assert "of one sample mutual_information is 0 everywhere: pass --samples 2 or more" in capsys.readouterr().err


def test_a_calibrator_is_of_the_whole_and_not_of_what_stands_inside(run, said):
    around = ["--estimator", "test_time_augmentation", "--estimator.views", "hflip"]
    assert run("calibrate", *around) == 0
    assert run("predict", "--estimator", "deterministic", out="a") == 0
    assert run("predict", "--estimator", "test_time_augmentation", "--estimator.views", "flips", out="b") == 0
    others = [
        text
        for text in said.messages
        if "not calibrated (there are some for test_time_augmentation(views=hflip" in text
    ]
    assert [text.partition(":")[0] for text in others] == [
        "deterministic",
        "test_time_augmentation(views=flips, of=deterministic)",
    ]


def test_an_image_smaller_than_the_window_is_seen_as_a_whole_and_that_is_said(run, said):
    assert run("predict", "--estimator", "sliding_window", "--estimator.window", "65") == 0
    assert [text for text in said.messages if "images of 64 x 64 are smaller than the window of 65 x 65" in text]


@pytest.mark.parametrize("command", ["predict", "calibrate"])
def test_the_help_shows_how_they_are_put_together_and_what_it_shows_works(command, run, checkpoint, discs, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip().partition("   ")[0] for line in shown.splitlines() if re.match(r"  --estimator [a-z]", line)]
    assert len(lines) >= 8
    member = str(checkpoint.with_name("member.ckpt"))
    for number, line in enumerate(lines):
        words = [re.sub(r"\b[bc]\.ckpt", member, word).replace("DATA", str(discs)) for word in line.split()]
        assert run(command, *words, out=f"out{number}") == 0, line
