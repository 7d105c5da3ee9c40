"""Networks of segmentation-models-pytorch by name, and the weights of their encoders."""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import nn

from seguq.core.errors import SeguqError
from seguq.core.reading import reading
from seguq.inference.dropout import inject_dropout
from seguq.weights.checkpoint import load_weights, read_checkpoint


def build_network(
    architecture: str,
    encoder: str,
    *,
    classes: int,
    encoder_weights: str | None = "imagenet",
    in_channels: int = 3,
    dropout: float | None = None,
) -> nn.Module:
    """Build a network of segmentation-models-pytorch.

    Args:
        architecture: ``"FPN"``, ``"Unet"``, ``"DeepLabV3Plus"`` ...; letter case does not matter.
        encoder: name of an encoder that segmentation-models-pytorch knows, such as ``"resnet34"`` or ``"tu-..."``.
        classes: channels of the output.
        encoder_weights: name of pretrained weights, None (random), or a file with a state dict of the encoder.
        in_channels: channels of an image.
        dropout: share that the decoder's dropout drops; where the architecture has none, dropout of channels before
            the head is added. None: as the architecture has it.

    Raises:
        SeguqError: for an unknown name (with the nearest ones), or for weights that cannot be had.
    """
    import segmentation_models_pytorch as smp

    names = {name.lower(): cls.__name__ for name, cls in smp.MODEL_ARCHITECTURES_MAPPING.items()}
    if architecture.lower() not in names:
        raise SeguqError(f"architecture {architecture!r} is unknown: {_nearest(architecture, list(names.values()))}")
    _require_encoder(encoder, smp.encoders.get_encoder_names())
    file = encoder_weights if encoder_weights is not None and _is_file_name(encoder_weights) else None
    if file is not None and not Path(file).is_file():
        raise SeguqError(f"encoder_weights={file!r} looks like a file, but there is none")
    named = None if file is not None else encoder_weights
    if named is not None and not encoder.startswith("tu-"):
        known = list(smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {}) or {})
        if known and named not in known:
            raise SeguqError(
                f"encoder {encoder!r} has no weights {named!r}: it has {', '.join(known)}, None, or a file"
            )
    try:
        with _offline_where_unreachable() if named is not None else contextlib.nullcontext(), warnings.catch_warnings():
            # for tu- encoders smp warns that a name of weights only says "pretrained", which is what is meant
            warnings.filterwarnings("ignore", message="For 'tu-'")
            network: nn.Module = smp.create_model(
                architecture, encoder, encoder_weights=named, in_channels=in_channels, classes=classes
            )
    except OSError as error:
        raise SeguqError(
            f"the weights {named!r} of encoder {encoder!r} cannot be downloaded ({type(error).__name__}): connect "
            "to the network, or pass encoder_weights=None (random weights) or a file with the encoder's state dict"
        ) from error
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SeguqError(f"{architecture} with encoder {encoder!r} cannot be built: {reason}") from error
    if file is not None:
        _load_encoder(network, file)
    if dropout is not None:
        _set_dropout(network, dropout)
    return network


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [item.lower() for item in known], n=3, cutoff=0.5)
    by_lower = {item.lower(): item for item in known}
    if close:
        return f"did you mean {' or '.join(by_lower[item] for item in close)}?"
    return f"known are {', '.join(known)}"


def _require_encoder(encoder: str, known: list[str]) -> None:
    if encoder in known or encoder.startswith("timm-"):
        return
    if encoder.startswith("tu-"):
        import timm

        if timm.is_model(encoder[3:].partition(".")[0]):
            return
        known = [f"tu-{name}" for name in timm.list_models()]
    raise SeguqError(f"encoder {encoder!r} is unknown: {_nearest(encoder, known)}")


def _is_file_name(weights: str) -> bool:
    return os.sep in weights or Path(weights).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


@contextlib.contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Where the hub's name cannot be resolved, let its client look into its cache only.

    It would retry for most of a minute otherwise, with the same result.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urlparse(constants.ENDPOINT).hostname
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_encoder(network: nn.Module, file: str) -> None:
    encoder = network.encoder
    assert isinstance(encoder, nn.Module)
    if Path(file).suffix == ".safetensors":
        from safetensors.torch import load_file

        with reading(file, "safetensors"):
            content = load_file(file)
    else:
        content = read_checkpoint(file)
    with reading(file):
        left_over = load_weights(encoder, content, file)
    if left_over:
        names = ", ".join(left_over[:8]) + (", ..." if len(left_over) > 8 else "")
        warnings.warn(f"{file} holds {len(left_over)} tensors that the encoder has no place for: {names}", stacklevel=3)


def _set_dropout(network: nn.Module, rate: float) -> None:
    if not 0 <= rate < 1:
        raise SeguqError(f"dropout must be at least 0 and below 1, but is {rate}")
    found = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and not name.startswith("encoder")
    ]
    for module in found:
        module.p = rate
    if not found and rate > 0:
        inject_dropout(network, rate)
