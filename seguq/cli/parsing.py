"""From a typed function to a command: its signature is the options, its docstring the help."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any


def run_function(function: Callable[..., Any], name: str, words: Sequence[str]) -> Any:
    """Parse the words after a command by the function's signature, and call it.

    Options may be written with ``-`` or ``_``; a yes-or-no option stands alone (``--overwrite``) or with a value;
    ``--config FILE`` reads any of them from YAML.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    parser = ArgumentParser(prog=f"seguq {name}", description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    parser.add_function_arguments(function, as_group=False, fail_untyped=True)
    config = parser.parse_args(normalized(words, function))
    content = parser.instantiate_classes(config).as_dict()
    content.pop("config", None)
    return function(**content)


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
    for i, word in enumerate(words):
        if not word.startswith("--"):
            one = bool(out) and out[-1] in lists and not word.startswith("[") and word != "null"
            out.append(json.dumps([word]) if one else word)
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
