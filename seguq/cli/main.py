"""Which command is meant, and what a person reads when it goes wrong."""

from __future__ import annotations

import difflib
import importlib
import os
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from seguq import __version__
from seguq.cli import loop
from seguq.core.errors import SeguqError, UsageError, printable
from seguq.core.log import to_terminal
from seguq.core.out_of_memory import not_enough_memory, ran_out_of_memory

_COMMANDS = {
    "demo": "train a small model on real images and look at what it does not know (start here)",
    "fit": "train a segmentation model on a folder of images and masks",
    "calibrate": "fit a calibrator on held-out images and keep it in the checkpoint",
    "predict": "uncertainty maps and pictures for any folder of images",
    "score": "from maps to a table of scored regions",
    "select": "from scores to the list of regions to label next",
    "loop": f"active learning, round after round: {', '.join(loop.COMMANDS)}",
    "benchmark": "compare ways of choosing what to label, on a data set with all labels",
}
_GROUPS = {"loop": loop.COMMANDS}  # commands of two words
_MODULES = {"demo": "seguq.demo.run"}  # it stands above the command line, whose commands it calls
_TAKES_LESS = {
    "demo": "pass fewer --images",
    "fit": "pass a smaller --data.batch_size, a --data.crop or --data.size, or fewer --data.num_workers",
    "calibrate": "pass a smaller --batch_size, a --size, or fewer --num_workers",
    "predict": "pass a smaller --batch_size, a --size, fewer --measures, or fewer --num_workers",
    "score": "predict with fewer --measures and without --save_probs",
    "select": "leave --predictions out, so that nothing is drawn",
    "loop run": "pass a smaller --data.batch_size, a --data.crop, or fewer --data.num_workers",
    "loop plot": "draw fewer runs",
    "benchmark": "pass a smaller --data.batch_size, a --data.crop, or fewer --data.num_workers",
}
_DEBUG, _IMPORT = "--debug", "--import"


def _overview() -> str:
    lines = [f"  {name:<11}{summary}" for name, summary in _COMMANDS.items()]
    return "\n".join(
        [
            f"seguq {__version__}: what a segmentation model does not know, and what to label next",
            "",
            "usage: seguq COMMAND [options]",
            "",
            *lines,
            "",
            "seguq COMMAND --help explains one of them; each has a file in configs/, used by --config FILE.",
            "--import MODULE, after any command, loads a module of your own, whose classes are then known by name.",
            "--debug, after any command, shows the whole traceback of an error.",
        ]
    )


def _overview_of(group: str) -> str:
    """The commands of two words that begin with one."""
    lines = [f"  {name:<11}{summary}" for name, summary in _GROUPS[group].items()]
    head = [f"usage: seguq {group} COMMAND [options]", ""]
    return "\n".join([*head, *lines, "", f"seguq {group} COMMAND --help explains one of them."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``seguq``; by default those of this process.

    Returns:
        0: fine; 1: failed; 2: wrong use; 130: stopped by the user.
    """
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `seguq ... | head` has read enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it when it ends)
        return 0
    return status


def _main(words: list[str]) -> int:
    debug = _DEBUG in words
    words = [word for word in words if word != _DEBUG]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"seguq {__version__}")
        return 0
    command, *rest = words
    if command not in _COMMANDS:
        return _no_command("seguq", command, list(_COMMANDS))
    module = _MODULES.get(command, f"seguq.cli.{command}")
    if command in _GROUPS:
        if not rest or rest[0] in ("-h", "--help", "help"):
            print(_overview_of(command))
            return 0 if rest else 2
        word, *rest = rest
        if word not in _GROUPS[command]:
            return _no_command(f"seguq {command}", word, list(_GROUPS[command]))
        module, command = f"{module}_{word}", f"{command} {word}"
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say comes as a sentence of ours
    if os.getcwd() not in sys.path and "" not in sys.path:  # a script has its own folder there instead
        sys.path.append(os.getcwd())  # for classes of one's own, by their import paths
    try:
        with warnings.catch_warnings(), to_terminal():
            if not debug:
                _plain_warnings()
            rest = _without_imports(rest)
            importlib.import_module(module).run(rest)
    except KeyboardInterrupt:
        return _complain(f"seguq {command}: stopped", 130)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else _complain(str(stop.code), 2)
    except Exception as error:
        if debug:
            raise
        return _explain(command, error)
    return 0


def _no_command(name: str, command: str, commands: Sequence[str]) -> int:
    close = difflib.get_close_matches(command, commands, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"commands are {', '.join(commands)}"
    return _complain(f"{name}: there is no command {command!r}; {hint}", 2)


def _without_imports(words: list[str]) -> list[str]:
    """Import the modules that were asked for; gives the other words."""
    others, wanted = [], iter(words)
    for word in wanted:
        option, equals, module = word.partition("=")
        if option != _IMPORT:
            others.append(word)
            continue
        module = module if equals else next(wanted, "")
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # a script that ends itself would end the command without a word
            raise UsageError(f"{_IMPORT} {module}: it cannot be loaded ({type(error).__name__}: {error})") from error
    return others


def _explain(command: str, error: Exception) -> int:
    import argparse

    name = f"seguq {command}"
    if isinstance(error, argparse.ArgumentError):
        message = _one_sentence(str(error).strip().removeprefix("error: "))
        return _complain(f"{name}: {message} (see {name} --help)", 2)
    cause: BaseException | None = error
    while cause is not None:  # libraries wrap an error that comes up in a callback or a constructor
        if isinstance(cause, SeguqError):
            # what is written on a thread of its own says whose it was
            return _complain(
                f"{name}: {str(cause).removeprefix(f'{name}: ')}", 2 if isinstance(cause, UsageError) else 1
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, BrokenPipeError):
        raise error
    if ran_out_of_memory(error):
        less = _TAKES_LESS.get(command, "close other programs")
        return _complain(f"{name}: {not_enough_memory(error, 'this run', less)}", 1)
    if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to read without care
        return _complain(f"{name}: a file holds what is not loaded from files that may be anybody's", 1)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for wrong options of its Trainer
        return _complain(f"{name}: {' '.join(str(error).split())}", 2)
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{name}: {error.strerror}{where}", 1)
    text = " ".join(str(error).split())
    return _complain(f"{name}: unexpected {type(error).__name__}: {text} ({_DEBUG} shows where)", 1)


def _one_sentence(message: str) -> str:
    """What jsonargparse says over many lines of a value of the wrong type."""
    from seguq.cli.classes import in_words

    key = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    missing = re.match(r"the following arguments are required: (.*)", message)
    if missing is not None:
        return "the following arguments are required: " + ", ".join(
            f"--{name.strip()}" for name in missing[1].split(",")
        )
    if key is None:
        return " ".join(message.split())
    name, rest = key.groups()
    if rest.startswith("Unable to load config"):
        return f"--{name} takes a YAML file; its options by themselves are written with a dot, as --{name}.OPTION"
    given = re.search(r"Given value: (.*)", rest)
    wanted = [item for item in re.findall(r"Expected an? <class '(\w+)'>", rest) if item != "NoneType"]
    if given is None or not wanted:
        return f"--{name}: " + " ".join(rest.split()).replace("typing.", "")
    return f"--{name} must be {' or '.join(in_words(item) for item in wanted)}, but is {given[1]!r}"


def _complain(message: str, status: int) -> int:
    print(printable(message), file=sys.stderr)
    return status


def _plain_warnings() -> None:
    """Warnings as one sentence each; those that speak to developers of other libraries not at all."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(printable(f"seguq: warning: {message}"), file=sys.stderr)

    warnings.showwarning = show
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning|torch|torchmetrics|timm|huggingface_hub)\b")
