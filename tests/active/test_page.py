"""The page of a round: what it says is what the files hold, whatever the images are."""

import base64
import io
import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from seguq.acquisition import Selection
from seguq.acquisition.selection import box_of
from seguq.active import round_page, status
from seguq.active.reports.outcomes import late_answers, outcomes_of, share_of_other
from seguq.active.reports.views import SIDE
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource
from seguq.export import write_index_png
from seguq.regions import rle
from tests.active.runs import Run, finished, mask_of
from tests.export.test_page import Reader

CLASSES = Classes(("ground", "<b>disc</b>", "ring"), ((0, 0, 0), (0, 158, 115), (230, 159, 0)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs") / "run", rounds=3, per_round=6)


def words(page):
    """What a person reads of a page."""
    return " ".join("".join(Reader(page).texts).split())


def pictures(page):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(item)))) for item in found]


class One:
    """A run of one round that asks for regions of images of one's own, all of one size.

    Args:
        folder: where.
        rows: of each region: image id, box, predicted class; and ``rle``.
        answers: by image id, the mask that came back; what its regions are is answered.
        write: writes an image to a path without ending.
    """

    def __init__(self, folder, rows, answers, write):
        self.run = Run(folder / "run")
        (folder / "images").mkdir()
        for image_id in dict.fromkeys(row["image_id"] for row in rows):
            write(folder / "images" / image_id)
        for rank, row in enumerate(rows, 1):
            y0, x0, y1, x1 = row.pop("box")
            row.setdefault("area", (y1 - y0) * (x1 - x0))
            row |= {"rank": rank, "region_id": rank, "y0": y0, "x0": x0, "y1": y1, "x1": x1, "score": 0.5}
        Selection(rows, {"strategy": "TopK()", "round": 0}).save(self.run.round(0) / "selection.json")
        self.selection = Selection.load(self.run.round(0) / "selection.json")
        for image_id, mask in answers.items():
            keys = [[row["region_id"], *box_of(row)] for row in self.selection.in_image(image_id)]
            self.run.event(0, "collect", "answer", {"image_id": image_id, "rows": keys, "clicks": 3})
            path = self.run.round(0) / "answers" / f"{image_id}.png"
            path.parent.mkdir(exist_ok=True)
            write_index_png(path, mask)
        self.images = folder / "images"

    def page(self):
        return round_page(self.run.folder, 0, ImageSource(self.images), CLASSES)

    def outcomes(self):
        return outcomes_of(self.run.folder, 0, self.selection, CLASSES)


def png(height=40, width=60):
    def write(path):
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path.with_suffix(".png"))

    return write


def region(image_id="a", box=(0, 0, 10, 10), predicted=0, **more):
    return {"image_id": image_id, "box": box, "predicted_class": predicted, **more}


def mask(height=40, width=60, **boxes):
    out = np.full((height, width), 255)
    for value, (y0, x0, y1, x1) in boxes.items():
        out[y0:y1, x0:x1] = int(value[1:])
    return out


# ---- what came back ----


def test_every_region_has_the_classes_of_its_answer(run):
    selection = Selection.load(run.folder / "round-01" / "selection.json")
    for outcome in outcomes_of(run.folder, 1, selection, run.classes):
        y0, x0, y1, x1 = box_of(outcome.row)
        truth = mask_of(outcome.row["image_id"])[y0:y1, x0:x1]
        assert outcome.answered and outcome.untold == 0
        assert outcome.pixels.tolist() == [int((truth == number).sum()) for number in range(2)]
        assert outcome.other == int((truth != outcome.predicted).sum())


def test_only_the_pixels_of_a_region_that_is_no_box_are_counted(tmp_path):
    inside = np.zeros((4, 5), bool)
    inside[1:3, 1:4] = True
    row = region(box=(2, 3, 6, 8), rle=rle.encode(inside), area=6)
    (outcome,) = One(tmp_path, [row], {"a": mask(_1=(0, 0, 40, 60))}, png()).outcomes()
    assert (outcome.pixels.tolist(), outcome.other) == ([0, 6, 0], 6)


def test_what_nobody_could_tell_is_no_class(tmp_path):
    (outcome,) = One(tmp_path, [region()], {"a": mask(_2=(0, 0, 4, 10))}, png()).outcomes()
    assert (outcome.labeled, outcome.untold, outcome.other) == (40, 60, 40)


def test_a_region_that_is_not_back_has_no_class(tmp_path):
    one = One(tmp_path, [region(), region("b")], {"a": mask(_0=(0, 0, 10, 10))}, png())
    assert [outcome.answered for outcome in one.outcomes()] == [True, False]


def test_the_share_of_another_class_is_that_of_pixels_with_an_interval_over_images(tmp_path):
    rows = [region("a"), region("b", box=(0, 0, 10, 30))]
    answers = {"a": mask(_1=(0, 0, 10, 10)), "b": mask(_0=(0, 0, 10, 30))}
    found = share_of_other(One(tmp_path, rows, answers, png()).outcomes())
    assert found.value == 100 / 400
    assert 0 <= found.low < found.value < found.high <= 1


def test_of_one_image_there_is_no_interval(tmp_path):
    found = share_of_other(One(tmp_path, [region()], {"a": mask(_1=(0, 0, 10, 10))}, png()).outcomes())
    assert found.value == 1 and np.isnan(found.low)


def test_an_answer_that_is_gone_is_one_sentence(tmp_path):
    one = One(tmp_path, [region()], {"a": mask()}, png())
    (one.run.round(0) / "answers" / "a.png").unlink()
    with pytest.raises(SeguqError, match=r"answers/a\.png is missing, though the journal says that it came back"):
        one.page()


@pytest.mark.parametrize(("height", "width"), [(5, 60), (40, 5)])
def test_an_answer_of_another_size_is_one_sentence(height, width, tmp_path):
    with pytest.raises(SeguqError, match=rf"has {height} x {width} pixels, but a region .* reaches to row 10"):
        One(tmp_path, [region()], {"a": mask(height, width)}, png()).page()


def test_what_came_back_in_a_later_round_has_not_come_back_in_this(tmp_path):
    made = Run(tmp_path / "run", per_round=6)
    selection = made.select(0)
    made.answer(0, selection, images=1)
    made.answer(1, selection)
    found = outcomes_of(made.folder, 0, selection, made.classes)
    assert {outcome.row["image_id"] for outcome in found if outcome.answered} == {selection.image_ids[0]}


def test_a_late_answer_is_not_one_to_a_region_of_the_same_number_and_box(tmp_path):
    """Regions that are no boxes may share them with those of an earlier round."""
    made = Run(tmp_path / "run", per_round=6)
    made.select(0)
    second = made.select(1)
    made.answer(1, Selection(second.rows, {**second.why, "round": 0}))
    assert not any(outcome.answered for outcome in outcomes_of(made.folder, 1, second, made.classes))
    assert late_answers(made.folder, 1) == 6
    assert status(made.folder).answered == 0


# ---- the page ----


def test_it_is_one_file_without_a_network(run):
    page = round_page(run.folder, 2, run.images, run.classes)
    read = Reader(page)
    assert read.balanced
    assert not re.search(r"https?://|@import|url\(", page)
    assert {value for _, name, value in read.attributes if name == "href"} == {
        "../round-01/page.html", "../round-03/page.html",
    }  # fmt: skip


def test_it_says_what_the_round_was_worth(run):
    record = json.loads((run.folder / "round-01" / "metrics.json").read_text())
    said = words(round_page(run.folder, 1, run.images, run.classes))
    for name in ("miou", "ece"):
        figure = record["metrics"][name]
        assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in said
    gain = record["gain"]["miou"]
    assert f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in said
    assert "6 of 6regions came back" in said


def test_the_curve_ends_with_the_round(run, monkeypatch):
    drawn = []
    monkeypatch.setattr("seguq.active.reports.page.plot_tag", lambda figure, _: drawn.append(figure) or "")
    round_page(run.folder, 1, run.images, run.classes)
    assert len(drawn[0].axes[0].get_lines()[0].get_xdata()) == 2


def test_it_says_how_often_the_model_was_wrong_by_class(tmp_path):
    rows = [region("a", predicted=0), region("b", predicted=1)]
    answers = {"a": mask(_0=(0, 0, 9, 10), _2=(9, 0, 10, 10)), "b": mask(_2=(0, 0, 10, 10))}
    said = words(One(tmp_path, rows, answers, png()).page())
    assert "ground110010.0 %90.0 %10.0 %" in said
    assert "<b>disc</b>1100100.0 %0.0 %100.0 %" in said
    assert re.search(r"all220055\.0 % \[10\.0, 100\.0\]45\.0 %55\.0 %", said)


def test_each_image_is_shown_as_it_was_asked_predicted_and_answered(tmp_path):
    one = One(tmp_path, [region(predicted=2, box=(5, 5, 35, 35))], {"a": mask(_1=(5, 5, 35, 35))}, png(40, 60))
    asked, predicted, answered = pictures(one.page())
    assert asked.shape == (280, SIDE, 3)
    middle = (slice(100, 180), slice(100, 180))  # of the region
    for shown, color in ((predicted, CLASSES.colors[2]), (answered, CLASSES.colors[1])):
        mixed = 0.4 * asked[middle].mean((0, 1)) + 0.6 * np.array(color)
        np.testing.assert_allclose(shown[middle].mean((0, 1)), mixed, atol=3)


def test_a_region_that_is_not_back_is_not_taken_for_one_that_nobody_could_tell(tmp_path):
    black = lambda path: Image.new("RGB", (60, 40)).save(path.with_suffix(".png"))  # noqa: E731
    one = One(tmp_path, [region(box=(0, 0, 20, 20)), region(box=(10, 30, 40, 60))], {}, black)
    one.run.event(0, "collect", "answer", {"image_id": "a", "rows": [[1, 0, 0, 20, 20]], "clicks": 3})
    (one.run.round(0) / "answers").mkdir()
    write_index_png(one.run.round(0) / "answers" / "a.png", mask(_0=(0, 0, 10, 20)))
    page = one.page()
    answered = pictures(page)[-1]
    at = {name: answered[y * 7 + 5, x * 7 + 5].tolist() for name, y, x in (("0", 2, 8), ("?", 15, 8), ("left", 25, 45))}
    np.testing.assert_allclose([at["0"], at["?"], at["left"]], [[0] * 3, [153] * 3, [128] * 3], atol=6)
    assert "came back: 1 of 2 regions" in words(page)


def test_a_region_that_nobody_could_tell_says_so(tmp_path):
    assert "nobody could tell" in words(One(tmp_path, [region()], {"a": mask()}, png()).page()).split("rank 1")[1]


def test_no_more_than_24_images_are_drawn_and_the_others_counted(tmp_path):
    rows = [region(f"i{number:02d}") for number in range(30)]
    page = One(tmp_path, rows, {}, png(10, 10)).page()
    assert len(pictures(page)) == 24 * 2  # nothing has come back
    assert "the first 24 of 30 images by rank; 6 are left out" in words(page)


def test_regions_of_one_image_are_listed_up_to_a_few(tmp_path):
    rows = [region(box=(0, 6 * i, 5, 6 * i + 5)) for i in range(9)]
    assert "and 5 more regions of this image" in words(One(tmp_path, rows, {}, png()).page())


def test_names_cannot_become_markup(tmp_path):
    one = One(tmp_path, [region("<i>x", reason="<script>1</script>")], {"<i>x": mask(_1=(0, 0, 10, 10))}, png())
    read = Reader(one.page())
    assert read.balanced and "script" not in read.tags
    assert "<i>x" in "".join(read.texts) and "<b>disc</b>" in "".join(read.texts)


def _deep(path):
    tifffile.imwrite(path.with_suffix(".tif"), np.random.default_rng(0).integers(0, 900, (40, 60, 1), np.uint16))


def _bands(path):
    pixels = np.random.default_rng(0).integers(0, 900, (40, 60, 7), np.uint16)
    pixels[..., 6] *= 60  # which is not shown
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", planarconfig="contig")


def _floats(path):
    tifffile.imwrite(path.with_suffix(".tif"), np.random.default_rng(0).normal(0, 99, (40, 60)).astype(np.float32))


def _even(path):
    tifffile.imwrite(path.with_suffix(".tif"), np.full((40, 60), 7, np.uint16))


@pytest.mark.parametrize("write", [_deep, _bands, _floats, _even])
def test_images_of_many_channels_and_bits_are_shown(write, tmp_path):
    shown = pictures(One(tmp_path, [region()], {"a": mask(_1=(0, 0, 10, 10))}, write).page())
    assert len(shown) == 4
    assert write is _even or shown[0].std() > 30  # not black, though few of the bits are used


def test_of_a_large_image_what_lies_around_the_regions_is_shown_closer(tmp_path):
    one = One(tmp_path, [region(box=(1500, 2000, 1520, 2030))], {}, png(1600, 2400))
    page = one.page()
    asked, closer, predicted = pictures(page)
    assert "asked for" in words(page) and "closer" in words(page)
    assert asked.shape == (round(SIDE * 1600 / 2400), SIDE, 3)
    assert closer.shape == predicted.shape == (round(SIDE * 50 / 60), SIDE, 3)  # half of 30 pixels around


def test_a_region_that_reaches_over_a_large_image_is_made_smaller(tmp_path):
    (shown, _) = pictures(One(tmp_path, [region(box=(0, 0, 1600, 2400))], {}, png(1600, 2400)).page())
    assert shown.shape == (280, SIDE, 3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), "there is no image 'a' in"),
        (lambda path: path.write_bytes(b"no image"), "It cannot be shown: "),
        (lambda path: Image.new("RGB", (5, 5)).save(path), "has 5 x 5 pixels now, but a region"),
    ],
    ids=["gone", "damaged", "smaller"],
)
def test_an_image_that_cannot_be_shown_is_told_of_and_the_rest_stands(change, told, tmp_path):
    one = One(tmp_path, [region(), region("b")], {"a": mask(_1=(0, 0, 10, 10))}, png())
    change(one.images / "a.png")
    page = one.page()
    assert told in words(page)
    assert "labeled <b>disc</b> (100 %)" in words(page)
    assert len(pictures(page)) == 3  # of the other


def test_independent_labels_have_no_predicted_class(tmp_path):
    page = One(tmp_path, [region(predicted=None)], {"a": mask(_1=(0, 0, 10, 10))}, png()).page()
    assert len(pictures(page)) == 3
    assert "of another class" in words(page) and "none1100" in words(page)


def test_a_predicted_class_that_has_no_name_goes_by_its_number(tmp_path):
    page = One(tmp_path, [region(predicted=7)], {"a": mask(_1=(0, 0, 10, 10))}, png()).page()
    assert "class 71100100.0 %" in words(page)


def test_a_round_that_waits_has_a_page(tmp_path):
    made = finished(tmp_path / "run", rounds=1, per_round=6)
    made.select(1)
    said = words(round_page(made.folder, 1, made.images, made.classes))
    assert "0 of 6regions came back" in said
    assert "Nothing that was asked for in this round has come back in it" in said
    assert "It was not judged yet" in said


def test_answers_to_earlier_rounds_are_counted_by_themselves(tmp_path):
    made = Run(tmp_path / "run", per_round=6)
    first = made.select(0)
    made.answer(0, first, images=2)
    second = made.select(1)
    made.answer(1, first)
    late = len(first.rows)
    said = words(round_page(made.folder, 1, made.images, made.classes))
    assert f"0 of {len(second)}regions came back" in said
    assert f"and {late} that earlier rounds had asked for" in said


def test_figures_that_are_not_known_say_so(tmp_path):
    made = finished(tmp_path / "run", rounds=2, per_round=4)
    path = made.round(1) / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"]["miou"] |= {"low": None, "high": None}
    content["gain"]["miou"] = {"value": None, "low": None, "high": None}
    path.write_text(json.dumps(content))
    said = words(round_page(made.folder, 1, made.images, made.classes))
    assert "unknowngained since round 0no interval" in said
    assert "no interval, 12 test images" in said
    assert "+nan" not in said and "nan [" not in said


def test_a_round_that_found_nothing_to_ask_for_has_a_page(tmp_path):
    made = Run(tmp_path / "run")
    Selection([], {"round": 0}).save(made.round(0) / "selection.json")
    assert "0 of 0regions came back" in words(round_page(made.folder, 0, made.images, made.classes))


def test_a_run_that_nothing_judges_has_a_page(tmp_path):
    made = Run(tmp_path / "run", per_round=6)
    made.answer(0, made.select(0))
    made.close(0, judged=False)
    assert "no labeled images" in words(round_page(made.folder, 0, made.images, made.classes))


@pytest.mark.parametrize("number", [3, -1, True, "0"])
def test_a_round_that_is_none_is_wrong_use(number, run):
    with pytest.raises(UsageError, match="has no round"):
        round_page(run.folder, number, run.images, run.classes)
