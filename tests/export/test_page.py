"""The page is one file: nothing in it is fetched, and text cannot become markup."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from seguq.export import page as pages

NASTY = "<script>alert('x')</script> & \"quoted\""
EMPTY = ("meta", "img", "br", "link", "input", "hr")


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in the order in which they were opened."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts, self.stack, self.balanced = [], [], [], [], True
        self.feed(content)
        self.close()
        self.balanced &= not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in EMPTY:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        self.balanced &= bool(self.stack) and self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def plot():
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


def payload(tag):
    return base64.b64decode(re.search(r'base64,([^"]+)"', tag)[1])


def whole_page():
    row = [pages.captioned(pages.image_tag(noise(8, 8, 3), NASTY, s), "a <b>caption</b>") for s in (".jpg", ".png")]
    body = (
        pages.cards([(NASTY, NASTY, NASTY)])
        + pages.picture_row(row, "pixels")
        + pages.table([NASTY, "b"], [[NASTY, "1"], ["c", NASTY]])
        + pages.plot_tag(plot(), NASTY)
    )
    return pages.page(NASTY, body)


def test_the_page_is_a_whole_html_document():
    content = whole_page()
    read = Reader(content)
    assert content.lower().startswith("<!doctype html>")
    assert [tag for tag in read.tags if tag in ("html", "head", "title", "body")] == ["html", "head", "title", "body"]


def test_every_tag_of_the_page_is_closed():
    assert Reader(whole_page()).balanced


def test_the_page_says_its_encoding_and_fits_a_phone():
    attributes = Reader(whole_page()).attributes
    assert ("meta", "charset", "utf-8") in attributes and ("meta", "name", "viewport") in attributes


def test_the_page_names_no_address_on_a_network():
    assert not re.search(r"https?://|(?<![\w/+])//[a-z]|@import|url\(", whole_page())


def test_everything_that_the_page_shows_is_inside_it():
    sources = [value for _, name, value in Reader(whole_page()).attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 3 and all(value.startswith("data:image/") for value in sources)


def test_text_cannot_become_markup():
    assert "script" not in Reader(whole_page()).tags


def test_the_title_is_shown_as_it_is():
    assert NASTY in "".join(Reader(pages.page(NASTY, "")).texts)


@pytest.mark.parametrize("made", [pages.table([NASTY], [[NASTY]]), pages.cards([(NASTY, NASTY, NASTY)])])
def test_cells_and_cards_show_text_as_it_is(made):
    assert NASTY in "".join(Reader(made).texts) and "script" not in Reader(made).tags


@pytest.mark.parametrize(
    "make", [lambda: pages.image_tag(noise(4, 4, 3), NASTY), lambda: pages.plot_tag(plot(), NASTY)]
)
def test_a_description_stays_inside_its_attribute(make):
    read = Reader(make())
    assert read.tags == ["img"] and ("img", "alt", NASTY) in read.attributes


def test_a_title_cannot_end_the_head():
    assert "b" not in Reader(pages.page("</title><b>x</b>", "")).tags


@pytest.mark.parametrize("content", [None, 3, 0.5, "a < b"])
def test_text_takes_anything(content):
    assert Reader(f"<p>{pages.text(content)}</p>").texts == [str(content)]


def test_a_png_in_the_page_holds_every_pixel():
    image = noise(6, 5, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(payload(pages.image_tag(image, "x", ".png"))))), image)


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "jpeg"), (".png", "png")])
def test_a_picture_is_of_the_type_that_it_says(suffix, kind):
    tag = pages.image_tag(noise(6, 5, 3), "x", suffix)
    assert f"data:image/{kind};base64," in tag and Image.open(io.BytesIO(payload(tag))).format.lower() == kind


def test_a_picture_says_its_size_so_that_the_page_does_not_jump():
    attributes = Reader(pages.image_tag(noise(6, 5, 3), "x")).attributes
    assert ("img", "width", "5") in attributes and ("img", "height", "6") in attributes


def test_a_plot_is_svg():
    tag = pages.plot_tag(plot(), "a line")
    assert "data:image/svg+xml;base64," in tag and b"<svg" in payload(tag)


def test_a_plot_carries_no_date():
    assert b"<dc:date>" not in payload(pages.plot_tag(plot(), "a line"))


def test_a_table_has_a_head_and_every_row():
    tags = Reader(pages.table(["a", "b"], [["1", "2"], ["3", "4"], ["5", "6"]])).tags
    assert (tags.count("th"), tags.count("td"), tags.count("tr")) == (2, 6, 4)


def test_a_row_holds_its_figures_in_order():
    row = pages.picture_row(pages.captioned(f"<img alt='{i}'>", str(i)) for i in range(3))
    assert Reader(row).texts == ["0", "1", "2"]
