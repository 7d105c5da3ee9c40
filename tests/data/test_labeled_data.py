"""The data module over partial masks, under a Trainer of `pytorch_lightning` and of `lightning.pytorch`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import seguq
from seguq.core.errors import SeguqError
from seguq.data import Classes, ImageSource, Labeled, LabeledData
from seguq.data.module import DataSettings
from tests.data.builders import build_dataset, random_mask, random_pixels, write, write_classes
from tests.data.labeled_builders import TWO, dotted, make_data, make_labeled, three
from tests.data.test_module import HALF, make_module, make_trainer, package, seeds_of_the_environment

__all__ = ["package", "seeds_of_the_environment"]
PLAIN = {"mean": None, "std": None}

Batches = list[dict[str, Any]]


@pytest.fixture
def labeled(tmp_path: Path) -> Labeled:
    """Three images of 20 x 24 pixels with a few labels or none, in a pool of five."""
    return three(tmp_path / "loop")


def fitted(package: Any, folder: Path, data: LabeledData, epochs: int = 1, **more: Any) -> Batches:
    """The batches of a training, which leaves a checkpoint."""
    module = make_module(package)
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data, **more)
    trainer.save_checkpoint(folder / "last.ckpt")
    seen: Batches = module.seen["train"]
    return seen


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        a["image_id"] == b["image_id"] and all(torch.equal(a[key], b[key]) for key in ("image", "mask"))
        for a, b in zip(one, other, strict=True)
    )


def by_number(data: LabeledData, first: int, last: int) -> Batches:
    """Batches of two, made of the items of these running numbers."""
    items: Any = data.train_dataloader().dataset
    return [torch.utils.data.default_collate([items[n], items[n + 1]]) for n in range(first, last, 2)]


def test_it_is_where_it_is_looked_for() -> None:
    assert seguq.LabeledData is seguq.data.LabeledData is LabeledData
    assert "LabeledData" in dir(seguq)


@pytest.mark.parametrize("crop", [8, None], ids=["crops", "whole"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_goes_on_with_the_running_numbers_whatever_the_workers(
    package: Any, labeled: Labeled, tmp_path: Path, num_workers: int, crop: int | None
) -> None:
    seen = fitted(package, tmp_path, make_data(labeled, num_workers=num_workers, crop=crop), epochs=2)
    assert same(seen, by_number(make_data(labeled, crop=crop), 0, 12))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_training_goes_on_with_the_items_of_its_epoch(
    package: Any, labeled: Labeled, tmp_path: Path, num_workers: int
) -> None:
    data = make_data(labeled, num_workers=num_workers)
    fitted(package, tmp_path, data)
    seen = fitted(package, tmp_path, data, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert same(seen, by_number(data, 6, 12))


@pytest.mark.parametrize("images", [1, 3])
def test_an_epoch_has_as_many_steps_however_many_images_are_labeled(tmp_path: Path, images: int) -> None:
    masks = {str(i): dotted((9, 9), {(i, 4): 1}) for i in range(images)}
    sizes = [len(batch["image"]) for batch in make_data(make_labeled(tmp_path, masks), steps=5).train_dataloader()]
    assert sizes == [2] * 5


def test_steps_without_end_need_no_memory(labeled: Labeled) -> None:
    loader = make_data(labeled, steps=10**12).train_dataloader()
    assert next(iter(loader))["image"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize("crop", [8, None], ids=["crops", "whole"])
def test_every_image_of_a_batch_has_a_labeled_pixel(labeled: Labeled, crop: int | None) -> None:
    batches = list(make_data(labeled, crop=crop, steps=20).train_dataloader())
    assert all((batch["mask"] != 255).flatten(1).any(1).all() for batch in batches)


def test_validation_and_test_are_splits_of_the_root(package: Any, labeled: Labeled, tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data", {"val": 2, "exam": 1})
    module, trainer = make_module(package), make_trainer(package, tmp_path)
    data = make_data(replace(labeled, classes=Classes.read(root / "classes.json")), root=root, test_split="exam")
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert {stage: batches[0]["image_id"] for stage, batches in module.seen.items() if stage != "train"} == {
        "val": ["0", "1"],
        "test": ["0"],
    }


@pytest.mark.parametrize("with_root", [False, True])
def test_without_such_a_split_there_is_nothing_to_judge_on(
    package: Any, labeled: Labeled, tmp_path: Path, with_root: bool
) -> None:
    write_classes(tmp_path / "data", TWO.names)
    module, trainer = make_module(package), make_trainer(package, tmp_path)
    data = make_data(labeled, root=tmp_path / "data" if with_root else None)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data)
    trainer.test(module, datamodule=data)
    assert set(module.seen) == {"train"}


def test_the_whole_pool_is_predicted_in_its_order_without_masks(package: Any, labeled: Labeled, tmp_path: Path) -> None:
    files = {image_id: labeled.pool.path(image_id) for image_id in "ebadc"}
    write(files["e"], random_pixels(9, 9, 3))
    data = make_data(replace(labeled, pool=ImageSource({f"x/{name}": path for name, path in files.items()})))
    module = make_module(package)
    trainer = package.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.predict(module, datamodule=data)
    batches = module.seen["predict"]
    assert [batch["image_id"] for batch in batches] == [[f"x/{name}"] for name in "ebadc"]  # one has another size
    assert all(set(batch) == {"image", "image_id"} for batch in batches)


def test_pool_images_of_one_size_are_predicted_in_batches(labeled: Labeled) -> None:
    assert [len(batch["image"]) for batch in make_data(labeled).predict_dataloader()] == [2, 2, 1]


def test_images_are_normalized_as_the_model_says(package: Any, labeled: Labeled, tmp_path: Path) -> None:
    module = make_module(package, normalization=HALF)
    data = make_data(labeled, augmentation="none", **PLAIN)
    make_trainer(package, tmp_path).fit(module, datamodule=data)
    (batch,) = module.seen["train"]
    assert torch.allclose(
        batch["image"] * 0.25 + 0.5, by_number(make_data(labeled, augmentation="none"), 0, 2)[0]["image"]
    )


def test_other_figures_than_the_models_are_an_error_before_the_first_step(
    package: Any, labeled: Labeled, tmp_path: Path
) -> None:
    module = make_module(package, normalization=HALF)
    with pytest.raises(SeguqError, match="give mean and std in one place"):
        make_trainer(package, tmp_path).fit(module, datamodule=make_data(labeled))
    assert module.seen == {}


def test_a_checkpoint_says_what_was_trained_on(package: Any, labeled: Labeled, tmp_path: Path) -> None:
    fitted(package, tmp_path, make_data(labeled, scale=4095))
    told = DataSettings.of(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert told == DataSettings(None, ((0.0,) * 3, (1.0,) * 3), "pool", 4095)  # type: ignore[arg-type]


# ---- wrong files and arguments ----


def cut_off(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    return path


def of_another_size(path: Path) -> Path:
    return write(path, random_mask(20, 23))


def of_another_class(path: Path) -> Path:
    return write(path, random_mask(20, 24) + 1)


FAULTS: dict[str, Callable[[Labeled], Path]] = {
    "image cut off": lambda labeled: cut_off(labeled.images["b"]),
    "mask cut off": lambda labeled: cut_off(labeled.masks["b"]),
    "mask of another size": lambda labeled: of_another_size(labeled.masks["b"]),
    "mask of another class": lambda labeled: of_another_class(labeled.masks["b"]),
    "image without its mask": lambda labeled: (labeled.masks["b"].unlink(), labeled.masks["b"])[1],
    "mask without its image": lambda labeled: (labeled.images["b"].unlink(), labeled.images["b"])[1],
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_wrong_file_is_an_error_before_the_first_step(
    package: Any, labeled: Labeled, tmp_path: Path, fault: Callable[[Labeled], Path]
) -> None:
    path = fault(labeled)
    module = make_module(package)
    with pytest.raises(SeguqError) as error:
        make_trainer(package, tmp_path).fit(module, datamodule=make_data(labeled))
    assert str(path) in str(error.value)
    assert module.seen == {}


def test_without_a_labeled_pixel_there_is_one_sentence_before_training(package: Any, tmp_path: Path) -> None:
    labeled = make_labeled(tmp_path, {"a": dotted((9, 9), {}), "b": dotted((9, 9), {})})
    nothing = replace(labeled, images={}, masks={})
    for told, says in (
        (labeled, r"no pixel is labeled in the 2 masks in \S*partial: "),
        (nothing, "no image is labeled"),
    ):
        module = make_module(package)
        with pytest.raises(SeguqError, match=says):
            make_trainer(package, tmp_path).fit(module, datamodule=make_data(told))
        assert module.seen == {}


def test_partial_masks_of_one_class_are_no_reason_to_warn(labeled: Labeled) -> None:
    for name in labeled.masks:
        write(labeled.masks[name], dotted((20, 24), {(3, 3): 0}).astype("uint8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_data(labeled).setup("fit")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crop": None}, "different sizes.*pass crop=$"),
        ({"crop": (8, 9), "augmentation": "d4"}, "a square crop=, or"),
        ({"mean": (0.5,), "std": (0.5,), "channels": 3}, "one number a channel"),
    ],
    ids=str,
)
def test_what_cannot_be_made_a_batch_of_is_an_error_before_the_first_step(
    labeled: Labeled, options: dict[str, Any], says: str
) -> None:
    write(labeled.images["b"], random_pixels(9, 9, 3))
    write(labeled.masks["b"], dotted((9, 9), {(1, 1): 1}).astype("uint8"))
    with pytest.raises(SeguqError, match=says):
        make_data(labeled, **options).setup("fit")


def test_whole_images_may_differ_in_size_from_those_that_never_come(labeled: Labeled) -> None:
    write(labeled.images["c"], random_pixels(9, 9, 3))
    write(labeled.masks["c"], dotted((9, 9), {}).astype("uint8"))
    data = make_data(labeled, crop=None)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 20, 24)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"crop": 0}, "crop"),
        ({"augmentation": "rotate"}, "augmentation"),
        ({"scale": -1}, "scale"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_at_once_that_names_it(
    labeled: Labeled, wrong: dict[str, Any], names: str
) -> None:
    with pytest.raises(SeguqError, match=names):
        make_data(labeled, **wrong)


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_root_that_is_no_folder_is_an_error_before_the_first_step(
    labeled: Labeled, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(SeguqError, match=r"nowhere is no folder"):
        make_data(labeled, root=tmp_path / "nowhere").setup(stage)


def test_splits_that_are_judged_by_other_classes_are_an_error(labeled: Labeled, tmp_path: Path) -> None:
    root = build_dataset(tmp_path / "data")
    with pytest.raises(SeguqError, match=r"classes\.json has the classes background, thing .*class 0, class 1"):
        make_data(labeled, root=root).setup("fit")
