"""DESIGN's one rule, read from the source: imports point down, or sideways within one floor without a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 0,
    "functional": 1,
    "data": 2,
    "weights": 3,
    "metrics": 4,
    "calibration": 5,
    "inference": 6,
    "export": 7,
    "regions": 8,
    "store": 9,
    "acquisition": 10,
    "auditing": 11,
    "losses": 11,
    "networks": 11,
    "task": 11,
    "testing": 11,
    "callbacks": 12,
    "annotators": 13,
    "active": 14,
    "cli": 15,
    "demo": 16,
}
EXEMPT = ("seguq/__init__.py", "seguq/__main__.py")
LIGHTNING = ("pytorch_lightning", "lightning")
# what is heavy or may be replaced one day stays behind a few files
ALLOWED = {
    "cv2": ("seguq/data/", "seguq/regions/", "seguq/export/"),
    "albumentations": ("seguq/data/",),
    **dict.fromkeys(LIGHTNING, ("seguq/core/lightning.py",)),
}


class Source:
    """One file of the package: its place below the root, its module's name, and its syntax tree."""

    def __init__(self, root, path):
        self.place = path.relative_to(root).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"), filename=self.place)
        parts = path.relative_to(root).with_suffix("").parts
        self.is_package = parts[-1] == "__init__"
        self.module = ".".join(parts[:-1] if self.is_package else parts)

    def imports(self, modules):
        """Line and module of every import in the file, also inside functions and by ``import_module("...")``.

        ``from a import b`` is an import of ``a.b`` where that is one of ``modules``, and of ``a`` otherwise.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node)
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if (base, alias.name) != ("seguq", "__version__"):
                        yield node.lineno, inner if inner in modules else base
            elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield node.lineno, name.value

    def _base(self, node):
        if not node.level:
            return node.module
        parts = self.module.split(".")
        package = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*package, node.module] if node.module else package)


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def sources(root):
    return [Source(root, path) for path in sorted((root / "seguq").rglob("*.py"))]


def floor_of(module):
    """The floor of a module of seguq; None where the table has none (the package itself hands on every floor)."""
    parts = module.split(".")
    return FLOORS.get(parts[1]) if len(parts) > 1 else None


def rises(root):
    """Imports that point up, imports through the package itself, and files that stand on no floor."""
    found = sources(root)
    modules = {source.module for source in found}
    out = []
    for source in found:
        if source.place in EXEMPT:
            continue
        floor = floor_of(source.module)
        if floor is None:
            out.append(f"{source.place} stands on no floor")
            continue
        for line, module in source.imports(modules):
            if module.split(".")[0] == "seguq":
                other = floor_of(module)
                if other is None or other > floor:
                    out.append(f"{source.place}:{line} imports {module}")
    return out


def circles(root):
    """Circles of imports between files, each as the list of its modules."""
    found = [source for source in sources(root) if source.place not in EXEMPT]
    modules = {source.module for source in found}
    graph = {source.module: {m for _, m in source.imports(modules) if m in modules} for source in found}
    out, done = [], set()

    def visit(module, trail):
        if module in trail:
            out.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return out


def strays(root, name):
    """Imports of the third-party package ``name`` from files that should not know it."""
    return [
        f"{source.place}:{line} imports {module}"
        for source in sources(root)
        for line, module in source.imports(set())
        if module.split(".")[0] == name and not source.place.startswith(ALLOWED[name])
    ]


def unsafe_loads(root):
    """Calls of ``torch.load``, however it is imported, that do not say ``weights_only=True``."""
    out = []
    for source in sources(root):
        torch_names, load_names = {"torch"}, set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                torch_names |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
            elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
                load_names |= {alias.asname or alias.name for alias in node.names if alias.name == "load"}
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)
            loads = {f"{name}{middle}.load" for name in torch_names for middle in ("", ".serialization")} | load_names
            safe = any(
                keyword.arg == "weights_only"
                and isinstance(keyword.value, ast.Constant)
                and keyword.value.value is True
                for keyword in node.keywords
            )
            if function in loads and not safe:
                out.append(f"{source.place}:{node.lineno} calls {function} without weights_only=True")
    return out


def test_the_checker_reads_the_files_of_the_package():
    places = {source.place for source in sources(ROOT)}
    assert {"seguq/__init__.py", "seguq/core/checks.py", "seguq/functional/uncertainty.py"} <= places


def test_imports_point_down():
    assert rises(ROOT) == []


def test_imports_make_no_circle():
    assert circles(ROOT) == []


@pytest.mark.parametrize("name", ["cv2", "albumentations"])
def test_only_the_folders_that_need_it_import(name):
    assert strays(ROOT, name) == []


@pytest.mark.parametrize("name", LIGHTNING)
def test_only_one_file_knows_the_names_of_lightning(name):
    assert strays(ROOT, name) == []


def test_torch_load_reads_weights_only():
    assert unsafe_loads(ROOT) == []


@pytest.fixture
def tree(tmp_path):
    """Write a small package of these files (place: text), each folder with an ``__init__.py``, and give its root."""

    def write(files):
        for place, text in {"__init__": "", **files}.items():
            path = tmp_path / "seguq" / f"{place}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if not (path.parent / "__init__.py").exists():
                (path.parent / "__init__.py").write_text("")
        return tmp_path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "import seguq.metrics.brier as b",
        "from seguq import metrics",
        "from ..metrics.brier import Brier",
        "def f():\n    import seguq.metrics",
        "import importlib\nimportlib.import_module('seguq.metrics')",
        "from seguq import TemperatureScaling",
    ],
)
def test_the_checker_catches_an_import_that_points_up(tree, text):
    root = tree({"metrics/brier": "", "core/errors": "", "data/images": text})
    assert len(rises(root)) == 1
    assert rises(root)[0].startswith("seguq/data/images.py:")


def test_the_checker_lets_an_import_pass_that_points_down_or_sideways(tree):
    text = "import math, metrics\nfrom ..core.errors import SeguqError\nfrom .masks import read"
    assert rises(tree({"metrics/brier": "", "core/errors": "", "data/masks": "", "data/images": text})) == []


def test_the_checker_catches_a_file_that_stands_on_no_floor(tree):
    assert rises(tree({"helpers": ""})) == ["seguq/helpers.py stands on no floor"]


def test_the_checker_exempts_the_package_itself(tree):
    files = {"metrics/brier": "", "__init__": "from seguq import metrics", "__main__": "import seguq.metrics"}
    assert rises(tree(files)) == []


def test_the_checker_catches_a_circle_also_through_the_init_of_a_folder(tree):
    assert circles(tree({"data/a": "from .b import x", "data/b": "def f():\n    from . import a"})) != []
    root = tree({"core/__init__": "from seguq.core.a import name", "core/a": "from seguq.core import name"})
    assert ["seguq.core", "seguq.core.a", "seguq.core"] in circles(root)


def test_the_checker_lets_two_ways_to_one_file_pass(tree):
    both = "from . import last"
    files = {"data/first": "from . import left, right", "data/left": both, "data/right": both, "data/last": ""}
    assert circles(tree(files)) == []


def test_the_checker_catches_a_package_in_the_wrong_file_and_lets_it_pass_in_its_own(tree):
    files = {"functional/maps": "def f():\n    import cv2", "export/png": "from cv2 import imwrite"}
    assert strays(tree(files), "cv2") == ["seguq/functional/maps.py:2 imports cv2"]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=trusted)",
        "from torch import load as read\nread(path)",
    ],
)
def test_the_checker_catches_a_load_that_runs_code(tree, text):
    assert len(unsafe_loads(tree({"data/a": text}))) == 1


def test_the_checker_lets_a_safe_load_pass(tree):
    text = "import torch, json\ntorch.load(path, map_location='cpu', weights_only=True)\njson.load(file)"
    assert unsafe_loads(tree({"data/a": text})) == []
