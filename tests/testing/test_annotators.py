"""Every annotator that there is keeps what all of them promise; and a promise that is not kept is found."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from seguq.acquisition.selection import region_key
from seguq.annotators import Annotation, Annotator, Folder, Oracle
from seguq.core.errors import SeguqError, UsageError
from seguq.data import ImageSource
from seguq.testing import check_annotator
from tests.annotators.selections import CLASSES, write_pool

OURS = [name for name in Annotator.names() if Annotator.named(name).__module__.startswith("seguq.")]


def oracle(root):
    return lambda: Oracle(root / "masks", CLASSES, noise=0.2), None


def folder(root):
    def answer(number, image_id, mask):
        cv2.imwrite(str(root / "tasks" / f"round-{number:02d}" / image_id / "mask.png"), mask.astype(np.uint8))

    return lambda: Folder(root / "tasks", CLASSES), answer


HOW = {"Oracle": oracle, "Folder": folder}


@pytest.mark.parametrize("ids", [("a", "b", "c"), ("a", "a/b", "a/b/c"), ("<b>&'\"", "ü #?%", "c.d e")], ids=str)
@pytest.mark.parametrize("name", OURS)
def test_every_annotator_keeps_its_promises(tmp_path, name, ids):
    images = write_pool(tmp_path, ids)
    make, answer = HOW[name](tmp_path)
    check_annotator(make, ImageSource({image_id: images.path(image_id) for image_id in ids}), answer)


def test_there_are_annotators():
    assert {"Oracle", "Folder"} <= set(OURS)


class Board:
    """Where somebody's own annotator keeps what was asked, and what was answered."""

    def __init__(self):
        self.asked, self.answers = {}, {}

    def answer(self, number, image_id, mask):
        self.answers[number, image_id] = mask


class Mine(Annotator):
    """An annotator of another package, that keeps all promises."""

    def __init__(self, board):
        self.board, self.classes, self.mine, self.sizes = board, CLASSES, {}, {}

    def send(self, selection, images):
        number = selection.why.get("round")
        if not isinstance(number, int):
            raise SeguqError("no round")
        for row in selection.rows:
            if row["x1"] > images.size(row["image_id"])[1]:
                raise SeguqError("outside")
        known = [row for (of, _), found in self.board.asked.items() if of == number for row in found]
        if known and {region_key(row) for row in known} != selection.keys():
            raise SeguqError("other regions")
        for image_id in selection.image_ids:
            self.board.asked[number, image_id] = self.mine[number, image_id] = selection.in_image(image_id)
            self.sizes[image_id] = images.size(image_id)

    def collect(self):
        wrong = None
        for key, rows in self.mine.items():
            mask = self.board.answers.get(key)
            if mask is None:
                continue
            if mask.shape != self.sizes[key[1]] or not set(np.unique(mask)) <= {*range(len(CLASSES)), 255}:
                wrong = SeguqError(f"the mask of {key} is wrong")
            else:
                yield Annotation(key[1], rows, mask)
        if wrong:
            raise wrong


def check(tmp_path, kind):
    board = Board()
    check_annotator(lambda: kind(board), write_pool(tmp_path), board.answer)


def test_one_of_another_package_can_keep_them(tmp_path):
    check(tmp_path, Mine)


class AnswersEarly(Mine):
    def collect(self):
        for (_, image_id), rows in self.mine.items():
            yield Annotation(image_id, rows, np.zeros(self.sizes[image_id], int))


class GivesOnce(Mine):
    def collect(self):
        for answer in super().collect():
            self.mine = {key: rows for key, rows in self.mine.items() if rows is not answer.rows}
            yield answer


class ForgetsWhenSentAgain(Mine):
    def send(self, selection, images):
        super().send(selection, images)
        for key in self.mine:
            self.board.answers.pop(key, None)


class KnowsWhatWasSentToOthers(Mine):
    def collect(self):
        self.mine = dict(self.board.asked)
        self.sizes = dict.fromkeys(("a", "b", "deep/c"), (40, 60))
        yield from super().collect()


class MixesRounds(Mine):
    def send(self, selection, images):
        super().send(selection, images)
        self.mine = {key: rows for key, rows in self.mine.items() if key[0] == selection.why["round"]}


class TakesAnything(Mine):
    def collect(self):
        for (number, image_id), rows in self.mine.items():
            if (number, image_id) in self.board.answers:
                yield Annotation(image_id, rows, self.board.answers[number, image_id])


class StopsAtTheFirstWrong(Mine):
    def collect(self):
        if any(mask.shape != (40, 60) or mask.max() == 3 for mask in self.board.answers.values()):
            raise SeguqError("wrong")
        yield from super().collect()


class Flips(Mine):
    def collect(self):
        for answer in super().collect():
            yield replace(answer, mask=np.ascontiguousarray(answer.mask[:, ::-1]))


class TakesAnyRound(Mine):
    def send(self, selection, images):
        selection.why.setdefault("round", 7)
        super().send(selection, images)


class Renumbers(Mine):
    def send(self, selection, images):
        super().send(selection, images)
        for row in selection.rows:
            row["rank"] += 1


class CountsNoClicks(Mine):
    def collect(self):
        for answer in super().collect():
            yield replace(answer, clicks=0)


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (AnswersEarly, "nothing is answered before somebody has answered"),
        (GivesOnce, "the same answers are given again"),
        (ForgetsWhenSentAgain, "a selection that is sent again changes nothing"),
        (KnowsWhatWasSentToOthers, "an object gives answers only to what was sent to it"),
        (MixesRounds, "rounds that ask for the same image are told apart"),
        (TakesAnything, "an answer of another size is refused by a SeguqError"),
        (StopsAtTheFirstWrong, "an answer of another size keeps no other answer back"),
        (Flips, "an answer holds the classes that were painted"),
        (TakesAnyRound, "a selection without the number of its round is refused"),
        (Renumbers, "a selection that is sent is not changed"),
        (CountsNoClicks, "clicks are a whole number, or None"),
    ],
)
def test_a_broken_promise_is_found(tmp_path, kind, promise):
    with pytest.raises(AssertionError, match=f"{kind.__name__}: .*{promise}"):
        check(tmp_path, kind)


def test_the_annotator_itself_is_no_function_that_makes_one():
    with pytest.raises(UsageError, match="takes a function"):
        check_annotator(Mine(Board()), None)
