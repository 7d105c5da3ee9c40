"""Mean and deviation of an encoder, without the network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from seguq.core.errors import SeguqError
from seguq.data import Normalization, encoder_normalization
from seguq.data.normalization import imagenet_normalization

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMM, SMP = "tu-tf_efficientnet_lite0", "resnet18"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a connection, or asking for an address, fails the test."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache that holds the settings of every encoder in one file (to be written by the test)."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    return tmp_path / "config.json"


@pytest.fixture
def empty_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def test_the_guard_of_these_tests_sees_the_network_being_asked() -> None:
    with pytest.raises(pytest.fail.Exception, match="network"):
        socket.create_connection(("localhost", 1))


def test_an_encoder_of_timm_brings_its_own_figures() -> None:
    assert encoder_normalization(TIMM) == ((0.5,) * 3, (0.5,) * 3)


def test_an_encoder_of_timm_with_imagenets_figures_brings_those() -> None:
    assert encoder_normalization("tu-resnet18") == IMAGENET


@pytest.mark.usefixtures("empty_hub_cache")
@pytest.mark.parametrize("weights", ["imagenet", "ssl", None, "no such weights"])
def test_an_encoder_that_was_never_downloaded_gets_imagenets_figures(weights: str | None) -> None:
    assert encoder_normalization(SMP, weights=weights) == IMAGENET


def test_an_encoder_in_the_hubs_cache_brings_its_own_figures(hub_cache: Path) -> None:
    hub_cache.write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_space": "RGB"}))
    assert encoder_normalization(SMP) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_settings_in_the_hubs_cache_without_figures_give_imagenets(hub_cache: Path) -> None:
    hub_cache.write_text("{}")
    assert encoder_normalization(SMP) == IMAGENET


def test_without_pretrained_weights_the_cache_is_not_looked_at(hub_cache: Path) -> None:
    hub_cache.write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}))
    assert encoder_normalization(SMP, weights=None) == IMAGENET


@pytest.mark.usefixtures("empty_hub_cache")
@pytest.mark.parametrize("encoder", ["no_such_encoder", "tu-no_such_encoder"])
def test_an_unknown_encoder_gets_imagenets_figures(encoder: str) -> None:
    assert encoder_normalization(encoder) == IMAGENET


@pytest.mark.parametrize("encoder", [TIMM, SMP])
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_other_channel_counts_get_imagenets_average_for_each_channel(encoder: str, channels: int) -> None:
    mean, std = encoder_normalization(encoder, channels)
    assert mean == pytest.approx([sum(IMAGENET[0]) / 3] * channels)
    assert std == pytest.approx([sum(IMAGENET[1]) / 3] * channels)


def test_imagenets_figures_for_rgb_are_the_published_ones() -> None:
    assert imagenet_normalization() == IMAGENET


def test_checked_turns_lists_of_whole_numbers_into_tuples_of_floats() -> None:
    got = Normalization.checked([0, 1], [1, 2])
    assert got == ((0.0, 1.0), (1.0, 2.0))
    assert all(type(value) is float for part in got for value in part)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([], []),
        ([0.5], [0.5, 0.5]),
        ([0.5, 0.5], [0.5]),
        ([0.5], [0.0]),
        ([0.5, 0.5], [0.5, -0.5]),
        ([0.5], [float("nan")]),
        ([0.5], [float("inf")]),
        ([float("nan")], [0.5]),
    ],
)
def test_figures_that_cannot_normalize_are_an_error_that_shows_them(mean: list[float], std: list[float]) -> None:
    with pytest.raises(SeguqError) as error:
        Normalization.checked(mean, std)
    assert str(mean) in str(error.value)
    assert str(std) in str(error.value)
