"""The data and the training of the tests of the commands."""

from tests.cli.conftest import discs, trained

__all__ = ["discs", "trained"]
