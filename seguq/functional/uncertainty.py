"""The measures of uncertainty, per pixel. Every one of them: larger is more uncertain; entropies in nats.

Probabilities come as ``(B, C, *spatial)``, samples of them as ``(S, B, C, *spatial)``, with any number of spatial
dimensions. Half precision is taken in and computed, and returned, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seguq.core.checks import require_dims
from seguq.core.errors import SeguqError
from seguq.functional.logits import full_precision

_PROBS = "(B, C, *spatial)"
_SAMPLES = "(S, B, C, *spatial)"


def _entropy(probs: Tensor) -> Tensor:
    probs = full_precision(probs)
    # p log p has the limit 0 at p = 0, and is a third of what torch.special.entr costs on a CPU; sums that come out a
    # rounding error above 1 give a tiny minus
    logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log_()
    return (0 - logs.mul_(probs).sum(1)).clamp_min_(0)


def _require_samples(sample_probs: Tensor) -> None:
    require_dims("sample_probs", sample_probs, _SAMPLES, at_least=3)
    if sample_probs.shape[0] == 0:
        raise SeguqError(f"sample_probs must hold at least one sample, but has shape {tuple(sample_probs.shape)}")


def _mean(sample_probs: Tensor) -> Tensor:
    total = torch.zeros_like(full_precision(sample_probs[0]))
    for probs in sample_probs:
        total += probs
    return total / len(sample_probs)


def predictive_entropy(probs: Tensor) -> Tensor:
    r"""Entropy of the class probabilities, per pixel: the whole uncertainty of the prediction.

    .. math:: H(p) = -\sum_c p_c \log p_c

    Args:
        probs: class probabilities, ``(B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)`` in nats, from 0 (certain) to ``log C`` (all classes alike).

    Raises:
        SeguqError: if ``probs`` has fewer than 2 dimensions.

    References:
        Shannon, A Mathematical Theory of Communication, 1948.

    Example:
        >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    require_dims("probs", probs, _PROBS, at_least=2)
    return _entropy(probs)


def expected_entropy(sample_probs: Tensor) -> Tensor:
    r"""Mean of the entropies of the samples, per pixel: noise in the data (aleatoric uncertainty).

    .. math:: \tfrac1S \sum_s H(p_s)

    Args:
        sample_probs: class probabilities of S samples of the model, ``(S, B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)`` in nats, from 0 to ``log C``.

    Raises:
        SeguqError: if ``sample_probs`` has fewer than 3 dimensions or holds no sample.

    References:
        Depeweg et al., Decomposition of Uncertainty in Bayesian Deep Learning, 2018, eq. 5.

    Example:
        >>> expected_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))     # each sample is sure of itself
        tensor([0.])
    """
    _require_samples(sample_probs)
    total = _entropy(sample_probs[0])
    for probs in sample_probs[1:]:
        total += _entropy(probs)
    return total / len(sample_probs)


def mutual_information(sample_probs: Tensor) -> Tensor:
    r"""Mutual information between the prediction and the model, per pixel (epistemic uncertainty, BALD).

    .. math:: I = H\big(\tfrac1S \sum_s p_s\big) - \tfrac1S \sum_s H(p_s)

    Args:
        sample_probs: class probabilities of S samples of the model, ``(S, B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)`` in nats, from 0 (all samples agree) to ``log(min(S, C))``.

    Raises:
        SeguqError: if ``sample_probs`` has fewer than 3 dimensions or holds no sample.

    References:
        Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011, eq. 2.

    Example:
        >>> agree = torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]])     # 2 samples, 1 item, 2 classes
        >>> disagree = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> mutual_information(agree), mutual_information(disagree)
        (tensor([0.]), tensor([0.6931]))
    """
    _require_samples(sample_probs)
    return (_entropy(_mean(sample_probs)) - expected_entropy(sample_probs)).clamp_min(0)


def total_entropy(sample_probs: Tensor) -> Tensor:
    r"""Expected entropy plus mutual information, per pixel: the entropy of the mean of the raw samples.

    It is the predictive entropy before any calibrator: `predictive_entropy` is taken of calibrated probabilities.

    Args:
        sample_probs: class probabilities of S samples of the model, ``(S, B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)`` in nats, from 0 to ``log C``.

    Raises:
        SeguqError: if ``sample_probs`` has fewer than 3 dimensions or holds no sample.

    References:
        Depeweg et al., Decomposition of Uncertainty in Bayesian Deep Learning, 2018, eq. 5.

    Example:
        >>> total_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931])
    """
    _require_samples(sample_probs)
    return _entropy(_mean(sample_probs))


def least_confidence(probs: Tensor) -> Tensor:
    r"""One minus the largest class probability, per pixel.

    .. math:: 1 - p_{(1)}

    Args:
        probs: class probabilities, ``(B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)``, from 0 (certain) to ``1 - 1 / C``.

    Raises:
        SeguqError: if ``probs`` has fewer than 2 dimensions.

    References:
        Lewis and Gale, A Sequential Algorithm for Training Text Classifiers, 1994.

    Example:
        >>> least_confidence(torch.tensor([[0.75, 0.25]]))
        tensor([0.2500])
    """
    require_dims("probs", probs, _PROBS, at_least=2)
    return 1 - full_precision(probs.amax(1))


def smallest_margin(probs: Tensor) -> Tensor:
    r"""One minus the lead of the largest class probability over the second, per pixel.

    .. math:: 1 - (p_{(1)} - p_{(2)})

    Args:
        probs: class probabilities, ``(B, C, *spatial)``, C at least 2, summing to 1 over C.

    Returns:
        ``(B, *spatial)``, from 0 (certain) to 1 (the two best classes tie).

    Raises:
        SeguqError: if ``probs`` has fewer than 2 dimensions or fewer than 2 classes.

    References:
        Scheffer et al., Active Hidden Markov Models for Information Extraction, 2001.

    Example:
        >>> smallest_margin(torch.tensor([[0.5, 0.25, 0.25]]))
        tensor([0.7500])
    """
    require_dims("probs", probs, _PROBS, at_least=2)
    if probs.shape[1] < 2:
        raise SeguqError(f"probs needs at least 2 classes in dimension 1, but has shape {tuple(probs.shape)}")
    probs = full_precision(probs)
    if probs.device.type != "cpu":
        first, index = probs.max(1)
        return 1 - (first - probs.scatter(1, index.unsqueeze(1), -torch.inf).amax(1))
    # on a CPU ten times as fast, as it needs no index
    first, second = torch.maximum(probs[:, 0], probs[:, 1]), torch.minimum(probs[:, 0], probs[:, 1])
    for other in probs.unbind(1)[2:]:
        second = torch.maximum(second, torch.minimum(first, other))
        first = torch.maximum(first, other)
    return 1 - (first - second)


def variance(sample_probs: Tensor) -> Tensor:
    r"""Variance of the class probabilities over the samples (with 1/S), summed over the classes, per pixel.

    .. math:: \sum_c \tfrac1S \sum_s (p_{sc} - \bar p_c)^2

    Args:
        sample_probs: class probabilities of S samples of the model, ``(S, B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)``, from 0 (all samples agree) to ``1 - 1 / min(S, C)``.

    Raises:
        SeguqError: if ``sample_probs`` has fewer than 3 dimensions or holds no sample.

    References:
        Kendall et al., Bayesian SegNet, 2015. The update of a running mean and sum of squares: Welford, 1962.

    Example:
        >>> variance(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.5000])
    """
    _require_samples(sample_probs)
    mean = full_precision(sample_probs[0]).clone()
    squares = torch.zeros_like(mean[:, 0])
    for count, probs in enumerate(sample_probs[1:], start=2):
        delta = probs - mean
        mean += delta / count
        squares += delta.square_().sum(1) * ((count - 1) / count)
    return squares / len(sample_probs)


def variation_ratio(sample_probs: Tensor) -> Tensor:
    r"""Share of the samples whose predicted class is not the most frequent one, per pixel.

    .. math:: 1 - \tfrac1S \max_c \#\{s : \arg\max_k p_{sk} = c\}

    Args:
        sample_probs: class probabilities of S samples of the model, ``(S, B, C, *spatial)``, summing to 1 over C.

    Returns:
        ``(B, *spatial)``, from 0 (all samples predict the same class) to ``1 - 1 / min(S, C)``.

    Raises:
        SeguqError: if ``sample_probs`` has fewer than 3 dimensions or holds no sample.

    References:
        Freeman, Elementary Applied Statistics, 1965; Gal, Uncertainty in Deep Learning, 2016, section 3.3.

    Example:
        >>> variation_ratio(torch.tensor([[[0.9, 0.1]], [[0.8, 0.2]], [[0.3, 0.7]], [[0.6, 0.4]]]))
        tensor([0.2500])
    """
    _require_samples(sample_probs)
    votes = torch.zeros(sample_probs.shape[1:], dtype=torch.int32, device=sample_probs.device)
    one = votes.new_ones(()).expand_as(votes[:, :1])
    for probs in sample_probs:
        votes.scatter_add_(1, probs.argmax(1, keepdim=True), one)
    dtype = full_precision(sample_probs[:0]).dtype
    return 1 - votes.amax(1).to(dtype) / len(sample_probs)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Free energy of the logits, per pixel: high where no class has a large logit.

    .. math:: E = -T \log \sum_c e^{z_c / T}

    Args:
        logits: ``(B, C, *spatial)``.
        temperature: T, above 0.

    Returns:
        ``(B, *spatial)``, unbounded. Unlike the other measures it changes when a constant is added to all logits.

    Raises:
        SeguqError: if ``logits`` has fewer than 2 dimensions or ``temperature`` is not above 0.

    References:
        Liu et al., Energy-based Out-of-distribution Detection, 2020, eq. 4.

    Example:
        >>> energy(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
        tensor([ -0.6931, -10.0000])
    """
    require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
    if not temperature > 0:
        raise SeguqError(f"temperature must be above 0, but is {temperature}")
    return -temperature * torch.logsumexp(full_precision(logits) / temperature, dim=1)


def max_logit(logits: Tensor) -> Tensor:
    r"""Minus the largest logit, per pixel.

    .. math:: -\max_c z_c

    Args:
        logits: ``(B, C, *spatial)``.

    Returns:
        ``(B, *spatial)``, unbounded.

    Raises:
        SeguqError: if ``logits`` has fewer than 2 dimensions.

    References:
        Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, 2022.

    Example:
        >>> max_logit(torch.tensor([[3.0, -1.0]]))
        tensor([-3.])
    """
    require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
    return -full_precision(logits.amax(1))


def standardized_max_logit(logits: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    r"""Minus the largest logit, standardized by how large it is for the pixels of its class as a rule, per pixel.

    .. math:: -\frac{z_c - \mu_c}{\sigma_c}, \quad c = \arg\max_k z_k

    Args:
        logits: ``(B, C, *spatial)``.
        mean: mean of the largest logit of the pixels that are predicted as each class, ``(C,)`` (see
            `seguq.inference.MaxLogitStatistics`).
        std: its standard deviation, ``(C,)``, above 0.

    Returns:
        ``(B, *spatial)``, unbounded; about 0 on average for images like those of the statistics.

    Raises:
        SeguqError: if the shapes do not go together or a deviation is not above 0.

    References:
        Jung et al., Standardized Max Logits: A Simple yet Effective Approach for Identifying Unexpected Road Obstacles
        in Urban-Scene Segmentation, 2021, eq. 3.

    Example:
        >>> z = torch.tensor([[5.0, 0.0], [0.0, 5.0]])           # alike, but class 1 is usually surer of itself
        >>> standardized_max_logit(z, torch.tensor([4.0, 8.0]), torch.tensor([1.0, 2.0]))
        tensor([-1.0000,  1.5000])
    """
    require_dims("logits", logits, "(B, C, *spatial)", at_least=2)
    if mean.shape != (logits.shape[1],) or std.shape != mean.shape:
        raise SeguqError(
            f"logits have {logits.shape[1]} classes, but mean has shape {tuple(mean.shape)} and std {tuple(std.shape)}"
        )
    logits = full_precision(logits)
    mean, std = mean.to(logits), std.to(logits)
    if not bool((std > 0).all()):
        raise SeguqError("every standard deviation must be above 0")
    largest, winner = logits.max(1)
    return (mean[winner] - largest) / std[winner]
