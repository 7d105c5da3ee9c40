"""What all tests share."""

import os

import pytest

_FIRST = ("test_examples.py", "test_readme.py", "test_demo.py")


def pytest_collection_modifyitems(items):
    """The slowest files first: workers take whole files, and the last one is to end with the others."""
    items.sort(key=lambda item: item.path.name not in _FIRST)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
