"""From a typed function to a command: its signature is the options, its docstring the help."""

from __future__ import annotations

import inspect
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
    switches = {
        f"--{name}"
        for name, item in inspect.signature(function).parameters.items()
        if item.annotation in (bool, "bool")
    }
    out: list[str] = []
    for i, word in enumerate(words):
        if not word.startswith("--"):
            out.append(word)
            continue
        option, equals, value = word.partition("=")
        option = "--" + option[2:].replace("-", "_")
        out.append(option + equals + value)
        following = words[i + 1].lower() if i + 1 < len(words) else ""
        if option in switches and not equals and following not in ("true", "false", "yes", "no"):
            out.append("true")
    return out
