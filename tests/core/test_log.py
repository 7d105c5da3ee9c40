"""Who shows what is logged."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from seguq.core.log import logger, to_terminal

SAY = "import logging\n{}\nfrom seguq.core.log import logger\nlogger.info('hello')"


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", "seguq: hello"),
        ("logging.basicConfig(level='INFO', format='mine %(message)s')", "mine hello"),
        ("logging.getLogger().addHandler(logging.NullHandler())", ""),
        ("logging.getLogger('seguq').setLevel('WARNING')", ""),
        ("logging.getLogger('seguq').addHandler(logging.NullHandler())", ""),
        ("logging.basicConfig(); logging.getLogger('seguq').propagate = False", "seguq: hello"),
    ],
)
def test_a_programs_own_logging_decides_alone(setup: str, shown: str) -> None:
    told = subprocess.run([sys.executable, "-c", SAY.format(setup)], capture_output=True, text=True, check=True)
    assert told.stderr.strip() == shown


def test_records_reach_a_programs_handlers_but_those_of_a_command(caplog: pytest.LogCaptureFixture) -> None:
    with to_terminal():
        logger.info("by a command")
    logger.info("by a callback")
    assert [record.getMessage() for record in caplog.records] == ["by a callback"]
    assert logging.getLogger("seguq").propagate
