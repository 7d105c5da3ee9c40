"""ImageSource: files, sizes and pixels by the ids of images."""

import copy
from pathlib import Path

import numpy as np
import pytest
import tifffile

from seguq.core.errors import SeguqError, UsageError
from seguq.data import ImageSource, SegmentationFolder, read_image
from seguq.data import image_source as module
from seguq.data.decoding import size_in_header
from seguq.data.reading import read_picture
from tests.data.builders import random_pixels, write
from tests.data.test_kinds_of_files import IMAGES, turned


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pool" / "b.png", random_pixels(7, 9, 3))
    write(tmp_path / "pool" / "street" / "a.png", random_pixels(5, 6, 4, seed=1))
    return tmp_path / "pool"


def test_a_folder_gives_ids_files_sizes_and_the_pixels_as_stored(folder):
    source = ImageSource(folder)
    assert source.ids == tuple(source) == ("b", "street/a") and len(source) == 2
    assert source.path("street/a") == folder / "street" / "a.png"
    assert (source.size("b"), source.size("street/a")) == ((7, 9), (5, 6))
    assert np.array_equal(source["b"], random_pixels(7, 9, 3)) and source["street/a"].shape == (5, 6, 4)
    assert "b" in source and "a" not in source and 3 not in source
    assert repr(source) == f"ImageSource(2 images in {folder})"


@pytest.mark.parametrize("of", ["files", "texts", "data set"])
def test_files_by_id_are_a_source_too(folder, of):
    files = {"one": folder / "b.png"}
    given = SegmentationFolder(folder).images if of == "data set" else files
    source = ImageSource({key: str(path) for key, path in files.items()} if of == "texts" else given)
    image_id = "b" if of == "data set" else "one"
    assert source.path(image_id) == folder / "b.png" and source.size(image_id) == (7, 9)


def test_a_source_is_taken_as_it_is(folder):
    source = ImageSource(folder)
    assert ImageSource.of(source) is source and ImageSource.of(folder).ids == source.ids
    assert copy.deepcopy(source).ids == source.ids


@pytest.mark.parametrize("kind", IMAGES)
def test_the_size_in_the_header_is_that_of_the_image(tmp_path, kind, monkeypatch):
    name, _, make = IMAGES[kind]
    make(tmp_path / name)
    expected = read_image(tmp_path / name).shape[:2]
    monkeypatch.setattr(module, "read_picture", None)  # it is not asked
    assert ImageSource(tmp_path).size(Path(name).stem) == expected


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_turned_jpeg_has_the_size_that_it_is_shown_with(tmp_path, tag):
    turned(tag)(tmp_path / "a.jpg")
    assert ImageSource(tmp_path).size("a") == read_image(tmp_path / "a.jpg").shape[:2]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 30, 40), {"photometric": "minisblack", "planarconfig": "separate"}),
        ((3, 30, 40), {"photometric": "rgb", "planarconfig": "separate"}),
        ((50, 30, 7), {"photometric": "minisblack"}),
        ((5, 30, 40), {"metadata": {"axes": "CYX"}, "photometric": "minisblack"}),
        ((30, 40), {"bigtiff": True}),
    ],
    ids=str,
)
def test_the_size_of_a_tiff_is_that_of_the_image_whatever_its_layout(tmp_path, shape, options):
    tifffile.imwrite(tmp_path / "a.tif", random_pixels(*shape), **options)
    try:
        expected = read_image(tmp_path / "a.tif").shape[:2]
    except SeguqError as error:
        with pytest.raises(SeguqError) as raised:
            ImageSource(tmp_path).size("a")
        assert str(raised.value) == str(error)
    else:
        assert ImageSource(tmp_path).size("a") == expected


def test_a_size_is_looked_up_once(folder, monkeypatch):
    source, seen = ImageSource(folder), []
    monkeypatch.setattr(module, "size_in_header", lambda path: seen.append(path) or size_in_header(path))
    assert source["b"].shape[:2] == source.size("b") and not seen
    assert [source.size("street/a") for _ in range(3)] == [(5, 6)] * 3 and len(seen) == 1


def test_an_unknown_id_is_an_error_that_names_the_folder(folder):
    for ask in (ImageSource(folder).path, ImageSource(folder).size, ImageSource(folder).__getitem__):
        with pytest.raises(SeguqError, match=rf"there is no image '0' in {folder} \(2 images, such as 'b'\): give the"):
            ask("0")
    with pytest.raises(SeguqError, match="there is no image 'x' in the files given: give"):
        ImageSource({}).path("x")


@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: b"no image", lambda content: content[:20]])
def test_a_damaged_file_is_an_error_that_names_it(folder, spoil):
    (folder / "b.png").write_bytes(spoil((folder / "b.png").read_bytes()))
    source = ImageSource(folder)
    for ask in (source.size, source.__getitem__):
        with pytest.raises(SeguqError, match=r"b\.png (cannot be read as an image|is an empty file)"):
            ask("b")


def test_a_missing_folder_or_file_and_what_is_neither_are_one_sentence(folder):
    with pytest.raises(SeguqError, match="nowhere is no folder"):
        ImageSource("nowhere")
    with pytest.raises(UsageError, match="images must be a folder, or files by id, but is 3"):
        ImageSource(3)
    with pytest.raises(SeguqError, match=r"gone\.png cannot be read"):
        ImageSource({"a": folder / "gone.png"}).size("a")


def test_maps_of_another_size_than_the_file_are_an_error_with_both(folder):
    source = ImageSource(folder)
    source.require_size("b", (7, 9))
    with pytest.raises(SeguqError, match=r"b\.png is stored with 7 x 9 pixels .* but the maps of 'b' have 14 x 18"):
        source.require_size("b", (14, 18))


def test_an_image_whose_pixels_were_asked_for_is_not_read_again_for_what_it_misses(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6, 3), np.uint8))
    source, read = ImageSource(tmp_path), []
    monkeypatch.setattr(module, "read_picture", lambda path: read.append(path) or read_picture(path))
    assert source.missing("a") is None and source["a"].shape == (4, 6, 3) and source.missing("a") is None
    assert len(read) == 2
