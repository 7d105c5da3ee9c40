"""Networks that end in a softmax or sigmoid, whose output is no logits: told of at their first batch."""

from __future__ import annotations

import warnings
from weakref import WeakSet

from torch import Tensor, nn

_looked_at: WeakSet[nn.Module] = WeakSet()


def is_first_batch(model: nn.Module) -> bool:
    """Whether no batch of a model was looked at in this process."""
    if model in _looked_at:
        return False
    _looked_at.add(model)
    return True


def tell_of_probabilities(model: nn.Module, logits: Tensor) -> None:
    """Warn where what a model gives are probabilities.

    They are where all values lie in 0 to 1 and sum to 1 over the classes; of one logit a pixel, or of independent
    labels, where all lie in 0 to 1, and not all are 0.

    Args:
        model: for its name.
        logits: class logits ``(B, C, *spatial)``, as `seguq.functional.logits.class_logits` makes them.
    """
    what = _activation(logits.detach())
    if what is not None:
        name, inverse = what
        warnings.warn(
            f"{type(model).__name__} seems to end in a {name}: its values lie in 0 to 1, but are taken as logits, "
            f"which makes everything look uncertain; take the {name} out of it, or hand over {inverse} by forward= of "
            "the estimator or batch_forward= of the callback",
            stacklevel=4,
        )


def _activation(logits: Tensor) -> tuple[str, str] | None:
    if not logits.numel() or logits.device.type == "meta":
        return None
    if logits.shape[1] == 2 and not bool(logits[:, 0].any()):  # (0, z): one logit, or independent labels
        low, high = logits[:, 1].aminmax()
        inside = bool(low >= 0) and bool(high <= 1) and bool(high > 0)
        return ("sigmoid", "torch.logit(output, eps=1e-6)") if inside else None
    low, high = logits.aminmax()
    if not (bool(low >= 0) and bool(high <= 1)):
        return None
    off = (logits.sum(1) - 1).abs().max()
    return ("softmax", "output.clamp_min(1e-12).log()") if bool(off < 1e-2) else None
