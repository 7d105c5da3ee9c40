import pytest

from seguq.core.errors import SeguqError
from seguq.store import listing
from seguq.store.listing import OwnFiles


def test_what_was_written_is_removed_and_nothing_else(tmp_path):
    own = OwnFiles(tmp_path)
    own.write("a.png", b"a")
    own.write("sub/b.png", b"b")
    (tmp_path / "mine.png").write_bytes(b"mine")
    assert OwnFiles(tmp_path).clear() == []
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["mine.png"]


def test_a_file_that_was_changed_stays_and_is_told(tmp_path):
    OwnFiles(tmp_path).write("a.png", b"a picture")
    (tmp_path / "a.png").write_bytes(b"a mask, drawn over it")
    assert OwnFiles(tmp_path).clear() == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"a mask, drawn over it"


def test_a_file_of_somebody_else_is_not_replaced_and_an_own_one_is(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"mine")
    own = OwnFiles(tmp_path)
    for content in (b"first", b"second"):
        own.write("a.png", content)
        with pytest.raises(SeguqError, match="written, or changed, by somebody else"):
            own.write("mine.png", content)
    assert ((tmp_path / "a.png").read_bytes(), (tmp_path / "mine.png").read_bytes()) == (b"second", b"mine")


@pytest.mark.parametrize("there", [b"", b"first"])
def test_a_kill_before_or_after_a_write_leaves_nothing_that_is_not_its_own(tmp_path, monkeypatch, there):
    own = OwnFiles(tmp_path)
    if there:
        own.write("a.png", there)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        own.write("a.png", b"second")
    (tmp_path / ".seguq-files").open("a").write('["a.p')  # a line that was cut off
    monkeypatch.undo()
    OwnFiles(tmp_path).write("a.png", b"second")
    assert OwnFiles(tmp_path).clear() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ['["../a.png", "0"]', '["/a.png", "0"]', '[7, "0"]'])
def test_a_list_that_names_files_elsewhere_is_refused(tmp_path, line):
    (tmp_path / "a.png").touch()
    own = OwnFiles(tmp_path / "pictures")
    own.folder.mkdir()
    (own.folder / ".seguq-files").write_text(line + "\n")
    with pytest.raises(SeguqError, match="damaged"):
        own.clear()
    assert (tmp_path / "a.png").exists()
