"""What the folder of tasks for people alone claims."""

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from PIL import Image

from seguq.annotators import Folder, answers
from seguq.annotators.folder import write_bytes as real_write
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource, read_image, read_mask
from tests.annotators.selections import CLASSES, SIZE, selection, truth_of, write_pool

ASKED = selection(0, ("a", (5, 0, 20, 30)), ("deep/c", (0, 0, 40, 60)), ("a", (30, 30, 40, 40)))
INSIDE = np.zeros(SIZE, dtype=bool)
INSIDE[5:20, :30] = INSIDE[30:, 30:40] = True


@pytest.fixture
def images(tmp_path):
    return write_pool(tmp_path)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "tasks"


@pytest.fixture
def people(place):
    return Folder(place, CLASSES)


def paint(folder, mask, name="mask.png"):
    assert cv2.imwrite(str(folder / name), mask.astype(np.uint8))


def files_of(folder):
    """All files below, with what they hold and when that was written."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_task_holds_the_image_its_regions_and_a_template(people, images, place):
    people.send(ASKED, images)
    task = place / "round-00/a"
    assert sorted(path.name for path in task.iterdir()) == [
        "asked.png", "image.png", "regions.jpg", "task.json", "template.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(read_image(task / "image.png"), images["a"])
    assert (read_mask(task / "template.png", CLASSES) == 255).all()
    np.testing.assert_array_equal(np.asarray(Image.open(task / "asked.png"))[..., 3] == 0, INSIDE)
    assert (place / "round-00/deep/c/template.png").is_file() and (place / "index.html").is_file()


def test_the_picture_of_the_regions_is_the_image_with_outlines(people, images, place):
    cv2.imwrite(str(images.path("a")), images["a"] // 4)
    people.send(ASKED, images)
    shown = read_image(place / "round-00/a/regions.jpg").astype(int)
    times = shown.shape[0] // SIZE[0]
    assert min(shown.shape[:2]) >= 1000
    yellow = (np.abs(shown - [255, 221, 0]).max(-1) < 60).reshape(SIZE[0], times, SIZE[1], times).any((1, 3))
    assert yellow[5, :30].all() and yellow[5:20, 30].all()
    assert not yellow[8:17, 8:27].any()  # inside, beside the number
    assert not yellow[:3].any()


def test_what_is_painted_comes_back_within_the_regions(people, images, place):
    people.send(ASKED, images)
    paint(place / "round-00/a", truth_of("a"))
    (found,) = people.collect()
    assert [row["rank"] for row in found.rows] == [1, 3] and found.clicks is None
    np.testing.assert_array_equal(found.mask, np.where(INSIDE, truth_of("a"), 255))


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr("seguq.core.log._said", set())
    caplog.set_level(logging.INFO, "seguq")
    return lambda: [record.getMessage() for record in caplog.records if "to label" not in record.getMessage()]


def test_where_the_tasks_are_is_said_when_there_are_new_ones(people, images, place, caplog):
    caplog.set_level(logging.INFO, "seguq")
    people.send(ASKED, images)
    people.send(ASKED, images)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"2 tasks of round 0 to label: open {place / 'index.html'}"]


def test_what_lies_outside_is_said_once_with_its_count(people, images, place, said):
    people.send(ASKED, images)
    paint(place / "round-00/a", truth_of("a"))
    assert len(list(people.collect())) == len(list(people.collect())) == 1
    assert said() == [
        f"{(~INSIDE).sum():,} pixels were painted outside of what was asked, and are left out: "
        f"{place / 'round-00/a/mask.png'}"
    ]


def test_what_is_not_painted_is_said_once_with_its_count(people, images, place, said):
    people.send(ASKED, images)
    mask = np.where(INSIDE, truth_of("a"), 255)
    mask[5:7, :10] = 255
    paint(place / "round-00/a", mask)
    (found,) = people.collect()
    assert (found.mask[5:7, :10] == 255).all() and list(people.collect())
    assert said() == [f"20 asked pixels were not painted, and stay unlabeled: {place / 'round-00/a/mask.png'}"]


def test_a_mask_that_was_corrected_comes_back_corrected(people, images, place):
    people.send(ASKED, images)
    for value in (1, 2, 1):
        paint(place / "round-00/a", np.full(SIZE, value))
        (found,) = people.collect()
        assert set(np.unique(found.mask)) == {value, 255}


def test_sending_again_changes_nothing(people, images, place):
    people.send(ASKED, images)
    before = files_of(place)
    people.send(ASKED, images)
    Folder(place, CLASSES).send(ASKED, images)
    assert files_of(place) == before


def test_sending_again_replaces_nothing_that_a_person_has_changed(people, images, place):
    people.send(ASKED, images)
    for name in ("template.png", "image.png", "regions.jpg", "asked.png", "mask.png", "notes.txt"):
        (place / "round-00/a" / name).write_bytes(b"somebody's own")
    before = files_of(place)
    Folder(place, CLASSES).send(ASKED, images)
    after = files_of(place)
    assert {name for name in before if before[name] != after[name]} <= {"index.html"}


@pytest.mark.parametrize("name", ["template.png", "image.png", "regions.jpg", "asked.png", "task.json"])
def test_sending_again_completes_a_task(people, images, place, name):
    people.send(ASKED, images)
    before = files_of(place)
    (place / "round-00/a" / name).unlink()
    people.send(ASKED, images)
    assert {key: content for key, (content, _) in files_of(place).items()} == {
        key: content for key, (content, _) in before.items()
    }


def test_completing_a_task_replaces_nothing_that_a_person_has_changed(people, images, place):
    people.send(ASKED, images)
    (place / "round-00/a/asked.png").unlink()
    for name in ("template.png", "image.png", "regions.jpg", "mask.png"):
        (place / "round-00/a" / name).write_bytes(b"somebody's own")
    people.send(ASKED, images)
    task = place / "round-00/a"
    assert {path.name for path in task.iterdir() if path.read_bytes() == b"somebody's own"} == {
        "template.png", "image.png", "regions.jpg", "mask.png",
    }  # fmt: skip
    assert (task / "asked.png").is_file()


def test_what_a_kill_has_left_is_removed(people, images, place):
    people.send(ASKED, images)
    left = [place / ".seguq-tmp-1.html", place / "round-00/a/.seguq-tmp-2.png"]
    for path in left:
        path.write_bytes(b"half")
    Folder(place, CLASSES).send(ASKED, images)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("steps", range(12))
def test_a_send_that_was_cut_off_anywhere_is_completed(people, images, place, monkeypatch, steps):
    left = steps

    def write(path, content):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real_write(path, content)

    with monkeypatch.context() as patch:
        for module in ("seguq.annotators.folder", "seguq.annotators.tasks", "seguq.core.files"):
            patch.setattr(f"{module}.write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            people.send(ASKED, images)
    again = Folder(place, CLASSES)
    again.send(ASKED, images)
    whole = place.with_name("whole")
    Folder(whole, CLASSES).send(ASKED, images)
    assert {name: content for name, (content, _) in files_of(place).items()} == {
        name: content for name, (content, _) in files_of(whole).items()
    }


def test_a_round_that_asks_for_nothing_is_fine(people, images, place):
    people.send(selection(0), images)
    Folder(place, CLASSES).send(selection(0), images)
    assert not list(people.collect()) and "0 tasks" in Page(place / "index.html").text


def test_regions_of_several_rounds_are_tasks_of_their_own(people, images, place):
    people.send(ASKED, images)
    people.send(selection(1, ("a", (5, 0, 20, 30))), images)
    paint(place / "round-01/a", np.full(SIZE, 2))
    (found,) = people.collect()
    assert len(found.rows) == 1 and set(np.unique(found.mask[5:20, :30])) == {2}


def test_a_folder_that_holds_other_things_is_refused(place):
    place.mkdir()
    (place / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="holds other files: give Folder a folder of its own"):
        Folder(place, CLASSES)
    assert [path.name for path in place.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("content", ['{"written_by": "somebody"}', "[]", "no JSON"])
def test_a_folder_with_the_tasks_of_another_program_is_refused(place, content):
    place.mkdir()
    (place / "tasks.json").write_text(content)
    with pytest.raises(SeguqError, match=r"tasks"):
        Folder(place, CLASSES)


def test_a_file_is_refused(place):
    place.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        Folder(place, CLASSES)


@pytest.mark.parametrize("hidden", [".DS_Store", ".seguq-tmp-x"])
def test_hidden_files_are_no_other_things(place, hidden):
    place.mkdir()
    (place / hidden).write_text("")
    Folder(place, CLASSES)


@pytest.mark.parametrize(
    "other", [replace(CLASSES, names=("x", "y", "z")), replace(CLASSES, ignore_index=200), Classes.unnamed(2)]
)
def test_a_folder_of_other_classes_is_refused(people, images, place, other):
    people.send(ASKED, images)
    with pytest.raises(UsageError, match="were made for other classes"):
        Folder(place, other)


def test_another_loop_cannot_send_into_the_same_round(people, images, place):
    people.send(ASKED, images)
    before = files_of(place)
    for other in (selection(0, ("a", (5, 0, 20, 30))), selection(0, ("b", (5, 0, 20, 30)))):
        with pytest.raises(SeguqError, match=r"round-00/(a|deep/c) asks for other regions"):
            Folder(place, CLASSES).send(other, images)
    assert files_of(place) == before


def test_an_image_that_was_replaced_by_one_of_another_size_is_refused(people, images, place, tmp_path):
    people.send(ASKED, images)
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(SeguqError, match="asks for other regions, or another image"):
        Folder(place, CLASSES).send(ASKED, ImageSource(tmp_path / "images"))


@pytest.mark.parametrize("image_id", ["a/mask.png", "a/template.png", "a/Task.json/b", "a/mask"])
def test_an_id_that_is_a_file_of_another_task_is_refused(people, place, tmp_path, image_id):
    images = write_pool(tmp_path, (image_id, "a"))
    images = ImageSource({image_id: images.path("a"), "a": images.path("a")})
    with pytest.raises(SeguqError, match="is a file of each task"):
        people.send(selection(0, ("a", (0, 0, 5, 5)), (image_id, (0, 0, 5, 5))), images)
    assert not place.exists()


def test_an_id_that_leads_out_of_the_folder_is_refused(people, place, images):
    sneaky = ImageSource({"../../a": images.path("a")})
    with pytest.raises(SeguqError, match="cannot be the name of a file"):
        people.send(selection(0, ("../../a", (0, 0, 5, 5))), sneaky)
    assert not place.exists()


def test_a_folder_behind_a_link_is_fine(images, place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    people = Folder(place, CLASSES)
    people.send(ASKED, images)
    (tmp_path / "painted").mkdir()
    paint(tmp_path / "painted", truth_of("a"))
    (place / "round-00/a/mask.png").symlink_to(tmp_path / "painted/mask.png")
    assert [answer.image_id for answer in people.collect()] == ["a"]


def test_a_folder_that_cannot_be_written_is_one_sentence(people, images, place, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("seguq.annotators.tasks.write_bytes", full)
    with pytest.raises(SeguqError, match=r"image\.png cannot be written: No space left on device"):
        people.send(ASKED, images)
    assert not list(people.collect())


def test_tasks_behind_links_are_fine(people, images, place, tmp_path):
    people.send(ASKED, images)
    os.replace(place / "round-00/a", tmp_path / "moved")
    (place / "round-00/a").symlink_to(tmp_path / "moved")
    paint(tmp_path / "moved", truth_of("a"))
    people = Folder(place, CLASSES)
    people.send(ASKED, images)
    assert [answer.image_id for answer in people.collect()] == ["a"]
    assert "2 tasks: 1 open, 1 answered" in Page(place / "index.html").text


def test_a_task_whose_folder_was_removed_is_open_until_it_is_sent_again(people, images, place):
    people.send(ASKED, images)
    shutil.rmtree(place / "round-00/a")
    (place / "index.html").unlink()
    assert not list(people.collect())
    assert "2 tasks: 2 open" in Page(place / "index.html").text
    people.send(ASKED, images)
    assert (place / "round-00/a/template.png").is_file()


def test_a_folder_that_cannot_be_read_keeps_no_other_answer_back(people, images, place, monkeypatch):
    people.send(ASKED, images)
    for name in ("a", "deep/c"):
        paint(place / "round-00" / name, np.zeros(SIZE))
    scandir = os.scandir

    def locked(folder):
        if os.fspath(folder) == str(place / "round-00/a"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("seguq.annotators.answers.os.scandir", locked)
    found = people.collect()
    assert next(found).image_id == "deep/c"
    with pytest.raises(SeguqError, match=r"round-00/a cannot be read, so that answers would be missed"):
        next(found)


def test_answers_are_read_where_the_page_cannot_be_written(people, images, place, monkeypatch, said):
    people.send(ASKED, images)
    paint(place / "round-00/a", np.where(INSIDE, truth_of("a"), 255))

    def read_only(path, content):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("seguq.annotators.folder.write_bytes", read_only)
    assert len(list(people.collect())) == 1
    assert "index.html is not up to date" in said()[0]


def test_what_is_wrong_is_said_after_the_other_answers(people, images, place):
    people.send(selection(0, ("a", (0, 0, 5, 5)), ("b", (0, 0, 5, 5)), ("deep/c", (0, 0, 5, 5))), images)
    paint(place / "round-00/a", np.zeros((5, 5)))
    paint(place / "round-00/b", np.full(SIZE, 7))
    paint(place / "round-00/deep/c", truth_of("deep/c"))
    found = people.collect()
    assert next(found).image_id == "deep/c"
    with pytest.raises(SeguqError, match=r"a/mask\.png is 5 x 5 pixels, but its image is 60 x 40.*\(and 1 more, see"):
        next(found)


def test_what_is_being_saved_is_asked_for_again_later(people, images, place, monkeypatch):
    people.send(ASKED, images)
    paint(place / "round-00/a", truth_of("a"))
    content = (place / "round-00/a/mask.png").read_bytes()
    (place / "round-00/a/mask.png").write_bytes(content[: len(content) // 2])
    assert not list(people.collect())
    monkeypatch.setattr(answers, "_SAVING", 0)
    with pytest.raises(SeguqError, match=r"mask\.png cannot be read"):
        list(people.collect())
    (place / "round-00/a/mask.png").write_bytes(content)
    assert len(list(people.collect())) == 1


def pixels_of(kind):
    """An image of another kind than 8-bit colors, and the most of what it holds."""
    ramp = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
    return {
        "12 of 16 bits": (ramp * 4095).astype(np.uint16),
        "float": (ramp * 3 - 1).astype(np.float32),
        "gray": (ramp * 255).astype(np.uint8),
        "constant": np.full(SIZE, 7, np.uint16),
    }[kind]


@pytest.mark.parametrize("kind", ["12 of 16 bits", "float", "gray", "constant"])
def test_every_kind_of_image_can_be_seen(people, place, tmp_path, kind):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.tif"), pixels_of(kind))
    people.send(selection(0, ("a", (0, 0, 5, 5))), ImageSource(tmp_path / "images"))
    shown = read_image(place / "round-00/a/image.png")
    assert shown.shape == (*SIZE, 3) and shown.dtype == np.uint8
    assert kind == "constant" or (shown.min() < 5 and shown.max() > 250)


def test_of_many_channels_the_first_three_are_seen(people, place, tmp_path):
    import tifffile

    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 6), np.uint8)
    tifffile.imwrite(tmp_path / "images/a.tif", pixels, planarconfig="contig", photometric="minisblack")
    people.send(selection(0, ("a", (0, 0, 5, 5))), ImageSource(tmp_path / "images"))
    np.testing.assert_array_equal(read_image(place / "round-00/a/image.png"), pixels[..., :3])


@pytest.mark.parametrize("ignore_index", [0xFFFF, -100])
def test_an_ignored_index_that_a_palette_cannot_hold_is_painted_in_colors(place, images, ignore_index):
    people = Folder(place, replace(CLASSES, ignore_index=ignore_index))
    people.send(ASKED, images)
    pixels = cv2.imread(str(place / "round-00/a/template.png"))[..., ::-1].copy()
    pixels[10, 10] = CLASSES.colors[2]
    cv2.imwrite(str(place / "round-00/a/mask.png"), pixels[..., ::-1])
    (found,) = people.collect()
    assert found.mask[10, 10] == 2 and (found.mask == ignore_index).sum() == SIZE[0] * SIZE[1] - 1


class Page(HTMLParser):
    """What a browser makes of a page: its tags, links, and text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.tags, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.words.append(data)


ODD = ["<script>alert(1)</script>", "quote'\"&amp;", "percent %41 # ?", "日本語 ü", "deep/er/x", "n" * 200, "new\nline"]


@pytest.fixture
def odd(tmp_path, images):
    return ImageSource(dict.fromkeys(ODD, images.path("a")))


def test_every_link_of_the_page_leads_to_a_file_whatever_the_ids_hold(people, place, odd):
    people.send(selection(0, *((image_id, (0, 0, 5, 5)) for image_id in ODD)), odd)
    page = Page(place / "index.html")
    assert len(page.links) == 5 * len(ODD) and all((place / unquote(link)).exists() for link in page.links)
    assert "script" not in page.tags and ODD[0] in page.text and ODD[1] in page.text


def test_the_page_says_what_is_asked_where_to_save_and_which_classes_there_are(people, place, images):
    people.send(ASKED, images)
    people.send(selection(12, ("b", (0, 0, 5, 5))), images)
    text = Page(place / "index.html").text
    assert "3 tasks: 3 open, 0 answered" in text and "2 regions, 550 pixels of 60 x 40" in text
    assert "round-00/deep/c/mask.png" in text and "round-12/b/mask.png" in text
    assert "house #ff0000 255, 0, 0 1" in text and "#ff00ff" in text
    assert text.index("Round 12") < text.index("Round 0 ")


def test_the_page_says_what_is_answered_open_and_to_be_mended(people, place, images):
    people.send(selection(0, ("a", (0, 0, 5, 5)), ("b", (0, 0, 5, 5)), ("deep/c", (0, 0, 5, 5))), images)
    paint(place / "round-00/a", truth_of("a"))
    paint(place / "round-00/b", np.zeros((5, 5)))
    with pytest.raises(SeguqError):
        list(people.collect())
    text = Page(place / "index.html").text
    assert "3 tasks: 1 open, 1 answered, 1 to be mended" in text
    assert "to be mended mask.png is 5 x 5 pixels, but its image is 60 x 40" in text
    assert "answered 2,375 pixels painted outside of the outlines are left out" in text


def test_the_page_holds_the_tasks_of_rounds_that_are_closed(people, place, images):
    people.send(ASKED, images)
    paint(place / "round-00/a", truth_of("a"))
    Folder(place, CLASSES).send(selection(1, ("b", (0, 0, 5, 5))), images)
    assert "3 tasks: 2 open, 1 answered" in Page(place / "index.html").text


@pytest.mark.parametrize("name", ["template.png", "mask.png.png", "Mask_a.png", "mask.xcf"])
def test_the_page_helps_where_an_answer_has_another_name(people, place, images, name):
    people.send(ASKED, images)
    paint(place / "round-00/a", truth_of("a"), "x.png")
    os.replace(place / "round-00/a/x.png", place / "round-00/a" / name)
    assert not list(people.collect())
    expected = "template.png was painted on: save that as mask.png" if name == "template.png" else f"not read: {name}"
    assert expected in Page(place / "index.html").text


def test_a_task_that_is_damaged_is_named(people, place, images):
    people.send(ASKED, images)
    (place / "round-00/a/task.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(SeguqError, match=re.escape("round-00/a/task.json is damaged")):
        Folder(place, CLASSES).send(ASKED, images)
