"""The command line: ``seguq demo | fit | calibrate | predict | score | select``."""

from seguq.cli.main import main

__all__ = ["main"]
