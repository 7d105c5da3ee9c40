"""Folders in memory, where there are any: a loop waits for the disk more than for anything else."""

import shutil
import tempfile
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def in_memory():
    folder = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tmp_path(in_memory):
    return Path(tempfile.mkdtemp(dir=in_memory))


@pytest.fixture(scope="module")
def shared_path(in_memory):
    return Path(tempfile.mkdtemp(dir=in_memory))
