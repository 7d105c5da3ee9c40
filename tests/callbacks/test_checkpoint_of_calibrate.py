"""The calibrator in every checkpoint is that of exactly its weights: through trainings of both names of Lightning."""

import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

import seguq
from seguq.callbacks import Calibrate
from seguq.data import unpack_batch
from tests.callbacks.tiny import Images, both_names, loader, make_module, make_trainer, traces

AVERAGING = ("none", "before", "after")


class Shades(Images):
    """Masks that can be learned from the images, but for some errors."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        truth = (item["image"][0] * 3).long().clamp(max=2)
        item["mask"] = truth.where(torch.rand(truth.shape) < 0.7, item["mask"])
        return item


def val():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        data = Shades(7, seed=1)
        return loader([data[i] for i in range(len(data))])


def trained(package, folder, *, averaging="none", module=None, callback=None, epochs=20, ckpt_path=None, **checkpoint):
    """A training that keeps its worst and its last weights, so that the two differ."""
    torch.manual_seed(3)
    chosen = {"monitor": "val/nll_before", "mode": "max", "filename": "chosen", **checkpoint}
    weights_only = checkpoint.get("save_weights_only", False)
    keep = [
        package.callbacks.ModelCheckpoint(folder, **chosen),
        package.callbacks.ModelCheckpoint(
            folder, filename="last", enable_version_counter=False, save_weights_only=weights_only
        ),
    ]
    ours = callback or Calibrate()
    average = package.callbacks.EMAWeightAveraging(decay=0.5)
    callbacks = {"none": [ours], "before": [average, ours], "after": [ours, average]}[averaging]
    trainer = make_trainer(package, folder, *keep, *callbacks, max_epochs=epochs, enable_checkpointing=True)
    module = make_module(package) if module is None else module
    trainer.fit(module, loader(Shades(6)), val(), ckpt_path=ckpt_path)
    return trainer, module


def refitted(path, package):
    """T by the slow way: the weights of a file, and several readings of the validation data."""
    model = seguq.load(path, make_module(package))
    calibrator = seguq.Deterministic(model, calibrator=None).calibrate(seguq.TemperatureScaling(), val())
    return calibrator.temperature


def kept(path, package):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a calibrator that is not applied is said in a warning
        return seguq.load(path, make_module(package)).calibrators["deterministic"].temperature


@both_names
@pytest.mark.parametrize("averaging", AVERAGING)
def test_best_and_last_each_carry_the_temperature_of_their_weights(package, averaging, tmp_path):
    trained(package, tmp_path, averaging=averaging)
    temperatures = [kept(tmp_path / f"{name}.ckpt", package) for name in ("chosen", "last")]
    assert temperatures == pytest.approx(
        [refitted(tmp_path / f"{n}.ckpt", package) for n in ("chosen", "last")], abs=1e-3
    )
    assert abs(temperatures[0] - temperatures[1]) > 2e-3 and temperatures[1] < 15


@both_names
def test_files_of_weights_only_carry_it_too(package, tmp_path):
    trained(package, tmp_path, save_weights_only=True)
    assert "optimizer_states" not in torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept(tmp_path / "last.ckpt", package) == pytest.approx(refitted(tmp_path / "last.ckpt", package), abs=1e-3)


@both_names
def test_files_of_raw_weights_beside_averaged_ones_are_not_calibrated(package, tmp_path):
    trained(package, tmp_path, averaging="before", save_weights_only=True)
    with pytest.warns(UserWarning, match="'deterministic' is not applied: it was fitted for other weights"):
        assert seguq.load(tmp_path / "last.ckpt", make_module(package)).calibrators == {}


@both_names
def test_a_file_saved_by_hand_after_training_carries_it(package, tmp_path):
    trainer, _ = trained(package, tmp_path)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert kept(tmp_path / "mine.ckpt", package) == pytest.approx(refitted(tmp_path / "mine.ckpt", package), abs=1e-3)


@both_names
def test_a_file_between_two_validations_is_not_calibrated(package, tmp_path):
    trained(package, tmp_path, monitor=None, every_n_train_steps=1, save_top_k=-1, filename="{step}", mode="min")
    with pytest.warns(UserWarning, match="is not applied: it was fitted for other weights .those of step 2."):
        assert seguq.load(tmp_path / "step=3.ckpt", make_module(package)).calibrators == {}


@both_names
def test_a_training_that_is_resumed_has_its_calibrator_back(package, tmp_path):
    trained(package, tmp_path)
    again, module = Calibrate(), make_module(package)
    trained(package, tmp_path / "again", module=module, callback=again, ckpt_path=tmp_path / "last.ckpt")
    expected = kept(tmp_path / "last.ckpt", package)
    assert module.calibrators["deterministic"].temperature == pytest.approx(expected, abs=1e-6)


@both_names
def test_a_test_with_the_path_of_a_checkpoint_is_calibrated(package, tmp_path):
    trained(package, tmp_path)
    path, module = tmp_path / "chosen.ckpt", make_module(package)
    measured = seguq.callbacks.UncertaintyMetrics()
    trainer = make_trainer(package, tmp_path, measured)
    trainer.test(module, val(), ckpt_path=path, verbose=False)
    metric = seguq.metrics.NegativeLogLikelihood(3)
    estimator = seguq.Deterministic(seguq.load(path, make_module(package)))
    for batch in map(unpack_batch, val()):
        metric.update(estimator(batch.image).probs, batch.mask)
    assert float(trainer.callback_metrics["test/nll"]) == pytest.approx(float(metric.compute()), abs=1e-6)
    assert not module.calibrators.keys() - {"deterministic"}


@both_names
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_compiled_module_carries_it_and_loads_into_one_that_is_not(package, where, tmp_path):
    module = make_module(package)
    if where == "inside":
        module.head = torch.compile(module.head, backend="eager")
    else:
        module = torch.compile(module, backend="eager")
    trained(package, tmp_path, module=module, epochs=1)
    assert kept(tmp_path / "last.ckpt", package) == pytest.approx(refitted(tmp_path / "last.ckpt", package), abs=1e-3)


@both_names
def test_the_training_is_the_same_to_the_bit_and_the_module_as_it_was(package, tmp_path):
    found = []
    for callbacks in ([], [Calibrate(), Calibrate(estimator=seguq.MCDropout(samples=2))]):
        torch.manual_seed(0)
        module = make_module(package)
        before = traces(module)
        make_trainer(package, tmp_path, *callbacks, max_epochs=2).fit(module, loader(Shades(6)), val())
        vars(module).pop("calibrators", None)
        assert traces(module)[:2] == before[:2]
        found.append([*module.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


SCRIPT = """
import sys
import pytorch_lightning
from tests.callbacks.test_checkpoint_of_calibrate import trained
trained(pytorch_lightning, sys.argv[1], epochs=10_000)
"""


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_with_its_calibrator(tmp_path):
    import pytorch_lightning

    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    path = tmp_path / "last.ckpt"
    epoch = torch.load(path, weights_only=True)["epoch"]
    module = make_module(pytorch_lightning)
    trained(pytorch_lightning, tmp_path / "again", module=module, ckpt_path=path, epochs=epoch + 1)
    assert module.calibrators["deterministic"].temperature == pytest.approx(kept(path, pytorch_lightning), abs=1e-6)
