"""RegionScorer through real Trainers of both names."""

import errno
import importlib
import os
import warnings

import cv2
import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from scipy import ndimage

import seguq
from seguq import acquisition, regions
from seguq.acquisition import Budget, Selection
from seguq.callbacks import RegionScorer
from seguq.core.errors import SeguqError, UsageError
from seguq.data import ImageSource, read_image
from seguq.regions import Boxes, Components, Grid, Partition, Pixels, RegionTable, Superpixels, WholeImage
from tests.callbacks.tiny import Images, both_names, files, loader, make_module, make_trainer, traces, with_predict_step

IDS = ["street/1", "a", "b", "street/0", "c"]


def predict(folder, data=None, module=None, package=pytorch_lightning, batch_size=2, **settings):
    """Predict five images (or the data set given) with a RegionScorer into ``folder/pool``."""
    module = make_module(package) if module is None else module
    data = Images(5, ids=IDS) if data is None else data
    settings = {"partition": Grid(4), **settings}
    trainer = make_trainer(package, folder, RegionScorer(folder / "pool", **settings))
    trainer.predict(module, data if isinstance(data, list) else loader(data, batch_size))
    return module


def table(folder):
    return RegionTable.load(folder / "pool" / "regions.parquet")


def expected_rows(estimator, partition=None, by="smallest_margin", data=None, ids=IDS, **settings):
    """The rows of regions.score of what the estimator says of each image by itself, in the order of the table."""
    data = Images(5, ids=IDS) if data is None else data
    images = torch.stack([data[i]["image"] for i in range(len(data))])
    scored = regions.score(estimator(images, ids), partition or Grid(4), images=images, by=by, **settings)
    return sorted(scored.rows(), key=lambda row: (row["image_id"], row["region_id"]))


def assert_rows(found, expected):
    """Scores to what a batch of another size changes in float32, anything else exactly."""
    assert [row.pop("score") for row in found] == pytest.approx([row.pop("score") for row in expected], rel=1e-5)
    assert found == expected


# the table


@both_names
@pytest.mark.parametrize("estimator", [None, "deterministic", seguq.Deterministic()], ids=["none", "name", "object"])
def test_the_table_is_regions_score_of_the_estimators_maps(tmp_path, package, estimator):
    module = predict(tmp_path, package=package, estimator=estimator)
    assert_rows(table(tmp_path).rows(), expected_rows(seguq.Deterministic(module, calibrator=None)))
    assert table(tmp_path).meta == {
        "by": "smallest_margin",
        "aggregate": "mean",
        "partition": "Grid(size=4)",
        "estimator": "deterministic",
    }


def test_the_table_is_the_same_whatever_the_batches(tmp_path):
    rows = []
    for batch_size in (1, 2, 5):
        predict(tmp_path, batch_size=batch_size, overwrite=True)
        rows.append(table(tmp_path).rows())
    assert_rows(rows[0], rows[1])
    assert len(rows[2]) == 5 * 6


def test_an_unbound_mc_dropout_with_a_seed_gives_the_table_of_a_direct_call(tmp_path):
    module = predict(tmp_path, estimator=seguq.MCDropout(samples=3, seed=5))
    bound = seguq.MCDropout(module, samples=3, seed=5, calibrator=None)
    assert_rows(table(tmp_path).rows(), expected_rows(bound, by="smallest_margin"))


def test_mc_dropout_by_name_scores_by_the_margin(tmp_path):
    predict(tmp_path, estimator="mc_dropout")
    assert table(tmp_path).meta["by"] == "smallest_margin"
    assert table(tmp_path).meta["estimator"] == "mc_dropout(layers=dropout)"
    assert (table(tmp_path).column("score") > 0).all()


def test_mc_dropout_without_a_seed_gives_the_same_table_twice(tmp_path):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        predict(tmp_path, estimator="mc_dropout", overwrite=True)
        found.append(table(tmp_path).rows())
    assert found[0] == found[1]


def test_the_global_generator_goes_on_as_without_the_callback(tmp_path):
    states = []
    for callbacks in ([RegionScorer(tmp_path, estimator="mc_dropout")], []):
        torch.manual_seed(1)
        module = with_predict_step(pytorch_lightning)
        make_trainer(pytorch_lightning, tmp_path, *callbacks).predict(module, loader(Images(3)))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_deep_ensemble_gives_the_table_of_a_direct_call(tmp_path):
    members = [make_module(pytorch_lightning, seed=i).eval() for i in range(3)]
    predict(tmp_path, estimator=seguq.DeepEnsemble(members))
    assert_rows(
        table(tmp_path).rows(), expected_rows(seguq.DeepEnsemble(members, calibrator=None), by="smallest_margin")
    )


@pytest.mark.parametrize("aggregate", ["mean", "sum", "max"])
def test_by_and_aggregate_are_those_that_were_asked_for(tmp_path, aggregate):
    module = predict(tmp_path, by="smallest_margin", aggregate=aggregate)
    est = seguq.Deterministic(module, calibrator=None)
    assert_rows(table(tmp_path).rows(), expected_rows(est, by="smallest_margin", aggregate=aggregate))


def test_an_estimator_without_the_usual_measures_is_scored_by_the_first_that_it_has(tmp_path):
    predict(tmp_path, estimator=seguq.Deterministic(measures=("energy",)))
    assert table(tmp_path).meta["by"] == "energy"


def test_images_of_unequal_size_are_scored(tmp_path):
    sizes = [(8, 12), (16, 8), (9, 9)]
    predict(tmp_path, Images(3, sizes), batch_size=1)
    counts = {image_id: sum(row["image_id"] == image_id for row in table(tmp_path).rows()) for image_id in "012"}
    assert counts == {"0": 6, "1": 8, "2": 9}


@both_names
def test_without_ids_the_index_in_the_data_set_is_the_id(tmp_path, package):
    predict(tmp_path, Images(3, form="tuple"), package=package, partition=WholeImage())
    assert list(table(tmp_path).column("image_id")) == ["0", "1", "2"]


def test_only_the_batches_of_a_limit_are_scored(tmp_path):
    trainer = make_trainer(
        pytorch_lightning, tmp_path, RegionScorer(tmp_path / "pool", WholeImage()), limit_predict_batches=2
    )
    trainer.predict(make_module(pytorch_lightning), loader(Images(5), 2))
    assert list(table(tmp_path).column("image_id")) == ["0", "1", "2", "3"]


class Threshold(Partition):
    """Two regions: where the energy is below its mean, and where it is above."""

    needs = ("energy",)

    def __call__(self, image, maps=None):
        values = maps["energy"][0]
        return (values > values.mean()).to(torch.int32)


class Bright(Partition):
    """Two regions: the darker and the brighter pixels of the image as stored."""

    needs_image = True

    def __call__(self, image, maps=None):
        assert image.dtype == np.uint8
        return torch.from_numpy((image.mean(-1) > 128).astype(np.int32))


class Normalized(Images):
    """Images with files of them: batches hold the pixels of the files, normalized, and cut to a size or not."""

    def __init__(self, folder, cut=None):
        super().__init__(5, ids=IDS)
        self.folder, self.cut = folder, cut
        for i, image_id in enumerate(IDS):
            (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
            pixels = ndimage.gaussian_filter(np.random.default_rng(i).random((20, 24, 3)), (3, 3, 0))
            pixels = (pixels - pixels.min()) / np.ptp(pixels) * 255
            assert cv2.imwrite(str(folder / f"{image_id}.png"), pixels.astype(np.uint8))

    def __getitem__(self, index):
        image = torch.from_numpy(read_image(self.folder / f"{IDS[index]}.png")).permute(2, 0, 1)
        return {"image": (image[..., : self.cut] / 255 - 0.5) / 0.2, "image_id": IDS[index]}


def files_by_id(folder):
    source = ImageSource(folder)
    return {image_id: str(source.path(image_id)) for image_id in source}


@pytest.mark.parametrize("estimator", [None, seguq.Deterministic()], ids=["none", "object"])
@pytest.mark.parametrize("partition", [Threshold(), Boxes(3, 2, by="energy"), Pixels(3, 2), Components(4)], ids=repr)
def test_a_partition_gets_the_maps_that_it_looks_at(tmp_path, partition, estimator):
    module = predict(tmp_path, partition=partition, estimator=estimator)
    assert_rows(table(tmp_path).rows(), expected_rows(seguq.Deterministic(module, calibrator=None), partition))
    assert len(table(tmp_path)) >= 5


@pytest.mark.parametrize("partition", [Bright(), Superpixels(12), Superpixels(9, "slic_zero")], ids=repr)
@pytest.mark.parametrize("source", [str, ImageSource, files_by_id], ids=["folder", "source", "files"])
def test_a_partition_gets_the_image_as_stored_and_not_what_the_batch_holds(tmp_path, partition, source):
    data = Normalized(tmp_path / "images")
    module = predict(tmp_path, data, partition=partition, images=source(tmp_path / "images"))
    stored = [read_image(tmp_path / "images" / f"{image_id}.png") for image_id in IDS]
    maps = seguq.Deterministic(module, calibrator=None)(torch.stack([data[i]["image"] for i in range(5)]), IDS)
    paths = {image_id: tmp_path / "images" / f"{image_id}.png" for image_id in IDS}
    scored = regions.score(maps, partition, images=stored, by="smallest_margin", paths=paths).rows()
    assert_rows(table(tmp_path).rows(), sorted(scored, key=lambda row: (row["image_id"], row["region_id"])))
    assert table(tmp_path).meta["partition"] == repr(partition)


def test_regions_of_images_are_cut_once_and_kept_beside_the_table(tmp_path, monkeypatch):
    data, settings = Normalized(tmp_path / "images"), {"partition": Superpixels(12), "images": tmp_path / "images"}
    module = predict(tmp_path, data, **settings)
    first = table(tmp_path).rows()
    assert len(files(tmp_path / "pool")) == 1 + 5
    monkeypatch.setattr(Superpixels, "__call__", None)
    predict(tmp_path, data, module, overwrite=True, **settings)
    assert table(tmp_path).rows() == first


@pytest.mark.parametrize("partition", [Bright(), Superpixels(12)], ids=repr)
def test_a_partition_that_looks_at_images_needs_to_be_told_where_they_are(tmp_path, partition):
    with pytest.raises(
        SeguqError, match=r"\) looks at images as they are stored, but .*: pass RegionScorer\(images=\)"
    ):
        RegionScorer(tmp_path, partition)
    with pytest.raises(SeguqError, match="nowhere is no folder"):
        RegionScorer(tmp_path, partition, images="nowhere")


@pytest.mark.parametrize("partition", [Superpixels(12), Grid(4)], ids=repr)
def test_images_stored_at_another_size_than_their_maps_are_an_error_with_both(tmp_path, partition):
    data = Normalized(tmp_path / "images", cut=16)
    told = r"street/1\.png is stored with 20 x 24 pixels .* but the maps of 'street/1' have 20 x 16: predict images at"
    with pytest.raises(SeguqError, match=told):
        predict(tmp_path, data, partition=partition, images=tmp_path / "images")
    assert files(tmp_path / "pool") == []


def test_an_image_that_is_not_among_those_stored_is_an_error_that_names_the_folder(tmp_path):
    data = Normalized(tmp_path / "images")
    with pytest.raises(SeguqError, match=r"there is no image 'street/1' in .*street \(2 images, such as '0'\)"):
        predict(tmp_path, data, partition=Superpixels(12), images=tmp_path / "images" / "street")
    assert files(tmp_path / "pool") == []


# the selection


@both_names
def test_the_selection_is_acquisition_select_of_the_table(tmp_path, package):
    predict(tmp_path, package=package, budget=Budget(regions=7), seed=3)
    chosen = acquisition.select(table(tmp_path), budget=Budget(regions=7), seed=3)
    found = Selection.load(tmp_path / "pool" / "selection.json")
    assert (found.rows, found.why) == (chosen.rows, chosen.why)


def test_the_strategy_and_seed_are_those_that_were_asked_for(tmp_path):
    predict(tmp_path, budget=Budget(pixels=100), strategy=acquisition.Random(), seed=4)
    chosen = acquisition.select(table(tmp_path), budget=Budget(pixels=100), strategy=acquisition.Random(), seed=4)
    assert Selection.load(tmp_path / "pool" / "selection.json").rows == chosen.rows


@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_labeled_already_is_in_the_table_and_not_selected_again(tmp_path, as_file):
    predict(tmp_path / "first", budget=Budget(regions=7))
    file = tmp_path / "first" / "pool" / "selection.json"
    first = Selection.load(file)
    predict(tmp_path / "second", budget=Budget(regions=7), labeled=[file if as_file else first])
    second = Selection.load(tmp_path / "second" / "pool" / "selection.json")
    assert len(second) == 7 and not second.keys() & first.keys()
    assert table(tmp_path / "second").rows() == table(tmp_path / "first").rows()
    strategy, budget = acquisition.BestOfEachImage(), Budget(regions=7)
    by_hand = acquisition.select(table(tmp_path / "first"), budget=budget, strategy=strategy, labeled=first)
    assert second.rows == by_hand.rows


def test_without_a_budget_nothing_is_selected(tmp_path):
    predict(tmp_path)
    assert files(tmp_path / "pool") == ["regions.parquet"]


class Mine(acquisition.Random):
    """A strategy of one's own."""

    def __init__(self, power: float = 1.0):
        self.power = power


@pytest.mark.parametrize(
    ("partition", "strategy", "expected"),
    [
        ("Grid", "PowerTopK", (4, "PowerTopK(beta=2.0)")),
        ("seguq.regions.Grid", "seguq.acquisition.PowerTopK", (4, "PowerTopK(beta=2.0)")),
        ("Grid", "tests.callbacks.test_region_scorer.Mine", (4, "Mine(power=2.0)")),
    ],
)
@both_names
def test_a_yaml_file_names_classes_alone_or_by_their_import_path(tmp_path, package, partition, strategy, expected):
    option = "power" if strategy.endswith("Mine") else "beta"
    (tmp_path / "config.yaml").write_text(
        f"""
trainer:
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: seguq.callbacks.RegionScorer
      init_args:
        dir: regions
        partition: {{class_path: {partition}, init_args: {{size: 4}}}}
        budget: {{regions: 5, per_image: 2}}
        strategy: {{class_path: {strategy}, init_args: {{{option}: 2.0}}}}
"""
    )
    cli = importlib.import_module(f"{package.__name__}.cli")
    config = ["--config", str(tmp_path / "config.yaml")]
    made = cli.LightningCLI(type(make_module(package)), run=False, args=config, save_config_callback=None)
    (scorer,) = [callback for callback in made.trainer.callbacks if isinstance(callback, RegionScorer)]
    assert (scorer.partition.size, repr(scorer.strategy)) == expected
    assert scorer.budget == Budget(regions=5, per_image=2)


@pytest.mark.parametrize(
    ("partition", "options"),
    [
        ("Superpixels", {"count": 9, "method": "slic_zero"}),
        ("Components", {"min_area": 3, "connectivity": 4}),
        ("Boxes", {"size": 4, "count": 2, "by": "least_confidence"}),
        ("Pixels", {"count": 2, "min_distance": 3}),
        ("Grid", {"size": 4, "stride": 6}),
        ("tests.callbacks.test_region_scorer.Bright", {}),
    ],
)
@both_names
def test_any_partition_is_named_in_yaml_with_the_folder_of_the_images(tmp_path, package, partition, options):
    Normalized(tmp_path / "images")
    scorer = {"dir": "regions", "partition": {"class_path": partition, "init_args": options}}
    callback = {
        "class_path": "seguq.callbacks.RegionScorer",
        "init_args": {**scorer, "images": str(tmp_path / "images")},
    }
    content = {"trainer": {"logger": False, "enable_checkpointing": False, "callbacks": [callback]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    cli = importlib.import_module(f"{package.__name__}.cli")
    config = ["--config", str(tmp_path / "config.yaml")]
    made = cli.LightningCLI(type(make_module(package)), run=False, args=config, save_config_callback=None)
    (found,) = [callback for callback in made.trainer.callbacks if isinstance(callback, RegionScorer)]
    assert found.images.ids == ImageSource(tmp_path / "images").ids
    assert {**found.partition.arguments(), **options} == found.partition.arguments()
    assert type(found.partition).__name__ == partition.rpartition(".")[2]


# what is there already, and what goes wrong


@pytest.mark.parametrize("name", ["regions.parquet", "selection.json"])
def test_a_table_or_selection_that_is_there_is_refused_before_the_first_batch(tmp_path, name):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / name).write_text("mine")
    module = make_module(pytorch_lightning)
    with pytest.raises(UsageError, match=f"{name} exists already: give RegionScorer another folder, or overwrite=True"):
        predict(tmp_path, module=module, budget=Budget(regions=1))
    assert module.forwards == 0
    assert (tmp_path / "pool" / name).read_text() == "mine" and len(files(tmp_path)) == 1


def test_overwrite_replaces_both(tmp_path):
    predict(tmp_path, budget=Budget(regions=1))
    predict(tmp_path, Images(1, ids=["new"]), budget=Budget(regions=2), overwrite=True)
    assert set(table(tmp_path).column("image_id")) == {"new"}
    assert Selection.load(tmp_path / "pool" / "selection.json").image_ids == ["new"]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "thesis.txt").write_text("mine")
    predict(tmp_path)
    assert files(tmp_path / "pool") == ["regions.parquet", "thesis.txt"]


def test_shards_of_a_killed_run_are_not_merged(tmp_path):
    predict(tmp_path, Images(1, ids=["old"]))
    (tmp_path / "pool" / "regions.parquet").rename(tmp_path / "pool" / ".seguq-tmp-shard-00003.parquet")
    predict(tmp_path, Images(1, ids=["new"]))
    assert set(table(tmp_path).column("image_id")) == {"new"}


def test_an_empty_loader_writes_nothing_and_is_no_error(tmp_path):
    module = make_module(pytorch_lightning)
    before = traces(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict(tmp_path, Images(0), module)
    assert files(tmp_path) == [] and traces(module) == before


@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_images_of_one_id_are_one_clear_error_that_leaves_nothing(tmp_path, batch_size):
    with pytest.raises(SeguqError, match="two images had the same id 'same'"):
        predict(tmp_path, Images(2, ids=["same", "same"]), batch_size=batch_size)
    assert files(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "pool").write_text("mine")
    with pytest.raises(UsageError, match="pool is a file, not a folder"):
        predict(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "inner").write_text("a file")
    with pytest.raises(SeguqError, match=r"^RegionScorer cannot write .*inner/pool: Not a directory$"):
        make_trainer(pytorch_lightning, tmp_path, RegionScorer(tmp_path / "inner" / "pool")).predict(
            make_module(pytorch_lightning), loader(Images(1))
        )


def test_a_full_disk_is_one_clear_error_that_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SeguqError, match=r"^RegionScorer cannot write .*regions.parquet: the disk is full$"):
        predict(tmp_path)
    assert files(tmp_path) == []


@both_names
def test_an_error_in_the_modules_step_leaves_no_trace(tmp_path, package):
    module = make_module(package)

    def fail(*_):
        raise ZeroDivisionError

    handle = module.head.register_forward_hook(lambda *_: fail() if module.forwards > 3 else None)
    before = traces(module)
    with pytest.raises(ZeroDivisionError):
        predict(tmp_path, Images(9), module, package)
    found = traces(module)
    assert found[:2] + found[3:] == before[:2] + before[3:]
    assert files(tmp_path) == []
    handle.remove()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition": 32}, r"partition must be one such as seguq.regions.Grid\(32\), but is 32"),
        ({"aggregate": "median"}, r"aggregate must be one of mean, sum, max, .*, but is 'median'"),
        ({"budget": 50}, r"budget must be one such as seguq.acquisition.Budget\(regions=50\), but is 50"),
        ({"strategy": "topk"}, r"strategy must be one such as seguq.acquisition.TopK\(\), but is 'topk'"),
        ({"strategy": acquisition.TopK}, r"strategy must be one such as seguq.acquisition.TopK\(\), but is <class"),
        ({"estimator": 3}, "estimator must be an estimator such as"),
        ({"labeled": "gone.json"}, "labeled= says what is not to be selected again, but without budget="),
        ({"labeled": "gone.json", "budget": Budget(regions=1)}, "gone.json"),
    ],
)
def test_a_wrong_argument_is_an_error_at_once(tmp_path, settings, told):
    with pytest.raises(SeguqError, match=told):
        RegionScorer(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"by": "variance"}, {"partition": Boxes(2, 2, by="variance")}])
def test_a_measure_that_the_estimator_has_not_is_an_error_before_the_first_batch(tmp_path, settings):
    module = make_module(pytorch_lightning)
    with pytest.raises(SeguqError, match="'variance' is not among the measures of deterministic"):
        predict(tmp_path, module=module, **settings)
    assert module.forwards == 0 and files(tmp_path) == []


def test_validation_and_test_write_nothing(tmp_path):
    trainer = make_trainer(pytorch_lightning, tmp_path, RegionScorer(tmp_path / "pool"))
    module = make_module(pytorch_lightning)
    trainer.fit(module, loader(Images(3)), loader(Images(3)))
    trainer.test(module, loader(Images(3)), verbose=False)
    assert files(tmp_path) == []
