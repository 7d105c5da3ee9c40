"""Callbacks whose estimator answers scores of whole images and features beside maps."""

import pytest
import pytorch_lightning
import torch

import seguq
from seguq.callbacks import HeatmapWriter, RegionScorer, UncertaintyMetrics
from seguq.core.errors import UsageError
from seguq.inference import UncertaintyMaps
from seguq.regions import Grid, RegionTable
from tests.callbacks.tiny import Images, files, loader, make_module, make_trainer

IDS = ["a", "b", "c", "d", "e"]


def half(model, images):
    return images[..., ::2, ::2]


def sampled(**settings):
    measures = ["variance", "pairwise_dice"]
    return seguq.MCDropout(samples=3, seed=0, **{"measures": measures, "features": half, **settings})


def predict(folder, *callbacks):
    module = make_module(pytorch_lightning)
    trainer = make_trainer(pytorch_lightning, folder, *callbacks)
    trainer.predict(module, loader(Images(5, ids=IDS), 2))
    images = torch.stack([Images(5, ids=IDS)[i]["image"] for i in range(5)])
    est = seguq.MCDropout(module, 3, seed=0, measures=["variance", "pairwise_dice"], features=half, calibrator=None)
    return est(images, IDS)


@pytest.mark.parametrize("measures", [None, ["variance", "pairwise_dice"], ["pairwise_dice"]])
def test_heat_maps_are_of_maps_and_the_files_hold_all(tmp_path, measures):
    expected = predict(tmp_path, HeatmapWriter(tmp_path / "heat", measures, estimator=sampled()))
    for i, name in enumerate(IDS):
        found = UncertaintyMaps.load(tmp_path / "heat" / "predict" / "maps" / f"{name}.npz")
        assert torch.equal(found.image_scores["pairwise_dice"], expected.image_scores["pairwise_dice"][i : i + 1])
        assert torch.equal(found.features, expected.features[i : i + 1])
        assert found.names == (() if measures == ["pairwise_dice"] else ("variance",))
    drawn = {name.split("/")[1] for name in files(tmp_path / "heat" / "predict") if name.startswith("heatmaps/")}
    assert drawn == (set() if measures == ["pairwise_dice"] else {"variance"})


def test_regions_are_scored_by_a_map(tmp_path):
    expected = predict(tmp_path, RegionScorer(tmp_path / "pool", Grid(4), by="variance", estimator=sampled()))
    table = RegionTable.load(tmp_path / "pool" / "regions.parquet")
    assert table.meta["by"] == "variance"
    means = expected["variance"].unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2)).flatten()
    rows = sorted(table.rows(), key=lambda row: (row["image_id"], row["region_id"]))
    assert [row["score"] for row in rows] == pytest.approx(means.tolist(), rel=1e-4)


def test_metrics_are_of_maps(tmp_path):
    trainer = make_trainer(pytorch_lightning, tmp_path, UncertaintyMetrics(estimator=sampled()))
    trainer.validate(make_module(pytorch_lightning), loader(Images(5), 2), verbose=False)
    names = [name for name in trainer.callback_metrics if name.startswith("val/auroc_error")]
    assert names == ["val/auroc_error/variance"]
    with pytest.raises(UsageError, match="UncertaintyMetrics takes maps, but 'pairwise_dice' is one score"):
        UncertaintyMetrics(measures=["pairwise_dice"])


def test_a_pass_that_was_seen_is_run_again_for_features(tmp_path):
    writer = HeatmapWriter(tmp_path / "heat", estimator=seguq.Deterministic(features=half))
    trainer = make_trainer(pytorch_lightning, tmp_path, writer)
    trainer.test(make_module(pytorch_lightning), loader(Images(5, ids=IDS), 2), verbose=False)
    (file, *_) = [name for name in files(tmp_path / "heat") if name.endswith("a.npz")]
    found = UncertaintyMaps.load(tmp_path / "heat" / file).features
    assert torch.equal(found, Images(5, ids=IDS)[0]["image"][None, :, ::2, ::2].half())
