"""A model as it is asked: its parts in evaluation mode, but for some, and images where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError
from seguq.core.out_of_memory import ran_out_of_memory
from seguq.core.reading import how
from seguq.core.seeds import GENERATOR_LOCK


@contextmanager
def evaluation_mode(model: nn.Module, training: Callable[[str, nn.Module], bool] | None = None) -> Iterator[None]:
    """Put every submodule into evaluation mode, but those that ``training`` picks; afterwards all is as it was.

    The flag of each module is set by itself: ``train()`` and ``eval()`` pass on to children, and some models
    override them.
    """
    with GENERATOR_LOCK:
        # a frozen script has no such flag
        flags = [(module, getattr(module, "training", None)) for module in model.modules()]
        before = [(module, flag) for module, flag in flags if flag is not None]
        fast = torch.backends.mha.get_fastpath_enabled()
        try:
            if training is None:
                for module, flag in before:
                    if flag:
                        module.training = False
            else:
                for name, module in model.named_modules():
                    if hasattr(module, "training"):
                        module.training = training(name, module)
                torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, flag in before:
                if module.training is not flag:  # setting an attribute of a module takes longer than reading it
                    module.training = flag


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back, after a pass in training mode, the buffers of all modules and the plain attributes that it set."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    attributes = [(part, dict(vars(part)), dict(part._buffers)) for part in model.modules()]
    try:
        yield
    finally:
        for part, before, held in attributes:
            vars(part).clear()
            vars(part).update(before)
            part._buffers.clear()
            part._buffers.update(held)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def images_for(model: nn.Module, images: Tensor, *, cast: bool = True) -> Tensor:
    """Images on a model's device, in its precision or, without ``cast``, in their own.

    Whole numbers stay what they are: a network of floats would take the bytes of an image, 0 to 255, for values that
    are 0 to 1 or normalized, and no one would see it; one that takes bytes, or class indices, is given them.
    """
    parameters = list(model.parameters())
    # the weights of a quantized layer are whole numbers
    parameter = next((one for one in parameters if one.is_floating_point()), parameters[0] if parameters else None)
    if parameter is None or parameter.device.type == "meta":  # the weights come from elsewhere when they are needed
        return images
    cast = cast and images.is_floating_point() and parameter.is_floating_point()
    return images.to(parameter.device, parameter.dtype if cast else images.dtype)


@contextmanager
def given(images: Tensor, model: nn.Module) -> Iterator[None]:
    """Say, where a pass fails of images of whole numbers, that floats may be what the network takes.

    Raises:
        SeguqError: in place of what torch raises, which is quoted.
    """
    try:
        yield
    except RuntimeError as error:
        if images.is_floating_point() or ran_out_of_memory(error):
            raise
        raise SeguqError(
            f"{type(model).__name__} fails on images of {images.dtype} ({how(error)}): if it takes floats alone, pass "
            "them as in training, bytes as images.float() / 255, then normalized (batch_forward= of a callback can "
            "do so)"
        ) from error
