"""A folder of predictions: filled in pieces, killed, and filled again."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import TEMPORARY_PREFIX
from seguq.data import Classes
from seguq.data.reading import read_image, read_mask
from seguq.export import Scale, ScaleFinder, colorize, to_rgb
from seguq.inference import UncertaintyMaps
from seguq.store import PredictionFolder
from seguq.store.folder import mean_score, predicted_ids, read_run
from tests.data.builders import random_pixels, write

SETTINGS = {"checkpoint": "abc", "samples": 20, "measures": ["predictive_entropy", "energy"]}
MEASURES = ("predictive_entropy", "energy")
SCALES = {"predictive_entropy": Scale(0.0, 0.7), "energy": Scale(-3.0, 0.0)}
SIZE = 32
PICTURES = ("heatmaps", "overlays")


def make_maps(*image_ids, seed=0, factor=1.0, multilabel=False):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(len(image_ids), 3, SIZE, SIZE, generator=generator)
    if not multilabel:
        probs = probs.softmax(1)
    entropy = torch.rand(len(image_ids), SIZE, SIZE, generator=generator) * factor
    return UncertaintyMaps(
        probs,
        {"predictive_entropy": entropy, "energy": -entropy - 1},
        image_ids,
        "deterministic",
        multilabel=multilabel,
    )


@pytest.fixture
def images(tmp_path):
    """Two images, one in a folder of its own, by id."""
    ids = ("a", "sub/b")
    return {
        image_id: write(tmp_path / "images" / f"{image_id}.png", random_pixels(SIZE, SIZE, 3, seed=i))
        for i, image_id in enumerate(ids)
    }


@pytest.fixture
def folder(tmp_path, images):
    """A folder that holds the maps of both images."""
    made = PredictionFolder(tmp_path / "out", SETTINGS)
    made.save(make_maps(*images))
    return made


def files(path):
    return sorted(file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file())


def pictures(folder):
    return [name for name in files(folder.dir) if name.startswith(PICTURES)]


def later(path, than, seconds=10):
    """Set the time of change of a file to some seconds after that of another."""
    moment = than.stat().st_mtime_ns + int(seconds * 1e9)
    os.utime(path, ns=(moment, moment))


# --- settings -----------------------------------------------------------------------------------------------------


def test_a_new_folder_keeps_its_settings(tmp_path):
    PredictionFolder(tmp_path / "new" / "out", SETTINGS)
    assert read_run(tmp_path / "new" / "out") == {
        "version": 2,
        "settings": SETTINGS,
        "complete": False,
        "images": [],
    }


def test_an_empty_folder_is_taken(tmp_path):
    PredictionFolder(tmp_path, SETTINGS)
    assert files(tmp_path) == ["run.json"]


def test_a_folder_goes_on_with_the_same_settings(folder, images):
    again = PredictionFolder(folder.dir, dict(reversed(SETTINGS.items())))
    assert all(again.is_done(image_id, path) for image_id, path in images.items())


def test_settings_are_compared_as_they_are_after_json(tmp_path):
    PredictionFolder(tmp_path / "out", {"measures": ("a", "b"), "seed": None})
    again = PredictionFolder(tmp_path / "out", {"measures": ["a", "b"], "seed": None})
    assert again.settings == {"measures": ["a", "b"], "seed": None}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({**SETTINGS, "samples": 10}, "samples was 20, now 10"),
        ({**SETTINGS, "checkpoint": "xyz"}, "another checkpoint"),
        ({**SETTINGS, "seed": 1}, "seed was None, now 1"),
        ({"checkpoint": "abc", "samples": 20}, "measures was .*, now None"),
    ],
)
def test_a_folder_of_other_settings_is_refused_by_what_differs(folder, changed, told):
    with pytest.raises(UsageError, match=told):
        PredictionFolder(folder.dir, changed)


def test_the_refusal_names_every_setting_that_differs_and_no_other(folder):
    with pytest.raises(UsageError) as error:
        PredictionFolder(folder.dir, {**SETTINGS, "samples": 1, "checkpoint": "b"})
    assert [name in str(error.value) for name in ("samples", "checkpoint", "measures")] == [True, True, False]


def test_a_refused_folder_stays_as_it_is(folder):
    before = {name: (folder.dir / name).read_bytes() for name in files(folder.dir)}
    with pytest.raises(UsageError):
        PredictionFolder(folder.dir, {**SETTINGS, "samples": 1})
    assert {name: (folder.dir / name).read_bytes() for name in files(folder.dir)} == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        PredictionFolder(tmp_path, SETTINGS)
    assert files(tmp_path) == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        PredictionFolder(tmp_path / "out", SETTINGS)


def test_leftovers_of_a_killed_run_are_removed(folder):
    left = [folder.dir / "maps" / "sub" / f"{TEMPORARY_PREFIX}1.npz", folder.dir / f"{TEMPORARY_PREFIX}2.json"]
    for path in left:
        path.write_bytes(b"half of it")
    PredictionFolder(folder.dir, SETTINGS)
    assert not any(path.exists() for path in left)


def test_a_run_that_was_killed_while_it_wrote_its_settings_can_be_started_again(tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}1.json").write_text('{"version":')
    PredictionFolder(tmp_path, SETTINGS)
    assert files(tmp_path) == ["run.json"]


def test_clearing_removes_the_results_and_keeps_the_settings_and_what_is_not_its_own(folder, images):
    folder.draw("a", images["a"], SCALES)
    folder.keep_scales(SCALES)
    (folder.dir / "regions.parquet").write_text("mine")
    others = ["maps/c.npz", "predictions/mine/a.png", "heatmaps/mine/a.png", "overlays/energy/c.png", "images/c.png"]
    for name in others:
        (folder.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.dir / name).write_text("mine")
    folder.clear()
    assert files(folder.dir) == sorted(["regions.parquet", "run.json", *others])
    assert read_run(folder.dir)["settings"] == SETTINGS


def test_what_a_run_of_other_settings_has_not_written_stays(folder):
    (folder.dir / "maps" / "c.npz").write_text("mine")
    PredictionFolder(folder.dir, {**SETTINGS, "samples": 1}, overwrite=True)
    assert files(folder.dir) == ["maps/c.npz", "run.json"]


def test_each_image_is_listed_before_anything_of_it_is_written(tmp_path, monkeypatch):
    folder = PredictionFolder(tmp_path, SETTINGS)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("seguq.store.folder.write_index_png", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save(make_maps("a", "b"))
    assert PredictionFolder(tmp_path, SETTINGS).images == {"a", "b"}
    assert read_run(tmp_path)["images"] == ["a", "b"]


def test_a_run_is_complete_between_finish_and_the_next_start(folder, images):
    assert not read_run(folder.dir)["complete"]
    folder.finish()
    assert read_run(folder.dir) == {"version": 2, "settings": SETTINGS, "complete": True, "images": sorted(images)}
    PredictionFolder(folder.dir, SETTINGS).expect(["c"])
    found = read_run(folder.dir)
    assert (found["complete"], found["images"]) == (False, ["a", "c", "sub/b"])


def test_what_several_processes_have_noted_comes_together(tmp_path):
    first = PredictionFolder(tmp_path, SETTINGS)
    for process, image_id in enumerate("ab"):
        PredictionFolder(tmp_path, SETTINGS, clean=False, process=process).save(make_maps(image_id))
    first.finish()
    assert (first.images, read_run(tmp_path)["images"]) == ({"a", "b"}, ["a", "b"])
    assert not list(tmp_path.glob(".images*"))


@pytest.mark.parametrize("bad", ["../a", "/a", "", "a/../../b"])
def test_ids_that_lead_out_of_the_folder_are_refused_wherever_they_come_from(tmp_path, bad):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    run, lists = tmp_path / "out" / "run.json", tmp_path / "out" / ".images-00000.jsonl"
    attempts = [
        lambda: folder.save(make_maps(bad)),
        lambda: folder.expect([bad]),
        lambda: folder.remove([bad]),
        lambda: folder.maps_file(bad),
        lambda: folder.draw(bad, None, SCALES),
    ]
    for attempt in attempts:
        with pytest.raises(SeguqError, match="cannot be the name of a file"):
            attempt()
    content = run.read_text()
    lists.write_text(json.dumps(bad) + "\n")
    with pytest.raises(SeguqError, match="cannot be the name of a file"):
        PredictionFolder(folder.dir, SETTINGS)
    lists.unlink()
    run.write_text(json.dumps({**json.loads(content), "images": [bad]}))
    with pytest.raises(SeguqError, match="cannot be the name of a file"):
        read_run(folder.dir)


# --- maps ---------------------------------------------------------------------------------------------------------


def test_maps_come_back_as_they_were_saved(folder, images):
    expected = make_maps(*images)
    for i, maps in enumerate(folder.stream(tuple(images))):
        for measure in MEASURES:
            assert torch.equal(maps[measure][0], expected[measure][i])


def test_the_prediction_lies_beside_the_maps_as_class_indices(folder, images):
    expected = make_maps(*images).prediction
    for i, image_id in enumerate(images):
        written = read_mask(folder.dir / "predictions" / f"{image_id}.png", Classes.unnamed(3))
        assert np.array_equal(written, expected[i].numpy())


def test_multilabel_maps_have_no_mask_of_class_indices(tmp_path):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    folder.expect("a")
    folder.save(make_maps("a", multilabel=True))
    assert files(folder.dir) == ["maps/a.npz", "run.json"]


@pytest.mark.parametrize("kept", [True, False])
def test_probabilities_are_kept_on_request_only(tmp_path, kept):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    folder.save(make_maps("a"), probs=kept)
    with np.load(folder.maps_file("a")) as arrays:
        assert ("probs" in arrays.files) is kept


def test_an_image_without_maps_is_not_done(folder, images):
    folder.maps_file("a").unlink()
    assert [folder.is_done(image_id, path) for image_id, path in images.items()] == [False, True]


def test_an_image_newer_than_its_maps_is_not_done(folder, images):
    later(images["a"], than=folder.maps_file("a"))
    assert [folder.is_done(image_id, path) for image_id, path in images.items()] == [False, True]


def test_a_prediction_without_maps_does_not_make_an_image_done(folder, images):
    folder.maps_file("a").unlink()
    assert (folder.dir / "predictions" / "a.png").is_file() and not folder.is_done("a", images["a"])


def test_predicted_ids_are_those_with_maps_sorted(tmp_path):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    folder.save(make_maps("b", "a/z.1", "a/y"))
    assert predicted_ids(folder.dir) == ["a/y", "a/z.1", "b"]


def test_predicted_ids_leave_out_half_written_maps(folder):
    (folder.dir / "maps" / f"{TEMPORARY_PREFIX}1.npz").write_bytes(b"half of it")
    assert predicted_ids(folder.dir) == ["a", "sub/b"]


def test_a_folder_without_maps_has_no_predicted_ids(tmp_path):
    PredictionFolder(tmp_path / "out", SETTINGS)
    assert predicted_ids(tmp_path / "out") == []


def test_mean_score_is_the_mean_over_each_image():
    maps = make_maps("a", "b")
    expected = [float(values.double().mean()) for values in maps["energy"]]
    assert mean_score(maps, "energy").tolist() == pytest.approx(expected)


# --- run.json -----------------------------------------------------------------------------------------------------


def test_read_run_refuses_a_folder_that_is_none_of_predictions(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 2, "settings": 3}', b"\xff\xfe"]
)
def test_read_run_calls_a_damaged_file_by_its_name(folder, content):
    (folder.dir / "run.json").write_bytes(content)
    with pytest.raises(SeguqError, match=r"run\.json is damaged"):
        read_run(folder.dir)


def test_read_run_refuses_another_schema(folder):
    (folder.dir / "run.json").write_text(json.dumps({"version": 99, "settings": {}}))
    with pytest.raises(SeguqError, match=r"another version of seguq \(schema 99\)"):
        read_run(folder.dir)


def test_a_folder_whose_settings_are_damaged_is_not_filled(folder):
    (folder.dir / "run.json").write_text("{")
    with pytest.raises(SeguqError, match="damaged"):
        PredictionFolder(folder.dir, SETTINGS)


# --- scales -------------------------------------------------------------------------------------------------------


def test_scales_cover_all_images_of_the_run(tmp_path):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    folder.save(make_maps("dim", factor=0.1))
    folder.save(make_maps("bright", factor=0.6))
    scales = folder.scales(["dim", "bright"], MEASURES, changed=True)
    assert scales["predictive_entropy"].high == pytest.approx(0.6, rel=0.03)
    assert scales["energy"].low == pytest.approx(-1.6, rel=0.03)


def test_scales_are_written_down(folder, images):
    scales = folder.scales(tuple(images), MEASURES, changed=True)
    written = json.loads((folder.dir / "scale.json").read_text())
    assert written == {measure: {"low": scale.low, "high": scale.high} for measure, scale in scales.items()}


def test_scales_are_kept_when_nothing_changed(folder, images, monkeypatch):
    scales = folder.scales(tuple(images), MEASURES, changed=True)
    monkeypatch.setattr(UncertaintyMaps, "load", lambda path: pytest.fail("read again"))
    assert folder.scales(tuple(images), MEASURES, changed=False) == scales


def test_maps_that_were_seen_when_they_were_made_are_not_read_again(tmp_path, monkeypatch):
    folder = PredictionFolder(tmp_path / "out", SETTINGS)
    finders = {measure: ScaleFinder() for measure in MEASURES}
    for image_id, factor in (("dim", 0.1), ("bright", 0.6)):
        maps = make_maps(image_id, factor=factor)
        folder.save(maps)
        if image_id == "bright":
            for measure, finder in finders.items():
                finder.add(maps[measure])
    expected = folder.scales(["dim", "bright"], MEASURES, changed=True)
    read, load = [], UncertaintyMaps.load
    monkeypatch.setattr(UncertaintyMaps, "load", lambda path: read.append(path.stem) or load(path))
    found = folder.scales(["dim", "bright"], MEASURES, changed=True, finders=finders, seen={"bright"})
    assert found == expected and read == ["dim"]


def test_scales_are_found_when_there_are_none(folder, images):
    assert set(folder.scales(tuple(images), MEASURES, changed=False)) == set(MEASURES)


def test_scales_of_further_measures_are_found(folder, images):
    folder.scales(tuple(images), ["energy"], changed=True)
    assert set(folder.scales(tuple(images), MEASURES, changed=False)) == set(MEASURES)


def draw_all(folder, images, *, changed):
    scales = folder.scales(tuple(images), MEASURES, changed=changed)
    assert list(folder.draw_all(images, scales)) == list(images)


def test_pictures_stay_when_the_scale_comes_out_the_same(folder, images):
    draw_all(folder, images, changed=True)
    before = pictures(folder)
    folder.scales(tuple(images), MEASURES, changed=True)
    assert pictures(folder) == before != []


def test_pictures_on_an_old_scale_are_removed_when_it_changes(folder, images):
    draw_all(folder, images, changed=True)
    folder.save(make_maps("a", factor=9.0))
    folder.scales(tuple(images), MEASURES, changed=True)
    assert pictures(folder) == []


def test_a_scale_outdated_by_a_killed_run_is_found_anew(folder, images):
    draw_all(folder, images, changed=True)
    folder.save(
        make_maps("a", factor=9.0)
    )  # and killed before it came to the scale: the next run has nothing to predict
    later(folder.maps_file("a"), than=folder.dir / "scale.json")
    assert folder.scales(tuple(images), MEASURES, changed=False)["predictive_entropy"].high > 8


# --- pictures -----------------------------------------------------------------------------------------------------


def test_draw_writes_a_heat_map_and_an_overlay_for_each_measure(folder, images):
    for image_id, path in images.items():
        folder.draw(image_id, path, SCALES)
    expected = [f"{kind}/{measure}/{image_id}.png" for kind in PICTURES for measure in MEASURES for image_id in images]
    assert pictures(folder) == sorted(expected)


def test_the_heat_map_shows_the_map_on_the_scale(folder, images):
    folder.draw("a", images["a"], SCALES)
    for i, measure in enumerate(MEASURES):
        drawn = read_image(folder.dir / "heatmaps" / measure / "a.png")
        values = make_maps(*images)[measure][0].numpy()
        assert np.array_equal(drawn[::8, :-78:8], colorize(values, SCALES[measure])), i


def test_the_overlay_shows_the_image_in_gray_under_the_colors(folder, images):
    folder.draw("a", images["a"], SCALES)
    drawn = read_image(folder.dir / "overlays" / "energy" / "a.png")[::8, :-78:8].astype(float)
    luma = to_rgb(read_image(images["a"])) @ np.array([0.299, 0.587, 0.114])
    colors = colorize(make_maps(*images)["energy"][0].numpy(), SCALES["energy"])
    assert np.abs(drawn - (0.45 * luma[..., None] + 0.55 * colors)).max() <= 1.5


def test_drawn_on_several_threads_pictures_are_the_same(folder, images):
    for image_id, path in images.items():
        folder.draw(image_id, path, SCALES)
    alone = {name: (folder.dir / name).read_bytes() for name in pictures(folder)}
    for name in alone:
        (folder.dir / name).unlink()
    assert list(folder.draw_all(images, SCALES)) == list(images)
    assert {name: (folder.dir / name).read_bytes() for name in pictures(folder)} == alone != {}


def test_an_image_that_cannot_be_drawn_is_named(folder, images):
    broken = folder.dir.parent / "broken.png"
    broken.write_bytes(b"none")
    with pytest.raises(SeguqError, match=r"broken\.png"):
        list(folder.draw_all({**images, "a": broken}, SCALES))


def test_draw_skips_pictures_that_are_up_to_date(folder, images, monkeypatch):
    folder.draw("a", images["a"], SCALES)
    monkeypatch.setattr(UncertaintyMaps, "load", lambda path: pytest.fail("read again"))
    folder.draw("a", images["a"], SCALES)
    assert len(pictures(folder)) == 4


@pytest.mark.parametrize("kind", PICTURES)
def test_draw_makes_a_missing_picture_again(folder, images, kind):
    folder.draw("a", images["a"], SCALES)
    before = pictures(folder)
    (folder.dir / kind / "energy" / "a.png").unlink()
    folder.draw("a", images["a"], SCALES)
    assert pictures(folder) == before


def test_draw_replaces_pictures_that_are_older_than_the_maps(folder, images):
    folder.draw("a", images["a"], SCALES)
    picture = folder.dir / "heatmaps" / "energy" / "a.png"
    before = picture.read_bytes()
    folder.save(make_maps("a", seed=5))
    later(folder.maps_file("a"), than=picture)
    folder.draw("a", images["a"], SCALES)
    assert picture.read_bytes() != before


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_draw_lays_maps_over_images_of_any_number_of_channels(tmp_path, folder, channels):
    import tifffile

    pixels = random_pixels(SIZE, SIZE, channels).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0] if channels == 1 else pixels, photometric="minisblack")
    folder.draw("a", tmp_path / "a.tif", SCALES)
    assert len(pictures(folder)) == 4


def test_a_folder_of_maps_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    locked = tmp_path / "maps" / "street"
    locked.mkdir(parents=True)
    (locked / "a.npz").touch()
    (tmp_path / "maps" / ".b.npz").touch()
    assert predicted_ids(tmp_path) == ["street/a"] and predicted_ids(tmp_path / "none") == []
    scandir = os.scandir

    def refuses(path):
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(locked))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(SeguqError, match="street cannot be read, so that its maps would be left out: Permission"):
        predicted_ids(tmp_path)
