"""What the oracle alone claims."""

import json

import cv2
import numpy as np
import pytest

from seguq.annotators import Oracle
from seguq.core.errors import SeguqError, UsageError
from seguq.data import Classes, ImageSource
from tests.annotators.selections import CLASSES, SIZE, row, selection, truth_of, write_pool


@pytest.fixture
def pool(tmp_path):
    return write_pool(tmp_path)


@pytest.fixture
def ask(tmp_path, pool):
    """The answers to one selection, by image."""

    def answers(asked, **settings):
        oracle = Oracle(tmp_path / "masks", CLASSES, **settings)
        oracle.send(asked, pool)
        return {answer.image_id: answer for answer in oracle.collect()}

    return answers


def test_only_the_regions_are_revealed(ask):
    found = ask(selection(0, ("a", (5, 0, 20, 30)), ("deep/c", (0, 0, 40, 60))))
    expected = np.full(SIZE, 255)
    expected[5:20, 0:30] = truth_of("a")[5:20, 0:30]
    np.testing.assert_array_equal(found["a"].mask, expected)
    np.testing.assert_array_equal(found["deep/c"].mask, truth_of("deep/c"))


def test_a_region_is_revealed_within_its_run_lengths(ask):
    inside = np.tri(10, dtype=bool)
    found = ask(selection(0, ("a", (0, 0, 10, 10), inside)))["a"].mask
    np.testing.assert_array_equal(found != 255, np.pad(inside, ((0, 30), (0, 50))))


def test_clicks_are_those_of_the_borders_within_the_regions(ask, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 10:20] = 1  # a box of four corners, twice: as the outline of either class
    cv2.imwrite(str(tmp_path / "masks/a.png"), mask)
    assert ask(selection(0, ("a", (0, 0, 40, 30)), ("a", (0, 30, 40, 60))))["a"].clicks == 5 + 1


def test_a_pixel_takes_one_click(ask, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 10:20] = 1
    cv2.imwrite(str(tmp_path / "masks/a.png"), mask)
    assert ask(selection(0, ("a", (10, 10, 11, 11)), ("a", (10, 19, 11, 20))))["a"].clicks == 2


def many(count):
    return [("a", (y, x, y + 10, x + 10)) for y in range(0, 40, 10) for x in range(0, 60, 10)][:count]


def test_noise_names_whole_classes_within_regions(ask):
    found = ask(selection(0, *many(24)), noise=0.5)["a"].mask
    for _, (y0, x0, y1, x1) in many(24):
        pairs = zip(truth_of("a")[y0:y1, x0:x1].ravel(), found[y0:y1, x0:x1].ravel(), strict=True)
        named = {(int(true), int(said)) for true, said in pairs}
        assert len(named) == len({true for true, _ in named})


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_noise_is_the_share_of_classes_that_are_named_wrongly(ask, noise):
    wrong = total = 0
    for seed in range(20):
        found = ask(selection(0, *many(24)), noise=noise, seed=seed)["a"].mask
        for _, (y0, x0, y1, x1) in many(24):
            truth = truth_of("a")[y0:y1, x0:x1]
            for index in np.unique(truth):
                wrong += bool((found[y0:y1, x0:x1][truth == index] != index).any())
                total += 1
    assert abs(wrong / total - noise) < 4 * np.sqrt(noise * (1 - noise) / total) + 1e-12


def test_noise_differs_from_region_to_region(ask):
    found = ask(selection(0, *many(24)), noise=0.5)["a"].mask
    for index in range(len(CLASSES)):
        assert set(np.unique(found[truth_of("a") == index])) == {0, 1, 2}


def test_noise_does_not_depend_on_what_else_is_asked_nor_on_the_round(ask):
    asked = many(24)
    together = ask(selection(0, *asked), noise=0.5)["a"].mask
    rows = [row(rank, *region) for rank, region in enumerate(asked, 1)]
    for one in rows[::7]:
        alone = selection(3)
        alone.rows.append(one)
        box = np.s_[one["y0"] : one["y1"], one["x0"] : one["x1"]]
        np.testing.assert_array_equal(ask(alone, noise=0.5)["a"].mask[box], together[box])


def test_another_seed_is_another_noise(ask):
    first, second = (ask(selection(0, *many(24)), noise=0.5, seed=seed)["a"].mask for seed in (0, 1))
    assert (first != second).any()


def test_what_is_not_labeled_stays_so_under_noise(ask, tmp_path):
    mask = truth_of("a")
    mask[:10] = 255
    cv2.imwrite(str(tmp_path / "masks/a.png"), mask)
    assert (ask(selection(0, *many(24)), noise=1.0)["a"].mask[:10] == 255).all()


def test_the_truth_has_no_noise(tmp_path):
    write_pool(tmp_path)
    np.testing.assert_array_equal(Oracle(tmp_path / "masks", CLASSES, noise=1.0).truth("a"), truth_of("a"))


@pytest.mark.parametrize("place", ["", "pool", "pool/deep"])
def test_classes_are_found_above_the_masks(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    entries = [{"index": 0, "name": "a"}, {"index": 1, "name": "b"}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    assert Oracle(tmp_path / place).classes.names == ("a", "b")


def refused(tmp_path, pool, spoil):
    spoil(tmp_path / "masks")
    oracle = Oracle(tmp_path / "masks", CLASSES)
    with pytest.raises(SeguqError) as error:
        oracle.send(selection(0, ("b", (0, 0, 5, 5))), pool)
    assert not list(oracle.collect())
    return str(error.value)


def test_a_mask_that_is_missing_is_named_before_work(tmp_path, pool):
    assert "a.png: add it" in refused(tmp_path, pool, lambda masks: (masks / "a.png").unlink())


def test_a_mask_of_another_size_is_named_before_work(tmp_path, pool):
    said = refused(tmp_path, pool, lambda masks: cv2.imwrite(str(masks / "a.png"), np.zeros((5, 6), np.uint8)))
    assert "masks/a.png is 6 x 5 pixels, but its image is 60 x 40" in said


def test_a_mask_with_another_class_is_named_before_work(tmp_path, pool):
    said = refused(tmp_path, pool, lambda masks: cv2.imwrite(str(masks / "a.png"), np.full(SIZE, 3, np.uint8)))
    assert "masks/a.png holds the class index 3" in said


@pytest.mark.parametrize(
    "settings",
    [{"noise": 1.5}, {"noise": "0.1"}, {"noise": float("nan")}, {"seed": 0.5}, {"classes": 3}, {"classes": None},
     {"noise": 0.1, "classes": Classes(("one",), ((0, 0, 0),))}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tmp_path, pool, settings):
    with pytest.raises(SeguqError):
        Oracle(tmp_path / "masks", **{"classes": CLASSES, **settings})


def test_a_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        Oracle(tmp_path / "nothing", CLASSES)


def test_a_pool_that_grows_is_looked_at_again(tmp_path, pool):
    oracle = Oracle(tmp_path / "masks", CLASSES)
    oracle.send(selection(0, ("a", (0, 0, 5, 5))), pool)
    write_pool(tmp_path, ("new",))
    oracle.send(selection(1, ("new", (0, 0, 5, 5))), ImageSource(tmp_path / "images"))
    assert [answer.image_id for answer in oracle.collect()] == ["new", "a"]
