"""How a loop stands, from the files that it leaves."""

import contextlib
import json
import os
import sqlite3

import pytest

from seguq.active import events, read_events, status
from seguq.core.errors import SeguqError
from seguq.core.locks import Lock
from tests.active.runs import STEPS, Run, finished


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", per_round=9)


def first_line(run):
    return status(run.folder).lines()[0].removeprefix(f"{run.folder}: ")


def content_of(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_has_only_begun_says_so(run):
    found = status(run.folder)
    assert (found.round, found.step, found.records, found.hours) == (None, None, (), 0)
    assert first_line(run) == "has not begun its first round"


def test_a_run_without_a_journal_has_not_begun(run):
    (run.folder / "journal.sqlite").unlink()
    assert first_line(run) == "has not begun its first round"


def test_a_journal_that_was_made_a_moment_ago_holds_nothing_yet(run):
    (run.folder / "journal.sqlite").write_bytes(b"")
    assert first_line(run) == "has not begun its first round"


def test_a_step_that_has_not_ended_is_named_with_its_begin(run):
    run.event(0, "score", "begin")
    assert status(run.folder).step == "score"
    assert first_line(run).startswith("round 0: score has begun at 2026-11-02 08:01 UTC and not ended;")


@pytest.mark.parametrize("step", STEPS[:3])
def test_between_two_steps_the_last_is_done(step, run):
    for earlier in STEPS[: STEPS.index(step) + 1]:
        run.step(0, earlier)
    assert status(run.folder).step is None
    assert first_line(run).startswith(f"round 0: {step} is done;")


def test_a_step_that_was_killed_and_begun_again_has_ended_once_it_ends(run):
    run.event(0, "score", "begin")
    run.step(0, "score")
    assert (status(run.folder).step, status(run.folder).done) == (None, "score")


def test_what_it_waits_for_is_counted_in_regions_and_images(run):
    selection = run.select(0)
    run.answer(0, selection, images=2)
    back = sum(len(selection.in_image(image_id)) for image_id in selection.image_ids[:2])
    images = len(selection.image_ids) - 2
    assert status(run.folder).waits
    assert first_line(run) == (
        f"round 0 waits for {9 - back} of 9 regions in {images} images to come back: run it again then"
    )


def test_an_answer_that_comes_twice_is_one(run):
    run.answer(0, run.select(0), images=3, again=True)
    once = status(run.folder).answered
    other = Run(run.folder.parent / "other", per_round=9)
    other.answer(0, other.select(0), images=3)
    assert once == status(other.folder).answered > 0


def test_an_answer_to_what_was_not_asked_counts_nothing(run):
    run.select(0)
    run.event(0, "collect", "answer", {"image_id": "x", "rows": [[0, 0, 0, 32, 32]], "clicks": 5})
    assert status(run.folder).answered == 0


def test_with_all_answers_there_it_waits_no_more(run):
    run.answer(0, run.select(0))
    assert not status(run.folder).waits
    assert first_line(run) == "round 0 has all of its 9 regions back; no process is seen at it: run it again"


def test_a_closed_round_says_what_is_labeled_and_what_it_was_worth(run):
    run.whole_round(0)
    run.whole_round(1)
    found, record = status(run.folder), json.loads((run.folder / "round-01" / "metrics.json").read_text())
    text = "\n".join(found.lines())
    assert "round 1 is closed" in text
    assert f"{record['labeled']['clicks']} clicks" in text
    assert "cost, in the unit of the budget: 18 regions" in text
    assert f"mean IoU {record['metrics']['miou']['value']:.3f} [" in text
    assert "gain since round 0: +0.135 [+0.120, +0.150], paired" in text


def test_a_run_that_nothing_judges_says_so(run):
    run.answer(0, run.select(0))
    run.close(0, judged=False)
    assert "there are no labeled images to judge it on" in status(run.folder).lines()


def test_hours_are_those_of_the_steps_without_the_time_of_people(run):
    run.whole_round(0)  # 2 + 1 + 0.1 and 30 + 1 + 2 + 0.2 minutes; what people took lies between
    assert status(run.folder).hours == pytest.approx(36.3 / 60)


def test_why_it_has_ended_is_said_until_it_goes_on(run):
    run.whole_round(0)
    run.event(0, "stop", "end", {"why": "1 of 1 rounds is done"})
    assert first_line(run) == "ended after round 0: 1 of 1 rounds is done"
    run.event(1, "score", "begin")
    assert status(run.folder).ended is None


def test_an_end_within_a_step_that_then_ends_is_an_end(run):
    run.whole_round(0)
    run.step(1, "score")
    run.event(1, "select", "begin")
    run.event(0, "stop", "end", {"why": "nothing is left to label within the budget"})
    run.event(1, "select", "end", {})
    assert first_line(run) == "ended after round 0: nothing is left to label within the budget"


def test_answers_that_come_in_a_later_round_count_for_the_one_that_asked(run):
    selection = run.select(0)
    run.answer(0, selection, images=1)
    run.answer(1, selection)  # an event of round 1
    assert status(run.folder).round == 1
    assert (status(run.folder).asked, status(run.folder).answered) == (0, 0)
    run.select(1)
    assert status(run.folder).answered == 0


def test_whether_a_process_is_at_it_is_said(run):
    run.event(0, "train", "begin")
    assert first_line(run).endswith("and not ended; no process is seen at it: run it again")
    with Lock(run.folder):
        assert first_line(run).endswith("and not ended; a process is at it")


def test_the_last_of_all_rounds_is_called_that(run):
    run.whole_round(0)
    path = run.folder / "loop.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"budget": [{"regions": 9}]}}))
    assert first_line(run) == "round 0 is closed, and was the last of 1 round"


def test_a_fork_says_of_what(tmp_path):
    run = Run(tmp_path / "fork", forked_from={"run_dir": "runs/first", "round": 3})
    assert "forked from round 3 of runs/first" in status(run.folder).lines()


def test_the_table_has_a_row_for_each_round(run):
    run.whole_round(0)
    run.whole_round(1)
    columns, rows = status(run.folder).rows()
    assert [row[0] for row in rows] == ["0", "1"]
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][columns.index("gain")] == "" and rows[1][columns.index("gain")].startswith("+0.135")


def test_the_time_of_a_round_is_without_that_of_people(run):
    content = run.metrics(0) | {"seconds": {"train": 600, "collect": 86400}}
    (run.round(0) / "metrics.json").write_text(json.dumps(content))
    run.step(0, "report")
    columns, (row,) = status(run.folder).rows()
    assert row[columns.index("time")] == "10 min"


def test_it_reads_what_another_connection_has_written_and_not_what_it_is_writing(run):
    with contextlib.closing(sqlite3.connect(run.folder / "journal.sqlite")) as writer:
        insert = (
            "INSERT INTO events(time, round, step, event, content) VALUES ('2026-11-02T09:00:00', 0, ?, 'begin', '{}')"
        )
        writer.execute(insert, ("score",))
        writer.commit()
        writer.execute(insert, ("select",))  # not committed yet
        assert (run.folder / "journal.sqlite-wal").exists()
        assert status(run.folder).step == "score"


def _begins_to_write(run):
    (run.folder / "journal.sqlite-wal").touch()


def _writes(run):
    run.event(0, "select", "begin")


@pytest.mark.parametrize("other", [_begins_to_write, _writes])
def test_what_is_written_while_it_is_read_is_read_again(other, run, monkeypatch):
    run.event(0, "score", "begin")
    asked = []

    def torn(path, how):
        asked.append(how)
        if len(asked) == 1:
            other(run)
            return []
        return select(path, how)

    select = events._select
    monkeypatch.setattr(events, "_select", torn)
    assert "score" in [event.step for event in read_events(run.folder)]


def test_nothing_in_the_folder_is_made_or_changed(run):
    run.whole_round(0)
    before = content_of(run.folder)
    status(run.folder)
    assert content_of(run.folder) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nobody may write there, but a superuser")
def test_a_folder_that_cannot_be_written_is_read(run):
    run.whole_round(0)
    run.folder.chmod(0o500)
    try:
        assert first_line(run).startswith("round 0 is closed")
    finally:
        run.folder.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"rows": []}, "it has no 'image_id'"),
        ({"image_id": "a", "rows": [[1, 2]]}, "a row of an answer must be"),
        ({"image_id": "a", "rows": [[1, 2, 3, 4, "x"]]}, "a number of a row must be a whole number"),
    ],
)
def test_an_answer_that_is_none_names_the_journal(content, told, run):
    run.select(0)
    run.event(0, "collect", "answer", content)
    with pytest.raises(SeguqError, match=rf"journal\.sqlite is damaged: {told}"):
        status(run.folder)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("time", "yesterday", "line 1: Invalid isoformat string"),
        ("round", "first", "line 1: round must be a whole number"),
        ("step", b"score", "line 1: step must be text"),
        ("content", "[1]", "line 1: content must be a mapping"),
        ("content", "{", "line 1: "),
    ],
)
def test_a_line_that_is_none_is_named(column, value, told, run):
    run.step(0, "score")
    with contextlib.closing(run.connection()) as journal, journal:
        journal.execute(f"UPDATE events SET {column} = ? WHERE id = 1", (value,))
    with pytest.raises(SeguqError, match=told):
        read_events(run.folder)


@pytest.mark.parametrize("written", ["2026-11-02T09:00:00", "2026-11-02T09:00:00Z", "2026-11-02T10:00:00+01:00"])
def test_times_are_utc_however_they_are_written(written, run):
    run.step(0, "score")
    with contextlib.closing(run.connection()) as journal, journal:
        journal.execute("UPDATE events SET time = ?", (written,))
    assert {event.time.isoformat() for event in read_events(run.folder)} == {"2026-11-02T09:00:00+00:00"}


def test_a_journal_that_is_gone_though_rounds_were_judged_is_one_sentence(tmp_path):
    folder = finished(tmp_path / "run", rounds=1).folder
    (folder / "journal.sqlite").unlink()
    with pytest.raises(SeguqError, match=r"journal\.sqlite is missing or empty, though rounds were judged"):
        status(folder)
