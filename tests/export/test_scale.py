"""One scale for a whole run, from a histogram: against the quantiles of all values at once."""

import json
import math

import numpy as np
import pytest
import torch

from seguq.core.errors import SeguqError
from seguq.export import Scale, ScaleFinder
from seguq.export.scale import label_of, read_scales, scales_from_dict

LET_GO = 0.99  # rounding lets go of one part in 100 above a rounder value


def found(*maps):
    finder = ScaleFinder()
    for values in maps:
        finder.add(values)
    return finder.scale()


def quantiles(values):
    return np.quantile(values.double().numpy(), [0.001, 0.999])


def draws(kind, count=20_000):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return {
        "uniform": uniform,
        "entropy": -(uniform * uniform.log() + (1 - uniform) * (1 - uniform).log()),
        "exponential": -uniform.log(),
        "mostly zero": (uniform - 0.95).clamp_min(0),
        "heavy tail": uniform ** (-1 / 1.5),
    }[kind].float()


POSITIVE = ("uniform", "entropy", "exponential", "mostly zero", "heavy tail")


@pytest.mark.parametrize("factor", [1e-9, 1e-4, 0.37, 1.0, 8.3, 1e4, 1e30])
@pytest.mark.parametrize("kind", POSITIVE)
def test_upper_end_is_just_above_the_value_that_1_in_1000_exceed(kind, factor):
    values = draws(kind) * factor
    quantile = quantiles(values)[1]
    assert LET_GO * quantile <= found(values).high <= 1.12 * quantile


@pytest.mark.parametrize("kind", POSITIVE)
def test_upper_end_is_exceeded_by_little_more_than_1_in_1000(kind):
    values = draws(kind)
    assert (values > found(values).high / LET_GO).double().mean() <= 0.001


@pytest.mark.parametrize("kind", POSITIVE)
def test_lower_end_of_maps_that_are_never_negative_is_0(kind):
    assert found(draws(kind) + 0.5).low == 0


@pytest.mark.parametrize("value", [0.123, 3.337, 86.6])
def test_upper_end_has_two_digits(value):
    high = found(torch.full((64,), value)).high
    assert high == float(f"{high:.1e}")


def test_the_scale_of_zeros_has_a_width():
    scale = found(torch.zeros(4, 8, 8))
    assert scale.low == 0 < scale.high


def test_a_run_without_maps_has_a_scale():
    assert found() == Scale(0.0, 1.0)


def test_a_few_stray_values_do_not_set_the_scale():
    values = torch.cat([draws("uniform"), torch.full((3,), 1e6)])
    assert found(values).high <= 1.12


@pytest.mark.parametrize("shift", [-0.4, -1.5, -30.0, -700.0])
@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_lower_end_of_negative_maps_is_just_below_the_value_that_all_but_1_in_1000_exceed(kind, shift):
    values = shift - draws(kind)
    quantile = quantiles(values)[0]
    assert 1.12 * quantile <= found(values).low <= LET_GO * quantile


@pytest.mark.parametrize("shift", [-0.4, -1.5, -10.2, -30.0, -700.0])
@pytest.mark.parametrize("kind", ["uniform", "exponential"])
def test_upper_end_of_negative_maps_is_just_above_the_value_that_1_in_1000_exceed(kind, shift):
    values = shift - draws(kind)
    quantile = quantiles(values)[1]
    assert quantile <= found(values).high + (1 - LET_GO) * abs(quantile)
    assert found(values).high <= quantile + 0.12 * abs(quantile)


@pytest.mark.parametrize(("low", "high"), [(-10.9, -10.2), (-5.59, -5.51), (-2.04, -2.01), (-1e9, -9.95e8)])
def test_negative_maps_of_a_narrow_range_are_not_all_of_the_brightest_color(low, high):
    values = torch.linspace(low, high, 5000, dtype=torch.float64).float()
    assert (values > found(values).high).double().mean() < 0.02


def test_maps_on_both_sides_of_0_have_both_ends():
    values = draws("uniform") * 3 - 1
    scale, (low, high) = found(values), quantiles(values)
    assert 1.12 * low <= scale.low <= LET_GO * low and LET_GO * high <= scale.high <= 1.12 * high


@pytest.mark.parametrize("value", [-1e30, -5.55, -5.0, -1e-4, 3e-9, 1.0, 1e30])
def test_a_constant_map_lies_within_its_scale(value):
    scale = found(torch.full((100,), value))
    slack = (1 - LET_GO) * abs(value)
    assert scale.low <= value + slack and value - slack <= scale.high


@pytest.mark.parametrize("value", [-1e30, -5.55, -5.0, -1e-4, 0.0, 3e-9, 1.0, 1e30])
def test_the_scale_of_a_constant_map_has_a_width(value):
    scale = found(torch.full((100,), value))
    assert scale.low < scale.high and math.isfinite(scale.low) and math.isfinite(scale.high)


def test_the_scale_does_not_depend_on_how_the_maps_are_cut():
    values = draws("heavy tail", 6400)
    pieces = [piece.reshape(-1, 8, 8) for piece in values.split(640)]
    assert found(*pieces) == found(*reversed(pieces)) == found(values)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_taken(kind):
    values = torch.linspace(0, 1, 129)  # whole in each of them
    assert found(values.to(kind)) == found(values)


def test_nan_is_refused():
    with pytest.raises(SeguqError, match="NaN"):
        ScaleFinder().add(torch.tensor([0.1, math.nan]))


def test_scales_come_back_from_json():
    scales = {"predictive_entropy": Scale(0.0, 0.69), "energy": Scale(-11.0, -2.5)}
    written = json.dumps({name: scale.as_dict() for name, scale in scales.items()})
    assert scales_from_dict(json.loads(written)) == scales


@pytest.mark.parametrize(
    ("measure", "label"),
    [
        ("predictive_entropy", "predictive entropy (nats)"),
        ("total_entropy", "total entropy (nats)"),
        ("expected_entropy", "expected entropy (nats)"),
        ("mutual_information", "mutual information (nats)"),
        ("least_confidence", "least confidence"),
        ("energy", "energy"),
    ],
)
def test_the_label_names_the_measure_and_its_unit(measure, label):
    assert label_of(measure) == label


@pytest.mark.parametrize("content", [None, "{", "[]", '{"energy": {"low": 0}}', '{"energy": {"low": "a", "high": 1}}'])
def test_scales_that_are_missing_or_damaged_are_none(content, tmp_path):
    if content is not None:
        (tmp_path / "scale.json").write_text(content)
    assert read_scales(tmp_path / "scale.json") is None
