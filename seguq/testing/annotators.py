"""What every annotator promises, as a check for those that somebody adds: `check_annotator`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seguq.acquisition import Selection
from seguq.acquisition.selection import region_key
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource
from seguq.regions.rle import region_mask
from seguq.testing.claims import claim, named

Answer = Callable[[int, str, npt.NDArray[np.int64]], Any]
_Region = tuple[str, tuple[int, int, int, int]]
_Key = tuple[Any, ...]
_Found = dict[_Key, npt.NDArray[Any]]


def check_annotator(make: Callable[[], Any], images: ImageSource, answer: Answer | None = None) -> None:
    """Check what every annotator promises, on one that somebody has made.

    That nothing is answered before it is asked, or before somebody has answered; that answers come late, in parts, and
    again; that what is sent twice is asked once, by another process, too; that rounds are told apart; that what cannot
    be asked, and a wrong answer, are refused without losing another one.

    Args:
        make: makes the annotator: each call gives another object for the same place, as a later process has it. At the
            first call nothing was ever sent there.
        images: at least three, of 8 x 8 pixels or more.
        answer: does what a person does: ``answer(round, image_id, mask)`` answers what is asked of an image in a round
            with a mask of class indices ``(H, W)``; doing it again replaces that answer. None where it answers by
            itself, at once.

    Raises:
        AssertionError: in one sentence, for the first promise that is not kept.
    """
    if not callable(make):
        raise UsageError(f"check_annotator takes a function that makes the annotator, but was given {make!r}")
    first = make()
    with named(first, " keeps its promises"):
        _Check(make, images, answer).all(first)


def _selection(number: int | None, regions: Sequence[_Region]) -> Selection:
    rows: list[dict[str, Any]] = []
    for rank, (image_id, (y0, x0, y1, x1)) in enumerate(regions, 1):
        place = {"rank": rank, "image_id": image_id, "region_id": rank, "y0": y0, "x0": x0, "y1": y1, "x1": x1}
        rows.append({**place, "area": (y1 - y0) * (x1 - x0), "score": 0.5, "predicted_class": 0, "rle": None})
    rows[0]["rle"] = [0, rows[0]["area"] - 1, 1]  # all of its box but the last pixel
    rows[0]["area"] -= 1
    return Selection(rows, {} if number is None else {"round": number})


class _Check:
    """One story of an annotator, from its first selection to a mended answer."""

    def __init__(self, make: Callable[[], Any], images: ImageSource, answer: Answer | None) -> None:
        self.make, self.images, self.answer = make, ImageSource.of(images), answer
        self.a, self.b, self.c = self.images.ids[:3]
        self.rounds = (
            _selection(0, [(self.a, (0, 0, 3, 4)), (self.b, (2, 1, 5, 8)), (self.a, (4, 4, 8, 8))]),
            _selection(1, [(self.a, (5, 0, 8, 3)), (self.c, (7, 7, 8, 8))]),
        )
        self.painted: dict[tuple[int, str], npt.NDArray[np.int64]] = {}

    def all(self, first: Any) -> None:
        """All claims, in turn."""
        self._is_made_again_from_its_arguments(first)
        claim(self._collected(first) == {}, "nothing is answered before it is asked")
        self._refuses_what_cannot_be_asked(first)
        before = copy.deepcopy(self.rounds[0].rows)
        first.send(self.rounds[0], self.images)
        claim(self.rounds[0].rows == before, "a selection that is sent is not changed")
        if self.answer is not None:
            claim(self._collected(first) == {}, "nothing is answered before somebody has answered")
        self._paint(first, 0, self.a)
        self._require(first, "an answer is given as soon as it is there", (0, self.a))
        self._require(first, "the same answers are given again", (0, self.a))
        first.send(self.rounds[0], self.images)
        self._require(first, "a selection that is sent again changes nothing", (0, self.a))

        later = self.make()
        claim(self._collected(later) == {}, "an object gives answers only to what was sent to it")
        later.send(self.rounds[0], self.images)
        self._require(later, "what was answered is not lost for a later process, which sends the same", (0, self.a))
        self._paint(first, 0, self.b)
        self._require(later, "an answer may come late", (0, self.a), (0, self.b))
        later.send(self.rounds[1], self.images)
        self._paint(first, 1, self.a)
        every = ((0, self.a), (0, self.b), (1, self.a))
        self._require(later, "rounds that ask for the same image are told apart", *every)
        self._refuses_other_regions_of_a_round(later, every)
        next(iter(later.collect()))
        self._require(later, "answers that were looked at in part are given again", *every)
        if self.answer is not None:
            self._refuses_a_wrong_answer(later, every)
        truth = later.truth(self.a)
        kept = truth is None or tuple(truth.shape) == self.images.size(self.a)
        claim(kept, "the truth is a mask of the whole image, or None")

    def _is_made_again_from_its_arguments(self, made: Any) -> None:
        claim(isinstance(made.classes, Classes), "it says its classes")
        again = type(made)(**made.arguments())
        claim(again.classes == made.classes, "another one is made from its arguments")

    def _refuses_what_cannot_be_asked(self, made: Any) -> None:
        height, width = self.images.size(self.a)
        box = (0, 0, 2, 2)
        for what, asked in {
            "a selection without the number of its round": _selection(None, [(self.a, box)]),
            "an image that is not there": _selection(0, [(self.a, box), ("no such image", box)]),
            "a region outside of its image": _selection(0, [(self.a, (0, 0, height, width + 1))]),
        }.items():
            self._refused(lambda asked=asked: made.send(asked, self.images), what)  # type: ignore[misc]
        claim(self._collected(made) == {}, "of what is refused nothing is asked")

    def _refuses_other_regions_of_a_round(self, made: Any, every: Sequence[tuple[int, str]]) -> None:
        other = _selection(1, [(self.a, (0, 0, 2, 2)), (self.c, (7, 7, 8, 8))])
        self._refused(lambda: made.send(other, self.images), "other regions of a round that was sent")
        self._require(made, "what was sent before is not lost when something is refused", *every)

    def _refuses_a_wrong_answer(self, made: Any, every: Sequence[tuple[int, str]]) -> None:
        height, width = self.images.size(self.c)
        assert self.answer is not None
        for what, mask in {
            "an answer of another size": np.zeros((height + 1, width), np.int64),
            "an answer with a class that there is not": np.full((height, width), len(made.classes), np.int64),
        }.items():
            self.answer(1, self.c, mask)
            self._refused(lambda: list(made.collect()), what)
            found: _Found = {}
            with contextlib.suppress(SeguqError):
                _take(made.collect(), found)
            claim(found.keys() == self._regions(every).keys(), f"{what} keeps no other answer back")
        self._paint(made, 1, self.c)
        self._require(made, "an answer that was mended is given", *every, (1, self.c))

    def _refused(self, action: Callable[[], Any], what: str) -> None:
        try:
            action()
        except SeguqError as error:
            claim("\n" not in str(error), f"{what} is refused in one sentence")
            return
        claim(False, f"{what} is refused by a SeguqError")

    def _paint(self, made: Any, number: int, image_id: str) -> None:
        """Answer, with all classes."""
        size, classes = self.images.size(image_id), made.classes
        mask = np.arange(size[0] * size[1]).reshape(size) // 3 % len(classes)
        mask[0, 0] = classes.ignore_index
        self.painted[number, image_id] = mask
        if self.answer is not None:
            self.answer(number, image_id, mask)

    def _collected(self, made: Any) -> _Found:
        found: _Found = {}
        _take(made.collect(), found)
        return found

    def _regions(self, tasks: Sequence[tuple[int, str]]) -> dict[_Key, tuple[int, Mapping[str, Any]]]:
        """The regions of some tasks, with their round."""
        return {region_key(row): (n, row) for n, image_id in tasks for row in self.rounds[n].in_image(image_id)}

    def _require(self, made: Any, promise: str, *tasks: tuple[int, str]) -> None:
        """Raise unless it gives the answers to these tasks, and where somebody has painted them, as painted."""
        found, expected = self._collected(made), self._regions(tasks)
        claim(expected.keys() <= found.keys() if self.answer is None else expected.keys() == found.keys(), promise)
        for key, (number, row) in expected.items():
            mask, image_id = found[key], row["image_id"]
            _require_mask(mask, self.images.size(image_id), made.classes)
            if self.answer is not None:
                inside = _inside(row, mask.shape)
                same = np.array_equal(mask[inside], self.painted[number, image_id][inside])
                claim(same, "an answer holds the classes that were painted within the regions")


def _take(answers: Any, found: _Found) -> None:
    """The masks that answer each region."""
    for answer in answers:
        clicks = answer.clicks
        claim(clicks is None or (isinstance(clicks, int) and clicks >= 1), "clicks are a whole number, or None")
        claim(len(answer.rows) > 0, "an answer is to some regions")
        for row in answer.rows:
            claim(row["image_id"] == answer.image_id, "an answer is to regions of one image")
            claim(region_key(row) not in found, "a region is answered once at a time")
            found[region_key(row)] = answer.mask


def _inside(row: Mapping[str, Any], size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    inside = np.zeros(size, dtype=bool)
    inside[row["y0"] : row["y1"], row["x0"] : row["x1"]] = region_mask(row)
    return inside


def _require_mask(mask: Any, size: tuple[int, int], classes: Classes) -> None:
    claim(isinstance(mask, np.ndarray) and mask.dtype.kind in "iu", "a mask is an array of whole numbers")
    claim(mask.shape == size, "a mask is of the whole image")
    known = ((mask >= 0) & (mask < len(classes))) | (mask == classes.ignore_index)
    claim(bool(known.all()), "a mask holds classes, and ignore_index")
