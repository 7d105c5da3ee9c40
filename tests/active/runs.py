"""Run folders as a loop leaves them, made without training: nuclei-mini, a grid of cells, masks that are known."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from seguq.acquisition import Selection
from seguq.data import Classes, ImageSource, nuclei_mini, read_mask
from seguq.export import write_index_png

STEPS = ("score", "select", "send", "collect", "train", "calibrate", "evaluate", "report")
CELL = 32
BEGUN = datetime(2026, 11, 2, 8, 0, tzinfo=timezone.utc)


def nuclei() -> tuple[ImageSource, Classes]:
    """The images that are chosen from, and their classes."""
    root = nuclei_mini()
    return ImageSource(root / "images" / "pool"), Classes.read(root / "classes.json")


def mask_of(image_id: str) -> Any:
    root = nuclei_mini()
    return read_mask(root / "masks" / "pool" / f"{image_id}.png", Classes.read(root / "classes.json"))


class Run:
    """A run folder that is written piece by piece.

    Args:
        folder: where.
        per_round: regions that each round asks for.
        seed: of what is chosen, and of the figures.
        forked_from: what loop.json says of that.
    """

    def __init__(self, folder: Path, per_round: int = 24, seed: int = 0, forked_from: Any = None) -> None:
        self.folder, self.per_round = folder, per_round
        self.generator = np.random.default_rng(seed)
        self.images, self.classes = nuclei()
        self.now, self.taken, self.labeled = BEGUN, set[tuple[str, int]](), {"regions": 0, "pixels": 0, "clicks": 0}
        self.visited = set[str]()
        folder.mkdir(parents=True)
        content = {"version": 1, "written_by": "seguq.ActiveLearningLoop", "settings": {"seed": seed}}
        (folder / "loop.json").write_text(json.dumps(content | {"forked_from": forked_from}))
        with closing(self.connection()) as journal, journal:
            journal.execute("PRAGMA journal_mode=WAL")
            journal.execute(
                "CREATE TABLE events(id INTEGER PRIMARY KEY, time TEXT, round INTEGER, step TEXT, event TEXT, "
                "content TEXT)"
            )

    def connection(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "journal.sqlite")

    def event(self, number: int, step: str, event: str, content: Any = None, minutes: float = 1) -> None:
        """Write a line of the journal, so many minutes after the last."""
        self.now += timedelta(minutes=minutes)
        row = (self.now.isoformat(), number, step, event, json.dumps(content))
        with closing(self.connection()) as journal, journal:
            journal.execute("INSERT INTO events(time, round, step, event, content) VALUES (?, ?, ?, ?, ?)", row)

    def step(self, number: int, step: str, minutes: float = 1) -> None:
        self.event(number, step, "begin", minutes=0)
        self.event(number, step, "end", {}, minutes)

    def round(self, number: int) -> Path:
        path = self.folder / f"round-{number:02d}"
        path.mkdir(exist_ok=True)
        return path

    def select(self, number: int) -> Selection:
        """Choose cells: some of them where nuclei are, predicted right most of the time."""
        ids = list(self.images.ids)
        self.generator.shuffle(ids)
        rows: list[dict[str, Any]] = []
        for i in range(self.per_round):
            image_id = ids[(i * 2 // 3) % len(ids)]
            height, width = self.images.size(image_id)
            columns = width // CELL
            free = [n for n in range(height // CELL * columns) if (image_id, n) not in self.taken]
            cell = int(self.generator.choice(free))
            self.taken.add((image_id, cell))
            y0, x0 = cell // columns * CELL, cell % columns * CELL
            part = mask_of(image_id)[y0 : y0 + CELL, x0 : x0 + CELL]
            right = int(np.bincount(part.ravel(), minlength=2)[:2].argmax())
            predicted = right if self.generator.random() < 0.5 + 0.1 * number else 1 - right
            rows.append(
                {"image_id": image_id, "region_id": cell, "y0": y0, "x0": x0, "y1": y0 + CELL, "x1": x0 + CELL,
                 "area": CELL * CELL, "score": round(0.9 - 0.02 * i, 4), "predicted_class": predicted,
                 "rank": i + 1, "reason": f"one of the best of its image: smallest margin {0.9 - 0.02 * i:.3f}",
                 "height": height, "width": width}
            )  # fmt: skip
        why = {"strategy": "BestOfEachImage()", "by": "smallest_margin", "round": number, "seed": 0,
               "budget": {"regions": self.per_round}}  # fmt: skip
        selection = Selection(rows, why)
        self.step(number, "score", 2)
        self.step(number, "select", 1)
        selection.save(self.round(number) / "selection.json")
        self.step(number, "send", 0.1)
        self.event(number, "collect", "begin")
        return selection

    def answer(self, number: int, selection: Selection, images: int | None = None, again: bool = False) -> None:
        """What people have labeled comes back, image by image: of the first so many."""
        for image_id in selection.image_ids[:images]:
            rows = selection.in_image(image_id)
            self._answer_file(number, image_id, rows)
            keys = [[row[name] for name in ("region_id", "y0", "x0", "y1", "x1")] for row in rows]
            for _ in range(1 + again):
                content = {"image_id": image_id, "rows": keys, "clicks": 5 * len(rows), "asked": selection.why["round"]}
                self.event(number, "collect", "answer", content, 9)
            self.labeled["clicks"] += 5 * len(rows)
            self.labeled["regions"] += len(rows)
            self.labeled["pixels"] += sum(row["area"] for row in rows)
            self.visited.add(image_id)

    def _answer_file(self, number: int, image_id: str, rows: Any) -> None:
        mask = mask_of(image_id)
        out = np.full(mask.shape, self.classes.ignore_index)
        for row in rows:
            box = slice(row["y0"], row["y1"]), slice(row["x0"], row["x1"])
            out[box] = mask[box]
        path = self.round(number) / "answers" / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        write_index_png(path, out)

    def close(self, number: int, judged: bool = True) -> None:
        """All of a round after the answers."""
        self.event(number, "collect", "end", {})
        for step, minutes in zip(STEPS[4:], (30, 1, 2, 0.2), strict=True):
            self.step(number, step, minutes)
        (self.round(number) / "metrics.json").write_text(json.dumps(self.metrics(number, judged)))

    def metrics(self, number: int, judged: bool = True) -> dict[str, Any]:
        value = 0.72 - 0.3 * 0.55**number + float(self.generator.normal(0, 0.008))
        half = 0.035 - 0.003 * number
        grown = 0.3 * (0.55 ** (number - 1) - 0.55**number)
        figures = {
            name: {"value": at, "low": at - width, "high": at + width}
            for name, at, width in (
                ("miou", value, half), ("accuracy", 0.8 + value / 5, half / 2), ("ece", 0.08 - value / 20, 0.01),
                ("nll", 1 - value, half),
            )
        }  # fmt: skip
        gain = {"miou": {"value": grown, "low": grown - 0.015, "high": grown + 0.015}, "since": number - 1}
        regions = sum((h // CELL) * (w // CELL) for h, w in map(self.images.size, self.images.ids))
        return {
            "version": 1, "round": number, "split": "test" if judged else None, "images": 12 if judged else 0,
            "groups": 12 if judged else 0, "metrics": figures if judged else {},
            "gain": gain if number and judged else None, "labeled": self.labeled | {"images": len(self.visited)},
            "pool": {"regions": regions, "pixels": regions * CELL * CELL, "images": len(self.images)},
            "selected": {"regions": self.per_round, "answered": self.per_round, "spent": self.per_round,
                         "budget": {"regions": self.per_round}},
            "seconds": {"score": 120.0, "select": 60.0, "train": 1800.0},
        }  # fmt: skip

    def whole_round(self, number: int) -> None:
        selection = self.select(number)
        self.answer(number, selection)
        self.close(number)


def finished(folder: Path, rounds: int = 5, **settings: Any) -> Run:
    """A run of so many rounds, all closed."""
    run = Run(folder, **settings)
    for number in range(rounds):
        run.whole_round(number)
    return run
