"""Whether what is scored first is what is wrong, and how far choices are spread: real networks, images not seen.

    python benchmarks/regions_value.py --data DATA [--net camvid-pretrained nuclei]

Networks are those of `calibration_nets.py` (trained first where the cache does not hold them), asked by MC dropout of 8
samples; the images are those that calibrators are judged on there: another video, the test split. `meta_score` is
learned from the images that calibrators are fitted on. Intervals: 95 %, bootstrap over images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from calibration_nets import SETTINGS, add_options, cannot_be_had, group_of, images_of, trained
from torch.utils.data import DataLoader

import seguq
from seguq import acquisition, regions
from seguq.functional.runs import Runs

MEASURES = ["mutual_information", "predictive_entropy", "smallest_margin", "pairwise_dice"]
SCORES = [
    "mutual_information",
    "predictive_entropy",
    "smallest_margin",
    "region_impurity",
    "ripu",
    "meta_score",
    "random",
]
SIZE, WRONG, FIRST, REPLICATES = 16, 0.1, 0.05, 500
BUDGET = 60


class Scored(NamedTuple):
    """One image: its regions' scores by name, wrong and labeled pixels of each; scores of the image, and its Dice."""

    regions: dict[str, Any]
    wrong: Any
    pixels: Any
    image: dict[str, float]
    dice: float


def answers(est: Any, name: str, part: str, options: Any) -> list[tuple[Any, Any]]:
    """Maps and mask of each image of a part."""
    setting = SETTINGS[name]
    data = images_of(setting, options.data, setting.parts[part], est.models[0].normalization)
    out = []
    for batch in DataLoader(data, batch_size=4):
        maps = est(batch["image"], batch["image_id"]).cpu()
        out += zip(maps.split(), batch["mask"], strict=True)
    return out


def dice_of(prediction: Any, mask: Any, classes: int) -> float:
    """The mean Dice of the classes that are there or predicted, of the labeled pixels."""
    labeled = mask != 255
    values = []
    for number in range(classes):
        one, other = (prediction == number) & labeled, (mask == number) & labeled
        total = int(one.sum()) + int(other.sum())
        if total:
            values.append(2 * int((one & other).sum()) / total)
    return float(np.mean(values))


def scored(one: Any, mask: Any, partition: Any, meta: Any, random: Any) -> Scored:
    """The scores of one image and of its regions."""
    by = [meta if name == "meta_score" else name for name in SCORES if name != "random"]
    table = regions.score(one, partition, by=by)
    labels = partition(None, one).numpy()
    runs = Runs(labels, int(labels.max()) + 1)
    truth, predicted = mask.numpy(), one.prediction[0].numpy()
    labeled = truth != 255
    rows = table.column("region_id")
    found = {name: table.column("score" if number == 0 else name) for number, name in enumerate(SCORES[:-1])}
    found["random"] = random.random(len(rows))
    image = {name: float(one[name].mean()) for name in MEASURES[:3]} | {
        "pairwise_dice": float(one.image_scores["pairwise_dice"]),
        "random": float(random.random()),
    }
    wrong, pixels = runs.sums(labeled & (truth != predicted))[rows], runs.sums(labeled)[rows]
    return Scored(found, wrong, pixels, image, dice_of(predicted, truth, one.num_classes))


def auroc(scores: Any, positive: Any) -> float:
    """Area under the curve of true by false positives; ties count half."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


def first_share(scores: Any, wrong: Any, pixels: Any) -> float:
    """The share of all wrong pixels that lies in the regions scored first, as far as a share of the area reaches."""
    order = np.argsort(-scores, kind="stable")
    taken = order[np.cumsum(pixels[order]) <= FIRST * pixels.sum()]
    return float(wrong[taken].sum() / wrong.sum())


def aurc(scores: Any, risk: Any) -> float:
    """The mean over all coverages of the risk of the images that are kept, the least uncertain first."""
    order = np.argsort(scores, kind="stable")
    return float(np.mean(np.cumsum(risk[order]) / np.arange(1, len(risk) + 1)))


def with_interval(value: Callable[[Any], float], images: int) -> str:
    """A value over images, with its interval; it is given numbers of images, some of them several times."""
    random = np.random.default_rng(0)
    drawn = [value(random.integers(0, images, images)) for _ in range(REPLICATES)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return f"{value(np.arange(images)):.3f} [{low:.3f}, {high:.3f}]"


def tables_of_scores(name: str, found: list[Scored], title: str) -> None:
    """How scores rank regions."""
    print(f"\n### {name}: {title}, {len(found)} images, {sum(len(one.pixels) for one in found)} regions\n")
    print(f"| score | AUROC of more than {WRONG:.0%} wrong | wrong pixels in the first {FIRST:.0%} of the area |")
    print("|---|---|---|")
    for score in SCORES:

        def columns(chosen: Any, score: str = score) -> tuple[Any, Any, Any]:
            parts = [found[i] for i in chosen]
            values = np.concatenate([one.regions[score] for one in parts])
            wrong, pixels = (np.concatenate([getattr(one, what) for one in parts]) for what in ("wrong", "pixels"))
            there = pixels > 0
            return values[there], wrong[there], pixels[there]

        def ranked(chosen: Any, columns: Any = columns) -> float:
            values, wrong, pixels = columns(chosen)
            return auroc(values, wrong > WRONG * pixels)

        def early(chosen: Any, columns: Any = columns) -> float:
            return first_share(*columns(chosen))

        print(f"| {score} | {with_interval(ranked, len(found))} | {with_interval(early, len(found))} |", flush=True)


def table_of_images(name: str, found: list[Scored]) -> None:
    """How scores rank images."""
    risk = 1 - np.array([one.dice for one in found])
    print(f"\n### {name}: images by 1 - Dice (mean {risk.mean():.3f}), AURC, lower is better\n")
    print("| score | AURC |\n|---|---|")
    for score in found[0].image:
        values = np.array([one.image[score] for one in found])
        print(
            f"| {score} | {with_interval(lambda i, values=values: aurc(values[i], risk[i]), len(found))} |", flush=True
        )
    print(f"| the true order | {with_interval(lambda i: aurc(risk[i], risk[i]), len(found))} |")


STRATEGIES: dict[str, Callable[[], Any]] = {
    "TopK": lambda: acquisition.TopK(),
    "BestOfEachImage (the default)": lambda: acquisition.BestOfEachImage(),
    "PowerTopK": lambda: acquisition.PowerTopK(),
    "ClassBalanced": lambda: acquisition.ClassBalanced(),
    "ClaSP, round 0 of 5": lambda: acquisition.ClaSP(round=0, rounds=5),
    "SpatialSpread, 48 pixels": lambda: acquisition.SpatialSpread(48),
    "CoreSet": lambda: acquisition.CoreSet(),
    "KMeansPlusPlus": lambda: acquisition.KMeansPlusPlus(),
    "HerdThenUncertain": lambda: acquisition.HerdThenUncertain(),
    "TopThenRandom": lambda: acquisition.TopThenRandom(),
    "ClassAwareRandom": lambda: acquisition.ClassAwareRandom(),
    "Random": lambda: acquisition.Random(),
}


def table_of_spread(name: str, maps: list[Any], classes: int) -> None:
    """How far the choices of each strategy are spread, by the margin, at one budget."""
    pool = regions.score(
        maps, regions.Grid(SIZE), by="smallest_margin", columns=["class_shares", "class_scores", "features"]
    )
    print(f"\n### {name}: {BUDGET} of {len(pool)} regions in {len(maps)} images\n")
    print(
        "| strategy | images | predicted classes | fewest of a class | mean distance of features | mean margin score |"
    )
    print("|---|---|---|---|---|---|")
    for title, make in STRATEGIES.items():
        chosen = acquisition.select(pool, budget=acquisition.Budget(regions=BUDGET), strategy=make(), seed=0)
        rows = chosen.rows
        features = np.array([row["features"] for row in rows], np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-9
        apart = np.linalg.norm(features[:, None] - features[None], axis=2)
        counts = np.bincount([row["predicted_class"] for row in rows], minlength=classes)
        print(
            f"| {title} | {len({row['image_id'] for row in rows})} | {int((counts > 0).sum())} of {classes} "
            f"| {int(counts.min())} | {apart[np.triu_indices(len(rows), 1)].mean():.3f} "
            f"| {np.mean([row['score'] for row in rows]):.3f} |",
            flush=True,
        )


def report(name: str, options: Any) -> None:
    """All tables of a network."""
    task = trained(name, options.data, options.cache)
    est = seguq.MCDropout(task, samples=8, seed=0, measures=MEASURES, features=True, calibrator=None)
    learned_from, judged = (answers(est, name, part, options) for part in ("fit", "judge"))
    random = np.random.default_rng(0)
    for partition in (regions.Grid(SIZE), regions.Components()):
        meta = regions.MetaScore(partition).fit([(one, mask[None]) for one, mask in learned_from], group_of(name))
        found = [scored(one, mask, partition, meta, random) for one, mask in judged]
        tables_of_scores(name, found, repr(partition))
        print(f"\nmeta_score: {meta.summary()}")
    table_of_images(name, found)
    table_of_spread(name, [one for one, _ in judged], judged[0][0].num_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--net", nargs="+", choices=list(SETTINGS), default=["camvid-pretrained", "nuclei"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.net:
        reason = cannot_be_had(name, options.cache, options.data)
        print(f"{name}: left out, {reason}") if reason else report(name, options)


if __name__ == "__main__":
    main()
