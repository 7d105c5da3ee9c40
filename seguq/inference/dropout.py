"""Which modules are dropout, and how to give a model some that has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from seguq.core.errors import SeguqError

_ATTRIBUTE = "injected_dropout"
_NAMES = ("Dropout", "DropBlock", "DropPath", "StochasticDepth")


def is_dropout(module: nn.Module) -> bool:
    """Whether a module is one of torch's dropout modules, or of another package's or one's own that says so.

    The latter is a module without parameters and parts of its own whose class, or one that it derives from, has
    ``Dropout``, ``DropBlock``, ``DropPath`` or ``StochasticDepth`` in its name; so no package has to be imported.
    """
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return False
    if isinstance(module, torch.jit.ScriptModule):  # of the class that it was made of only the name is left
        names = [getattr(module, "original_name", "")]
    else:
        names = [cls.__name__ for cls in type(module).__mro__]
    return any(word in name for name in names for word in _NAMES)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module keeps running statistics, or the vectors of a spectral norm, which only training may change."""
    if isinstance(module, torch.jit.ScriptModule):
        return hasattr(module, "running_mean")
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.SyncBatchNorm, _SpectralNorm)):
        return True
    return any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())


class InjectedDropout(nn.Dropout2d):
    """Dropout of whole channels of ``(B, C, *spatial)``, or of single values of anything with fewer dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels, or values."""
        if input.ndim >= 4:
            return torch.feature_dropout(input, self.p, self.training)
        return torch.dropout(input, self.p, self.training)

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The forward hook: drop from the first input; of a list of feature maps from the deepest, its last."""
        if not inputs:
            raise SeguqError(
                "dropout was injected before a module that takes no positional input: choose another where="
            )
        first, *rest = inputs
        if isinstance(first, (list, tuple)):
            changed: Any = type(first)([*first[:-1], self(first[-1])])
        else:
            changed = self(first)
        return (changed, *rest)


def _host(model: nn.Module) -> nn.Module:
    """The module that the dropout is registered on: none that calls its children in turn."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return next((module for module in model.modules() if not isinstance(module, containers)), model)


def inject_dropout(model: nn.Module, p: float = 0.2, where: str = "head") -> nn.Module:
    """Add dropout to a model that has none, before one of its modules.

    The keys of its state dict stay as they are, so old checkpoints still load. In evaluation mode nothing changes;
    `seguq.MCDropout` switches it on. Dropout that was *trained with* makes MC dropout an approximate posterior;
    dropout put in after training does not: the model never learned to live with it, and what its samples show is
    sensitivity, no posterior. Inject it before training where you can.

    Args:
        model: any model of segmentation-models-pytorch, or another with a module of the name ``where``. It is changed
            in place.
        p: share of channels that is dropped, above 0 and below 1.
        where: ``"head"`` (before ``segmentation_head``), or the dotted name of any submodule, such as ``"decoder"``
            (its deepest feature map is dropped from) or ``"encoder.layer4"``.

    Returns:
        The same model.

    Raises:
        SeguqError: if there is no such module, it already has injected dropout, or ``p`` is out of range.
    """
    if not 0 < p < 1:
        raise SeguqError(f"p must be above 0 and below 1, but is {p}")
    name = "segmentation_head" if where == "head" else where
    modules = dict(model.named_modules())
    if not name or name not in modules:
        children = ", ".join(child for child, _ in model.named_children())
        raise SeguqError(f"the model has no module {name!r} to inject dropout before; where= may be one of: {children}")
    target = modules[name]
    if type(target).forward is nn.Module.forward:
        inner = ", ".join(f"{name}.{child}" for child, _ in target.named_children())
        raise SeguqError(f"{name!r} is never called itself, only what it holds is: where= may be one of: {inner}")
    # a child without parameters adds no key; registered on the model, so that model.modules() finds it, and called by
    # a hook of the target. A bound method as the hook: deepcopy and pickle carry it along with the model.
    attribute = f"{_ATTRIBUTE}_{name.replace('.', '_')}"
    host = _host(model)
    if hasattr(host, attribute):
        raise SeguqError(f"dropout was already injected before {name!r}: change its rate by model.{attribute}.p")
    dropout = InjectedDropout(p)
    dropout.training = model.training
    host.add_module(attribute, dropout)
    target.register_forward_pre_hook(dropout.before)
    return model
