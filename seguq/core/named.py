"""What is known by a name: calibrators, estimators, partitions, strategies, annotators.

**To add one is to add a file.** A class that derives from `Named` itself is a *kind* (`Calibrator`, `Strategy`, ...).
Each class of a kind is known by its ``name`` once its module is imported; those in the kind's own folder are looked for
there, the file whose name is most like theirs first, so that nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from seguq.core.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T", bound="Named")


class Named:
    """A class that can be asked for by name, and whose objects know the arguments that they were made with.

    A constructor's arguments are kept in attributes of the same names (``stored_as`` says where not), as they were
    given. ``**settings`` of a constructor are the arguments of the class that it derives from.

    Attributes:
        name: by default that of the class.
    """

    name: ClassVar[str]
    stored_as: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Arguments that are kept elsewhere: their attribute, or the attribute of one, as in ``windows.overlap``."""
    _known: ClassVar[dict[str, type[Any]]]
    _kind: ClassVar[type[Any]]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if Named in cls.__bases__:
            cls._known, cls._kind = {}, cls
            return
        if "name" not in vars(cls):
            cls.name = cls.__name__
        if cls.__name__.startswith("_"):  # of a module alone
            return
        for name in (cls.name, cls.__name__):
            taken = cls._known.get(name)
            if taken is not None and _is_ours(taken) and _full(taken) != _full(cls):
                raise UsageError(
                    f"the name {name!r} is that of {_full(taken)}: give the {cls._kind.__name__} {_full(cls)} "
                    "another one"
                )
            cls._known[name] = cls

    # ---- by name ----

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """The class of this kind with a name: its ``name``, the name of the class, or for one's own an import path.

        Raises:
            UsageError: if there is none, saying which there are.

        Example:
            >>> from seguq.calibration import Calibrator
            >>> Calibrator.named("global").__name__
            'TemperatureScaling'
        """
        if not isinstance(name, str) or not name:
            raise UsageError(f"a {cls._kind.__name__} is asked for by name, but the name is {name!r}")
        if "." in name:
            return cls._imported(name)
        for module in cls._files(like=name):
            if cls._there(name):
                break
            importlib.import_module(module)
        if not cls._there(name):
            raise UsageError(
                f"there is no {cls._kind.__name__} {name!r}: there are {', '.join(cls.names())}; one of your own is "
                "named by its import path, such as my_module.MyClass"
            )
        return cls._known[name]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of this kind that there are, those of one's own that were imported too, sorted."""
        for module in cls._files():
            importlib.import_module(module)
        return tuple(sorted({found.name for found in cls._known.values() if cls._there(found.name)}))

    @classmethod
    def make(cls, name: str, **offered: Any) -> Self:
        """An object of the class with a name, given those of the arguments on offer that its constructor takes.

        Raises:
            UsageError: if there is no such class, or if it needs what is not on offer.
        """
        found = cls.named(name)
        takes = found.constructor_arguments()
        missing = [key for key, item in takes.items() if item.default is item.empty and key not in offered]
        if missing:
            raise UsageError(
                f"{found.__name__} needs {', '.join(missing)}, which is not known where it is asked for by name: make "
                f"one as {found.__name__}({', '.join(f'{key}=...' for key in missing)}), and pass that"
            )
        return found(**{key: value for key, value in offered.items() if key in takes})

    @classmethod
    def _there(cls, name: str) -> bool:
        found = cls._known.get(name)
        return found is not None and issubclass(found, cls) and not inspect.isabstract(found)

    @classmethod
    def _imported(cls, path: str) -> type[Self]:
        found = imported(path)
        if not (inspect.isclass(found) and issubclass(found, cls)):
            raise UsageError(f"{path} is no {cls._kind.__name__}: it must derive from {_path(cls._kind)}")
        if inspect.isabstract(found):
            missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
            raise UsageError(f"{path} is no {cls._kind.__name__} yet: it must define {missing}")
        return found

    @classmethod
    def _files(cls, like: str = "") -> list[str]:
        """The modules in the kind's folder, those with a name like a given one first."""
        package = cls._kind.__module__.rpartition(".")[0]
        found = modules_of(package)
        return sorted(found, key=lambda module: _plain(module.rpartition(".")[2]) != _plain(like))

    # ---- what it was made with ----

    @classmethod
    def constructor_arguments(cls) -> dict[str, inspect.Parameter]:
        """The arguments of the constructor by name, those of ``**settings`` too."""
        found: dict[str, inspect.Parameter] = {}
        for owner in cls.__mro__:
            if "__init__" not in vars(owner):
                continue
            own = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
            found |= {item.name: item for item in own if item.kind not in _VARIABLE and item.name not in found}
            if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in own):
                break
        return found

    def arguments(self) -> dict[str, Any]:
        """What it was made with: ``type(self)(**self.arguments())`` is another one like it.

        Example:
            >>> from seguq import TemperatureScaling
            >>> TemperatureScaling(ignore_index=0).arguments()
            {'task': 'multiclass', 'ignore_index': 0}
        """
        found = {}
        for name in self.constructor_arguments():
            try:
                found[name] = attrgetter(self.stored_as.get(name, name))(self)
            except AttributeError as error:
                raise UsageError(
                    f"{type(self).__name__} takes the argument {name!r}, but does not keep it: set self.{name} in its "
                    "__init__, or say in stored_as where it is kept"
                ) from error
        return found

    def fitted(self) -> dict[str, Any]:
        """What it has learned, as plain values for people."""
        return {}

    def __repr__(self) -> str:
        defaults = {name: item.default for name, item in self.constructor_arguments().items()}
        given = [f"{n}={_short(v)}" for n, v in self.arguments().items() if not _same(v, defaults[n])]
        fitted = ", ".join(f"{name}={_rounded(value)}" for name, value in self.fitted().items())
        return f"{type(self).__name__}({', '.join(given)})" + (f" [{fitted}]" if fitted else "")


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@functools.cache
def modules_of(package: str) -> tuple[str, ...]:
    """The modules in a package and in the packages within it, by their file names: nothing of them is imported."""
    found: list[str] = []
    folders = [(package, list(importlib.import_module(package).__path__))]
    for prefix, path in folders:
        for finder, name, is_package in pkgutil.iter_modules(path):
            if is_package:
                folders.append((f"{prefix}.{name}", [f"{finder.path}/{name}"]))  # type: ignore[union-attr]
            else:
                found.append(f"{prefix}.{name}")
    return tuple(sorted(found))


def imported(path: str) -> Any:
    """What lies at an import path, as ``my_module.MyClass``.

    Raises:
        UsageError: if nothing does.
    """
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{path} cannot be imported ({error})") from error


def hand_on(*kinds: type[Named]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a folder of kinds: their classes, each imported when it is first asked for (PEP 562)."""
    package = kinds[0].__module__.rpartition(".")[0]

    def __getattr__(name: str) -> Any:
        missing = f"module {package!r} has no attribute {name!r}"
        if not name[:1].isupper():  # no class: many tools look for what is not there
            raise AttributeError(missing)
        for kind in kinds:
            try:
                return kind.named(name)
            except UsageError:
                pass  # it may be of the next kind
        raise AttributeError(missing)

    return __getattr__


def _full(found: type[Any]) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _is_ours(found: type[Any]) -> bool:
    return found.__module__.partition(".")[0] == __name__.partition(".")[0]


def _path(found: type[Any]) -> str:
    return f"{found.__module__.rpartition('.')[0]}.{found.__name__}"


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _same(value: Any, default: Any) -> bool:
    try:
        return value is default or (type(value) is type(default) and bool(value == default))
    except Exception:  # of tensors and arrays there is no one answer
        return False


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_short, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    text = repr(value)
    return f"<{type(value).__name__}>" if "\n" in text or inspect.isroutine(value) else text  # networks, functions


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
