"""What comes back: late, twice, in parts, in another order, wrong, or never. Nothing is lost, nothing counted twice."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from seguq.acquisition import Budget, Selection
from seguq.acquisition.selection import region_key
from seguq.active.events import read_events
from seguq.active.labels import clicks_for
from seguq.active.run_folder import RunFolder
from seguq.annotators import Annotation, Oracle
from seguq.core.errors import SeguqError
from seguq.data import read_mask
from seguq.regions import Pixels
from tests.active.small_loop import (
    IGNORED,
    asked_once,
    classes_of,
    differences,
    figures,
    labels_are_the_truth,
    make_loop,
    outcome,
    rows_of,
    write_data,
)


class People(Oracle):
    """Answers what a test lets it: ``answers`` is from all answers of an oracle to what comes back."""

    answers = staticmethod(lambda found: found)
    sent: list

    def send(self, selection, images):
        self.sent = [*getattr(self, "sent", []), selection.why["round"]]
        super().send(selection, images)

    def collect(self):
        yield from self.answers(list(super().collect()))


@pytest.fixture(scope="module")
def root(shared_path):
    return write_data(shared_path / "data", pool=4)


@pytest.fixture(scope="module")
def undisturbed(root, shared_path):
    folder = shared_path / "undisturbed"
    loop(root, folder).run()
    return folder


def loop(root, run_dir, answers=None, **settings):
    people = People(root / "masks" / "pool")
    if answers is not None:
        people.answers = answers
    settings = {"rounds": 2, "budget": Budget(regions=8), "calibrator": None, **settings}
    return make_loop(root, run_dir, annotator=people, **settings)


def counted(run_dir):
    """The regions that the journal says came back."""
    return [
        (event.content["asked"], event.content["image_id"], *row)
        for event in read_events(run_dir)
        if event.event == "answer"
        for row in event.content["rows"]
    ]


def all_is_there(root, run_dir, undisturbed=None, rounds=2):
    """Raise unless each region that was asked for came back once, with the true labels."""
    asked = [(n, *region_key(row)) for n in range(rounds) for row in rows_of(run_dir, n)]
    assert sorted(counted(run_dir)) == sorted(asked)
    labels_are_the_truth(root, run_dir)
    if undisturbed is not None:
        assert differences(outcome(run_dir), outcome(undisturbed)) == []


def single(found):
    """An answer a region, without its clicks."""
    return [Annotation(answer.image_id, [row], answer.mask) for answer in found for row in answer.rows]


WAYS = {
    "at once": lambda found: found,
    "twice": lambda found: [*found, *found],
    "backwards": lambda found: found[::-1],
    "shuffled rows": lambda found: [
        replace(answer, rows=random.Random(1).sample(answer.rows, len(answer.rows))) for answer in found
    ],
    "each row twice": lambda found: [replace(answer, rows=[*answer.rows, *answer.rows]) for answer in found],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_way_of_answers_changes_nothing(root, undisturbed, tmp_path, way):
    loop(root, tmp_path / "run", WAYS[way]).run()
    all_is_there(root, tmp_path / "run", undisturbed)


def test_answers_may_come_one_by_one_over_many_starts(root, undisturbed, tmp_path):
    """One region more at each start; the clicks are then those of each by itself."""
    for number in range(1, 20):
        found = loop(root, tmp_path / "run", lambda found, most=number: single(found)[:most]).run()
        if not found.waits and found.round == 1:
            break
        assert found.waits
        assert found.answered == number if found.round == 0 else number >= 8
        assert not RunFolder(tmp_path / "run").model(found.round).exists()
    all_is_there(root, tmp_path / "run")
    first, other = outcome(tmp_path / "run"), outcome(undisturbed)
    assert {name.split()[0] for name in differences(first, other)} <= {"figures"}  # of clicks
    masks = {name: read_mask(root / "masks" / "pool" / f"{name}.png", classes_of(root)) for name in PAGES}
    rows = [row for number in (0, 1) for row in rows_of(tmp_path / "run", number)]
    clicks = [clicks_for(masks[row["image_id"]], [row], IGNORED) for row in rows]
    assert figures(tmp_path / "run", 1)["labeled"]["clicks"] == sum(clicks)


PAGES = ("p0", "p1", "p2", "p3")


def test_the_clicks_of_an_answer_are_counted_once_where_a_part_of_it_came_before(root, tmp_path):
    """Of the rest alone nobody knows what it took: it is estimated."""

    def part(found):
        return [Annotation(found[0].image_id, [found[0].rows[0]], found[0].mask, clicks=1000)]

    loop(root, tmp_path / "run", part, rounds=1, budget=Budget(regions=8)).run()
    loop(root, tmp_path / "run", lambda found: [replace(answer, clicks=500) for answer in found], rounds=1).run()
    all_is_there(root, tmp_path / "run", rounds=1)
    clicks = [event.content["clicks"] for event in read_events(tmp_path / "run") if event.event == "answer"]
    rest = {row["image_id"] for row in rows_of(tmp_path / "run", 0)}
    assert clicks[0] == 1000
    assert clicks.count(500) == len(rest) - 1
    assert sum(clicks) < 1000 + 500 * (len(rest) - 1) + 200


def test_it_waits_where_nobody_answers(root, tmp_path):
    found = loop(root, tmp_path / "run", lambda found: []).run()
    assert (found.waits, found.answered, found.asked, found.round) == (True, 0, 8, 0)
    assert "waits for 8 of 8 regions" in found.lines()[0]
    assert loop(root, tmp_path / "run", lambda found: []).run(enough=0.001).waits


@pytest.mark.parametrize("share", [0.1, 0.55, 0.7, 1.0])
def test_enough_is_that_share_and_no_more(root, tmp_path, share):
    """Of 20 regions 0.55 are 11, whatever a computer makes of that product."""
    wanted = round(share * 20)
    for most in (wanted - 1, wanted):
        there = loop(root, tmp_path / "run", lambda f, most=most: single(f)[:most], rounds=1, budget=Budget(regions=20))
        assert there.run(enough=share).waits is (most < wanted)


def test_answers_of_an_earlier_round_are_taken_in_later(root, tmp_path):
    run = tmp_path / "run"
    half = loop(root, run, lambda found: single(found)[:4], rounds=1)
    assert half.run(enough=0.5).round == 0
    early = counted(run)
    assert len(early) == 4
    whole = loop(root, run)
    whole.run()
    assert whole.annotator.sent[0] in (0, 1)
    assert set(whole.annotator.sent) == {0, 1}  # the first round is open still, and is sent again
    all_is_there(root, run)
    assert figures(run, 0)["labeled"]["regions"] == 4
    assert figures(run, 0)["selected"] | {"budget": 0} == {"regions": 8, "answered": 4, "spent": 8, "budget": 0}
    assert figures(run, 1)["labeled"]["regions"] == 16
    asked_once(run, whole.pool)
    for number in (0, 1):  # each came back where the journal says
        events = [event for event in read_events(run) if (event.round, event.event) == (number, "answer")]
        came = {event.content["image_id"] for event in events}
        assert {path.stem for path in RunFolder(run).answers(number).iterdir()} == came


def test_rounds_that_are_answered_are_not_sent_again(root, tmp_path):
    loop(root, tmp_path / "run").run(until=1)
    later = loop(root, tmp_path / "run")
    later.run()
    assert set(later.annotator.sent) == {1}


def test_answers_to_what_was_never_asked_are_left_alone(root, undisturbed, tmp_path):
    def more(found):
        row = dict(found[0].rows[0])
        other = row | {"region_id": 77, "y0": 0, "x0": 0, "y1": 16, "x1": 16, "area": 256}
        away = row | {"image_id": "elsewhere"}
        none = np.zeros((16, 16), int)
        return [
            Annotation(row["image_id"], [other], none),
            Annotation("elsewhere", [away], none),
            *(replace(answer, rows=[other, *answer.rows]) for answer in found),
            Annotation(row["image_id"], [], none),
        ]

    loop(root, tmp_path / "run", more).run()
    all_is_there(root, tmp_path / "run")
    changed = {name.split()[0] for name in differences(outcome(tmp_path / "run"), outcome(undisturbed))}
    assert changed <= {"figures"}  # clicks of an answer to more than was asked are not known


def test_an_answer_may_be_mended_until_the_round_is_closed(root, undisturbed, tmp_path):
    """The last that somebody said counts, and the clicks of the first."""

    def wrong(found):
        return [replace(found[0], mask=(found[0].mask + 1) % 3)]

    run = tmp_path / "run"
    assert loop(root, run, wrong).run().waits
    first = {path: path.read_bytes() for path in RunFolder(run).answers(0).iterdir()}
    assert loop(root, run, lambda found: []).run().waits
    assert {path: path.read_bytes() for path in RunFolder(run).answers(0).iterdir()} == first
    loop(root, run).run()
    all_is_there(root, run, undisturbed)


def test_an_answer_that_changes_later_changes_nothing(root, tmp_path):
    run = tmp_path / "run"
    loop(root, run).run(until=1)
    before = {path: path.read_bytes() for path in RunFolder(run).masks.iterdir()}

    def other(found):
        return [replace(answer, mask=answer.mask * 0) for answer in found]

    there = loop(root, run, other)
    there.annotator.send(Selection.load(RunFolder(run).selection(0)), there.pool)
    there.run()
    for image_id in {row["image_id"] for row in rows_of(run, 0)}:
        mask = read_mask(RunFolder(run).masks / f"{image_id}.png", classes_of(root))
        old = before[RunFolder(run).masks / f"{image_id}.png"]
        (tmp_path / "old.png").write_bytes(old)
        known = read_mask(tmp_path / "old.png", classes_of(root))
        np.testing.assert_array_equal(mask[known != IGNORED], known[known != IGNORED])


def test_what_nobody_could_tell_stays_ignored(root, tmp_path):
    def unsure(found):
        return [replace(answer, mask=np.where(np.arange(16) % 2, answer.mask, IGNORED)) for answer in found]

    loop(root, tmp_path / "run", unsure, rounds=1).run()
    for path in RunFolder(tmp_path / "run").masks.iterdir():
        assert (read_mask(path, classes_of(root))[:, ::2] == IGNORED).all()
    assert figures(tmp_path / "run", 0)["labeled"]["regions"] == 8


WRONG = {
    "size": (lambda answer: replace(answer, mask=answer.mask[:-1]), "15, 16.* pixels, but the image"),
    "class": (lambda answer: replace(answer, mask=np.full((16, 16), 3)), "holds the class 3, but .* 0..2"),
    "below": (lambda answer: replace(answer, mask=np.full((16, 16), -1)), "holds the class -1"),
    "type": (lambda answer: replace(answer, mask=answer.mask / 1.0), "whole numbers"),
    "clicks": (lambda answer: replace(answer, clicks=-3), "-3 clicks"),
    "half a click": (lambda answer: replace(answer, clicks=1.5), "1.5 clicks"),
    "image": (
        lambda answer: replace(answer, image_id=next(one for one in PAGES if one != answer.image_id)),
        "rows of another image",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_one_sentence_and_nothing_is_lost(root, undisturbed, tmp_path, name):
    make, said = WRONG[name]
    run = tmp_path / "run"

    def second_is_wrong(found):
        return [found[0], make(found[1]), *found[2:]] if len(found) > 1 else [make(found[0])]

    for _ in range(2):
        with pytest.raises(SeguqError, match=f"People: .*{said}") as caught:
            loop(root, run, second_is_wrong).run()
        assert "\n" not in str(caught.value)
        number = max(event.round for event in read_events(run))
        assert not RunFolder(run).model(number).exists()
    loop(root, run).run()
    all_is_there(root, run, undisturbed)


def test_an_annotator_that_fails_in_the_middle_loses_nothing(root, undisturbed, tmp_path):
    def fails(found):
        yield found[0]
        raise ConnectionError("the server is away")

    run = tmp_path / "run"
    for number in range(1, 3):
        with pytest.raises(ConnectionError):
            loop(root, run, fails).run()
        assert len([event for event in read_events(run) if event.event == "answer"]) == 1, number
    loop(root, run).run()
    all_is_there(root, run, undisturbed)


def test_an_annotator_that_cannot_be_asked_is_asked_again(root, undisturbed, tmp_path):
    there = loop(root, tmp_path / "run")
    send = there.annotator.send

    def fails(selection, images):
        raise ConnectionError("the server is away")

    there.annotator.send = fails
    with pytest.raises(ConnectionError):
        there.run()
    there.annotator.send = send
    there.run()
    all_is_there(root, tmp_path / "run", undisturbed)


def test_clicks_are_for_borders_of_classes_and_a_name():
    mask = np.zeros((16, 16), int)
    rows = [{"image_id": "a", "y0": 3, "x0": 3, "y1": 4, "x1": 4, "rle": None}]
    assert clicks_for(mask, rows, IGNORED) == 1
    box = [{"image_id": "a", "y0": 0, "x0": 0, "y1": 4, "x1": 4, "rle": None}]
    assert clicks_for(mask, box, IGNORED) == 1  # its class
    mask[:, :2] = 1
    assert clicks_for(mask, box, IGNORED) > 1  # and the border within
    assert clicks_for(np.full((16, 16), IGNORED), box, IGNORED) == 1


def test_single_pixels_are_labels_like_others(root, tmp_path):
    settings = {"partition": Pixels(6), "budget": Budget(regions=8, per_image=2), "rounds": 2}
    loop(root, tmp_path / "run", **settings).run()
    all_is_there(root, tmp_path / "run")
    assert figures(tmp_path / "run", 1)["labeled"]["clicks"] == figures(tmp_path / "run", 1)["labeled"]["pixels"] == 16
