import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn.metrics import r2_score

from seguq.core.errors import SeguqError, UsageError
from seguq.functional.adjusted_iou import adjusted_iou
from seguq.functional.runs import Runs
from seguq.inference import UncertaintyMaps
from seguq.regions import Components, Grid, MetaScore, score


def loop_of_adjusted_iou(objects, classes, target, ignore_index=255):
    """Object by object, with sets of pixels, as the paper says it."""
    true_components = label(target, background=-1, connectivity=2)
    pixels = {(y, x) for y in range(target.shape[0]) for x in range(target.shape[1]) if target[y, x] != ignore_index}
    out = []
    for number in range(int(objects.max()) + 1):
        inside = {pixel for pixel in pixels if objects[pixel] == number}
        votes = np.bincount(classes[objects == number])
        own = int(votes.argmax())
        of_class = {}
        for other in range(int(objects.max()) + 1):
            if int(np.bincount(classes[objects == other]).argmax()) == own and other != number:
                of_class |= {pixel: True for pixel in pixels if objects[pixel] == other}
        truth = {pixel for pixel in pixels if target[pixel] == own}
        met = {true_components[pixel] for pixel in inside & truth}
        near = {pixel for pixel in truth if true_components[pixel] in met} - set(of_class)
        out.append(len(inside & truth) / len(inside | near) if inside else math.nan)
    return np.array(out)


@given(seed=st.integers(0, 2**32), height=st.integers(1, 6), width=st.integers(1, 7))
@settings(deadline=None, max_examples=80)
def test_the_adjusted_iou_is_that_of_a_loop_over_objects(seed, height, width):
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, (height, width))
    target = np.where(generator.random((height, width)) < 0.1, 255, generator.integers(0, 3, (height, width)))
    objects = label(classes, background=-1, connectivity=2) - 1
    components = label(target, background=-1, connectivity=2)
    runs = Runs(objects, int(objects.max()) + 1)
    found = adjusted_iou(runs, classes, target, components)
    np.testing.assert_allclose(found, loop_of_adjusted_iou(objects, classes, target), rtol=1e-12)


def scenes(images, seed=0, size=32):
    """Maps and masks of discs, which are wrong where the model says that it is unsure."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for number in range(images):
        target = torch.zeros(size, size, dtype=torch.long)
        logits = torch.zeros(2, size, size)
        for _ in range(4):
            cy, cx, radius = (float(torch.rand((), generator=generator)) * (size, size, 5)[i] for i in range(3))
            disc = (y - cy) ** 2 + (x - cx) ** 2 < (radius + 2) ** 2
            sure = float(torch.rand((), generator=generator))
            logits[1][disc] = 0.2 + 4 * sure
            if sure > 0.5:
                target[disc] = 1
        logits[1] -= 2 * (logits[1] == 0)
        probs = torch.softmax(logits, 0)[None]
        yield UncertaintyMaps(probs, {"variance": torch.zeros(1, size, size)}, [f"{number % 6}/{number}"]), target[None]


@pytest.mark.parametrize("partition", [Components(), Grid(8)], ids=repr)
def test_it_learns_which_regions_are_wrong_and_says_how_well_on_other_groups(partition):
    meta = MetaScore(partition).fit(list(scenes(60)), group="^[0-9]+")
    found = meta.summary()
    assert (found.images, found.groups) == (60, 6)
    assert 0.6 < found.r2 <= 1
    assert found.interval[0] <= found.r2 <= found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.4
    expected, scored = [], []
    for maps, mask in scenes(20, seed=1):
        rows = score(maps, partition, by=meta).rows()
        labels = partition(None, maps).numpy()
        runs = Runs(labels, int(labels.max()) + 1)
        right = (maps.prediction == mask)[0].numpy()
        if isinstance(partition, Components):
            truth = label(mask[0].numpy(), background=-1, connectivity=2)
            target = adjusted_iou(runs, maps.prediction[0].numpy(), mask[0].numpy(), truth)
        else:
            target = runs.sums(right) / runs.area
        expected += target.tolist()
        scored += [row["score"] for row in rows]
    assert 0 <= min(scored) <= max(scored) <= 1
    assert r2_score(expected, 1 - np.array(scored)) > 0.6


def test_the_same_data_and_seed_give_the_same_scores():
    (maps, _) = next(scenes(1, seed=3))
    one, other = (score(maps, Components(), by=MetaScore().fit(list(scenes(12)))).column("score") for _ in range(2))
    assert one.tolist() == other.tolist()


def test_regions_without_a_labeled_pixel_are_not_learned_from():
    batches = [(maps, torch.full_like(mask, 255) if i else mask) for i, (maps, mask) in enumerate(scenes(3))]
    meta = MetaScore(Grid(8)).fit(batches)
    assert meta.summary().regions == 16
    assert math.isnan(meta.summary().r2) and meta.summary().groups == 1


def test_what_cannot_be_learned_from_is_one_sentence():
    maps, mask = next(scenes(1))
    with pytest.raises(SeguqError, match="no region with a labeled pixel"):
        MetaScore().fit([(maps, torch.full_like(mask, 255))])
    with pytest.raises(SeguqError, match="no region with a labeled pixel"):
        MetaScore().fit([])
    with pytest.raises(SeguqError, match=r"masks of shape \(1, 3, 3\) do not go with maps of 1 images \(32, 32\)"):
        MetaScore().fit([(maps, mask[:, :3, :3])])
    with pytest.raises(SeguqError, match="MetaScore has learned nothing yet"):
        score(maps, Components(), by=MetaScore())
    with pytest.raises(UsageError, match="partition must be one such as"):
        MetaScore("Components")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(UsageError, match=r"pip install 'seguq\[meta\]'"):
        MetaScore().fit(list(scenes(2)))


def test_a_component_that_fills_the_image_has_no_border():
    maps = UncertaintyMaps(torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(1, 2, 8, 8), {}, ["a"])
    meta = MetaScore().fit(list(scenes(12)))
    assert np.isfinite(score(maps, Components(), by=meta).column("score")).all()


def test_masks_that_are_none_and_regions_of_another_partition_are_refused():
    maps, mask = next(scenes(1))
    with pytest.raises(SeguqError, match="target holds the value 77"):
        MetaScore().fit([(maps, torch.full_like(mask, 77))])
    meta = MetaScore().fit(list(scenes(6)))
    assert meta.fit([(maps, mask.float()) for maps, mask in scenes(6)]).summary().images == 6
    with pytest.raises(SeguqError, match=r"learned from regions of Components\(\), not of Grid\(size=16\)"):
        score(maps, Grid(16), by=meta)
    broken = maps.probs.clone()
    broken[0, 0, 3, 3] = math.nan
    with pytest.raises(SeguqError, match="the probabilities of image '0/0' hold NaN"):
        score(UncertaintyMaps(broken, {}, ["0/0"]), Components(), by=meta)
