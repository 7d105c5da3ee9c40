import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from seguq.functional.correlation import rank_correlation

VALUES = {
    "spread": lambda random: random.normal(size=50),
    "tied": lambda random: random.integers(0, 5, 50).astype(float),
    "infinite": lambda random: np.where(random.random(50) < 0.2, np.inf, random.normal(size=50)),
    "crowded": lambda random: 1 - 1e-12 * random.random(50),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("other", ["spread", "tied"])
def test_it_is_scipys(kind, other):
    random = np.random.default_rng(0)
    first, second = VALUES[kind](random), VALUES[other](random)
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    assert float(found) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_a_weight_is_a_number_of_copies():
    random = np.random.default_rng(1)
    first, second = random.normal(size=30), random.integers(0, 4, 30).astype(float)
    weights = random.poisson(1, (5, 30))
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(weights))
    expected = [spearmanr(np.repeat(first, row), np.repeat(second, row)).statistic for row in weights]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_of_a_constant_or_of_nothing_there_is_none():
    values = torch.tensor([0.5, 0.25, 0.75])
    for weights, other in ((torch.ones(3), torch.full((3,), 0.3)), (torch.zeros(3), values)):
        assert math.isnan(rank_correlation(values, other, weights))
    assert math.isnan(rank_correlation(values[:0], values[:0]))
