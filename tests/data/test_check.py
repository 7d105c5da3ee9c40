"""The check before the first step: every fault is one sentence, and what was checked is remembered."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from seguq.core.errors import SeguqError
from seguq.data import Classes, SegmentationFolder, check, check_files, reading
from seguq.data.raster import Raster
from seguq.data.reading import Picture
from tests.data.builders import HEIGHT, WIDTH, build_dataset, random_mask, random_pixels, write

TWO = Classes.unnamed(2)

Sizes = dict[str, tuple[int, int]]


def run(root: Path, split: str = "train", *, classes: Classes = TWO, channels: int | None = 3) -> Sizes:
    """Check a labeled split from its folder on."""
    data = SegmentationFolder(root / "images" / split, root / "masks" / split, classes)
    return check_files(data.images, data.masks, classes, channels=channels, folder=root)


def image(root: Path, name: str = "1.png") -> Path:
    return root / "images" / "train" / name


def mask(root: Path, name: str = "1.png") -> Path:
    return root / "masks" / "train" / name


# ---- faults ----


def put_mask_of_another_size(root: Path) -> Path:
    return write(mask(root), random_mask(HEIGHT, WIDTH - 1))


def put_turned_mask(root: Path) -> Path:
    return write(mask(root), random_mask(WIDTH, HEIGHT))


def put_class_out_of_range(root: Path) -> Path:
    pixels = random_mask(HEIGHT, WIDTH)
    pixels[-1, -1] = 2
    return write(mask(root), pixels)


def put_unknown_color(root: Path) -> Path:
    return write(mask(root), random_pixels(HEIGHT, WIDTH, 3))


def take_mask_away(root: Path) -> Path:
    mask(root).unlink()
    return image(root)


def cut_image_off(root: Path) -> Path:
    image(root).write_bytes(image(root).read_bytes()[:1000])
    return image(root)


def empty_image(root: Path) -> Path:
    image(root).write_bytes(b"")
    return image(root)


def cut_mask_off(root: Path) -> Path:
    mask(root).write_bytes(mask(root).read_bytes()[:100])
    return mask(root)


def put_image_with_nan(root: Path) -> Path:
    pixels = np.ones((HEIGHT, WIDTH, 3), np.float32)
    pixels[3, 4, 1] = np.nan
    image(root).unlink()
    tifffile.imwrite(image(root, "1.tif"), pixels, photometric="rgb")
    return image(root, "1.tif")


def put_image_of_other_channels(root: Path) -> Path:
    image(root).unlink()
    pixels = random_pixels(HEIGHT, WIDTH, 5)
    tifffile.imwrite(image(root, "1.tif"), pixels, photometric="minisblack", planarconfig="contig")
    return image(root, "1.tif")


def put_two_files_of_one_id(root: Path) -> Path:
    write(image(root, "1.jpg"), random_pixels(HEIGHT, WIDTH, 3))
    return image(root, "1.jpg")


def empty_folder(root: Path) -> Path:
    for path in image(root).parent.iterdir():
        path.unlink()
    return image(root).parent


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (put_mask_of_another_size, "47 x 40 pixels, but its image is 48 x 40"),
        (put_turned_mask, "40 x 48 pixels, but its image is 48 x 40"),
        (put_class_out_of_range, "class index 2, .* classes 0..1"),
        (put_unknown_color, "color"),
        (take_mask_away, "no mask"),
        (cut_image_off, "cannot be read"),
        (empty_image, "empty"),
        (cut_mask_off, "cannot be read"),
        (put_image_with_nan, "NaN"),
        (put_image_of_other_channels, "5 channels, but the model takes 3"),
        (put_two_files_of_one_id, "same id '1'"),
        (empty_folder, "no image"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_file(dataset: Path, spoil: Callable[[Path], Path], says: str) -> None:
    path = spoil(dataset)
    with pytest.raises(SeguqError, match=says) as error:
        run(dataset)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_one_fault_counts_no_further_problems(dataset: Path) -> None:
    cut_image_off(dataset)
    with pytest.raises(SeguqError) as error:
        run(dataset)
    assert "more problem" not in str(error.value)


def test_the_first_fault_is_named_and_the_others_are_counted(dataset: Path) -> None:
    for name in ("0.png", "2.png", "3.png"):
        image(dataset, name).write_bytes(b"")
    with pytest.raises(SeguqError, match=re.escape(str(image(dataset, "0.png"))) + r".*2 more problems"):
        run(dataset)


def test_faults_of_images_and_of_masks_are_counted_together(dataset: Path) -> None:
    image(dataset, "0.png").write_bytes(b"")
    put_class_out_of_range(dataset)
    with pytest.raises(SeguqError, match="1 more problem"):
        run(dataset)


def test_good_files_give_the_size_of_each_image(dataset: Path) -> None:
    write(image(dataset), random_pixels(20, 30, 3))
    write(mask(dataset), random_mask(20, 30))
    assert run(dataset) == {"0": (40, 48), "1": (20, 30), "2": (40, 48), "3": (40, 48)}


def test_images_are_checked_without_masks(dataset: Path) -> None:
    images = SegmentationFolder(dataset / "images" / "pool").images
    assert check_files(images, folder=dataset) == dict.fromkeys("012", (HEIGHT, WIDTH))


def test_the_ignore_index_is_no_class_out_of_range(dataset: Path) -> None:
    write(mask(dataset), np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert len(run(dataset)) == 4


def test_any_channels_are_fine_where_none_are_asked_for(dataset: Path) -> None:
    put_image_of_other_channels(dataset)
    assert len(run(dataset, channels=None)) == 4


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 4)], ids=["gray", "alpha"])
def test_what_the_reader_repeats_or_drops_is_no_fault(dataset: Path, shape: tuple[int, ...]) -> None:
    write(image(dataset), random_pixels(*shape))
    assert len(run(dataset)) == 4


# ---- what is remembered ----


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the check reads, as it reads them."""
    paths: list[Path] = []
    read_picture, read_indices = check.read_picture, check.read_indices

    def counted_image(path: Path) -> Picture:
        paths.append(path)
        return read_picture(path)

    def counted_mask(path: Path, classes: Classes) -> np.ndarray:
        paths.append(path)
        return read_indices(path, classes)

    monkeypatch.setattr(check, "read_picture", counted_image)
    monkeypatch.setattr(check, "read_indices", counted_mask)
    return paths


def test_the_first_run_reads_every_file_once(dataset: Path, read: list[Path]) -> None:
    run(dataset)
    expected = [folder / f"{i}.png" for folder in (image(dataset).parent, mask(dataset).parent) for i in range(4)]
    assert sorted(read) == sorted(expected)


def test_the_second_run_reads_no_file_and_gives_the_same(dataset: Path, read: list[Path]) -> None:
    first = run(dataset)
    read.clear()
    assert run(dataset) == first
    assert read == []


def test_what_is_remembered_lies_in_the_cache_home_alone(dataset: Path, cache_home: Path) -> None:
    before = sorted(dataset.rglob("*"))
    run(dataset)
    assert sorted(dataset.rglob("*")) == before
    assert [path for path in cache_home.rglob("*") if path.is_file()]


def test_a_file_of_another_size_on_disk_is_read_again(dataset: Path, read: list[Path]) -> None:
    run(dataset)
    read.clear()
    changed = [image(dataset), mask(dataset)]
    times = [path.stat() for path in changed]
    write(image(dataset), random_pixels(20, 30, 3))
    write(mask(dataset), random_mask(20, 30))
    for path, stat in zip(changed, times, strict=True):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(dataset)["1"] == (20, 30)
    assert sorted(read) == changed


@pytest.mark.parametrize("which", [image, mask])
def test_a_file_of_another_time_of_change_is_read_again(
    dataset: Path, read: list[Path], which: Callable[[Path], Path]
) -> None:
    run(dataset)
    read.clear()
    stat = which(dataset).stat()
    os.utime(which(dataset), ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    run(dataset)
    assert read == [which(dataset)]


def test_a_new_file_alone_is_read(dataset: Path, read: list[Path]) -> None:
    run(dataset)
    read.clear()
    new = [write(image(dataset, "new.png"), random_pixels(HEIGHT, WIDTH, 3))]
    new += [write(mask(dataset, "new.png"), random_mask(HEIGHT, WIDTH))]
    run(dataset)
    assert read == new


def test_a_fault_is_not_remembered_as_good(dataset: Path) -> None:
    put_class_out_of_range(dataset)
    for _ in range(2):
        with pytest.raises(SeguqError, match="class index 2"):
            run(dataset)


def test_a_corrected_file_is_good_again(dataset: Path) -> None:
    cut_image_off(dataset)
    with pytest.raises(SeguqError):
        run(dataset)
    write(image(dataset), random_pixels(HEIGHT, WIDTH, 3))
    assert len(run(dataset)) == 4


def test_remembered_masks_are_held_against_the_classes_of_today(dataset: Path) -> None:
    run(dataset)
    with pytest.raises(SeguqError, match="class index 1"):
        run(dataset, classes=Classes.unnamed(1))


def test_remembered_images_are_held_against_the_channels_of_today(dataset: Path) -> None:
    run(dataset)
    with pytest.raises(SeguqError, match="3 channels, but the model takes 5"):
        run(dataset, channels=5)


def test_color_masks_are_read_again_when_the_colors_change(dataset: Path) -> None:
    for i in range(4):
        write(mask(dataset, f"{i}.png"), np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
    run(dataset, classes=Classes(("a",), ((9, 9, 9),)))
    with pytest.raises(SeguqError, match=r"color \[9, 9, 9\]"):
        run(dataset, classes=Classes(("a",), ((8, 8, 8),)))


def test_checking_another_split_keeps_what_is_remembered_of_the_first(dataset: Path, read: list[Path]) -> None:
    run(dataset)
    run(dataset, "val")
    read.clear()
    run(dataset)
    run(dataset, "val")
    assert read == []


def test_two_data_sets_do_not_share_what_is_remembered(tmp_path: Path, read: list[Path]) -> None:
    one, other = build_dataset(tmp_path / "one"), build_dataset(tmp_path / "other")
    run(one)
    read.clear()
    run(other)
    assert len(read) == 8


def test_a_cache_home_that_cannot_be_written_to_is_no_error(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(run(dataset)) == 4


def test_a_user_without_a_home_is_no_error(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a container that runs under a number that /etc/passwd does not know
    pwd = pytest.importorskip("pwd", reason="home folders are looked up by user number on Unix alone")

    def unknown(uid: int) -> None:
        raise KeyError(f"uid not found: {uid}")

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert len(run(dataset)) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 1, "files": {"ima',
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b'{"version": 0, "files": {}}',
        b'{"version": 1}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": null}',
    ],
)
def test_a_corrupt_cache_file_is_no_error_and_is_replaced(
    dataset: Path, cache_home: Path, read: list[Path], content: bytes
) -> None:
    run(dataset)
    for path in (path for path in cache_home.rglob("*") if path.is_file()):
        path.write_bytes(content)
    read.clear()
    run(dataset)
    assert len(read) == 8
    run(dataset)
    assert len(read) == 8


def test_a_corrupt_entry_of_the_cache_file_is_no_error(dataset: Path, cache_home: Path) -> None:
    run(dataset)
    for path in (path for path in cache_home.rglob("*") if path.is_file()):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"files": dict.fromkeys(content["files"], 3)}))
    assert len(run(dataset)) == 4


def test_a_file_name_that_is_no_utf_8_is_no_error(dataset: Path) -> None:
    # names from an old archive: a Linux file name is bytes, here Latin-1
    name = os.fsdecode(b"Z\xfcrich.png")
    try:
        image(dataset).rename(image(dataset, name))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    mask(dataset).rename(mask(dataset, name))
    assert len(run(dataset)) == 4


def test_a_class_index_out_of_range_is_found_among_any_number_of_right_ones(tmp_path: Path) -> None:
    mask = np.arange(1600, dtype=np.uint16).reshape(40, 40) % 600
    mask[0, 0] = 700
    images = {"a": write(tmp_path / "images" / "a.png", random_pixels(40, 40, 3))}
    masks = {"a": write(tmp_path / "masks" / "a.png", mask)}
    with pytest.raises(SeguqError, match="holds the class index 700"):
        check_files(images, masks, Classes.unnamed(600, ignore_index=65535), folder=tmp_path)


def test_images_that_do_not_fit_into_memory_beside_each_other_are_read_one_by_one(tmp_path, monkeypatch):
    root = build_dataset(tmp_path)
    decode = reading.decode_image

    def decoded(path: Path) -> Raster:
        if threading.current_thread() is not threading.main_thread():  # one of several that read at once
            raise MemoryError
        return decode(path)

    monkeypatch.setattr(reading, "decode_image", decoded)
    assert set(run(root).values()) == {(HEIGHT, WIDTH)}
