"""Fixtures: a tiny data set, and a cache home that is not the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from seguq.data import Classes
from tests.data.builders import build_dataset


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache home: nothing is remembered between tests, and nobody's home is touched."""
    home = tmp_path_factory.mktemp("cache-home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """4 train, 2 val, 2 test images of 40 x 48 pixels with masks of two classes, and a pool of 3 without masks."""
    return build_dataset(tmp_path / "data")


@pytest.fixture
def classes() -> Classes:
    """Three classes with colors, and a color for what is ignored."""
    return Classes(
        names=("background", "road", "tree"),
        colors=((0, 0, 0), (128, 64, 128), (1, 2, 3)),
        ignore_index=255,
        ignore_colors=((255, 255, 255),),
    )
