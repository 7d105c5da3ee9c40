import numpy as np
import pytest

from seguq.export import Tile, contact_sheet, outline_regions

YELLOW = (255, 221, 0)
SQUARE = [[[[10, 20], [30, 20], [30, 40], [10, 40]]]]


def image(height=64, width=80, value=120):
    return np.full((height, width, 3), value, np.uint8)


def tiles(count, title="image {}", regions=(SQUARE,), **size):
    labels = [str(number) for number in range(len(regions))]
    return [Tile(image(**size), title.format(i), "a note\nand more", regions, labels) for i in range(count)]


def is_yellow(pixel):
    return np.abs(np.array(pixel, int) - YELLOW).max() < 60


def test_a_page_is_an_array_of_colors():
    (page,) = contact_sheet(tiles(3), "what to label")
    assert page.dtype == np.uint8 and page.ndim == 3 and page.shape[2] == 3
    assert (page[0, 0] == 255).all()


@pytest.mark.parametrize(("count", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (40, 3)])
def test_many_images_go_to_further_pages(count, pages):
    assert len(contact_sheet(tiles(count, height=8, width=8), "x")) == pages


def test_every_image_is_shown_whole_and_of_equal_size():
    (page,) = contact_sheet([Tile(image(64, 80, 90), "a", "", [], []), Tile(image(128, 160, 30), "b", "", [], [])], "x")
    assert [(page[:, :, 0] == value).sum() for value in (90, 30)] == [256 * 320, 256 * 320]


@pytest.mark.parametrize("times", [1.0, 2.0, 4.0, 0.5])
def test_an_outline_runs_along_the_edge_of_the_region(times):
    out = outline_regions(image(), [SQUARE], [""], times)
    assert out.shape == (round(64 * times), round(80 * times), 3)
    right, bottom = round(30 * times), round(40 * times)
    middle = round(30 * times), round(20 * times)
    assert any(is_yellow(out[middle[0], right + d]) for d in (-1, 0))
    assert any(is_yellow(out[bottom + d, middle[1]]) for d in (-1, 0))
    if times >= 1:
        assert (out[middle[0], middle[1]] == 120).all() and (out[2, 2] == 120).all()


def test_holes_are_outlined_too():
    hole = [[[[4, 4], [60, 4], [60, 60], [4, 60]], [[20, 20], [20, 40], [40, 40], [40, 20]]]]
    out = outline_regions(image(), [hole], [""])
    assert any(is_yellow(out[30, 40 + d]) for d in (-1, 0))


def test_labels_of_regions_at_one_place_do_not_hide_each_other():
    one = outline_regions(image(200, 200), [SQUARE], ["1"])
    two = outline_regions(image(200, 200), [SQUARE, SQUARE], ["1", "1"])
    dark = [(part.sum(2) < 30).sum() for part in (one, two)]
    assert dark[1] > 1.6 * dark[0] - (outline_regions(image(200, 200), [SQUARE], [""]).sum(2) < 30).sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3000, 20)])
def test_an_image_of_any_shape_has_its_place(size):
    (page,) = contact_sheet(
        tiles(2, height=size[0], width=size[1], regions=[[[[[0, 0], [1, 0], [1, 1], [0, 1]]]]]), "x"
    )
    assert page.shape[1] < 700 and page.shape[0] < 500


@pytest.mark.parametrize("title", ["$a_{b$", "\u202e\x1b[31m", "image \u732b", "a" * 300, "", "100 %"])
@pytest.mark.filterwarnings("error")
def test_a_name_is_only_text(title):
    (page,) = contact_sheet(tiles(1, title=title.replace("{", "{{")), title)
    assert page.size


@pytest.mark.parametrize("place", [(50, 60), (2, 2), (97, 3), (3, 97), (98, 98)])
@pytest.mark.parametrize("times", [1.0, 3.0])
def test_a_single_pixel_is_ringed_and_stays_to_be_seen(place, times):
    x, y = place
    shown = image(100, 100)
    shown[y, x] = (0, 0, 255)
    pixel = [[[[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]]]]
    out = outline_regions(shown, [pixel], ["17"], times).astype(int)
    assert (out[round(times * (y + 0.5) - 0.5), round(times * (x + 0.5) - 0.5)] == (0, 0, 255)).all()
    yellow = np.argwhere(np.abs(out - YELLOW).max(2) < 60)
    assert len(yellow) > 10
    reach = np.abs(yellow - times * (np.array([y, x]) + 0.5)).max(1)
    assert reach.min() > 3 and reach.max() > 12  # a ring, and a number beyond it


def test_numbers_of_single_pixels_do_not_hide_each_other():
    shown, places = image(100, 100), [(40, 50), (60, 50), (50, 60)]
    pixels = [[[[[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]]]] for x, y in places]
    for x, y in places:
        shown[y, x] = (0, 0, 255)
    out = outline_regions(shown, pixels, ["1", "2", "3"])
    assert all((out[y, x] == (0, 0, 255)).all() for x, y in places)


def test_an_empty_label_hides_nothing():
    image = np.full((100, 100, 3), 200, np.uint8)
    box = [[[[20, 20], [80, 20], [80, 80], [20, 80]]]]
    assert (outline_regions(image, [box], [""])[26:74, 26:74] == 200).all()
    assert (outline_regions(image, [box], ["7"])[26:74, 26:74] != 200).any()
