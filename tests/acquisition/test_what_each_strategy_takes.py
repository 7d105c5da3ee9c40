"""What each strategy alone claims, against slow and obvious loops."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from seguq.acquisition import (
    BestOfEachImage,
    Budget,
    ClaSP,
    ClassAwareRandom,
    ClassBalanced,
    ClassWeighted,
    CoreSet,
    HerdThenUncertain,
    KMeansPlusPlus,
    Mixed,
    Random,
    Selection,
    SpatialSpread,
    TopK,
    TopThenRandom,
    select,
)
from seguq.acquisition.noise import image_hashes, region_noise, uniform
from seguq.core.errors import UsageError
from seguq.regions import RegionTable
from seguq.regions.table import SCHEMA
from tests.acquisition.tables import META, names, table


def pool(seed=0, count=200, images=12):
    """Boxes at random places, with scores that are all different."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        y0, x0 = generator.integers(0, 200, 2).tolist()
        height, width = generator.integers(1, 40, 2).tolist()
        rows.append(
            {
                "image_id": f"image {generator.integers(images)}",
                "region_id": number,
                "y0": y0,
                "x0": x0,
                "y1": y0 + height,
                "x1": x0 + width,
                "area": height * width,
                "score": float(generator.random()),
                "predicted_class": int(generator.choice(4, p=[0.7, 0.2, 0.07, 0.03])),
                "rle": None,
            }
        )
    return RegionTable(pa.Table.from_pylist(rows, SCHEMA), META)


def with_list(regions, name, values):
    values = np.asarray(values, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return RegionTable(regions.table.append_column(name, column), regions.meta)


def rows_of(selection):
    return [row["region_id"] for row in selection.rows]


# noise


def test_noise_belongs_to_image_number_and_seed():
    regions = pool()
    noise = region_noise(regions, np.random.default_rng(3))
    some = np.random.default_rng(0).permutation(len(regions))[:50]
    assert np.array_equal(region_noise(regions.take(some), np.random.default_rng(3)), noise[some])
    assert not np.isin(region_noise(regions, np.random.default_rng(4)), noise).any()


def test_noise_is_uniform_and_of_neighbors_not_alike():
    numbers = np.arange(100_000)
    noise = uniform(np.repeat(image_hashes(["a"]), len(numbers)), numbers, 7)
    counts = np.histogram(noise, 50, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 95  # chi-squared of 49: 1 in 10,000
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.015
    assert noise.min() > 0 and noise.max() < 1


# one after the other


def test_the_best_of_each_image_is_that_of_a_loop():
    regions = pool()
    left = sorted(regions.rows(), key=lambda row: -row["score"])
    expected = []
    while left:
        seen, turn = set(), []
        for row in left:
            if row["image_id"] not in seen:
                seen.add(row["image_id"])
                turn.append(row)
        expected += turn
        left = [row for row in left if row not in turn]
    for count in (5, 12, 40, 200):
        chosen = select(regions, budget=Budget(regions=count), strategy=BestOfEachImage())
        assert rows_of(chosen) == [row["region_id"] for row in expected[:count]]
    assert rows_of(select(regions, budget=Budget(regions=40))) == rows_of(
        select(regions, budget=Budget(regions=40), strategy=BestOfEachImage())
    )


def test_the_reason_says_which_place_a_region_has_in_its_image():
    regions = table(("a", 0.9), ("a", 0.8), ("b", 0.5), ("a", 0.7))
    chosen = select(regions, budget=Budget(regions=4))
    assert [row["reason"].partition(":")[0] for row in chosen.rows] == [
        *("best of its image", "best of its image", "2nd best of its image", "3rd best of its image")
    ]


def test_equal_scores_of_an_image_have_different_places():
    chosen = select(table(*[("a", 0.5)] * 12), budget=Budget(regions=12))
    places = [row["reason"].partition("best")[0] for row in chosen.rows]
    assert places == [
        "",
        *(f"{n} " for n in ["2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th", "10th", "11th", "12th"]),
    ]


@pytest.mark.parametrize("budget", [Budget(regions=60), Budget(regions=60, per_image=4), Budget(pixels=9000)], ids=repr)
def test_classes_take_turns_as_a_loop_would_have_them(budget):
    regions = pool()
    before = [{"rank": i, **row} for i, row in enumerate(regions.rows()[:30], 1)]
    counts = Counter(row["predicted_class"] for row in before)
    left = sorted(regions.rows()[30:], key=lambda row: -row["score"])
    account, expected = budget.account(regions), []
    while left:
        fewest = min(counts[row["predicted_class"]] for row in left)
        row = next(row for row in left if counts[row["predicted_class"]] == fewest)
        left.remove(row)
        if account.take(row["region_id"]):
            expected.append(row["region_id"])
            counts[row["predicted_class"]] += 1
    chosen = select(regions, budget=budget, strategy=ClassBalanced(), labeled=Selection(before))
    assert rows_of(chosen) == expected


def test_classes_cannot_take_turns_where_none_is_predicted():
    rows = [{**row, "predicted_class": None} for row in pool().rows()]
    regions = RegionTable(pa.Table.from_pylist(rows, SCHEMA), META)
    with pytest.raises(UsageError, match="the regions have no one predicted class"):
        select(regions, budget=Budget(regions=3), strategy=ClassBalanced())
    (row,) = select(regions, budget=Budget(regions=1)).rows
    assert row["reason"] == f"best of its image: variance {row['score']:.3g}"


@pytest.mark.filterwarnings("ignore:the budget allows")
@pytest.mark.parametrize("distance", [1, 15.5, 40, 1000])
@pytest.mark.parametrize("budget", [Budget(regions=50), Budget(pixels=6000), Budget(images=5)], ids=repr)
def test_regions_are_as_far_apart_as_a_loop_would_have_them(distance, budget):
    regions = pool()
    before = [{"rank": i, **row} for i, row in enumerate(regions.rows()[:10], 1)]

    def center(row):
        return np.array([row["y0"] + row["y1"], row["x0"] + row["x1"]]) / 2

    account, taken, expected = budget.account(regions), list(before), []
    for row in sorted(regions.rows()[10:], key=lambda row: -row["score"]):
        beside = [other for other in taken if other["image_id"] == row["image_id"]]
        apart = all(np.hypot(*(center(row) - center(other))) >= distance for other in beside)
        if apart and account.take(row["region_id"]):
            taken.append(row)
            expected.append(row["region_id"])
    chosen = select(regions, budget=budget, strategy=SpatialSpread(distance), labeled=Selection(before))
    assert rows_of(chosen) == expected


# features


def far_and_near(count=200, seed=1):
    regions = pool(count=count)
    return with_list(regions, "features", np.random.default_rng(seed).normal(size=(count, 3)))


@pytest.mark.parametrize("carried", [False, True])
def test_the_core_set_is_that_of_a_loop(carried):
    regions = far_and_near()
    before = [{"rank": i, **row} for i, row in enumerate(regions.rows()[:5], 1)]
    if not carried:
        before = [{name: value for name, value in row.items() if name != "features"} for row in before]
    left = sorted(regions.rows()[5:], key=lambda row: -row["score"])[:49]  # a quarter of 195
    centers = [np.array(row["features"]) for row in before if carried]
    expected = []
    while len(expected) < 20:
        far = [min((np.linalg.norm(row["features"] - c) for c in centers), default=np.inf) for row in left]
        row = left.pop(int(np.argmax(far)))
        centers.append(np.array(row["features"]))
        expected.append(row["region_id"])
    labeled = Selection(before)
    chosen = select(regions, budget=Budget(regions=20), strategy=CoreSet(top=0.25), labeled=labeled)
    assert rows_of(chosen) == expected
    assert (chosen.why["considered"], chosen.why["labeled"]) == (49, 5)


@pytest.mark.parametrize("strategy", [CoreSet(1.0), KMeansPlusPlus(1.0)], ids=repr)
def test_what_is_alike_comes_last(strategy):
    groups = np.repeat(np.eye(5), 40, axis=0)
    regions = with_list(pool(), "features", groups)
    chosen = rows_of(select(regions, budget=Budget(regions=9), strategy=strategy))
    assert {number // 40 for number in chosen[:5]} == set(range(5))
    best = sorted(set(range(200)) - set(chosen[:5]), key=lambda i: -regions.column("score")[i])
    assert chosen[5:] == best[:4]


def test_k_means_plus_plus_draws_by_the_squared_distance():
    regions = with_list(pool(count=4, images=1), "features", [[0.0], [1.0], [2.0], [3.0]])
    before = Selection([{"rank": 1, **regions.rows()[0]}])
    draws = [
        rows_of(select(regions, budget=Budget(regions=1), strategy=KMeansPlusPlus(1.0), labeled=before, seed=seed))[0]
        for seed in range(600)
    ]
    counts = Counter(draws)
    for number, share in ((1, 1 / 14), (2, 4 / 14), (3, 9 / 14)):
        assert abs(counts[number] - 600 * share) < 4.5 * np.sqrt(600 * share * (1 - share))


def test_herding_comes_before_uncertainty():
    groups = np.repeat(np.eye(4), 50, axis=0)
    regions = with_list(pool(), "features", groups)
    chosen = rows_of(select(regions, budget=Budget(regions=4), strategy=HerdThenUncertain(times=1)))
    assert {number // 50 for number in chosen} == {0, 1, 2, 3}
    scores = regions.column("score")[chosen]
    assert (np.diff(scores) < 0).all()


def test_herding_follows_the_mean_as_a_loop_does():
    regions = far_and_near()
    rows = sorted(regions.rows(), key=lambda row: -row["score"])
    unit = np.array([np.array(row["features"]) / np.linalg.norm(row["features"]) for row in rows])
    mean = unit.mean(0)
    weights, candidates = mean.copy(), []
    for _ in range(30):
        best = max((i for i in range(len(rows)) if i not in candidates), key=lambda i: float(unit[i] @ weights))
        candidates.append(best)
        weights += mean - unit[best]
    expected = [rows[i]["region_id"] for i in sorted(candidates)[:10]]
    chosen = select(regions, budget=Budget(regions=10), strategy=HerdThenUncertain(times=3))
    assert rows_of(chosen) == expected


def test_features_of_labeled_regions_of_another_length_are_an_error():
    regions = far_and_near()
    before = Selection([{"rank": 1, **regions.rows()[0], "features": [1.0]}])
    with pytest.raises(UsageError, match="'features' of the labeled regions are no lists of 3 numbers"):
        select(regions, budget=Budget(regions=2), strategy=CoreSet(), labeled=before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error(value):
    features = np.zeros((200, 2))
    features[150, 1] = value
    with pytest.raises(UsageError, match="column 'features' of the table of regions holds what is no finite number"):
        select(with_list(pool(), "features", features), budget=Budget(regions=2), strategy=CoreSet(1.0))


# classes


def test_clasp_gives_each_foreground_class_its_share_and_the_rest_to_the_score():
    generator = np.random.default_rng(0)
    regions = with_list(pool(), "class_scores", generator.random((200, 4)))
    by_class = np.array(regions.table["class_scores"].to_pylist())
    chosen = rows_of(select(regions, budget=Budget(regions=50), strategy=ClaSP(4, 5)))
    taken = set()
    for number in (1, 2, 3):  # in the last round there is hardly any noise
        best = [i for i in np.argsort(-by_class[:, number]).tolist() if i not in taken][:11]
        assert len(set(best) & set(chosen)) >= 9
        taken |= set(best)
    scores = regions.column("score")
    rest = sorted(set(range(200)) - taken, key=lambda i: -scores[i])[:12]
    assert len(set(rest) & set(chosen)) >= 12


def test_clasp_takes_nothing_for_a_class_that_is_nowhere():
    by_class = np.zeros((200, 3))
    by_class[:7, 2] = 1
    regions = with_list(pool(), "class_scores", by_class)
    chosen = rows_of(select(regions, budget=Budget(regions=30), strategy=ClaSP(0, 3)))
    others = sorted(range(7, 200), key=lambda i: -regions.column("score")[i])[:23]
    assert set(chosen) == set(range(7)) | set(others)


@pytest.mark.parametrize(("round", "rounds"), [(-1, 3), (3, 3), (0, 0), (1.0, 3), (True, 3), (0, "3")])
def test_a_round_that_is_none_is_an_error(round, rounds):
    with pytest.raises(UsageError, match=r"ClaSP needs whole numbers round= from 0 to rounds= - 1"):
        ClaSP(round, rounds)


def test_clasp_schedules_its_noise_as_published():
    assert [round(ClaSP(r, 5).beta, 2) for r in range(5)] == [1, 3.16, 10, 31.62, 100]
    assert ClaSP(0, 1).beta == 1


def test_class_aware_random_draws_in_the_published_shares():
    shares = np.zeros((4000, 3))
    shares[:, 0] = 1
    shares[:100] = [0, 1, 0]  # inside a class
    shares[100:200] = [0.5, 0, 0.5]  # at a border
    equal = RegionTable(pool(count=4000).table.drop_columns(["area"]).append_column("area", pa.array([9] * 4000)), META)
    regions = with_list(equal, "class_shares", shares)
    drawn = Counter()
    for seed in range(300):
        (number,) = rows_of(select(regions, budget=Budget(regions=1), strategy=ClassAwareRandom(), seed=seed))
        drawn["inside" if number < 100 else "border" if number < 200 else "ground"] += 1
    # one of a class: half inside, half at the border (class 2 is there alone); at a border: of class 1 there is none
    expected = {"inside": 1 / 12 + (4 + 0.5) / 6 / 40, "border": 1 / 12 + 1 / 12 + (4 + 0.5) / 6 / 40}
    for kind, share in expected.items():
        assert abs(drawn[kind] - 300 * share) < 4.5 * np.sqrt(300 * share)


def test_a_background_that_is_no_class_is_an_error():
    regions = with_list(pool(), "class_scores", np.ones((200, 3)))
    with pytest.raises(UsageError, match="there is no class 3, the background of ClaSP: there are 3"):
        select(regions, budget=Budget(regions=2), strategy=ClaSP(0, 3, background=3))


def test_top_then_random_takes_from_the_top_of_each_image_first():
    regions = pool()
    rows = regions.rows()
    top = set()
    for image_id in {row["image_id"] for row in rows}:
        mine = sorted((row for row in rows if row["image_id"] == image_id), key=lambda row: -row["score"])
        top |= {row["region_id"] for row in mine[: int(np.ceil(0.2 * len(mine)))]}
    one, other = (
        rows_of(select(regions, budget=Budget(regions=len(top)), strategy=TopThenRandom(0.2), seed=seed))
        for seed in (0, 1)
    )
    assert set(one) == set(other) == top and one != other


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.3, 3), (0.5, 5), (1, 10)])
def test_mixed_takes_a_share_by_each(share, count):
    regions = pool()
    best = rows_of(select(regions, budget=Budget(regions=200), strategy=TopK()))
    chosen = rows_of(select(regions, budget=Budget(regions=10), strategy=Mixed(share, TopK(), Random())))
    assert len(set(best[:count]) & set(chosen)) == count and len(set(chosen)) == 10


def test_mixed_strategies_are_composed():
    inner = Mixed(0.5, ClassBalanced(), SpatialSpread(5))
    outer = Mixed(0.5, ClassWeighted(strategy=TopK()), inner)
    chosen = select(pool(), budget=Budget(pixels=5000, per_image=3), strategy=outer)
    assert max(Counter(chosen_id for chosen_id, _ in names(chosen)).values()) <= 3
    assert 0 < chosen.why["spent"] <= 5000


def test_class_weights_are_the_published_ones():
    regions = pool()
    classes = regions.column("predicted_class")
    counts = np.bincount(classes) / len(regions)
    assert np.allclose(ClassWeighted().weights(regions), np.exp(-counts)[classes])
    shares, probs = np.random.default_rng(0).dirichlet(np.ones(4), (2, len(regions)))
    area = regions.column("area")
    of_pool = (probs * area[:, None]).sum(0) / area.sum()
    given = with_list(with_list(regions, "class_shares", shares), "class_probs", probs)
    found = ClassWeighted("probability", nu=12).weights(given)
    assert np.allclose(found, (shares * (12 * of_pool + 1) ** -2).sum(1), rtol=1e-5)


def test_rare_classes_come_sooner_with_class_weights_and_scores_stay_as_they_are():
    regions = table(*[(f"image {i}", 0.5 + 0.001 * (i % 3 == 0)) for i in range(9)])
    rare = [{**row, "predicted_class": int(i == 4)} for i, row in enumerate(regions.rows())]
    (row,) = select(
        RegionTable(pa.Table.from_pylist(rare), META), budget=Budget(regions=1), strategy=ClassWeighted()
    ).rows
    assert (row["image_id"], row["score"]) == ("image 4", 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SpatialSpread(0),
        lambda: SpatialSpread("x"),
        lambda: CoreSet(0),
        lambda: CoreSet(1.5),
        lambda: HerdThenUncertain(times=0),
        lambda: TopThenRandom(0),
        lambda: Mixed(2, TopK(), TopK()),
        lambda: Mixed(0.5, "TopK", TopK()),
        lambda: ClassWeighted("other"),
        lambda: ClassWeighted(nu=-1),
        lambda: ClassWeighted(strategy="TopK"),
        lambda: ClaSP(0, 3, background=-1),
        lambda: ClassAwareRandom(background="x"),
    ],
)
def test_a_wrong_argument_is_an_error_that_shows_it(make):
    with pytest.raises(ValueError, match=r"must be .*, but is "):
        make()
