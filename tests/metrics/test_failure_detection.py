import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from seguq.core.errors import SeguqError
from seguq.metrics import FailureDetection, failure_detection


def items(count=40, ties=False, seed=0):
    """Scores and errors in [0, 1] that go with them, float64."""
    random = np.random.default_rng(seed)
    error = random.random(count) ** 2
    score = error + 0.3 * random.normal(size=count)
    if ties:
        score, error = np.round(score, 1), np.round(error, 1)
    return torch.from_numpy(score), torch.from_numpy(error)


def seen(score, error, group=None, parts=1, **settings):
    metric = FailureDetection(**settings)
    for places in np.array_split(np.arange(len(score)), parts):
        metric.update(score[places], error[places], None if group is None else [group[i] for i in places])
    return metric


def areas_by_loop(score, error):
    """AURC and AUGRC of scores that all differ."""
    errors = error[np.argsort(score)]
    accepted = np.cumsum(errors)
    heights = np.concatenate(([0], accepted)) / len(errors)
    risks = accepted / np.arange(1, len(errors) + 1)
    return risks.mean(), ((heights[1:] + heights[:-1]) / 2).mean()


@pytest.mark.parametrize(
    "change",
    [lambda s: s, lambda s: -torch.exp(-s), lambda s: 1 - 1e-12 * torch.exp(-s), lambda s: s * 1e30],
    ids=["spread", "negative", "crowded", "huge"],
)
@pytest.mark.parametrize("parts", [1, 7])
def test_values_are_those_of_a_loop_over_the_sorted_items(change, parts):
    score, error = items()
    found = seen(change(score), error, parts=parts).compute()
    aurc, augrc = areas_by_loop(score.numpy(), error.numpy())
    assert float(found["aurc"]) == pytest.approx(aurc, rel=1e-6)
    assert float(found["augrc"]) == pytest.approx(augrc, rel=1e-6)
    assert float(found["spearman"]) == pytest.approx(spearmanr(score, error).statistic, rel=1e-6)


def test_ties_are_taken_in_a_random_order():
    score, error = torch.tensor([0.5, 0.1, 0.5, 0.5, math.inf]), torch.tensor([0.2, 0.4, 1.0, 0.0, 0.3])
    orders = []
    for tied in itertools.permutations([0, 2, 3]):
        errors = error[[1, *tied, 4]].double().numpy()
        orders.append((np.cumsum(errors) / np.arange(1, 6)).mean())
    assert float(seen(score, error).compute()["aurc"]) == pytest.approx(np.mean(orders), rel=1e-6)


def test_of_nothing_there_is_no_value():
    with pytest.warns(UserWarning, match="compute"):
        assert all(math.isnan(value) for value in FailureDetection().compute().values())
    empty = seen(torch.zeros(0), torch.zeros(0), group=[])
    assert all(math.isnan(value) for value in empty.compute().values())
    assert all(math.isnan(end) for pair in empty.compute_interval().values() for end in pair)
    assert empty.working_point(coverage=0.5).coverage == 0


def test_replicates_are_values_of_resampled_groups():
    score, error = items(30, ties=True)
    group = [f"patient {i // 3}" for i in range(30)]
    metric = seen(score, error, group, parts=4, n_boot=20)
    weights = torch.cat(list(metric._weights())).long()
    assert len(np.unique(weights.numpy().reshape(20, 10, 3).std(2))) == 1  # items of a patient are drawn together
    replicates = metric._replicate_values()
    kept_score, kept_error, _ = metric._kept()
    for r in range(20):
        drawn = seen(kept_score.repeat_interleave(weights[r]), kept_error.repeat_interleave(weights[r])).compute()
        for name, value in drawn.items():
            assert float(replicates[name][r]) == pytest.approx(float(value), abs=1e-6)


@pytest.mark.skipif(not hasattr(FailureDetection, "merge_state"), reason="torchmetrics has it since 1.7")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_what_is_too_many_is_a_sample_that_is_the_same_in_any_order(monkeypatch, order):
    monkeypatch.setattr(failure_detection, "_MOST", 64)
    score, error = items(600)
    group = [str(i) for i in range(600)]
    parts = [seen(score[p], error[p], [group[i] for i in p]) for p in np.array_split(np.arange(600), 3)]
    merged = FailureDetection()
    for place in order:
        merged.merge_state(parts[place])
    assert merged.items.shape == (64, 4) and int(merged.sums) == 600
    found = {tuple(row) for row in merged.items[:, 1:].tolist()}
    everything = torch.cat([part.items for part in parts])
    first = {tuple(row) for row in everything[everything[:, 0].argsort()[:64], 1:].tolist()}
    assert found == first and len(found) == 64


def test_the_sample_is_as_good_as_a_random_one(monkeypatch):
    monkeypatch.setattr(failure_detection, "_MOST", 1024)
    score, error = items(20_000)
    score[:8000], error[:8000] = 0.0, 0.0  # many items that are alike
    exact = {"aurc": areas_by_loop(score + 1e-9 * torch.arange(20_000), error.numpy())[0]}
    exact["spearman"] = spearmanr(score, error).statistic
    kept = seen(score, error, parts=50)
    share = float((kept._kept()[0] == 0).double().mean())
    assert share == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 1024))
    found = kept.compute()
    assert float(found["aurc"]) == pytest.approx(exact["aurc"], abs=4 * 0.0625 * 0.3)
    assert float(found["spearman"]) == pytest.approx(exact["spearman"], abs=4 / math.sqrt(1024))


def test_calling_it_leaves_the_sample_of_items_that_are_alike_random(monkeypatch):
    monkeypatch.setattr(failure_detection, "_MOST", 256)
    score = torch.tensor([0.0] * 3 + [1.0]).repeat(256)
    metric = FailureDetection()
    for part in score.view(-1, 4):
        metric(part, part)
    share = float(metric._kept()[0].mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / 256))


@pytest.mark.parametrize("given", [{"coverage": 0.5}, {"risk": 0.1}, {"threshold": 0.3}])
def test_a_working_point_is_what_a_search_finds_and_its_intervals_hold_it(given):
    score, error = items(60, ties=True)
    point = seen(score, error, [str(i) for i in range(60)]).working_point(**given)
    found = []
    for threshold in np.unique(score):
        taken = (score <= threshold).numpy()
        found.append((threshold, taken.mean(), error.numpy()[taken].mean()))
    expected = {
        "coverage": lambda: next(row for row in found if row[1] >= 0.5),
        "risk": lambda: [row for row in found if row[2] <= 0.1 + 1e-12][-1],
        "threshold": lambda: [row for row in found if row[0] <= 0.3][-1],
    }[next(iter(given))]()
    assert point[:3] == pytest.approx(expected)
    for value, (low, high) in ((point.coverage, point.coverage_interval), (point.risk, point.risk_interval)):
        assert low < value < high
    assert seen(score, error).working_point(**given) == (*point[:3], None, None)


def test_a_risk_that_nothing_keeps_accepts_nothing():
    point = seen(torch.tensor([0.1, 0.2]), torch.tensor([0.9, 0.5])).working_point(risk=0.1)
    assert (point.threshold, point.coverage) == (-math.inf, 0.0) and math.isnan(point.risk)


@pytest.mark.parametrize(
    ("score", "error", "group", "told"),
    [
        (torch.zeros(2, 1), torch.zeros(2, 1), None, r"must be \(N,\)"),
        (torch.zeros(2), torch.zeros(3), None, r"must be \(N,\)"),
        (torch.tensor([0.1, math.nan]), torch.zeros(2), None, "score holds NaN"),
        (torch.zeros(2), torch.tensor([0.1, 1.5]), None, "error must be from 0"),
        (torch.zeros(2), torch.tensor([0.1, math.nan]), None, "error must be from 0"),
        (torch.zeros(2), torch.zeros(2), ["a"], "one id for each of the 2 items"),
    ],
)
def test_a_wrong_item_is_an_error_and_nothing_is_taken_in(score, error, group, told):
    metric = FailureDetection()
    with pytest.raises(SeguqError, match=told):
        metric.update(score, error, group)
    assert not len(metric._kept()[0]) and int(metric.sums) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_taken_as_it_is(dtype):
    score, error = (values.to(dtype) for values in items())
    assert seen(score, error).compute() == seen(score.double(), error.double()).compute()
