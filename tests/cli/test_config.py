"""Files of options that nobody wrote for seguq: one sentence each, at once and without the memory that they ask for."""

import os
import sys

import pytest

from seguq.cli import main
from seguq.cli.config import require_configs
from seguq.core.errors import SeguqError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
DOUBLED = "b0: &b0 {k: v}\n" + "".join(f"b{i}: &b{i} {{p: *b{i - 1}, q: *b{i - 1}}}\n" for i in range(1, 60))
FILES = {
    "levels of lists": (b"samples: " + b"[" * 100_000 + b"]" * 100_000, "100 levels"),
    "levels of mappings": (b"{a: " * 100_000, "100 levels"),
    "levels of blocks": (b"\n".join(b" " * i + b"a:" for i in range(1000)), "100 levels"),
    "aliases of lists": (LAUGHS.encode(), "more than 100000 values"),
    "aliases of mappings": (DOUBLED.encode(), "more than 100000 values"),
    "many values": (b"- 1\n" * 100_001, "more than 100000 values"),
    "a large file": (b"#" * (2**22 + 1), "larger than 4 MiB"),
    "a NUL": (b"samples: 3\0", "cannot be read as a YAML file"),
    "Latin 1": ("out: café".encode("latin1"), "no UTF-8 text"),
    "UTF-16": ("samples: 3".encode("utf16"), "no UTF-8 text"),
    "a number of 6000 digits": (b"samples: " + b"9" * 6000, "cannot be read as a YAML file"),
    "a call": (b"out: !!python/object/apply:os.system [ls]", "cannot be read as a YAML file"),
    "two documents": (b"samples: 3\n---\nsamples: 4\n", "cannot be read as a YAML file"),
}


@pytest.mark.parametrize("command", ["fit", "predict"])
@pytest.mark.parametrize(("content", "told"), FILES.values(), ids=FILES.keys())
def test_it_is_one_sentence(command, content, told, tmp_path, capsys):
    path = tmp_path / "a.cfg"
    path.write_bytes(content)
    assert main([command, f"--config={path}"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert told in error


@pytest.mark.parametrize("name", [".", "missing.yaml", os.devnull, ""], ids=["folder", "missing", "device", "empty"])
def test_what_is_no_file_is_one_sentence(name, capsys):
    assert main(["predict", "--config", name]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--config" in error or "missing.yaml does not exist" in error


def test_a_file_for_one_option_is_looked_at_too(tmp_path):
    (tmp_path / "strategy.yaml").write_text(LAUGHS)
    with pytest.raises(SeguqError, match="more than 100000 values"):
        require_configs(["--seed", "1", "--strategy", str(tmp_path / "strategy.yaml")])


def test_aliases_and_merges_are_as_welcome_as_before(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "base: &base {lr: 1, own: &own [1, 2]}\nmodel:\n  <<: *base\n  more: [*own, *own]\n"
    )
    require_configs([f"--config={tmp_path / 'a.yaml'}"])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files")
def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert main(["predict", "--config", str(tmp_path / "pipe.yaml")]) == 1
    assert "is no file" in capsys.readouterr().err
