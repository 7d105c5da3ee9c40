"""Options that name a class, and those of the class after a dot: ``--strategy PowerTopK --strategy.beta 2``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from seguq.core.errors import UsageError
from seguq.core.named import Named

_INSIDE = "inner"  # the option of a class that names another of its kind


def kinds_of(function: Callable[..., Any]) -> dict[str, type[Named]]:
    """The parameters of a function that take something known by name, and the kind of it.

    Example:
        >>> from seguq.regions import Partition
        >>> def command(out: str, partition: Partition | None = None) -> None: ...
        >>> kinds_of(command)["partition"].__name__
        'Partition'
    """
    found: dict[str, type[Named]] = {}
    for name, hint in get_type_hints(function).items():
        for item in (hint, *get_args(hint)):
            if inspect.isclass(item) and issubclass(item, Named):
                found[name] = item
    return found


def with_classes(
    words: Sequence[str], kinds: Mapping[str, type[Named]], parse: Callable[[list[str]], Any]
) -> list[str]:
    """The words of a command, in which what has options of its own is named by its class, before these options.

    The parser knows the options of a class only where it was named as a class: a name such as ``mc_dropout`` is put
    into its import path, be it typed, from a file of options, or the default.

    Args:
        words: as the parser spells them.
        kinds: as `kinds_of` gives them.
        parse: from words to options.

    Raises:
        UsageError: for an unknown name, or an option of a class that is given twice.
    """
    for key, kind in kinds.items():
        dotted = [_option(word) for word in words if word.startswith(f"--{key}.")]
        if not dotted or f"--{key}.help" in dotted:
            continue
        twice = next((option for option in dotted if dotted.count(option) > 1), None)
        if twice is not None:
            raise UsageError(f"{twice} is given twice")
        named, others = _named(words, key)
        empty = next((option for option in named if not named[option]), None)
        if empty is not None:
            raise UsageError(f"{empty} names the {kind.__name__}: pass one of {', '.join(kind.names())}")
        if f"--{key}" not in named:
            plain = [word for word, option in _with_options(others) if not option.startswith(f"--{key}.")]
            known = parse([word for word in plain if not word.startswith("--print_config")])
            named = {**_known(known.get(key), f"--{key}", dotted), **named}
        classes = [word for option in sorted(named, key=len) for word in (option, _class(kind, option, named[option]))]
        configs = 2 * sum(word == "--config" for word in others) + sum(word.startswith("--config=") for word in others)
        words = [*others[:configs], *classes, *others[configs:]]
    return list(words)


def _option(word: str) -> str:
    return word.partition("=")[0]


def _with_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Each word with the option that it is, or belongs to."""
    found, option = [], ""
    for word in words:
        option = _option(word) if word.startswith("--") else option
        found.append((word, option))
    return found


def _named(words: Sequence[str], key: str) -> tuple[dict[str, str], list[str]]:
    """The options that name a class, with what they name, and all other words."""
    naming = re.compile(rf"--{key}(\.{_INSIDE})*")
    named: dict[str, str] = {}
    others: list[str] = []
    for word, option in _with_options(words):
        if not naming.fullmatch(option):
            others.append(word)
        else:
            named[option] = word.partition("=")[2] if word.startswith("--") else word
    return named, others


def _known(value: Any, option: str, dotted: Sequence[str]) -> dict[str, str]:
    """What a file of options, or the default, names where options of it were typed."""
    while value is not None and any(item.startswith(f"{option}.") for item in dotted):
        if isinstance(value, str):
            return {option: value}
        value, option = (value.get("init_args") or {}).get(_INSIDE), f"{option}.{_INSIDE}"
    return {}


def _class(kind: type[Named], option: str, name: str) -> str:
    """The import path of a class that is known by its name; what is none is left to the parser."""
    if not name.replace("_", "").replace(".", "").isalnum():
        return name  # JSON, or the like
    try:
        found = kind.named(name)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None
    return f"{found.__module__}.{found.__qualname__}"


def require_class(message: str, kinds: Mapping[str, type[Named]]) -> None:
    """Say better than the parser what is wrong with the class, or the option of a class, that was asked for.

    Args:
        message: what the parser says.
        kinds: as `kinds_of` gives them.

    Raises:
        UsageError: where that is what is wrong.
    """
    first = re.match(r'(?:error: )?(?:Parser key "([^"]+)"|(?:argument )?--(\w+)\.help)\s*:', message)
    kind = kinds.get((first[1] or first[2]).split(".")[0]) if first else None
    if first is None or kind is None:
        return
    option, found, at = f"--{first[1] or first[2]}", None, ""
    inner = message[first.end() :]
    of_another = False  # whether what is said is of a class of another kind
    for key, path in re.findall(r'Parser key "([^"]+)"|class_path \'([^\']+)\'', inner):
        if key:
            option = f"{option}.{key}"
            continue
        try:
            found, at, of_another = kind.named(path), option, False
        except UsageError:
            of_another = True
    asked = re.search(r"Expected a dot import path string: (\S+)", message)
    if asked and found is not None and option != at and option.rpartition(".")[2] not in _inside(found):
        raise UsageError(f"{option} must be the import path of a class, but is {asked[1]!r}")
    given = re.search(r"Given value: ([\w.]+)\s*$", message)
    name = asked or (given if found is None else None)
    if name:
        try:
            known = kind.named(name[1])
        except UsageError as error:
            raise UsageError(f"{option}: {error}") from None
        if asked and known.__name__ != name[1]:
            raise UsageError(f"{option}: as class_path {name[1]!r} is written as its class, {known.__name__}")
    elif re.search(r"Given value: \{", message) and "class_path" not in message:
        raise UsageError(f"{option} takes a name, or class_path with the options of the class below init_args")
    unknown = re.search(r"Option '([^']+)' is not accepted", message)
    if "instantiatable class" in message and unknown is not None:
        raise UsageError(f"{option}.{unknown[1]} is an option of a class that is not named: pass {option} NAME, too")
    required = re.search(r"arguments are required: ([\w, ]+)", message)
    if found is not None and unknown is not None and not of_another:
        takes = ", ".join(f"{at}.{item}" for item in found.constructor_arguments() if item != unknown[1]) or "none"
        raise UsageError(f"{found.__name__} has no option {at}.{unknown[1]}; its options: {takes}")
    if found is not None and required is not None:
        needed = ", ".join(f"{at}.{item.strip()}" for item in required[1].split(","))
        raise UsageError(f"{found.__name__} needs {needed}")
    expected = re.search(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]*)\])", inner)
    value = re.search(r"(?:Got value|Given value): (.*?)\s*$", inner, re.MULTILINE)
    if found is not None and option != at and expected and value:
        choices = (expected[2] or "").replace("'", "")
        wanted = f"one of {choices}" if choices else in_words(expected[1])
        raise UsageError(f"{option} must be {wanted}, but is {value[1]!r}")


def _inside(found: type[Named]) -> list[str]:
    """The options of a class that name another one by its class."""
    kinds = {owner.__name__ for owner in found.__mro__ if Named in owner.__bases__}
    arguments = found.constructor_arguments()
    return [name for name, item in arguments.items() if name == _INSIDE or kinds & set(str(item.annotation).split())]


def in_words(kind: str) -> str:
    """A type of Python as people say it.

    Example:
        >>> in_words("int"), in_words("collections.abc.Sequence")
        ('a whole number', 'a list, as [a, b]')
    """
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    lists = dict.fromkeys(("list", "Sequence", "Iterable"), "a list, as [a, b]")
    return {**words, **lists}.get(kind.rpartition(".")[2], kind)
