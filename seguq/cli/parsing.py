"""From a typed function to a command: its signature is the options, its docstring the help."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from seguq.cli.classes import kinds_of, require_class, with_classes
from seguq.cli.config import require_configs
from seguq.core.errors import UsageError


def run_function(
    function: Callable[..., Any],
    name: str,
    words: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    epilog: str | None = None,
    check: Callable[[Mapping[str, Any], Collection[str]], None] | None = None,
    groups: Mapping[str, tuple[type, set[str]]] = MappingProxyType({}),
) -> Any:
    """Parse the words after a command by the function's signature, and call it.

    Options may be written with ``-`` or ``_``; a yes-or-no option stands alone (``--overwrite``) or with a value;
    ``--config FILE`` reads any of them from YAML. A parameter whose type is a kind of things known by name
    (`seguq.core.named.Named`) takes its name, that of its class or an import path of one's own, and options of the
    class after a dot: ``--strategy PowerTopK --strategy.beta 2``.

    Args:
        function: the command.
        name: what it is called.
        words: what was typed after that.
        defaults: of options, where a signature cannot have them.
        epilog: the last words of the help.
        check: looks at the options, and at the names of those that were typed, before the function is called.
        groups: by the names of parameters, classes whose arguments are options after a dot (``--model.classes``), and
            those of them that are none; the function is given them as a dict.

    Raises:
        UsageError: for a class that is not there, saying which there are.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    require_configs(words)
    description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    parser = ArgumentParser(prog=f"seguq {name}", description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    kinds = kinds_of(function)
    for kind in kinds.values():
        kind.names()  # imports them all: the parser knows a class by its name alone once it is there
    parser.add_function_arguments(function, as_group=False, fail_untyped=True, skip=set(groups))
    for key, (owner, skip) in groups.items():
        parser.add_class_arguments(owner, key, skip=skip, fail_untyped=False, instantiate=False)
    parser.set_defaults(dict(defaults or {}))
    if epilog and {"-h", "--help"} & set(words):
        parser.print_help()
        print(f"\n{epilog}")  # as it stands: the parser would make one paragraph of its lines
        return None
    try:
        given = with_classes(normalized(words, function), kinds, parser.parse_args)
        config = parser.parse_args(given)
    except argparse.ArgumentError as error:
        require_class(str(error), kinds)
        raise
    content = parser.instantiate_classes(config).as_dict()
    content.pop("config", None)
    require_no_nul(content)
    if check is not None:
        check(content, {word[2:].partition("=")[0] for word in given if word.startswith("--")})
    return function(**content)


def require_no_nul(options: Mapping[str, Any], prefix: str = "--") -> None:
    """Raise for an option with a NUL character, which no name of a file or of anything else has.

    Raises:
        UsageError: with the option.
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            require_no_nul(value, f"{prefix}{name}.")
        if any(isinstance(item, str) and "\0" in item for item in (value if isinstance(value, list) else [value])):
            raise UsageError(f"{prefix}{name} holds a NUL character, which no name has")


def normalized(words: Sequence[str], function: Callable[..., Any]) -> list[str]:
    """Options as the parser spells them.

    Example:
        >>> def command(out_dir: str, overwrite: bool = False) -> None: ...
        >>> normalized(["--out-dir", "a-b", "--overwrite"], command)
        ['--out_dir', 'a-b', '--overwrite', 'true']
    """
    parameters = inspect.signature(function).parameters
    switches = {f"--{name}" for name, item in parameters.items() if item.annotation in (bool, "bool")}
    lists = {f"--{name}" for name, item in parameters.items() if "list[" in str(item.annotation)}
    words = config_first(words)
    out: list[str] = []
    several: list[str] = []  # words after an option that takes a list, as a shell expands *.json
    for i, word in enumerate(words):
        if not word.startswith("--"):
            last = out[-1] if out else ""
            if several or (last in lists and not word.startswith("[") and word != "null"):
                several.append(word)
            else:
                out.append(word)
        if several and (word.startswith("--") or i + 1 == len(words)):
            out.append(json.dumps(several))
            several = []
        if not word.startswith("--"):
            continue
        out.append(underscored(word))
        option, equals, _ = out[-1].partition("=")
        following = words[i + 1].lower() if i + 1 < len(words) else ""
        if option in switches and not equals and following not in ("true", "false", "yes", "no"):
            out.append("true")
    return out


def underscored(word: str) -> str:
    """An option as the parser spells it: people write it with ``-`` or ``_``.

    Example:
        >>> underscored("--batch-size=a-b"), underscored("a-b")
        ('--batch_size=a-b', 'a-b')
    """
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def config_first(words: Sequence[str]) -> list[str]:
    """``--config FILE`` before all other options, so that these count whatever the order they were typed in.

    Example:
        >>> config_first(["--samples", "3", "--config", "a.yaml"])
        ['--config', 'a.yaml', '--samples', '3']
    """
    first: list[str] = []
    others: list[str] = []
    taken = 0
    for word in words:
        taken = 2 if word == "--config" else 1 if word.startswith("--config=") else taken
        (first if taken else others).append(word)
        taken = max(0, taken - 1)
    return first + others
