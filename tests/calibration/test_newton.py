"""Newton's method and the likelihoods that it is given, against automatic derivatives and plain minimizers."""

import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.func import hessian, jacrev

from seguq.calibration import Calibrator, EntropyTemperatureScaling
from seguq.calibration.newton import Ridge, newton
from seguq.functional import likelihood
from seguq.functional.likelihood import (
    NLL,
    affine_nll,
    class_affine_nll,
    ranked_gaps,
    ranked_gaps_nll,
    temperature_field_nll,
)


def pixels(classes=4, count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(classes, count, generator=generator, dtype=torch.float64)
    logits = logits - logits.amax(0)
    target = torch.multinomial((logits / 1.5).softmax(0).T, 1, generator=generator)[:, 0]
    return logits, target


def by_loop(logits, target, temperature):
    """The loss pixel by pixel, as the formula is written."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(target)):
        total = total - (logits[:, i] / temperature[i]).log_softmax(0)[target[i]]
    return total


def field(weights, logits, target, design):
    return by_loop(logits, target, torch.exp(weights @ design))


def affine(both, logits, target):
    scale, bias = both.chunk(2)
    return torch.nn.functional.cross_entropy((scale[:, None] * logits + bias[:, None]).T, target, reduction="sum")


def stretched(weights, logits, target):
    """Each pixel's gaps by themselves."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(target)):
        ranked, order = logits[:, i].sort(descending=True)
        scores = [torch.zeros((), dtype=torch.float64)]
        for r in range(len(ranked) - 1):
            scores.append(scores[-1] - weights[order[0], r].exp() * (ranked[r] - ranked[r + 1]))
        total = total - torch.stack(scores).log_softmax(0)[(order == target[i]).nonzero()[0, 0]]
    return total


def close(found: NLL, loss, gradient, curvature):
    assert torch.allclose(found.loss.sum(), loss, rtol=1e-10)
    assert torch.allclose(found.gradient.flatten(), gradient.flatten(), atol=1e-8)
    blocks, size = found.gradient.shape
    curvature = curvature.view(blocks, size, blocks, size)
    for block in range(blocks):
        assert torch.allclose(found.hessian[block], curvature[block, :, block], atol=1e-8)
        assert torch.linalg.eigvalsh(found.convex[block])[0] > -1e-8


def test_a_field_of_temperatures_has_the_loss_and_derivatives_of_the_loop():
    logits, target = pixels()
    design = torch.stack((torch.ones(60), torch.rand(60, generator=torch.Generator().manual_seed(1)))).double()
    weights = torch.tensor([0.3, -0.4], dtype=torch.float64)
    arguments = (weights, logits, target, design)
    close(
        temperature_field_nll(logits, target, design, weights, 3.0),
        field(*arguments),
        jacrev(field)(*arguments),
        hessian(field)(*arguments),
    )


def test_a_scale_and_bias_of_each_class_have_the_loss_and_derivatives_of_the_cross_entropy():
    logits, target = pixels()
    both = torch.linspace(0.4, 1.7, 8, dtype=torch.float64)
    arguments = (both, logits, target)
    close(
        class_affine_nll(logits, target, *both.chunk(2)),
        affine(*arguments),
        jacrev(affine)(*arguments),
        hessian(affine)(*arguments),
    )


@pytest.mark.parametrize("products", [1 << 23, 7 * 4 * 5], ids=["at once", "in parts"])
def test_a_matrix_has_the_loss_and_derivatives_of_the_cross_entropy(products, monkeypatch):
    monkeypatch.setattr(likelihood, "_PRODUCTS", products)
    logits, target = pixels()
    inputs = torch.cat((logits, torch.ones_like(logits[:1])))
    weights = torch.linspace(-0.7, 0.9, 20, dtype=torch.float64).flip(0).view(4, 5)

    def mapped(flat):
        return torch.nn.functional.cross_entropy((flat.view(4, 5) @ inputs).T, target, reduction="sum")

    flat = weights.flatten()
    close(affine_nll(inputs, target, weights), mapped(flat), jacrev(mapped)(flat), hessian(mapped)(flat))


def test_stretched_gaps_have_the_loss_and_derivatives_of_the_loop():
    logits, target = pixels()
    weights = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).view(4, 3)
    gaps, order = ranked_gaps(logits)
    found = ranked_gaps_nll(gaps, order[0], (order == target).int().argmax(0), weights)
    arguments = (weights, logits, target)
    close(found, stretched(*arguments), jacrev(stretched)(*arguments), hessian(stretched)(*arguments))


def test_no_part_of_a_total_is_kept():
    seen, most = [], 0

    def part(number):
        made = NLL(*(torch.full(shape, float(number)) for shape in ((1,), (1, 2), (1, 2, 2), (1, 2, 2))))
        seen.append(weakref.ref(made.hessian))
        return made

    def parts():
        nonlocal most
        for number in range(9):
            yield part(number)
            most = max(most, sum(known() is not None for known in seen))

    assert all((item == 36).all() for item in NLL.total(parts()))
    assert most <= 2


@pytest.mark.parametrize("seed", range(5))
def test_the_minimum_is_that_of_a_plain_minimizer(seed):
    logits, target = pixels(seed=seed, count=200)
    design = torch.stack((torch.ones(200), torch.rand(200, generator=torch.Generator().manual_seed(seed)))).double()
    ridge = Ridge(torch.tensor([[0.0, 0.5]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    found = newton(
        lambda values: temperature_field_nll(logits, target, design, values[0], 3.0),
        torch.zeros(1, 2, dtype=torch.float64),
        ridge=ridge,
        bound=6.0,
    )
    plain = minimize(
        lambda w: float(field(torch.from_numpy(w), logits, target, design).clamp_max(1e9)) + 0.25 * w[1] ** 2,
        np.zeros(2),
        bounds=[(-2.9, 2.9), (-6, 6)],
        tol=1e-12,
    )
    value = float(field(found[0], logits, target, design)) + 0.25 * float(found[0, 1]) ** 2
    assert value <= plain.fun + 1e-6


def test_a_parameter_at_its_bound_does_not_keep_the_others_from_their_minimum():
    center = torch.tensor([[5.0, 1.0]], dtype=torch.float64)
    matrix = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64)

    def bowl(values):
        apart = values - center
        gradient = (matrix @ apart[..., None])[..., 0]
        return NLL((apart * gradient).sum(1) / 2, gradient, matrix, matrix)

    found = newton(bowl, torch.zeros(1, 2, dtype=torch.float64), bound=2.0)
    # with the first at 2, the second is best at 1 + .9 * 3, which lies beyond 2, too
    assert torch.allclose(found, torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    found = newton(bowl, torch.zeros(1, 2, dtype=torch.float64), bound=4.5)
    assert torch.allclose(found, torch.tensor([[4.5, 1.45]], dtype=torch.float64))


def test_the_entropy_form_is_that_of_lbfgs_over_all_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 5, 40, 40, generator=generator, dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy() / np.log(5)
    true = torch.exp(0.2 + 0.7 * entropy).unsqueeze(1)
    chance = (logits / true).softmax(1).cumsum(1)
    target = (chance < torch.rand(6, 1, 40, 40, generator=generator)).sum(1).clamp_max(4)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss():
        optimizer.zero_grad()
        temperature = torch.exp(weights[0] + weights[1] * entropy).unsqueeze(1)
        value = torch.nn.functional.cross_entropy(logits / temperature, target)
        value.backward()
        return value

    optimizer.step(loss)
    found = EntropyTemperatureScaling().fit(list(zip(logits.split(2), target.split(2), strict=True)))
    assert torch.allclose(found.weights.double(), weights.detach(), atol=2e-3)


@pytest.mark.parametrize("name", ["entropy", "image", "structured", "order_preserving"])
def test_what_a_sample_has_begun_all_pixels_end(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 3, 40, 40, generator=generator)
    chance = (logits / 1.7).softmax(1).cumsum(1)
    target = (chance < torch.rand(6, 1, 40, 40, generator=generator)).sum(1).clamp_max(2)
    data = list(zip(logits.split(2), target.split(2), strict=True))
    whole = Calibrator.make(name, num_classes=3).fit(data)
    kind = type(whole)
    few = kind.stream

    def small(self, group=None):
        stream = few(self, group)
        stream.most = stream.reservoir.most = 2000
        return stream

    monkeypatch.setattr(kind, "stream", small)
    monkeypatch.setattr(kind, "ridges", kind.ridges[-1:])
    begun = Calibrator.make(name, num_classes=3).fit(data)
    monkeypatch.setattr(kind, "refine", lambda self, *data: None)
    sampled = Calibrator.make(name, num_classes=3).fit(data)
    if name not in ("entropy", "image"):
        monkeypatch.setattr(kind, "stream", few)
        whole = Calibrator.make(name, num_classes=3).fit(data)
    distance = [float((one(logits).softmax(1) - whole(logits).softmax(1)).abs().max()) for one in (begun, sampled)]
    assert distance[0] < 1e-3 < distance[1]
