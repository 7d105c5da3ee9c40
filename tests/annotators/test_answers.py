"""What a painted mask says, whatever a paint program makes of it."""

import os
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from seguq.annotators.answers import answer_file, read_answer
from seguq.annotators.tasks import painted_classes, template_png
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes
from tests.annotators.selections import CLASSES

PAINTED = painted_classes(CLASSES)
MASK = np.array([[0, 1, 2, 255], [2, 2, 1, 255], [0, 0, 0, 255]])
COLORS = {**dict(enumerate(CLASSES.colors)), 255: PAINTED.ignore_colors[0]}
RGB = np.array([[COLORS[int(index)] for index in line] for line in MASK], np.uint8)


def palette(order):
    """A palette PNG whose colors stand in another order, as programs write them."""
    image = Image.fromarray(np.vectorize(list(order).index)(MASK).astype(np.uint8))
    image.putpalette([value for index in order for value in COLORS[index]])
    return image


def of_other_colors():
    """Indices with a palette that has nothing to do with the classes, as labeling tools write them."""
    image = Image.fromarray(MASK.astype(np.uint8))
    image.putpalette([(37 * value) % 256 for value in range(768)])
    return image


def layer(ground):
    """Colors on a transparent layer; nobody sees the color of its ground."""
    alpha = np.where(MASK == 255, 0, 255).astype(np.uint8)
    colors = np.where((MASK == 255)[..., None], np.array(ground, np.uint8), RGB)
    return Image.fromarray(np.dstack([colors, alpha]))


def template_painted():
    with open("template.png", "wb") as file:
        file.write(template_png(MASK.shape, PAINTED))
    image = Image.open("template.png")
    assert image.mode == "P"
    for y, x in zip(*np.nonzero(MASK != 255), strict=True):
        image.putpixel((int(x), int(y)), int(MASK[y, x]))
    return image


FORMS = {
    "the painted template": template_painted,
    "the painted template as colors": lambda: template_painted().convert("RGB"),
    "gray indices": lambda: Image.fromarray(MASK.astype(np.uint8)),
    "16 bit indices": lambda: Image.fromarray(MASK.astype(np.uint16)),
    "colors": lambda: Image.fromarray(RGB),
    "a palette in the order of the classes": lambda: palette([0, 1, 2, 255]),
    "a palette in another order": lambda: palette([255, 2, 0, 1]),
    "a palette of other colors": of_other_colors,
    "a layer on transparent black": lambda: layer((0, 0, 0)),
    "a layer on transparent white": lambda: layer((255, 255, 255)),
    "colors with alpha": lambda: Image.fromarray(RGB).convert("RGBA"),
}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_read_in_every_form_that_programs_save(tmp_path, monkeypatch, form, suffix):
    monkeypatch.chdir(tmp_path)
    if suffix == ".tif" and "16 bit" in form:
        pytest.skip("the same")
    FORMS[form]().save(tmp_path / f"mask{suffix}")
    np.testing.assert_array_equal(read_answer(tmp_path / f"mask{suffix}", PAINTED), MASK)


def test_of_the_soft_edge_of_a_layer_counts_what_is_more_opaque_than_not(tmp_path):
    pixels = np.full((1, 4, 4), (255, 0, 0, 0), np.uint8)
    pixels[0, :, 3] = (0, 127, 128, 255)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert read_answer(tmp_path / "mask.png", PAINTED).tolist() == [[255, 255, 1, 1]]


def test_a_mixed_color_is_refused_with_what_to_do(tmp_path):
    cv2.imwrite(str(tmp_path / "mask.png"), np.full((2, 2, 3), 77, np.uint8) * np.array([1, 2, 3], np.uint8))
    with pytest.raises(SeguqError, match=r"mask.png holds the color .*: paint .* with a hard brush"):
        read_answer(tmp_path / "mask.png", PAINTED)


@pytest.mark.parametrize(
    ("ignore_index", "count"), [(255, 3), (0xFFFF, 3), (-100, 3), (200, 200), (300, 300), (254, 3)], ids=str
)
def test_the_template_says_that_nothing_is_labeled(tmp_path, ignore_index, count):
    colors = tuple((number % 256, number // 256, 7) for number in range(count))
    classes = painted_classes(Classes(Classes.unnamed(count).names, colors, ignore_index))
    (tmp_path / "mask.png").write_bytes(template_png((3, 5), classes))
    found = read_answer(tmp_path / "mask.png", classes)
    assert found.shape == (3, 5) and (found == ignore_index).all()


def test_the_template_is_a_palette_in_the_colors_of_the_classes(tmp_path):
    (tmp_path / "template.png").write_bytes(template_png((3, 5), PAINTED))
    image = Image.open(tmp_path / "template.png")
    assert (image.mode, image.size, set(np.asarray(image).ravel().tolist())) == ("P", (5, 3), {255})
    found = np.array(image.getpalette()).reshape(-1, 3)
    assert [tuple(color) for color in found[[0, 1, 2, 255]].tolist()] == [COLORS[index] for index in (0, 1, 2, 255)]


@pytest.mark.parametrize("taken", [(), ((255, 0, 255),), ((255, 0, 255), (255, 255, 0))])
def test_what_is_not_labeled_has_a_color_of_its_own(taken):
    names = tuple(f"c{number}" for number in range(1 + len(taken)))
    classes = painted_classes(Classes(names, ((0, 0, 0), *taken)))
    assert classes.ignore_colors[0] not in classes.colors


def test_two_classes_of_one_color_are_refused():
    with pytest.raises(UsageError, match=r"the color \[9, 9, 9\]"):
        painted_classes(Classes(("a", "b"), ((9, 9, 9), (9, 9, 9))))


@pytest.mark.parametrize("name", ["mask.png", "MASK.PNG", "Mask.Tif", "mask.webp", "mask.bmp"])
def test_an_answer_is_found_in_any_case_of_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert answer_file(tmp_path) == tmp_path / name


@pytest.mark.parametrize("name", ["mask.xcf", "mask.png.png", "mymask.png", "mask", "template.png", "mask.png~"])
def test_other_files_are_no_answer(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert answer_file(tmp_path) is None


def test_a_folder_of_that_name_is_no_answer(tmp_path):
    (tmp_path / "mask.png").mkdir()
    assert answer_file(tmp_path) is None


@pytest.mark.parametrize("name", ["mask.jpg", "mask.JPEG", "mask.gif"])
def test_a_type_that_changes_colors_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(SeguqError, match=r"changes colors: save it as mask\.png"):
        answer_file(tmp_path)


def test_two_answers_are_refused(tmp_path):
    for name in ("mask.png", "mask.tif"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SeguqError, match="two answers to one task: remove one"):
        answer_file(tmp_path)


def half(path):
    """A file that a program has written in part."""
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 60), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_what_is_being_saved_is_not_there_yet(tmp_path):
    assert read_answer(half(tmp_path / "mask.png"), PAINTED) is None


@pytest.mark.parametrize("apart", [-60, 60], ids=["changed a minute ago", "of a clock that is ahead"])
def test_what_stays_cut_off_is_refused(tmp_path, apart):
    path = half(tmp_path / "mask.png")
    os.utime(path, (time.time() + apart,) * 2)
    with pytest.raises(SeguqError, match=r"mask\.png cannot be read"):
        read_answer(path, PAINTED)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nothing")], ids=["pipe", "link to nothing"])
def test_what_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "mask.png")
    with pytest.raises(SeguqError, match=r"mask\.png is no file, or a link to what is not there"):
        answer_file(tmp_path)


BLACK_AND_WHITE = painted_classes(Classes(("ground", "cell"), ((0, 0, 0), (255, 255, 255))))
SKY = painted_classes(Classes(("sky", "road"), ((128, 128, 128), (128, 64, 128))))


@pytest.mark.parametrize(
    ("classes", "grays", "expected"),
    [
        (SKY, [128, 128], [0, 0]),
        (SKY, [0, 1], [0, 1]),
        (BLACK_AND_WHITE, [0, 0], [0, 0]),
        (BLACK_AND_WHITE, [0, 1], [0, 1]),
        (BLACK_AND_WHITE, [1, 255], [1, 255]),
    ],
)
def test_grays_are_colors_where_they_are_no_indices(tmp_path, classes, grays, expected):
    Image.fromarray(np.array([grays], np.uint8)).save(tmp_path / "mask.png")
    assert read_answer(tmp_path / "mask.png", classes).tolist() == [expected]


def test_grays_that_mean_one_class_as_color_and_another_as_index_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(SeguqError, match="its 255 may be a color of the legend or a class number"):
        read_answer(tmp_path / "mask.png", BLACK_AND_WHITE)


def test_white_in_colors_is_the_class(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 255]]], np.uint8)).save(tmp_path / "mask.png")
    assert read_answer(tmp_path / "mask.png", BLACK_AND_WHITE).tolist() == [[0, 1, 255]]
