"""The LightningModule: real Trainers on a tiny data set, and checkpoints that carry what prediction needs."""

import math
import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

import seguq
from seguq.calibration import TemperatureScaling
from seguq.calibration.checkpoint import save_calibrator
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Normalization, SegmentationData
from seguq.inference import Deterministic, UncertaintyMaps
from seguq.task import SegmentationTask
from tests.data.builders import write, write_classes

NAMES = ("background", "disc", "bar")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    """One thread, and a cache that is not the user's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache-home")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_advice():
    """Lightning's advice on workers and on short epochs is not what is tested."""
    with warnings.catch_warnings():
        for advice in (
            ".*not have many workers.*",
            ".*have no `val_dataloader`.*",
            ".*LeafSpec.*",
            ".*best temperature.*",
        ):
            warnings.filterwarnings("ignore", message=advice)
        yield


def shapes(size, seed):
    """An image of a disc and a bar, colored by class with some noise, and its mask."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size]
    mask = np.zeros((size, size), np.uint8)
    row, column = generator.integers(size // 4, 3 * size // 4, 2)
    mask[(y - row) ** 2 + (x - column) ** 2 < (size / 5) ** 2] = 1
    mask[:, : size // 8] = 2
    colors = np.array([[30, 30, 30], [200, 60, 60], [60, 60, 200]], np.float64)
    image = colors[mask] + generator.normal(0, 15, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def build_shapes(root, splits, size=64, names=NAMES, ignored=True, **more):
    """Write a data set of `shapes`, with an ignored corner in each mask."""
    write_classes(root, names, **more)
    seed = 0
    for split, count in splits.items():
        for i in range(count):
            seed += 1
            image, mask = shapes(size, seed)
            if ignored:
                mask[-6:, -6:] = 255
            write(root / "images" / split / f"{i}.png", image)
            if split != "pool":
                write(root / "masks" / split / f"{i}.png", mask.clip(max=255 if len(names) > 2 else 1))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """4 train, 3 val, 2 test images of 64 x 64 in three classes, and a pool of 3."""
    return build_shapes(tmp_path_factory.mktemp("shapes"), {"train": 4, "val": 3, "test": 2, "pool": 3})


def data_of(root, **settings):
    return SegmentationData(root, **{"batch_size": 2, "num_workers": 0, "augmentation": "none", **settings})


def task_of(architecture="FPN", encoder="resnet18", **settings):
    return SegmentationTask(architecture, encoder, **{"classes": 3, "encoder_weights": None, **settings})


def trainer_of(**settings):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **settings})


class Pixelwise(nn.Module):
    """A network of one layer, that any size goes through, and that trains in an instant."""

    def __init__(self, classes=3, channels=3, wrap=lambda logits: logits):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.layer(images))


def small_task(classes=3, wrap=lambda logits: logits, **settings):
    out = classes if settings.get("task") != "binary" else settings.pop("logits", 1)
    return SegmentationTask(classes=classes, model=Pixelwise(out, wrap=wrap), **settings)


class Pairs(Dataset):
    """Tuples of random images and masks, without ids."""

    def __init__(self, count=4, shape=(16, 16), top=3, size=(16, 16), kind=torch.long, labeled=True):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, *size, generator=generator)
        self.masks = torch.randint(0, top, (count, *shape), generator=generator).to(kind)
        self.labeled = labeled

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return (self.images[i], self.masks[i]) if self.labeled else (self.images[i],)


def loader(batch_size=2, **settings):
    return DataLoader(Pairs(**settings), batch_size=batch_size)


class Steps(Callback):
    """Keeps the loss, the learning rate, and the step of each training batch."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


# --- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overfit(root):
    """The losses of 30 steps over the same 4 images, the figures logged in validation, and the trained task."""
    torch.manual_seed(0)
    steps, task = Steps(), task_of(dropout=0.0)
    trainer = trainer_of(max_steps=30, callbacks=[steps], limit_val_batches=0)
    trainer.fit(task, data_of(root, batch_size=4))
    (figures,) = trainer_of().validate(task, data_of(root), verbose=False)
    return steps.losses, figures, task


def test_training_on_four_images_lowers_their_loss(overfit):
    losses = overfit[0]
    assert len(losses) == 30 and losses[-1] < 0.25 * losses[0] and math.isfinite(sum(losses))


def test_a_trained_task_segments_images_that_it_has_not_seen(overfit):
    assert overfit[1]["val/miou"] > 0.5


def oracle(task, folder):
    """Mean IoU and mean loss by plain numpy, over the labeled pixels of all images at once."""
    predicted, truth, losses = [], [], []
    for item in folder:
        with torch.no_grad():
            logits = task.eval()(item["image"][None])
        mask = torch.as_tensor(item["mask"]).long()
        losses.append(float(nn.functional.cross_entropy(logits, mask[None], ignore_index=255)))
        predicted.append(logits.argmax(1)[0].numpy()[mask.numpy() != 255])
        truth.append(mask.numpy()[mask.numpy() != 255])
    predicted, truth = np.concatenate(predicted), np.concatenate(truth)
    overlaps = [((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum() for c in range(3)]
    return np.mean(overlaps), np.mean(losses)


def test_logged_miou_is_that_of_all_labeled_pixels_together(overfit, root):
    assert overfit[1]["val/miou"] == pytest.approx(oracle(overfit[2], data_of(root).folder("val"))[0], abs=1e-5)


def test_logged_loss_is_the_mean_over_images(overfit, root):
    # every mask has as many labeled pixels, so the mean over pixels is that over images
    assert overfit[1]["val/loss"] == pytest.approx(oracle(overfit[2], data_of(root).folder("val"))[1], rel=1e-4)


def test_a_class_that_occurs_nowhere_does_not_lower_the_miou():
    task = small_task(classes=5)
    nn.init.zeros_(task.model.layer.weight)
    task.model.layer.bias.data = torch.tensor([1.0, 0, 0, 0, 0])  # always class 0
    (figures,) = trainer_of().validate(task, loader(top=1), verbose=False)
    assert figures["val/miou"] == 1


def test_the_miou_of_an_epoch_knows_nothing_of_the_one_before():
    task, trainer = small_task(), trainer_of()
    first, second = (trainer.validate(task, loader(), verbose=False)[0]["val/miou"] for _ in range(2))
    assert first == second > 0


def test_training_logs_the_loss_of_steps_and_epochs_and_the_figures_of_validation():
    trainer = trainer_of(max_epochs=1)
    trainer.fit(small_task(), loader(), loader())
    assert {"train/loss_step", "train/loss_epoch", "val/loss", "val/miou"} <= set(trainer.logged_metrics)


def test_testing_logs_its_own_figures():
    (figures,) = trainer_of().test(small_task(), loader(), verbose=False)
    assert set(figures) == {"test/loss", "test/miou"}


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_one_cycle_rate_ends_with_the_training(accumulate):
    steps = Steps()
    task = small_task(lr=0.01)
    trainer = trainer_of(max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[steps])
    trainer.fit(task, loader(count=12))  # 6 batches an epoch
    (schedule,) = [config.scheduler for config in trainer.lr_scheduler_configs]
    assert schedule.total_steps == trainer.global_step == 18 // accumulate


def test_the_one_cycle_rate_rises_to_lr_and_falls_to_nearly_0():
    steps = Steps()
    trainer_of(max_epochs=10, callbacks=[steps]).fit(small_task(lr=0.01), loader(count=12))
    top = int(np.argmax(steps.rates))
    assert max(steps.rates) == pytest.approx(0.01, rel=0.02) and 12 < top < 24
    assert steps.rates[0] < 0.001 and steps.rates[-1] < 0.0001


@pytest.mark.parametrize("length", [{"max_epochs": -1, "max_time": {"seconds": 0}}, {"max_steps": 1}])
def test_a_training_of_unknown_length_or_of_one_step_has_a_constant_rate(length):
    trainer = trainer_of(**length)
    trainer.fit(small_task(lr=0.01), loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01 and not trainer.lr_scheduler_configs


def test_precision_bf16_mixed_trains_validates_and_predicts():
    steps, task = Steps(), task_of(encoder="mobilenet_v2")
    trainer = trainer_of(max_steps=2, precision="bf16-mixed", callbacks=[steps])
    trainer.fit(task, loader(size=(40, 32), shape=(40, 32)), loader(size=(40, 32), shape=(40, 32)))
    assert all(math.isfinite(loss) for loss in steps.losses) and math.isfinite(trainer.logged_metrics["val/miou"])
    (maps, _) = trainer.predict(task, loader(size=(40, 32), labeled=False))
    assert maps.probs.dtype == torch.float32 and bool(maps.probs.isfinite().all())


BINARY = {"classes": 1, "task": "binary"}
MULTILABEL = {"classes": 3, "task": "multilabel"}
KINDS = {
    "one logit": (BINARY, {"top": 2}),
    "one logit and a float mask with a channel": (BINARY, {"top": 2, "shape": (1, 16, 16), "kind": torch.float32}),
    "two logits": ({"classes": 2, "task": "binary", "logits": 2}, {"top": 2}),
    "labels": (MULTILABEL, {"top": 2, "shape": (3, 16, 16)}),
}


@pytest.mark.parametrize("loss", ["ce", "dice", "ce+dice"])
@pytest.mark.parametrize("kind", KINDS)
def test_binary_and_multilabel_tasks_train_and_validate(kind, loss):
    settings, batches = KINDS[kind]
    task, steps = small_task(**settings, loss=loss), Steps()
    before = task.model.layer.weight.detach().clone()
    trainer = trainer_of(max_epochs=1, callbacks=[steps])
    trainer.fit(task, loader(**batches), loader(**batches))
    assert not torch.equal(task.model.layer.weight, before)
    assert len(steps.losses) == 2 and 0 <= trainer.logged_metrics["val/miou"] <= 1


def test_the_miou_of_labels_is_that_of_on_and_off():
    task = small_task(**MULTILABEL)
    (figures,) = trainer_of().validate(task, loader(top=2, shape=(3, 16, 16)), verbose=False)
    pairs = Pairs(top=2, shape=(3, 16, 16))
    with torch.no_grad():
        on = task(pairs.images) > 0
    truth = pairs.masks == 1
    overlaps = [(a & b).sum() / (a | b).sum() for a, b in ((on, truth), (~on, ~truth))]
    assert figures["val/miou"] == pytest.approx(float(sum(overlaps) / 2), abs=1e-6)


def test_a_one_logit_task_trains_on_a_data_set_of_two_classes(tmp_path):
    root = build_shapes(tmp_path, {"train": 2, "val": 2}, size=32, names=NAMES[:2], ignored=False)
    task = small_task(**BINARY)
    trainer_of(max_epochs=1).fit(task, data_of(root))
    assert task.class_names == NAMES[:2]


def test_a_batch_without_masks_in_training_is_an_error_that_says_so():
    with pytest.raises(SeguqError, match="train needs masks, but a batch has none"):
        trainer_of(max_epochs=1).fit(small_task(), loader(labeled=False))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_batch_without_masks_in_evaluation_is_an_error_that_says_so(stage):
    with pytest.raises(SeguqError, match="needs masks, but a batch has none"):
        getattr(trainer_of(), stage)(small_task(), loader(labeled=False), verbose=False)


def test_a_batch_without_labeled_pixels_does_not_end_the_training():
    masks = Pairs()
    masks.masks[:2] = 255
    task = small_task()
    trainer_of(max_epochs=2).fit(task, DataLoader(masks, batch_size=2))
    assert all(bool(parameter.isfinite().all()) for parameter in task.parameters())


# --- the data must go with the network ----------------------------------------------------------------------------


def test_data_of_other_classes_are_an_error_with_both_numbers(root):
    told = r"the data have 3 classes \(background, disc, bar\), but the network has 4: set classes=3"
    with pytest.raises(SeguqError, match=told):
        trainer_of(max_steps=1).fit(small_task(classes=4), data_of(root))


def test_data_of_other_classes_are_an_error_in_a_binary_task_too(root):
    with pytest.raises(SeguqError, match=r"the data have 3 classes .* the network has 2"):
        trainer_of(max_steps=1).fit(small_task(**BINARY), data_of(root))


def test_data_with_another_ignored_value_are_an_error_with_both_values(tmp_path):
    root = build_shapes(tmp_path, {"train": 2, "val": 2}, ignored=False, ignore_index=7)
    with pytest.raises(SeguqError, match="ignore the mask value 7, but the task ignores 255: set ignore_index=7"):
        trainer_of(max_steps=1).fit(small_task(), data_of(root))


def test_the_names_of_the_classes_come_from_the_data(root):
    task = small_task()
    trainer_of(max_steps=1).fit(task, data_of(root))
    assert task.class_names == NAMES


def test_the_data_are_normalized_as_the_task_says(root):
    task, seen = small_task(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)), []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(batch["image"])

    trainer_of(max_epochs=1, callbacks=[Look()]).fit(task, data_of(root))
    plain = torch.cat([batch["image"] for batch in data_of(root, mean=(0, 0, 0), std=(1, 1, 1)).dataloader("train")])
    offset, factor = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    expected = ((plain.mean((0, 2, 3)) - offset) / factor).sort().values
    assert_close(torch.cat(seen).mean((0, 2, 3)).sort().values, expected, atol=1e-4, rtol=1e-4)


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"classes": 1}, "classes=1 does not go with task='multiclass'"),
        ({"classes": 0}, "classes=0 does not go with"),
        ({"classes": 0, "task": "multilabel"}, "classes=0 does not go with"),
        ({"classes": 3, "task": "binary"}, "task='binary' has one logit .*classes=3"),
        ({"task": "segmentation"}, "task must be one of multiclass, binary, multilabel"),
        ({"loss": "focal"}, r"loss must be one of ce, dice, ce\+dice"),
        ({"class_weights": (1, 1, -1)}, "class_weights must not be negative"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std go together"),
        ({"std": (0.5, 0.5, 0.5)}, "mean and std go together"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean has 1 channels, but in_channels=3"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5)}, "std above 0"),
        ({"architecture": "FNP"}, "did you mean FPN"),
        ({"encoder": "resnet81"}, "did you mean resnet18"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_a_wrong_argument_is_an_error_when_the_task_is_made(settings, told):
    with pytest.raises(SeguqError, match=told):
        task_of(**settings)


def test_a_wrong_number_of_class_weights_is_an_error_when_the_task_is_made():
    with pytest.raises(SeguqError, match="class_weights has 2 weights, but there are 3 classes"):
        task_of(class_weights=(1, 1))


@pytest.mark.parametrize(
    ("encoder", "channels", "mean"),
    [("resnet18", 3, IMAGENET[0]), ("tu-tf_efficientnet_lite0", 3, (0.5,) * 3), ("resnet18", 1, (0.449,))],
)
def test_the_normalization_is_that_of_the_encoder(encoder, channels, mean):
    assert task_of(encoder=encoder, in_channels=channels).normalization.mean == pytest.approx(mean, abs=1e-3)


def test_a_normalization_that_is_given_is_taken():
    task = task_of(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert task.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_module_of_ones_own_is_normalized_by_imagenet():
    assert small_task().normalization == IMAGENET


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_are_as_many_as_asked(channels):
    task = task_of(in_channels=channels).eval()
    with torch.no_grad():
        assert (task.channels, task(torch.zeros(1, channels, 64, 64)).shape) == (channels, (1, 3, 64, 64))


def test_seguq_hands_the_task_on():
    assert seguq.SegmentationTask is SegmentationTask


# --- images of any size -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    """Tasks of several architectures, in evaluation mode."""
    torch.manual_seed(0)
    made = {name: task_of(name, "mobilenet_v2").eval() for name in ("FPN", "Unet", "DeepLabV3Plus")}
    return {**made, "own": small_task().eval()}


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 95), (33, 47), (1, 1), (127, 130)])
@pytest.mark.parametrize("name", ["FPN", "Unet", "DeepLabV3Plus", "own"])
def test_images_of_any_size_have_logits_of_their_size(networks, name, size):
    with torch.no_grad():
        logits = networks[name](torch.randn(1, 3, *size))
    assert logits.shape == (1, 3, *size) and bool(logits.isfinite().all())


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("name", ["FPN", "Unet", "DeepLabV3Plus"])
def test_where_the_network_takes_a_size_its_logits_are_untouched(networks, name, size):
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(networks[name](images), networks[name].model(images))


def test_other_sizes_are_padded_by_their_border_and_cut_off_again(networks):
    images = torch.randn(1, 3, 50, 61)
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (0, 14), (0, 3)), mode="edge"))
    with torch.no_grad():
        assert torch.equal(networks["FPN"](images), networks["FPN"].model(padded)[..., :50, :61])


OUTPUTS = {
    "out": lambda logits: {"out": logits, "aux": logits[:, :1]},
    "logits": lambda logits: {"logits": logits},
    "tuple": lambda logits: (logits, None),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_module_of_ones_own_may_wrap_its_logits(kind):
    task, images = small_task(wrap=OUTPUTS[kind]), torch.randn(2, 3, 16, 16)
    assert torch.equal(task(images), task.model.layer(images))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_module_that_wraps_its_logits_trains(kind):
    trainer = trainer_of(max_epochs=1)
    trainer.fit(small_task(wrap=OUTPUTS[kind]), loader(), loader())
    assert math.isfinite(trainer.logged_metrics["val/loss"])


def test_smaller_logits_are_resized_to_the_image():
    task, images = small_task(wrap=lambda logits: nn.functional.avg_pool2d(logits, 4)), torch.randn(2, 3, 16, 16)
    expected = nn.functional.interpolate(task.model(images), size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(task(images), expected)


# --- prediction ---------------------------------------------------------------------------------------------------


def test_prediction_gives_uncertainty_maps_with_the_ids_of_the_images(root):
    batches = trainer_of().predict(small_task(), data_of(root))
    assert all(isinstance(maps, UncertaintyMaps) for maps in batches)
    assert [image_id for maps in batches for image_id in maps.image_ids] == ["0", "1", "2"]


def test_prediction_is_one_deterministic_pass(root):
    task = task_of(dropout=0.5)
    batches = trainer_of().predict(task, data_of(root))
    for maps, batch in zip(batches, data_of(root).predict_dataloader(), strict=True):
        with torch.no_grad():
            assert_close(maps.probs, task.eval()(batch["image"]).softmax(1))
        assert maps.estimator == "deterministic" and "predictive_entropy" in maps.names


def test_images_without_ids_are_numbered_through_the_whole_run():
    batches = trainer_of().predict(small_task(), loader(count=5, labeled=False))
    assert [image_id for maps in batches for image_id in maps.image_ids] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("kind", "channels"), [("one logit", 2), ("two logits", 2), ("labels", 3)])
def test_prediction_is_of_the_task(kind, channels):
    (maps, _) = trainer_of().predict(small_task(**KINDS[kind][0]), loader(labeled=False))
    assert maps.probs.shape == (2, channels, 16, 16) and maps.multilabel is (kind == "labels")


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A task of one step of training with both calibrators fitted, its trainer, and its checkpoint."""
    torch.manual_seed(0)
    task = task_of("Unet", "mobilenet_v2", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), class_weights=(1, 2, 3))
    trainer, data = trainer_of(max_steps=1), data_of(root)
    trainer.fit(task, data)
    for est in (Deterministic(task), seguq.MCDropout(task, samples=2, seed=0)):
        est.calibrate(TemperatureScaling(), data.dataloader("val"))
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    trainer.save_checkpoint(path)
    return task.eval(), trainer, path


def saved(task, tmp_path, loaded=None, **settings):
    """The checkpoint of a task that was trained for one step on tuples."""
    trainer = trainer_of(max_steps=1)
    trainer.fit(task, loader(**(loaded or {})))
    trainer.save_checkpoint(tmp_path / "task.ckpt", **settings)
    return tmp_path / "task.ckpt"


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_holds_what_prediction_needs_as_plain_values(trained, tmp_path, weights_only):
    trained[1].save_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)["seguq"]
    assert found["version"] == 1 and found["class_names"] == list(NAMES)
    assert found["normalization"] == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    assert set(found["calibrators"]) == {Deterministic(trained[0]).tag, seguq.MCDropout(trained[0]).tag}


def test_weights_of_the_loss_are_no_part_of_the_checkpoint(trained):
    state = torch.load(trained[2], weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in state)


def test_a_loaded_task_gives_the_same_logits(trained):
    images = torch.randn(2, 3, 50, 64)
    with torch.no_grad():
        assert torch.equal(SegmentationTask.load(trained[2])(images), trained[0](images))


def test_a_loaded_task_is_in_evaluation_mode(trained):
    assert not any(module.training for module in SegmentationTask.load(trained[2]).modules())


def test_a_loaded_task_has_the_settings_of_the_saved_one(trained):
    loaded = SegmentationTask.load(trained[2])
    assert loaded.settings == trained[0].settings and loaded.normalization == trained[0].normalization


def test_a_loaded_task_has_the_names_of_the_classes(trained):
    assert SegmentationTask.load(trained[2]).class_names == NAMES


def test_a_checkpoint_is_the_same_task_each_time_that_it_is_loaded(trained):
    first, second = (SegmentationTask.load(trained[2]).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_calibrators_come_back_with_the_checkpoint(trained):
    before, after = trained[0].calibrators, SegmentationTask.load(trained[2]).calibrators
    assert set(after) == set(before) and len(after) == 2
    for tag in before:
        assert float(after[tag].log_temperature) == float(before[tag].log_temperature) != 0


def test_a_loaded_calibrator_is_applied_to_the_prediction(trained):
    images = torch.randn(1, 3, 64, 64)
    loaded = SegmentationTask.load(trained[2])
    assert torch.equal(Deterministic(loaded)(images).probs, Deterministic(trained[0])(images).probs)
    assert not torch.equal(Deterministic(loaded)(images).probs, Deterministic(loaded, calibrator=None)(images).probs)


def test_calibrators_are_neither_applied_nor_saved_once_training_has_gone_on(tmp_path):
    task, trainer, images = small_task(), trainer_of(max_epochs=1), torch.randn(1, 3, 16, 16)
    trainer.fit(task, loader())
    Deterministic(task).calibrate(TemperatureScaling(), loader())
    assert not torch.equal(Deterministic(task)(images).probs, Deterministic(task, calibrator=None)(images).probs)
    further = trainer_of(max_epochs=1)
    further.fit(task, loader())
    with pytest.warns(UserWarning, match="is not applied: it was fitted for other weights than the model has now"):
        probs = Deterministic(task)(images).probs
    assert torch.equal(probs, Deterministic(task, calibrator=None)(images).probs)
    further.save_checkpoint(tmp_path / "a.ckpt")
    assert SegmentationTask.load(tmp_path / "a.ckpt", Pixelwise()).calibrators == {}


def test_calibrators_of_other_weights_are_left_out_with_a_warning(trained, tmp_path):
    content = torch.load(trained[2], weights_only=True)
    next(iter(content["state_dict"].values())).mul_(2)
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.warns(UserWarning, match="is not applied: it was fitted for other weights"):
        assert SegmentationTask.load(tmp_path / "changed.ckpt").calibrators == {}


@pytest.mark.parametrize("kind", KINDS)
def test_binary_and_multilabel_tasks_come_back(tmp_path, kind):
    settings, batches = KINDS[kind]
    task = small_task(**settings)
    logits = settings.get("logits", settings["classes"])
    loaded = SegmentationTask.load(saved(task, tmp_path, batches), Pixelwise(logits))
    images = torch.randn(1, 3, 16, 16)
    assert loaded.task == task.task and torch.equal(loaded(images), task(images))


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
@pytest.mark.parametrize("architecture", ["Unet", "FPN"])
def test_a_loaded_task_drops_as_the_saved_one_did(tmp_path, architecture, dropout):
    task = task_of(architecture, "mobilenet_v2", dropout=dropout)
    loaded = SegmentationTask.load(saved(task, tmp_path, {"size": (64, 64), "shape": (64, 64)}))
    rates = [
        [(name, module.p) for name, module in item.named_modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
        for item in (task, loaded)
    ]
    assert rates[0] == rates[1]


def test_a_task_of_ones_own_module_comes_back_with_the_module(tmp_path):
    task, images = small_task(), torch.randn(1, 3, 16, 16)
    assert torch.equal(SegmentationTask.load(saved(task, tmp_path), Pixelwise())(images), task(images))


def test_a_task_of_ones_own_module_needs_the_module(tmp_path):
    with pytest.raises(SeguqError, match=r"task\.ckpt was trained with a network of its own .*: pass .* as model="):
        SegmentationTask.load(saved(small_task(), tmp_path))


def test_a_module_that_the_weights_do_not_fit_is_an_error_that_names_a_tensor(tmp_path):
    path = saved(small_task(), tmp_path)
    with pytest.raises(SeguqError, match=r"'model\.layer\.weight' has shape \(3, 3, 1, 1\) .*, \(5, 3, 1, 1\)"):
        SegmentationTask.load(path, Pixelwise(5))


def test_seguq_load_puts_the_checkpoint_into_a_bare_network(trained):
    network = task_of("Unet", "mobilenet_v2").model.eval()
    seguq.load(trained[2], network)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(images), trained[0](images)) and set(network.calibrators) == set(
            trained[0].calibrators
        )


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, {"a": torch.zeros(1)}, {}])
def test_a_foreign_checkpoint_is_an_error_that_names_the_way_for_it(tmp_path, content):
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(SeguqError, match=r"foreign\.ckpt is no checkpoint of a seguq.SegmentationTask: .*seguq\.load"):
        SegmentationTask.load(tmp_path / "foreign.ckpt")


def test_a_missing_checkpoint_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UsageError, match=r"none\.ckpt does not exist"):
        SegmentationTask.load(tmp_path / "none.ckpt")


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_checkpoint_is_an_error_that_names_it(trained, tmp_path, kept):
    content = trained[2].read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(SeguqError, match=r"cut\.ckpt cannot be read"):
        SegmentationTask.load(tmp_path / "cut.ckpt")


def test_a_checkpoint_of_a_later_version_is_an_error(trained, tmp_path):
    content = torch.load(trained[2], weights_only=True)
    torch.save({**content, "seguq": {**content["seguq"], "version": 99}}, tmp_path / "later.ckpt")
    with pytest.raises(SeguqError, match="another version of seguq"):
        SegmentationTask.load(tmp_path / "later.ckpt")


def test_a_checkpoint_that_lacks_a_tensor_is_an_error_that_names_it(trained, tmp_path):
    content = torch.load(trained[2], weights_only=True)
    del content["state_dict"]["model.segmentation_head.0.weight"]
    torch.save(content, tmp_path / "less.ckpt")
    with pytest.raises(SeguqError, match=r"'model\.segmentation_head\.0\.weight'"):
        SegmentationTask.load(tmp_path / "less.ckpt")


# --- resuming -----------------------------------------------------------------------------------------------------


def interrupted(tmp_path):
    """The checkpoint of a training of 6 steps that was stopped after its third."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "third.ckpt")

    steps = Steps()
    torch.manual_seed(1)
    task = small_task()
    trainer_of(max_epochs=2, callbacks=[Stop(), steps]).fit(task, loader(count=6))
    return tmp_path / "third.ckpt", steps, task


def test_a_resumed_training_counts_on_from_the_step_of_the_checkpoint(tmp_path):
    path, _, _ = interrupted(tmp_path)
    steps = Steps()
    trainer = trainer_of(max_epochs=2, callbacks=[steps])
    trainer.fit(small_task(), loader(count=6), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 6 and len(steps.losses) == 3


def test_a_resumed_training_ends_as_one_that_was_never_stopped(tmp_path):
    path, whole, expected = interrupted(tmp_path)
    steps, task = Steps(), small_task()
    trainer_of(max_epochs=2, callbacks=[steps]).fit(task, loader(count=6), ckpt_path=path, weights_only=True)
    assert steps.rates == whole.rates[3:] and torch.equal(task.model.layer.weight, expected.model.layer.weight)


def test_calibrators_of_the_checkpoint_are_not_saved_again_once_a_resumed_training_went_on(tmp_path):
    path, _, _ = interrupted(tmp_path)
    save_calibrator(path, TemperatureScaling(), "deterministic")
    task = small_task()
    trainer = trainer_of(max_epochs=2)
    trainer.fit(task, loader(count=6), ckpt_path=path, weights_only=True)
    trainer.save_checkpoint(tmp_path / "further.ckpt")
    assert set(SegmentationTask.load(path, Pixelwise()).calibrators) == {"deterministic"}
    assert SegmentationTask.load(tmp_path / "further.ckpt", Pixelwise()).calibrators == {}


def test_a_training_that_is_resumed_for_another_length_is_an_error_with_both_lengths(tmp_path):
    path, _, _ = interrupted(tmp_path)
    with pytest.raises(SeguqError, match=r"planned for 6 steps, .* but now for 15: set max_epochs"):
        trainer_of(max_epochs=5).fit(small_task(), loader(count=6), ckpt_path=path, weights_only=True)


def test_lightnings_own_way_of_loading_needs_no_download(tmp_path):
    trained = task_of()
    trainer = trainer_of(max_steps=1)
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_weighted_task_trains_in_true_half_precision(root, precision):
    data = SegmentationData(root, batch_size=2, num_workers=0)
    task = SegmentationTask(model=Pixelwise(3), classes=3, class_weights=(1, 2, 3))
    trainer = trainer_of(max_steps=1, precision=precision)
    trainer.fit(task, data)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_the_normalization_is_that_of_the_named_weights(monkeypatch):
    asked = []
    monkeypatch.setattr("seguq.task.build_network", lambda *_, **__: Pixelwise())
    monkeypatch.setattr(
        "seguq.task.encoder_normalization", lambda *given: asked.append(given) or Normalization(*IMAGENET)
    )
    task_of(encoder="timm-efficientnet-b0", encoder_weights="advprop")
    assert asked == [("timm-efficientnet-b0", 3, "advprop")]


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"weight_decay": -0.1}], ids=str
)
def test_a_rate_that_trains_nothing_is_an_error_at_once_that_names_it(wrong):
    (name,) = wrong
    with pytest.raises(SeguqError, match=f"^{name} must be a number"):
        SegmentationTask(classes=2, encoder_weights=None, **wrong)
