import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.functional.working_points import risk_coverage_points, working_bin


def cases():
    random = np.random.default_rng(0)
    for _ in range(30):
        counts = torch.from_numpy(random.integers(0, 4, (2, 12)).astype(float))
        if counts.sum():
            yield counts


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_the_bin_is_the_one_that_a_search_finds(wanted):
    for right, wrong in cases():
        coverage, risk = risk_coverage_points(right, wrong)
        n = float((right + wrong).sum())
        points = []
        for k in range(12):
            taken, errors = float((right + wrong)[: k + 1].sum()), float(wrong[: k + 1].sum())
            assert float(coverage[k]) == pytest.approx(taken / n)
            if (right + wrong)[k] > 0:
                points.append((k, taken / n, errors / taken))
                assert float(risk[k]) == pytest.approx(errors / taken)
        covered = [k for k, share, _ in points if share >= wanted - 1e-12]
        safe = [k for k, _, left in points if left <= wanted + 1e-12]
        assert working_bin(right, wrong, coverage=wanted) == min(covered)
        assert working_bin(right, wrong, risk=wanted) == (max(safe) if safe else None)


@pytest.mark.parametrize(
    "given", [{}, {"coverage": 0.5, "risk": 0.1}, {"risk": -0.1}, {"coverage": 1.1}, {"risk": "0.1"}]
)
def test_what_is_no_aim_is_an_error(given):
    with pytest.raises(SeguqError, match="give coverage= or risk="):
        working_bin(torch.ones(2), torch.ones(2), **given)
