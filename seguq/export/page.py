"""A page for people: one HTML file with its pictures inside, that opens from disk without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from seguq.export.images import RGB, encode

_STYLE = """
:root { --ink: #1d2129; --soft: #5b6472; --line: #e3e6eb; --ground: #f6f7f9; --card: #fff; --accent: #31688e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.3rem; margin: 46px 0 6px; }
h3 { font-size: 1rem; margin: 22px 0 6px; }
p { max-width: 76ch; margin: 6px 0 12px; }
.soft, figcaption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 1.65rem; line-height: 1.2; color: var(--accent); }
.card span { color: var(--soft); font-size: .86rem; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 10px; margin: 8px 0 4px; }
.row.wide { grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: 6px; border: 1px solid var(--line); }
.pixels img { image-rendering: pixelated; }
figcaption { font-size: .82rem; line-height: 1.35; padding: 4px 1px 8px; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: 8px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
.chip { background: #fde725; color: #333; border-radius: 4px; padding: 0 5px; font-size: .76rem; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: .86rem; color: var(--soft); margin: 4px 0 10px; }
.legend i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px;
  vertical-align: -2px; }
.bar { display: inline-block; width: 150px; height: 12px; border-radius: 3px; margin: 0 8px; vertical-align: -1px; }
code { background: #eceff3; padding: 1px 5px; border-radius: 4px; font-size: .88em; overflow-wrap: anywhere; }
pre { background: #eceff3; padding: 12px 14px; border-radius: 8px; overflow-x: auto; font-size: .86rem; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
"""


def text(content: Any) -> str:
    """Anything as text that is safe inside HTML."""
    return html.escape(str(content))


def image_tag(image: RGB, description: str, suffix: str = ".jpg") -> str:
    """A picture inside the page, ``(H, W, 3)`` uint8; JPEG for photographs, PNG for flat colors and text."""
    data = base64.b64encode(encode(image, suffix)).decode()
    kind = "jpeg" if suffix == ".jpg" else "png"
    height, width = image.shape[:2]
    return f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{text(description)}">'


def plot_tag(figure: Any, description: str) -> str:
    """A matplotlib figure inside the page, as SVG."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue().encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{text(description)}">'


def captioned(tag: str, caption: str) -> str:
    """A picture with a caption (HTML) under it."""
    return f"<figure>{tag}<figcaption>{caption}</figcaption></figure>"


def picture_row(figures: Iterable[str], kind: str = "") -> str:
    """Figures side by side, as many as the screen holds."""
    return f'<div class="row {kind}">{"".join(figures)}</div>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Headline numbers: value, what it is, and its interval or explanation."""
    boxes = (
        f'<div class="card"><b>{text(v)}</b>{text(name)}<br><span>{text(note)}</span></div>' for v, name, note in items
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text; wider ones scroll by themselves."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def page(title: str, body: str) -> str:
    """The whole page.

    Args:
        title: title of the window.
        body: HTML of everything that is seen.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
