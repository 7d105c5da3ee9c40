"""DESIGN's one rule, read from the source: imports point down, or sideways within one floor without a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 0,
    "functional": 1,
    "data": 2,
    "calibration": 3,
    "inference": 4,
    "metrics": 5,
    "regions": 6,
    "acquisition": 7,
    "export": 8,
    "losses": 9,
    "networks": 9,
    "task": 9,
    "callbacks": 10,
    "audit": 11,
    "active": 12,
    "cli": 13,
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


ALL_WAYS_UP = [
    "import seguq.metrics",
    "import seguq.metrics.brier as b",
    "from seguq.metrics import brier",
    "from seguq.metrics.brier import Brier",
    "from seguq import metrics",
    "from seguq import metrics as m, core",
    "from ..metrics import brier",
    "from ..metrics.brier import Brier",
    "from .. import metrics",
    "def f():\n    from seguq.metrics import brier",
    "class A:\n    def f(self):\n        import seguq.metrics.brier",
    "if TYPE_CHECKING:\n    from seguq.metrics import brier",
    "import importlib\nimportlib.import_module('seguq.metrics')",
    "import seguq",
    "from seguq import TemperatureScaling",
    "from seguq import *",
]


@pytest.mark.parametrize("text", ALL_WAYS_UP)
def test_the_checker_catches_an_import_that_points_up(tree, text):
    root = tree({"metrics/brier": "", "core/errors": "", "data/images": text})
    assert len(rises(root)) == 1
    assert rises(root)[0].startswith("seguq/data/images.py:")


@pytest.mark.parametrize(
    "text",
    [
        "import math, torch, metrics",
        "from seguq import __version__",
        "from seguq import core",
        "from seguq.core import errors",
        "from seguq.core.errors import SeguqError",
        "from seguq.data import masks",
        "from . import masks",
        "from .masks import read",
        "from ..core.errors import SeguqError",
        "text = 'import seguq.metrics'",
    ],
)
def test_the_checker_lets_an_import_pass_that_points_down_or_sideways(tree, text):
    assert rises(tree({"metrics/brier": "", "core/errors": "", "data/masks": "", "data/images": text})) == []


def test_the_checker_lets_the_two_files_of_one_floor_import_each_other(tree):
    assert rises(tree({"losses": "", "task": "from seguq.losses import dice"})) == []


@pytest.mark.parametrize(
    ("low", "high"), [("task", "callbacks/a"), ("losses", "cli/a"), ("callbacks/a", "audit"), ("audit", "active/a")]
)
def test_the_checker_catches_an_import_between_the_upper_floors(tree, low, high):
    lower, upper = (f"seguq.{place.replace('/', '.')}" for place in (low, high))
    root = tree({low: f"import {upper}", high: f"import {lower}"})
    assert rises(root) == [f"seguq/{low}.py:1 imports {upper}"]


@pytest.mark.parametrize("text", ["from ..metrics import brier", "from seguq import metrics"])
def test_the_checker_reads_the_imports_of_a_folders_own_init(tree, text):
    assert len(rises(tree({"metrics/brier": "", "data/__init__": text}))) == 1


def test_the_checker_reads_what_a_folders_own_init_hands_on(tree):
    root = tree({"data/masks": "", "data/__init__": "from .masks import read\nfrom . import masks"})
    assert rises(root) == [] == circles(root)


def test_the_checker_catches_a_file_that_stands_on_no_floor(tree):
    assert rises(tree({"helpers": ""})) == ["seguq/helpers.py stands on no floor"]


def test_the_checker_exempts_the_package_itself(tree):
    files = {"metrics/brier": "", "__init__": "from seguq import metrics", "__main__": "import seguq.metrics"}
    assert rises(tree(files)) == []


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"data/a": "import seguq.data.b", "data/b": "import seguq.data.a"}, {"a", "b"}),
        ({"data/a": "def f():\n    from . import b", "data/b": "from .a import x"}, {"a", "b"}),
        (
            {"data/a": "from .b import x", "data/b": "from .c import x", "data/c": "from .a import x"},
            {"a", "b", "c"},
        ),
        ({"data/a": "from seguq.data.a import x"}, {"a"}),
    ],
)
def test_the_checker_catches_a_circle(tree, files, circle):
    (found,) = circles(tree(files))
    assert {module.removeprefix("seguq.data.") for module in found} == circle


def test_the_checker_catches_a_circle_through_the_init_of_a_folder(tree):
    root = tree({"data/__init__": "from seguq.data.a import name", "data/a": "from seguq.data import name"})
    assert circles(root) == [["seguq.data", "seguq.data.a", "seguq.data"]]


def test_the_checker_lets_two_ways_to_one_file_pass(tree):
    both = "from . import last"
    files = {"data/first": "from . import left, right", "data/left": both, "data/right": both, "data/last": ""}
    assert circles(tree(files)) == []


@pytest.mark.parametrize(
    ("name", "place", "text"),
    [
        ("cv2", "functional/maps", "import cv2"),
        ("cv2", "inference/maps", "def f():\n    import cv2"),
        ("albumentations", "export/maps", "from albumentations.core import transforms"),
        ("pytorch_lightning", "core/log", "from pytorch_lightning.loggers import Logger"),
        ("lightning", "callbacks/calibrate", "import lightning.pytorch as pl"),
        ("lightning", "callbacks/calibrate", "import importlib\nimportlib.import_module('lightning.pytorch')"),
    ],
)
def test_the_checker_catches_a_package_in_the_wrong_file(tree, name, place, text):
    assert len(strays(tree({place: text}), name)) == 1


@pytest.mark.parametrize(
    ("name", "place", "text"),
    [
        ("cv2", "regions/slic", "import cv2"),
        ("cv2", "export/png", "from cv2 import imwrite"),
        ("albumentations", "data/pipelines", "import albumentations as A"),
        ("pytorch_lightning", "core/lightning", "import pytorch_lightning"),
        ("lightning", "task", "from seguq.core.lightning import Trainer\nimport lightning_utilities"),
    ],
)
def test_the_checker_lets_a_package_pass_in_its_own_file(tree, name, place, text):
    assert strays(tree({place: text}), name) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "import torch as t\nt.load(path)",
        "from torch import load\nload(path)",
        "from torch import load as read\nread(path)",
        "import torch\ntorch.serialization.load(path)",
        "from torch.serialization import load\nload(path)",
    ],
)
def test_the_checker_catches_a_load_that_runs_code(tree, text):
    assert len(unsafe_loads(tree({"data/a": text}))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(path, map_location='cpu', weights_only=True)",
        "import json\njson.load(file)",
        "UncertaintyMaps.load(path)",
    ],
)
def test_the_checker_lets_a_safe_load_pass(tree, text):
    assert unsafe_loads(tree({"data/a": text})) == []
