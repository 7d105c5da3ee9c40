"""What names of files may not do to a terminal: markup, emoji codes, line ends, control codes."""

from __future__ import annotations

import logging

import pytest

from seguq.cli.common import print_table
from seguq.core.errors import SeguqError, printable
from seguq.core.log import logger
from seguq.core.progress import progress

NAMES = ["scan[/a].png", ":cat:", "a\nb", "\x1b[31mred", "\x1b]0;title\x07", "Z\udcfcrich", "\u202egnp.exe", "[bold]"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_table_shows_a_name_as_it_is_on_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(name, ["column", name], [[name, name]], name)
    shown = capsys.readouterr().out
    assert shown.count(printable(name)) == 5
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_bar_shows_a_name_as_it_is_on_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1], name)) == [1]
    assert printable(name) in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_log_line_and_an_error_are_one_printable_line(name: str) -> None:
    record = logger.makeRecord("seguq", logging.INFO, "file", 1, "%s left out", (name,), None)
    assert logger.handlers[0].format(record) == f"seguq: {printable(name)} left out"
    assert str(SeguqError(f"{name} is empty")) == f"{printable(name)} is empty"
