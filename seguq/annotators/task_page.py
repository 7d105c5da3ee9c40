"""The page of all tasks, for people who label: what is asked, how to answer, and what is open."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from seguq.annotators.answers import STEM
from seguq.annotators.tasks import ASKED, REGIONS, TEMPLATE, Task
from seguq.core.errors import printable
from seguq.data import Classes
from seguq.export.page import page, text


class State(NamedTuple):
    """How far a task is.

    Attributes:
        kind: whether its answer is there, is awaited, or has to be mended.
        words: what else is to be said of it.
    """

    kind: Literal["open", "answered", "mend"]
    words: str = ""


_STYLE = """<style>
.tasks { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; margin: 14px 0; }
.task { background: var(--card); border: 1px solid var(--line); border-top: 5px solid #b9c0ca; border-radius: 8px;
  padding: 10px 12px; font-size: .86rem; overflow-wrap: anywhere; }
.task img { width: 100%; height: 220px; object-fit: contain; background: #eceff3; display: block; }
.task p { margin: 4px 0; }
.task.answered { border-top-color: #2a9d62; } .task.mend { border-top-color: #c8322b; }
.state { font-weight: 600; } .answered .state { color: #1f7a4b; } .mend .state { color: #b3261e; }
.swatch { display: inline-block; width: 42px; height: 20px; border: 1px solid #888; border-radius: 3px;
  vertical-align: -5px; }
.legend-table { width: auto; } .legend-table td, .legend-table th { text-align: left; }
ol li { margin: 5px 0; max-width: 90ch; }
summary { cursor: pointer; font-size: 1.3rem; font-weight: 700; margin: 34px 0 6px; }
summary small { font-weight: 400; color: var(--soft); font-size: .95rem; margin-left: 8px; }
</style>"""

_ORDER = ("mend", "open", "answered")
_HEADS = {"mend": "to be mended", "open": "open", "answered": "answered"}


def task_page(tasks: Iterable[tuple[Task, State]], classes: Classes, folder: Path) -> str:
    """The whole page.

    Args:
        tasks: all of all rounds.
        classes: with a color for what is not labeled.
        folder: where the page will lie.
    """
    rounds: dict[int, list[tuple[Task, State]]] = {}
    for task, state in tasks:
        rounds.setdefault(task.round, []).append((task, state))
    every = [item for found in rounds.values() for item in found]
    latest = max(rounds, default=0)
    body = [
        _STYLE,
        "<h1>Regions to label</h1>",
        f"<p>{_counts([state for _, state in every])}</p>",
        _how(classes),
        "<h2>Legend</h2>",
        _legend(classes),
        *(_round(number, rounds[number], number == latest, folder) for number in sorted(rounds, reverse=True)),
    ]
    return page("Regions to label", "".join(body))


def _counts(states: Sequence[State]) -> str:
    counts = {kind: sum(state.kind == kind for state in states) for kind in _ORDER}
    parts = [f"{counts[kind]} {_HEADS[kind]}" for kind in ("open", "answered")]
    parts += [f"<b>{counts['mend']} {_HEADS['mend']}</b>"] if counts["mend"] else []
    return f"{_number(len(states), 'task')}: {', '.join(parts)}."


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _how(classes: Classes) -> str:
    ground = f"{_swatch(classes.ignore_colors[0])} (not labeled)"
    return f"""<h2>What is asked</h2>
<p>Each task below is one image. In its picture some regions are outlined in yellow and numbered. We need to know, for
every pixel inside these outlines, which of the classes in the legend it shows. What lies outside is not looked at.</p>
<h2>How to answer</h2>
<ol>
<li>Open the folder of the task, and in it <code>image.png</code> (or <code>image.jpg</code>) with a paint program that
has layers, such as GIMP, Krita or Photoshop.</li>
<li>Add <code>{TEMPLATE}</code> as a layer above the image, and make that layer half transparent, so that the image is
seen through it. On top of all, the layer <code>{ASKED}</code> darkens everything that is not asked for.</li>
<li>Paint on the layer of the template, in exactly the colors of the legend, with a hard brush or pencil (without
smoothing), all that lies inside the outlines. Leave what nobody could tell as it is: {ground}.</li>
<li>Make the layer opaque again, hide the other layers, and save it <b>as <code>{STEM}.png</code> in the folder of the
task</b>, at the size of the image. BMP, TIFF and WebP without loss are fine, too; JPEG is not, as it changes
colors.</li>
<li>A task counts as answered as soon as this file is there: while you are not done, save under another name. Nothing
that you put into a folder is ever changed or removed.</li>
</ol>
<p class="soft">This page shows what was known when the program last looked: it is written anew each time that tasks are
sent or answers are collected; then load it again. Programs may save class numbers instead of colors (gray, or a
palette).</p>"""


def _swatch(color: tuple[int, int, int]) -> str:
    return f'<span class="swatch" style="background:rgb{color}"></span>'


def _legend(classes: Classes) -> str:
    named = zip(classes.names, classes.colors, strict=True)
    rows = [(index, name, color) for index, (name, color) in enumerate(named)]
    rows.append((classes.ignore_index, "not labeled, or nobody could tell", classes.ignore_colors[0]))
    body = "".join(
        f"<tr><td>{_swatch(color)}</td><td>{text(printable(name))}</td><td><code>#{bytes(color).hex()}</code></td>"
        f"<td>{', '.join(map(str, color))}</td><td>{index}</td></tr>"
        for index, name, color in rows
    )
    head = "<tr><th>color</th><th>class</th><th>hex</th><th>red, green, blue</th><th>number</th></tr>"
    return f'<div class="scroll"><table class="legend-table"><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _round(number: int, tasks: Sequence[tuple[Task, State]], is_latest: bool, folder: Path) -> str:
    states = [state for _, state in tasks]
    is_open = is_latest or any(state.kind != "answered" for state in states)
    ordered = sorted(tasks, key=lambda item: _ORDER.index(item[1].kind))
    cards = "".join(_card(task, state, folder) for task, state in ordered)
    return (
        f"<details{' open' if is_open else ''}><summary>Round {number} <small>{_counts(states)}</small></summary>"
        f'<div class="tasks">{cards}</div></details>'
    )


def _card(task: Task, state: State, folder: Path) -> str:
    place = task.folder.relative_to(folder)
    name = text(printable(task.image_id))
    asked = (
        f"{_number(len(task.regions), 'region')}, {_number(task.pixels, 'pixel')} of {task.size[1]} x {task.size[0]}"
    )
    words = f"<p>{text(printable(state.words))}</p>" if state.words else ""
    goal = f"<p>save as <code>{text(printable(str(place / STEM)))}.png</code></p>" if state.kind != "answered" else ""
    return (
        f'<div class="task {state.kind}"><a href="{_link(place / REGIONS)}">'
        f'<img loading="lazy" src="{_link(place / REGIONS)}" alt="{name} with its regions outlined"></a>'
        f'<p><b>{name}</b></p><p>{asked}</p><p class="state">{_HEADS[state.kind]}</p>{words}{goal}'
        f'<p><a href="{_link(place)}/">folder</a> · <a href="{_link(place / task.image)}">image</a> · '
        f'<a href="{_link(place / TEMPLATE)}">template</a></p></div>'
    )


def _link(path: Path) -> str:
    """A path relative to the page, whatever characters it holds."""
    return quote(os.fsencode(path.as_posix()))
