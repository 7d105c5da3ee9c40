"""The data module, under a Trainer of `pytorch_lightning` and of `lightning.pytorch`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from seguq.core.errors import SeguqError
from seguq.data import SegmentationData
from tests.data.builders import HEIGHT, WIDTH, build_dataset, random_mask, random_pixels, write

HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Batches = list[dict[str, Any]]


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def package(request: pytest.FixtureRequest) -> Any:
    """Each of the two packages that Lightning comes in."""
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.fixture(autouse=True)
def seeds_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed_everything` leaves variables in the environment: they are put back after each test."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")


def make_module(package: Any, **attributes: Any) -> Any:
    """A tiny model of ``package`` that keeps the batches it is given, by stage."""

    class Tiny(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 2, 1)
            self.seen: dict[str, Batches] = {}
            for name, value in attributes.items():
                setattr(self, name, value)

        def step(self, stage: str, batch: dict[str, Any]) -> torch.Tensor:
            self.seen.setdefault(stage, []).append(batch)
            return self.net(batch["image"])

        def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.step("train", batch), batch["mask"], ignore_index=255)

        def validation_step(self, batch: dict[str, Any], _: int) -> None:
            self.step("val", batch)

        def test_step(self, batch: dict[str, Any], _: int) -> None:
            self.step("test", batch)

        def predict_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
            return self.step("predict", batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Tiny()


def make_trainer(package: Any, tmp_path: Path) -> Any:
    return package.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=1,
        limit_test_batches=1,
        limit_predict_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def make_data(root: Path, **options: Any) -> SegmentationData:
    return SegmentationData(root, **{"batch_size": 2, "num_workers": 0, **options})


def normalized(path: Path, normalization: Any) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in normalization)
    return (torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255 - mean) / std


def make_sizes_differ(root: Path, split: str) -> None:
    write(root / "images" / split / "0.png", random_pixels(20, 30, 3))
    write(root / "masks" / split / "0.png", random_mask(20, 30))


def shapes(loader: Any) -> list[tuple[int, ...]]:
    return [tuple(batch["image"].shape) for batch in loader]


# ---- under a Trainer of either name ----


@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_it_is_a_data_module_of_both_packages(dataset: Path, name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    assert isinstance(make_data(dataset), importlib.import_module(name).LightningDataModule)


def test_fit_runs_training_and_validation(package: Any, dataset: Path, tmp_path: Path) -> None:
    module = make_module(package)
    make_trainer(package, tmp_path).fit(module, datamodule=make_data(dataset))
    assert {stage: len(batches) for stage, batches in module.seen.items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize(("run", "stage"), [("validate", "val"), ("test", "test")])
def test_validate_and_test_run_their_own_split(
    package: Any, dataset: Path, tmp_path: Path, run: str, stage: str
) -> None:
    module = make_module(package)
    getattr(make_trainer(package, tmp_path), run)(module, datamodule=make_data(dataset), verbose=False)
    (batch,) = module.seen[stage]
    assert_close(batch["image"][0], normalized(dataset / "images" / stage / "0.png", IMAGENET))


def test_predict_runs_the_pool_without_masks(package: Any, dataset: Path, tmp_path: Path) -> None:
    module = make_module(package)
    (output,) = make_trainer(package, tmp_path).predict(module, datamodule=make_data(dataset))
    assert output.shape == (2, 2, HEIGHT, WIDTH)
    assert set(module.seen["predict"][0]) == {"image", "image_id"}


def test_images_are_normalized_as_the_model_says(package: Any, dataset: Path, tmp_path: Path) -> None:
    module = make_module(package, normalization=HALF)
    make_trainer(package, tmp_path).validate(module, datamodule=make_data(dataset), verbose=False)
    assert_close(module.seen["val"][0]["image"][1], normalized(dataset / "images" / "val" / "1.png", HALF))


def test_training_images_are_normalized_as_the_model_says(package: Any, dataset: Path, tmp_path: Path) -> None:
    module = make_module(package, normalization=HALF)
    make_trainer(package, tmp_path).fit(module, datamodule=make_data(dataset, augmentation="none"))
    (batch,) = module.seen["train"]
    for image, image_id in zip(batch["image"], batch["image_id"], strict=True):
        assert_close(image, normalized(dataset / "images" / "train" / f"{image_id}.png", HALF))


@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_other_figures_than_the_models_are_an_error_before_the_first_step(
    package: Any, dataset: Path, tmp_path: Path, run: str
) -> None:
    module = make_module(package, normalization=HALF)
    data = make_data(dataset, mean=IMAGENET[0], std=IMAGENET[1])
    with pytest.raises(SeguqError, match=r"0\.485.*0\.5"):
        getattr(make_trainer(package, tmp_path), run)(module, datamodule=data)
    assert module.seen == {}


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_models_figures_given_once_more_are_no_conflict(
    package: Any, dataset: Path, tmp_path: Path, kind: type
) -> None:
    module = make_module(package, normalization=(kind(HALF[0]), kind(HALF[1])))
    data = make_data(dataset, mean=HALF[0], std=HALF[1])
    make_trainer(package, tmp_path).validate(module, datamodule=data, verbose=False)
    assert_close(module.seen["val"][0]["image"][0], normalized(dataset / "images" / "val" / "0.png", HALF))


def test_training_on_unequal_sizes_is_an_error_before_the_first_step(
    package: Any, dataset: Path, tmp_path: Path
) -> None:
    make_sizes_differ(dataset, "train")
    module = make_module(package)
    with pytest.raises(SeguqError, match=r"crop=.*size=") as error:
        make_trainer(package, tmp_path).fit(module, datamodule=make_data(dataset))
    assert str(dataset / "images" / "train") in str(error.value)
    assert module.seen == {}


@pytest.mark.parametrize(
    ("run", "split"), [("fit", "train"), ("fit", "val"), ("validate", "val"), ("test", "test"), ("predict", "pool")]
)
def test_a_broken_file_is_an_error_before_the_first_step(
    package: Any, dataset: Path, tmp_path: Path, run: str, split: str
) -> None:
    path = dataset / "images" / split / "1.png"
    path.write_bytes(path.read_bytes()[:500])
    module = make_module(package)
    with pytest.raises(SeguqError) as error:
        getattr(make_trainer(package, tmp_path), run)(module, datamodule=make_data(dataset))
    assert str(path) in str(error.value)
    assert module.seen == {}


# ---- splits and batches ----


def test_evaluation_gives_every_image_once_in_the_order_of_its_ids(tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data", {"test": 5})
    ids = [image_id for batch in make_data(root).test_dataloader() for image_id in batch["image_id"]]
    assert ids == ["0", "1", "2", "3", "4"]


def test_any_folder_name_is_a_split(tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data", {"night in rain": 3})
    (first, second) = make_data(root).dataloader("night in rain")
    assert (len(first["mask"]), len(second["mask"])) == (2, 1)


@pytest.mark.parametrize("stage", ["train", "val", "test", "pool"])
def test_each_stage_takes_the_split_whose_folder_is_named(tmp_path: Path, stage: str) -> None:
    root = build_dataset(tmp_path / "data", {"other": 2})
    data = make_data(root, **{f"{stage}_split": "other"})
    loader = data.predict_dataloader() if stage == "pool" else getattr(data, f"{stage}_dataloader")()
    (batch,) = loader
    assert sorted(batch["image_id"]) == ["0", "1"]


def test_the_pool_needs_neither_masks_nor_classes(dataset: Path) -> None:
    (dataset / "classes.json").unlink()
    assert shapes(make_data(dataset).predict_dataloader()) == [(2, 3, HEIGHT, WIDTH), (1, 3, HEIGHT, WIDTH)]


@pytest.mark.parametrize(("count", "expected"), [(5, [4]), (8, [4, 4]), (3, [3])])
def test_a_short_last_batch_is_left_out_of_training_unless_it_is_the_only_one(
    tmp_path: Path, count: int, expected: list[int]
) -> None:
    root = build_dataset(tmp_path / "data", {"train": count})
    assert [shape[0] for shape in shapes(make_data(root, batch_size=4).train_dataloader())] == expected


def test_training_is_shuffled(tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data", {"train": 12})
    torch.manual_seed(0)
    loader = make_data(root, batch_size=12).train_dataloader()
    orders = {tuple(batch["image_id"]) for _ in range(4) for batch in loader}
    assert len(orders) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(str(i) for i in range(12)))}


def test_crops_are_for_training_alone(dataset: Path) -> None:
    data = make_data(dataset, crop=(16, 24))
    assert shapes(data.train_dataloader()) == [(2, 3, 16, 24)] * 2
    assert shapes(data.val_dataloader()) == [(2, 3, HEIGHT, WIDTH)]


@pytest.mark.parametrize(("size", "expected"), [(32, (32, 32)), ((20, 24), (20, 24)), ([20, 24], (20, 24))])
def test_every_image_and_mask_is_resized_to_the_size(dataset: Path, size: Any, expected: tuple[int, int]) -> None:
    data = make_data(dataset, size=size)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert (batch["image"].shape[2:], batch["mask"].shape[1:]) == (expected, expected)


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_of_unequal_sizes_are_evaluated_one_at_a_time(dataset: Path, split: str) -> None:
    make_sizes_differ(dataset, split)
    assert shapes(make_data(dataset).dataloader(split)) == [(1, 3, 20, 30), (1, 3, HEIGHT, WIDTH)]


def test_images_of_equal_size_are_evaluated_in_batches_whatever_another_split_holds(dataset: Path) -> None:
    make_sizes_differ(dataset, "val")
    assert shapes(make_data(dataset).test_dataloader()) == [(2, 3, HEIGHT, WIDTH)]


@pytest.mark.parametrize("option", [{"crop": 16}, {"size": 16}], ids=str)
def test_unequal_sizes_can_be_trained_on_with_crop_or_size(dataset: Path, option: dict[str, int]) -> None:
    make_sizes_differ(dataset, "train")
    data = make_data(dataset, **option)
    data.setup("fit")
    assert shapes(data.train_dataloader()) == [(2, 3, 16, 16)] * 2


@pytest.mark.parametrize("option", [{}, {"size": (16, 24)}, {"crop": (16, 24)}], ids=str)
def test_d4_trains_on_oblong_images_or_is_an_error_before_the_first_batch(
    dataset: Path, option: dict[str, Any]
) -> None:
    # a quarter turn makes a 40 x 48 image one of 48 x 40, and the two cannot be stacked
    torch.manual_seed(0)
    data = make_data(dataset, augmentation="d4", batch_size=4, **option)
    try:
        data.setup("fit")
        loader = data.train_dataloader()
    except SeguqError as error:
        assert "d4" in str(error)
    else:
        assert [len(batch["image"]) for _ in range(5) for batch in loader] == [4] * 5


def test_d4_trains_on_square_crops_of_oblong_images(dataset: Path) -> None:
    data = make_data(dataset, augmentation="d4", batch_size=4, crop=16)
    data.setup("fit")
    assert shapes(data.train_dataloader()) == [(4, 3, 16, 16)]


def test_gray_images_are_repeated_to_the_channels_of_the_figures(dataset: Path) -> None:
    for i in range(2):
        write(dataset / "images" / "val" / f"{i}.png", random_pixels(HEIGHT, WIDTH))
    assert shapes(make_data(dataset).val_dataloader()) == [(2, 3, HEIGHT, WIDTH)]


def test_gray_images_keep_one_channel_where_one_is_asked_for(dataset: Path) -> None:
    for i in range(2):
        write(dataset / "images" / "val" / f"{i}.png", random_pixels(HEIGHT, WIDTH))
    assert shapes(make_data(dataset, channels=1).val_dataloader()) == [(2, 1, HEIGHT, WIDTH)]


def test_the_classes_are_those_of_the_data_set(dataset: Path) -> None:
    assert make_data(dataset).classes.names == ("background", "thing")


# ---- wrong arguments ----


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -3}, "batch_size"),
        ({"size": 0}, "size"),
        ({"size": -4}, "size"),
        ({"size": (32,)}, "size"),
        ({"size": (32, 32, 32)}, "size"),
        ({"size": (32, 0)}, "size"),
        ({"size": "large"}, "size"),
        ({"size": 1.5}, "size"),
        ({"crop": 0}, "crop"),
        ({"crop": (32.0, 32.0)}, "crop"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std"),
        ({"std": (0.5, 0.5, 0.5)}, "mean and std"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5)}, "one number a channel"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.0)}, "std above 0"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_at_once_that_names_it(dataset: Path, wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(SeguqError, match=names):
        make_data(dataset, **wrong)


@pytest.mark.parametrize("split", ["", ".", "..", "../images/val", "/", "val/"])
def test_a_split_that_is_no_folders_name_is_an_error_instead_of_all_images(dataset: Path, split: str) -> None:
    with pytest.raises(SeguqError, match="the split"):
        make_data(dataset).dataloader(split)


def test_an_unknown_augmentation_is_an_error_before_the_first_batch(dataset: Path) -> None:
    with pytest.raises(SeguqError, match=r"augmentation.*'rotate'"):
        make_data(dataset, augmentation="rotate").train_dataloader()


def test_figures_for_other_channels_than_asked_for_are_an_error_before_the_first_batch(dataset: Path) -> None:
    for i in range(2):
        write(dataset / "images" / "val" / f"{i}.png", random_pixels(HEIGHT, WIDTH))
    with pytest.raises(SeguqError, match="channels"):
        make_data(dataset, channels=1, mean=HALF[0], std=HALF[1]).val_dataloader()


def test_images_of_other_channels_are_an_error_that_names_the_first(dataset: Path) -> None:
    with pytest.raises(SeguqError, match=r"0\.png has 3 channels, but the model takes 5"):
        make_data(dataset, channels=5).val_dataloader()


def test_a_missing_root_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SeguqError, match="nowhere"):
        make_data(tmp_path / "nowhere").setup("fit")


def test_a_missing_split_is_an_error_that_names_its_folder(dataset: Path) -> None:
    with pytest.raises(SeguqError, match=r"images/day is no folder"):
        make_data(dataset).dataloader("day")


def test_a_labeled_split_without_masks_is_an_error_that_names_an_image(dataset: Path) -> None:
    with pytest.raises(SeguqError, match=r"pool/0\.png has no mask"):
        make_data(dataset).dataloader("pool")


# ---- randomness ----


def epochs(root: Path, seed: int, workers: int, count: int = 2) -> list[Batches]:
    """The training batches of some epochs, after `seed_everything`."""
    pytorch_lightning.seed_everything(seed, workers=True, verbose=False)
    loader = make_data(root, crop=16, augmentation="d4", num_workers=workers).train_dataloader()
    return [list(loader) for _ in range(count)]


def by_id(batches: Batches) -> dict[str, torch.Tensor]:
    return {name: image for batch in batches for name, image in zip(batch["image_id"], batch["image"], strict=True)}


@pytest.mark.parametrize("workers", [0, 2])
def test_one_seed_gives_the_same_training_batches(dataset: Path, workers: int) -> None:
    for first, again in zip(epochs(dataset, 3, workers), epochs(dataset, 3, workers), strict=True):
        for batch, same in zip(first, again, strict=True):
            assert batch["image_id"] == same["image_id"]
            assert torch.equal(batch["image"], same["image"])
            assert torch.equal(batch["mask"], same["mask"])


@pytest.mark.parametrize("workers", [0, 2])
def test_another_seed_crops_and_flips_otherwise(dataset: Path, workers: int) -> None:
    one, other = (by_id(epochs(dataset, seed, workers, count=1)[0]) for seed in (3, 4))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_crops_and_flips_otherwise(dataset: Path, workers: int) -> None:
    first, second, third = (by_id(batches) for batches in epochs(dataset, 3, workers, count=3))
    for one, other in ((first, second), (second, third), (first, third)):
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_two_workers_crop_and_flip_otherwise(tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data", {"train": 1})
    pixels = random_pixels(HEIGHT, WIDTH, 3)
    for i in range(4):  # the same image four times: only its augmentation tells the batches apart
        write(root / "images" / "train" / f"{i}.png", pixels)
        write(root / "masks" / "train" / f"{i}.png", random_mask(HEIGHT, WIDTH))
    ((of_one_worker, of_the_other),) = epochs(root, 3, workers=2, count=1)
    assert not torch.equal(of_one_worker["image"], of_the_other["image"])


def test_a_layer_called_normalization_is_no_figures_of_the_model(package: Any, dataset: Path, tmp_path: Path) -> None:
    module = make_module(package, normalization=nn.BatchNorm2d(3))
    make_trainer(package, tmp_path).validate(module, datamodule=make_data(dataset), verbose=False)
    assert_close(module.seen["val"][0]["image"][1], normalized(dataset / "images" / "val" / "1.png", IMAGENET))


def test_files_that_came_after_the_first_run_are_checked_before_the_second(
    package: Any, dataset: Path, tmp_path: Path
) -> None:
    data = make_data(dataset)
    make_trainer(package, tmp_path).validate(make_module(package), datamodule=data, verbose=False)
    write(dataset / "images" / "val" / "new.png", random_pixels(8, 8, 3))
    write(dataset / "masks" / "val" / "new.png", np.full((8, 8), 7, np.uint8))
    module = make_module(package)
    with pytest.raises(SeguqError, match=r"new\.png holds the class index 7"):
        make_trainer(package, tmp_path).validate(module, datamodule=data, verbose=False)
    assert module.seen == {}
