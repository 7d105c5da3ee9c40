"""Windows and their blend, against a slow loop, and against the whole image at once."""

import pytest
import torch
from torch import nn

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError
from seguq.inference import DeepEnsemble, MCDropout, SlidingWindow, TestTimeAugmentation
from tests.inference.models import Count, SmallNet, fixed


def image(height=37, width=29, count=1, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def windows(inner, window=16, **settings):
    return SlidingWindow(inner, window, **{"calibrator": None, **settings})


class Reaching(nn.Module):
    """Its answer for a pixel depends on pixels up to 4 away."""

    def __init__(self, dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.net = nn.Sequential(conv(3, 6, 5, padding=2), nn.ReLU(), conv(6, 3, 5, padding=2))

    def forward(self, x):
        return 4 * self.net(x)


@pytest.mark.parametrize("size", [(37, 29), (16, 16), (17, 64), (100, 31), (16, 50)], ids=str)
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_with_a_margin_the_answer_is_that_of_the_whole_image(size, blend, overlap):
    model = fixed(Reaching)
    maps = windows(model, overlap=overlap, blend=blend, margin=4)(image(*size))
    whole = seguq.Deterministic(model, calibrator=None)(image(*size))
    torch.testing.assert_close(maps.probs, whole.probs, rtol=0, atol=1e-5)
    for name in ("predictive_entropy", "smallest_margin", "energy"):
        torch.testing.assert_close(maps[name], whole[name], rtol=0, atol=1e-4)


def test_without_a_margin_zeros_leak_in_from_the_edges():
    model = fixed(Reaching)
    whole = seguq.Deterministic(model, calibrator=None)(image()).probs
    assert float((windows(model, overlap=0.2)(image()).probs - whole).abs().max()) > 0.01
    assert float((windows(model, overlap=0.2, margin=3)(image()).probs - whole).abs().max()) > 1e-4  # one too few


class Coarse(nn.Module):
    """Works at a quarter of the resolution inside; its answer for a pixel depends on pixels up to 16 away."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x):
        return nn.functional.interpolate(8 * self.head(self.down(x)), scale_factor=4, mode="bilinear")


@pytest.mark.parametrize(("size", "window", "stride"), [((160, 128), 64, 32), ((68, 100), 48, 4), ((96, 64), 96, 32)])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 0.8])
def test_a_network_with_a_stride_has_its_windows_on_its_grid(size, window, stride, overlap):
    model = fixed(Coarse)
    whole = seguq.Deterministic(model, calibrator=None)(image(*size)).probs
    found = windows(model, window, overlap=overlap, margin=16, stride=stride)(image(*size)).probs
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_off_the_grid_a_network_with_a_stride_gives_another_answer():
    model = fixed(Coarse)
    whole = seguq.Deterministic(model, calibrator=None)(image(100, 100)).probs
    evenly = windows(model, 48, overlap=0.4, margin=17, stride=1)
    assert any(start % 4 for start in evenly.windows.starts(100, 48))
    assert float((evenly(image(100, 100)).probs - whole).abs().max()) > 0.05
    on_the_grid = windows(model, 48, overlap=0.4, margin=17, stride=4)(image(100, 100)).probs
    torch.testing.assert_close(on_the_grid, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 64), (64, 96), (32, 32)], ids=str)
def test_an_image_smaller_than_the_window_but_of_the_stride_is_asked_as_it_is(size):
    model = fixed(Coarse)
    whole = seguq.Deterministic(model, calibrator=None)(image(*size)).probs
    torch.testing.assert_close(windows(model, 512)(image(*size)).probs, whole, rtol=0, atol=1e-6)


def test_volumes_have_windows_too():
    model, x = fixed(Reaching, 3), torch.rand(1, 3, 12, 15, 19)
    maps = windows(model, (10, 12, 11), margin=4)(x)
    torch.testing.assert_close(maps.probs, torch.softmax(model(x), 1), rtol=0, atol=1e-5)


@torch.no_grad()
def slowly(model, x, side, starts, weight):
    """The blend by a loop over windows and pixels' weights."""
    sums, total = torch.zeros(x.shape[0], 3, *x.shape[2:]), torch.zeros(x.shape[2:])
    for top in starts[0]:
        for left in starts[1]:
            probs = torch.softmax(model(x[:, :, top : top + side, left : left + side]), 1)
            sums[:, :, top : top + side, left : left + side] += probs * weight
            total[top : top + side, left : left + side] += weight
    return sums / total


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_the_blend_is_that_of_a_loop(blend):
    model, place = fixed(Reaching), torch.arange(16.0)
    bell = torch.exp(-0.5 * ((place - 7.5) / 2) ** 2).clamp_min(1e-3) if blend == "gaussian" else torch.ones(16)
    expected = slowly(model, image(40, 24, 2), 16, ([0, 8, 16, 24], [0, 8]), bell[:, None] * bell)
    maps = windows(model, blend=blend)(image(40, 24, 2))
    torch.testing.assert_close(maps.probs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps["predictive_entropy"], F.predictive_entropy(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (16, 5), (40, 3), (1, 1)], ids=str)
def test_images_smaller_than_the_window_are_extended(size):
    model = fixed(Reaching)
    maps = windows(model)(image(*size))
    assert maps.probs.shape == (1, 3, *size) and torch.isfinite(maps.probs).all()
    torch.testing.assert_close(maps.probs.sum(1), torch.ones(1, *size))
    if size == (7, 9):
        padded = nn.functional.pad(image(*size), (0, 7, 0, 9), mode="replicate")
        torch.testing.assert_close(maps.probs, torch.softmax(model(padded), 1)[..., :7, :9], rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("margin", [0, 3, 7])
def test_every_pixel_is_seen_and_windows_have_their_size(overlap, margin):
    est = windows(fixed(SmallNet), overlap=overlap, margin=margin)
    for length in range(1, 90):
        starts = est.windows.starts(length, 16)
        assert starts[0] == 0 and starts == sorted(set(starts))
        assert starts[-1] + 16 == max(length, 16)
        weights = torch.zeros(max(length, 16))
        for start in starts:
            weights[start : start + 16] += est.windows.weights(start, max(length, 16), 16, weights)
        assert float(weights.min()) > 0


def test_windows_go_through_the_network_in_batches():
    for batch, forwards in ((1, 12), (4, 3), (5, 3), (99, 1)):
        model = fixed(SmallNet)
        count = Count(model)
        est = windows(model, batch=batch)
        est(image(32, 24, 2))
        assert count.forwards == forwards == est.describe(image(32, 24, 2))["forwards"]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_batch_does_not_matter(batch):
    est = windows(MCDropout(fixed(SmallNet), samples=3, seed=0, calibrator=None), batch=batch)
    expected = windows(MCDropout(fixed(SmallNet), samples=3, seed=0, calibrator=None))(image(count=2), ["a", "b"])
    found = est(image(count=2), ["a", "b"])
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-5)
    alone = est(image(count=2)[1:], ["b"])
    torch.testing.assert_close(found["mutual_information"][1:], alone["mutual_information"], rtol=0, atol=1e-5)


def test_measures_of_samples_are_those_of_each_window_blended():
    members = [fixed(Reaching), fixed(SmallNet)]
    ensemble = DeepEnsemble(members, calibrator=None)
    maps = windows(ensemble, blend="constant", overlap=0)(image(32, 16))
    for top in (0, 16):
        one = ensemble(image(32, 16)[:, :, top : top + 16])
        for name in ("mutual_information", "expected_entropy", "variance"):
            torch.testing.assert_close(maps[name][:, top : top + 16], one[name], rtol=0, atol=1e-6)


def test_views_inside_and_outside():
    model = fixed(SmallNet)  # looks 1 pixel far
    inside = windows(TestTimeAugmentation(model, "d4", calibrator=None), margin=1)(image())
    outside = TestTimeAugmentation(windows(model, margin=1), "d4", calibrator=None)(image())
    torch.testing.assert_close(inside.probs, outside.probs, rtol=0, atol=1e-5)
    assert inside.names == (*seguq.Deterministic().usual, "augmentation_variance")


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_have_windows(task):
    model = fixed(SmallNet, 1 if task == "binary" else 4)
    inner = MCDropout(model, samples=3, seed=0, task=task, calibrator=None)
    maps = windows(inner)(image())
    assert maps["mutual_information"].shape == (1, 37, 29)
    assert maps.probs.shape[1] == (2 if task == "binary" else 4)


def test_half_precision_and_a_batch_without_images():
    est = windows(fixed(Reaching).bfloat16())
    assert est(image()).probs.dtype == torch.float32
    assert est(image(16, 16, 0)).probs.shape == (0, 3, 16, 16)
    with torch.inference_mode():
        assert torch.isfinite(est(image()).probs).all()


def test_a_calibrator_is_for_the_windows():
    model = fixed(Reaching)
    est = SlidingWindow(model, 16, margin=4)
    batches = [{"image": image(), "mask": torch.randint(3, (1, 37, 29))}]
    calibrator = est.calibrate(seguq.TemperatureScaling(), batches)
    assert (
        calibrator.tag
        == "sliding_window(window=16, overlap=0.5, blend=gaussian, margin=4, stride=32, of=deterministic)"
    )
    whole = seguq.TemperatureScaling().fit([(model(image()).detach(), batches[0]["mask"])])
    assert calibrator.temperature == pytest.approx(whole.temperature, rel=1e-4)


def test_the_sample_is_the_blend():
    est = windows(fixed(Reaching))
    (sample,) = est.samples(image())
    torch.testing.assert_close(sample, est(image()).probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"window": 0}, "window must be a whole number of at least 1, but is 0"),
        ({"window": 16.0}, "window must be a whole number of at least 1, but is 16.0"),
        ({"window": ()}, "leaves nothing of a window"),
        ({"margin": 8}, "margin=8 on both sides leaves nothing of a window of 16"),
        ({"margin": -1}, "margin must be a whole number"),
        ({"overlap": 1}, "overlap must be at least 0 and less than 1, but is 1"),
        ({"blend": "linear"}, "blend"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"measures": ["variance"]}, "'variance' is not among the measures"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_at_once(settings, told):
    with pytest.raises(SeguqError, match=told):
        windows(fixed(Reaching), **{"window": 16, **settings})


def test_a_window_of_other_dimensions_is_an_error():
    with pytest.raises(SeguqError, match="has 3 sides, but the images have 2 dimensions"):
        windows(fixed(Reaching), (8, 8, 8))(image())
