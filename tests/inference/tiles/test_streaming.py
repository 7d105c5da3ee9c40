"""An image that is larger than memory, strip by strip: the same answer as at once, also after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import seguq
from seguq.core.errors import SeguqError, UsageError
from seguq.data import ArrayReader, Normalization
from seguq.store import MapFiles
from tests.inference.models import LiveBytes, SmallNet, fixed

ROOT = Path(__file__).parents[3]
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def pixels(height=150, width=110, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tensor(array):
    mean, std = (np.array(part, np.float32) for part in NORMALIZATION)
    return torch.from_numpy(((array / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))


class Collected:
    """A writer that keeps everything, and may have rows already."""

    def __init__(self, done=0, most=None):
        self.done, self.most, self.pieces, self.about, self.ended = done, most, [], None, False

    def begin(self, about):
        self.about = about
        return self.done

    def write(self, top, maps):
        if self.most is not None and len(self.pieces) == self.most:
            raise InterruptedError
        self.pieces.append((top, maps))

    def end(self):
        self.ended = True

    def close(self):
        self.closed = True

    def all(self, name):
        return torch.cat([maps.probs if name == "probs" else maps[name] for _, maps in self.pieces], -2)


INNER = {
    "one pass": lambda: seguq.Deterministic(fixed(SmallNet), calibrator=None),
    "samples": lambda: seguq.MCDropout(fixed(SmallNet), samples=3, seed=1, calibrator=None),
    "labels": lambda: seguq.MCDropout(fixed(SmallNet), samples=3, seed=1, task="multilabel", calibrator=None),
    "views": lambda: seguq.TestTimeAugmentation(seguq.Deterministic(fixed(SmallNet), calibrator=None), "flips"),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("size", [(150, 110), (32, 200), (20, 50), (200, 32), (64, 64)], ids=str)
def test_the_answer_is_that_of_the_image_at_once(inner, size):
    image = pixels(*size)
    est = seguq.SlidingWindow(inner(), 64, overlap=0.4, margin=4, batch=3, calibrator=None)
    expected, writer = est(tensor(image), ["x"]), Collected()
    est.stream(ArrayReader(image, NORMALIZATION), writer, "x")
    assert writer.ended
    for name in ("probs", *expected.names):
        whole = expected.probs if name == "probs" else expected[name]
        torch.testing.assert_close(writer.all(name), whole, rtol=0, atol=1e-5)
    assert [maps.image_ids for _, maps in writer.pieces] == [("x",)] * len(writer.pieces)


def test_it_goes_on_after_any_piece_with_the_same_bits(monkeypatch):
    monkeypatch.setattr("seguq.inference.tiles.streaming._VALUES_AT_ONCE", 5000)  # pieces of a few rows
    est, whole = seguq.SlidingWindow(INNER["samples"](), 64, overlap=0.6, calibrator=None), Collected()
    est.stream(ArrayReader(pixels(), NORMALIZATION), whole)
    assert len(whole.pieces) > 10
    for done in [top for top, _ in whole.pieces][::3]:
        rest = Collected(done)
        est.stream(ArrayReader(pixels(), NORMALIZATION), rest)
        assert rest.pieces[0][0] == done
        for name in ("probs", "mutual_information"):
            assert torch.equal(rest.all(name), whole.all(name)[..., done:, :])


@pytest.mark.parametrize("done", [1, 37, 64, 100, 149])
def test_it_goes_on_after_any_row(done):
    est, rest = seguq.SlidingWindow(INNER["samples"](), 64, calibrator=None), Collected(done)
    est.stream(ArrayReader(pixels(), NORMALIZATION), rest, "x")
    assert rest.pieces[0][0] == done
    torch.testing.assert_close(rest.all("probs"), est(tensor(pixels()), ["x"]).probs[..., done:, :], rtol=0, atol=1e-5)


def test_only_windows_that_reach_the_missing_rows_are_asked_again():
    class Counted(ArrayReader):
        tops = ()

        def read(self, top, left, height, width):
            self.tops = (*self.tops, top) if height == 64 else self.tops
            return super().read(top, left, height, width)

    reader = Counted(pixels(300, 64), NORMALIZATION)
    est = seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None)
    est.stream(reader, Collected(done=250))
    assert min(reader.tops) == 192  # ends with row 256
    reader.tops = ()
    est.stream(reader, Collected(done=300))
    assert reader.tops == ()


def test_a_calibrator_is_applied():
    est = seguq.SlidingWindow(INNER["one pass"](), 64, margin=4)
    mask = torch.randint(3, (1, 150, 110), generator=torch.Generator().manual_seed(0))
    est.calibrate(
        seguq.TemperatureScaling(),
        [(tensor(pixels()), mask)],
    )
    writer = Collected()
    est.stream(ArrayReader(pixels(), NORMALIZATION), writer)
    torch.testing.assert_close(writer.all("probs"), est(tensor(pixels())).probs, rtol=0, atol=1e-5)
    assert writer.about["calibrator"][0] == "TemperatureScaling"


def test_memory_does_not_grow_with_the_height():
    est = seguq.SlidingWindow(nn.Conv2d(3, 2, 1), 64, calibrator=None, measures=["predictive_entropy"])

    class Blank:
        name = None

        def __init__(self, height):
            self.size = (height, 256)

        def read(self, top, left, height, width):
            return torch.zeros(3, height, width)

    class Nothing(Collected):
        def write(self, top, maps):
            self.last = top

    peaks = []
    for height in (256, 2560):
        writer = Nothing()
        with LiveBytes() as live:
            est.stream(Blank(height), writer)
        assert writer.last >= height - 64
        peaks.append(live.peak)
    assert 2 * 64 * 256 * 4 < peaks[1] < 1.01 * peaks[0]


# files


def other_weights():
    model = fixed(SmallNet)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    return model


def run(folder, image=None, est=None, normalization=NORMALIZATION, **settings):
    est = est or seguq.SlidingWindow(INNER["samples"](), 64, calibrator=None)
    est.stream(ArrayReader(pixels() if image is None else image, normalization, "image"), MapFiles(folder, **settings))
    return est


def less_dropout():
    model = fixed(SmallNet)
    for part in model.modules():
        if hasattr(part, "p"):
            part.p = 0.01
    return model


def halved():
    calibrator = seguq.TemperatureScaling()
    with torch.no_grad():
        calibrator.log_temperature.fill_(0.7)
    return calibrator


def test_the_files_hold_the_maps(tmp_path):
    est = run(tmp_path / "m", probs=True, overview=64)
    expected = est(tensor(pixels()), ["0"])
    for name in expected.names:
        np.testing.assert_allclose(np.load(tmp_path / "m" / f"{name}.npy"), expected[name][0], atol=1e-5)
        assert (tmp_path / "m" / f"{name}.png").is_file()
    assert (np.load(tmp_path / "m" / "prediction.npy") == expected.prediction[0].numpy()).mean() > 0.999
    assert np.load(tmp_path / "m" / "prediction.npy").dtype == np.uint8
    np.testing.assert_allclose(np.load(tmp_path / "m" / "probs-1.npy"), expected.probs[0, 1], atol=1e-5)
    assert not list((tmp_path / "m").glob("*.part"))
    about = json.loads((tmp_path / "m" / "maps.json").read_text())
    assert about["complete"] and about["rows"] == 150 and about["about"]["estimator"]["tag"] == est.tag


def test_labels_have_a_file_each(tmp_path):
    est = seguq.SlidingWindow(INNER["labels"](), 64, calibrator=None)
    run(tmp_path / "m", est=est, overview=0)
    expected = est(tensor(pixels()), ["0"]).prediction
    for label in range(expected.shape[1]):
        assert (np.load(tmp_path / "m" / f"prediction-{label}.npy") == expected[0, label].numpy()).mean() > 0.999


def test_a_run_that_has_ended_is_not_run_again(tmp_path):
    run(tmp_path / "m")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir() if path.suffix != ".json"}
    run(tmp_path / "m")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "m").iterdir() if path.suffix != ".json"}
    assert before == after


SCRIPT = """
import sys, time, numpy as np
import tests.inference.tiles.test_streaming as t
class Slow(t.ArrayReader):
    def read(self, *window):
        time.sleep(0.05)
        return super().read(*window)
est = t.seguq.SlidingWindow(t.INNER["samples"](), 64, calibrator=None)
est.stream(Slow(t.pixels(400), t.NORMALIZATION, "image"), t.MapFiles(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_files(tmp_path):
    run(tmp_path / "whole", pixels(400))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "m")], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    meta, deadline = tmp_path / "m" / "maps.json", time.monotonic() + 60
    while not (meta.is_file() and json.loads(meta.read_text())["rows"] >= 96):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = json.loads(meta.read_text())["rows"]
    assert 0 < rows < 400 and list((tmp_path / "m").glob("*.npy.part"))
    run(tmp_path / "m", pixels(400))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == names
    for name in names:
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_a_killed_run_had_begun_to_write_does_not_count(tmp_path):
    whole, cut = tmp_path / "whole", MapFiles(tmp_path / "m")
    run(whole)

    class Stops(ArrayReader):
        def read(self, top, left, height, width):
            if top > 64 and height == 64:
                raise InterruptedError
            return super().read(top, left, height, width)

    est = seguq.SlidingWindow(INNER["samples"](), 64, calibrator=None)
    with pytest.raises(InterruptedError):
        est.stream(Stops(pixels(), NORMALIZATION, "image"), cut)
    part = tmp_path / "m" / "mutual_information.npy.part"
    with part.open("ab") as file:
        file.write(b"half a row")
    run(tmp_path / "m")
    for path in whole.glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "m" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": pixels(151)}, "pixels, size"),
        ({"image": pixels(seed=4)}, "pixels"),
        ({"normalization": None}, "pixels"),
        ({"probs": True}, "probs"),
        ({"est": seguq.SlidingWindow(seguq.MCDropout(fixed(SmallNet), samples=3, seed=2), 64)}, "estimator"),
        ({"est": seguq.SlidingWindow(seguq.MCDropout(less_dropout(), samples=3, seed=1), 64)}, "estimator"),
        ({"est": seguq.SlidingWindow(INNER["samples"](), 64, calibrator=halved())}, "calibrator"),
        ({"est": seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None)}, "estimator, measures"),
        ({"est": seguq.SlidingWindow(seguq.MCDropout(other_weights(), samples=3, seed=1), 64)}, "estimator"),
    ],
    ids=["size", "image", "normalization", "probs", "seed", "dropout", "calibrator", "estimator", "weights"],
)
def test_a_folder_of_another_run_is_refused_and_left(tmp_path, change, told):
    run(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    with pytest.raises(UsageError, match=rf"holds maps of another run \({told} differ\)"):
        run(tmp_path / "m", **change)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files: give MapFiles a folder of its own"):
        run(tmp_path)
    with pytest.raises(UsageError, match=r"thesis\.txt is a file, not a folder"):
        run(tmp_path / "thesis.txt")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "maps.json").write_text("{}")
    with pytest.raises(SeguqError, match=r"maps\.json is damaged"):
        run(tmp_path / "m")


def test_two_runs_at_once_are_kept_apart(tmp_path):
    est, second = seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None), []

    class Meets(ArrayReader):
        def read(self, *window):
            if not second and window[2] == 64:
                with pytest.raises(UsageError, match=r"another run writes into .*: wait for it"):
                    est.stream(ArrayReader(pixels(), NORMALIZATION, "image"), MapFiles(tmp_path / "m"))
                second.append(True)
            return super().read(*window)

    est.stream(Meets(pixels(), NORMALIZATION, "image"), MapFiles(tmp_path / "m"))
    assert second
    expected = est(tensor(pixels()))["predictive_entropy"][0]
    np.testing.assert_allclose(np.load(tmp_path / "m" / "predictive_entropy.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: os.truncate(path, 1000)], ids=["gone", "cut"])
def test_a_file_that_is_gone_or_cut_is_said(tmp_path, harm):
    run(tmp_path / "m")
    harm(tmp_path / "m" / "variance.npy")
    with pytest.raises(UsageError, match=r"variance\.npy.* is shorter than maps.json says, or gone: remove .*/m, and"):
        run(tmp_path / "m")


def test_an_image_with_nan_is_drawn(tmp_path):
    image = np.random.default_rng(0).random((150, 110, 3), np.float32)
    image[20:40, 30:50] = np.nan
    est = seguq.SlidingWindow(nn.Conv2d(3, 2, 1), 64, calibrator=None, measures=["predictive_entropy"])
    run(tmp_path / "m", image, est)
    assert (tmp_path / "m" / "predictive_entropy.png").is_file()
    found = np.load(tmp_path / "m" / "predictive_entropy.npy")
    assert np.isnan(found[20:40, 30:50]).all() and np.isfinite(found[:, :30]).all()


def test_the_picture_of_a_strip_is_no_larger_than_the_overview(tmp_path):
    est = seguq.SlidingWindow(nn.Conv2d(3, 2, 1), 64, calibrator=None, measures=["predictive_entropy"])
    run(tmp_path / "m", pixels(3, 4000), est, overview=1000)
    assert max(seguq.data.read_image(tmp_path / "m" / "predictive_entropy.png").shape) <= 1000


def test_an_id_may_have_brackets(tmp_path):
    est = seguq.SlidingWindow(nn.Conv2d(3, 2, 1), 64, calibrator=None)
    writer = Collected()
    est.stream(ArrayReader(pixels(), NORMALIZATION), writer, "[/data/x] of [bold]")
    assert writer.ended and writer.closed


def test_an_image_that_differs_anywhere_is_not_taken_for_the_one_that_is_there(tmp_path):
    est, other = seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None), pixels()
    other[other.shape[0] // 3, other.shape[1] // 3] ^= 1
    est.stream(ArrayReader(pixels()), MapFiles(tmp_path / "maps"))
    with pytest.raises(UsageError, match=r"maps of another run \(image(, pixels)? differ\)"):
        est.stream(ArrayReader(other), MapFiles(tmp_path / "maps"))


def test_a_reader_may_give_half_precision():
    class Half(ArrayReader):
        def read(self, *window):
            return super().read(*window).bfloat16()

    est, found = seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None), Collected()
    est.stream(Half(pixels()), found)
    assert found.ended


@pytest.mark.parametrize("overview", [-1, 1.5, "a", True])
def test_a_picture_without_size_is_refused_before_work_starts(overview, tmp_path):
    with pytest.raises(UsageError, match="overview must be a whole number of pixels"):
        MapFiles(tmp_path / "maps", overview=overview)


def test_a_reader_that_gives_something_else():
    class Wrong(ArrayReader):
        def read(self, *window):
            return super().read(*window).permute(1, 2, 0)

    est = seguq.SlidingWindow(INNER["one pass"](), 64, calibrator=None)
    with pytest.raises(SeguqError, match=r"must give a tensor \(channels, 16, 16\) .* but gave \(16, 16, 3\)"):
        est.stream(Wrong(pixels()), Collected())
    with pytest.raises(UsageError, match="the reader must have size, name, read, but a ndarray has no name"):
        est.stream(pixels(), Collected())
    with pytest.raises(UsageError, match="the writer must have begin, write, end, close, but a str has no begin"):
        est.stream(ArrayReader(pixels()), "maps")
    with pytest.raises(UsageError, match="0 rows and 5 columns"):
        est.stream(ArrayReader(np.zeros((0, 5))), Collected())
