"""What every metric promises, asked of every metric that there is, and of some that break a promise."""

import itertools
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric, MetricCollection

from seguq import metrics
from seguq.core.errors import SeguqError, UsageError
from seguq.metrics import BrierScore
from seguq.testing import check_metric
from seguq.testing.metric_batch import MetricBatch
from seguq.testing.metrics import METRIC_CHECKS
from tests.metrics.builders import probs_and_target, uncertainty_and_error


def of_probs(size, ignore_index=255, images=6):
    probs, target = probs_and_target(images=images, size=size)
    return probs, target.where(target != 255, ignore_index)


def of_logits(size, ignore_index=255, images=6):
    probs, target = of_probs(size, ignore_index, images)
    return 30 * probs.log(), target


def of_classes(size, ignore_index=255, images=6):
    probs, target = of_probs(size, ignore_index, images)
    return probs.argmax(1), target


def of_uncertainty(size, ignore_index=255, images=6):
    uncertainty, error = uncertainty_and_error(images=images, size=size)
    return uncertainty, error.where(error != 255, ignore_index)


def case(name, data, /, *arguments, **options):
    return lambda **settings: getattr(metrics, name)(*arguments, n_boot=20, **options, **settings), data


def of_labels(size, ignore_index=255, images=6):
    uncertainty, error = of_uncertainty(size, ignore_index, images)
    return torch.stack((uncertainty, uncertainty.flip(0)), 1), torch.stack((error, error.flip(0)), 1)


def of_class_and_error(size, ignore_index=255, images=6):
    """The error, and the class times 2, in one number."""
    uncertainty, error = of_uncertainty(size, ignore_index, images)
    classes = (7 * uncertainty).long() % 3
    return uncertainty, error.where(error == ignore_index, error + 2 * classes)


class BalancedOfOneTarget(metrics.BalancedRiskCoverage):
    """Takes class and error in one number, as `check_metric` has one target."""

    def update(self, uncertainty, target, group=None):
        target = target.short()
        classes = torch.where(target == self.ignore_index, target, target // 2)
        super().update(uncertainty, target % 2, classes, group)


CASES = {
    "BalancedRiskCoverage": (lambda **settings: BalancedOfOneTarget(3, n_boot=20, **settings), of_class_and_error),
    "BrierDecomposition": case("BrierDecomposition", of_probs, 3),
    "BrierScore": case("BrierScore", of_probs, 3),
    "CalibrationError": case("CalibrationError", of_probs, 3),
    "CalibrationError by class": case("CalibrationError", of_probs, 3, kind="classwise", norm="l2"),
    "CalibrationError in bins of equal mass": case("CalibrationError", of_probs, 3, kind="adaptive"),
    "CalibrationError of bins": case("CalibrationError", of_probs, 3, average="nonempty", norm="max"),
    "CalibrationError of foreground": case("CalibrationError", of_uncertainty, 2, task="binary"),
    "ErrorDetection": case("ErrorDetection", of_uncertainty),
    "ErrorRanking": case("ErrorRanking", of_uncertainty),
    "MeanIoU": case("MeanIoU", of_classes, 3),
    "NegativeLogLikelihood": case("NegativeLogLikelihood", of_probs, 3),
    "NegativeLogLikelihood of logits": case("NegativeLogLikelihood", of_logits, 3, from_logits=True),
    "OODDetection": case("OODDetection", of_uncertainty),
    "RiskCoverage": case("RiskCoverage", of_uncertainty),
}
WHOLE = {
    "CalibrationError of images": case("CalibrationError", of_probs, 3, average="image"),
    "CalibrationError near borders": case("CalibrationError", of_probs, 3, near_border=1),
    "CalibrationError of labels": case("CalibrationError", of_labels, 2, kind="classwise", task="multilabel"),
    "LocalCalibrationError": case("LocalCalibrationError", of_probs, 3, window=3),
    "PAvPU": case("PAvPU", of_uncertainty, 2),
}
OTHERS = {"FailureDetection", "HumanAgreement"}  # take something else than pixels and their labels
every_metric = pytest.mark.parametrize(("make", "data"), CASES.values(), ids=CASES.keys())


def test_every_metric_is_here():
    found = {name.split()[0] for name in (*CASES, *WHOLE)} | OTHERS
    assert found == set(metrics.__all__) - {"WorkingPoint"}


@every_metric
@pytest.mark.parametrize(("size", "ignore_index"), [((6, 8), 255), ((3, 4, 2), -1), ((9,), 300)], ids=str)
def test_every_metric_keeps_its_promises(make, data, size, ignore_index):
    check_metric(lambda **settings: make(ignore_index=ignore_index, **settings), *data(size, ignore_index))


@pytest.mark.parametrize(("make", "data"), WHOLE.values(), ids=WHOLE.keys())
def test_metrics_that_look_around_a_pixel_keep_the_other_promises(make, data):
    check_metric(make, *data((6, 8)), by_pixel=False)


@pytest.mark.parametrize("name", ["BrierScore", "CalibrationError", "NegativeLogLikelihood", "MeanIoU"])
def test_a_class_may_be_the_one_that_is_ignored(name):
    make, data = CASES[name]
    check_metric(lambda **settings: make(ignore_index=0, **settings), *data((6, 8), 0))


# --- what a collection takes for one metric, and what 8 bits compare as equal


@pytest.mark.parametrize("name", ["BrierScore", "CalibrationError", "NegativeLogLikelihood", "MeanIoU"])
def test_metrics_of_a_collection_that_ignore_different_values_stay_apart(name):
    make, data = CASES[name]
    scores, target = data((6, 8))
    one, other, alone = make(ignore_index=7), make(ignore_index=2), make(ignore_index=2)
    together = MetricCollection({"one": one, "other": other})
    for batch in (target.where(target < 2, 1), target.where(target < 3, 1)):  # the first has nothing to ignore
        together.update(scores, batch)
        alone.update(scores, batch)
    assert together.compute()["other"] == alone.compute()


@pytest.mark.parametrize("kind", ["MeanIoU", "BrierScore", "CalibrationError"])
def test_a_class_of_8_bits_is_not_taken_for_a_negative_ignore_index(kind):
    target = torch.full((1, 4), 156, dtype=torch.uint8)  # as 8 bits, -100
    scores = torch.zeros(1, 200, 4).index_fill(1, torch.tensor([156]), 1.0)
    metric = getattr(metrics, kind)(200, ignore_index=-100)
    metric.update(scores.argmax(1) if kind == "MeanIoU" else scores, target)
    assert not metric.compute().isnan()


# --- settings


SETTINGS = {
    "CalibrationError": [{}, {"near_border": 1}, {"near_border": 2}, {"near_border": 2, "border": "true"}],
    "CalibrationError of images": [{"norm": "l1"}, {"norm": "max"}, {"n_bins": 4}],
    "LocalCalibrationError": [{"window": 8}, {"window": 4}, {"window": 8, "n_bins": 4}],
    "PAvPU": [{"window": 8}, {"window": 4}],
}


def small_and_large(name):
    """A batch smaller than any window, all of it near a border; and one that is larger."""
    random = torch.Generator().manual_seed(0)
    for size in ((2, 2), (16, 16)):
        edge = torch.arange(size[1]).expand(1, *size) * 2 >= size[1]
        sure = 0.51 + 0.4 * torch.rand(1, *size, generator=random) * (size[0] > 2)
        foreground = sure.where(edge, 1 - sure)
        wrong = torch.rand(1, *size, generator=random) < (0.5 if name == "PAvPU" else 0.2) * (size[0] > 2)
        if name == "PAvPU":
            yield foreground, wrong.long()
        else:
            yield torch.stack((1 - foreground, foreground), 1), (edge ^ wrong).long()


def of_settings(name, settings):
    whole = {"average": "image"} if "of images" in name else {}
    arguments = [] if name == "PAvPU" else [2]
    return getattr(metrics, name.split()[0])(*arguments, n_boot=20, **whole, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_metrics_of_a_collection_with_different_settings_stay_apart(name):
    alone = [of_settings(name, settings) for settings in SETTINGS[name]]
    together = MetricCollection({str(number): each.clone() for number, each in enumerate(alone)})
    for batch in small_and_large(name):
        together.update(*batch)
        for metric in alone:
            metric.update(*batch)
    for number, metric in enumerate(alone):
        assert together[str(number)].compute() == metric.compute()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_difference_of_different_settings_is_an_error(name):
    first, *others = (of_settings(name, settings) for settings in SETTINGS[name])
    for other in others:
        with pytest.raises(SeguqError, match=r"a difference needs the same settings, but \w+ is"):
            first.compute_difference(other)


WRONG_SETTINGS = {
    "num_classes": ["CalibrationError", "LocalCalibrationError", "BrierScore", "BrierDecomposition", "MeanIoU"],
    "n_bins": ["CalibrationError", "LocalCalibrationError", "BrierDecomposition"],
    "ignore_index": ["CalibrationError", "MeanIoU", "BrierScore"],
    "n_boot": ["BrierScore"],
    "seed": ["BrierScore"],
    "background": ["HumanAgreement"],
}


@pytest.mark.parametrize(("setting", "names"), WRONG_SETTINGS.items(), ids=WRONG_SETTINGS.keys())
def test_a_setting_of_the_wrong_kind_is_an_error(setting, names):
    for name, value in itertools.product(names, (-2, 0.5, "3", None)):
        if (setting, value) in {("ignore_index", -2), ("seed", -2), ("background", None)}:
            continue
        with pytest.raises(SeguqError, match=f"^{setting} must be"):
            getattr(metrics, name)(**{"num_classes": 3, setting: value})


def test_a_kind_of_border_without_a_distance_is_an_error():
    with pytest.raises(SeguqError, match="needs near_border"):
        metrics.CalibrationError(3, border="true")


@pytest.mark.parametrize("level", [0, 1, 95, "0.95", None])
def test_a_level_that_is_no_share_is_an_error(level):
    with pytest.raises(SeguqError, match="level must be"):
        BrierScore(3).compute_interval(level)


# --- memory does not grow with the pixels of a batch


class Largest(TorchDispatchMode):
    """The size of the largest tensor that an operation made, in bytes."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = func.is_view or func._schema.is_mutable or func._schema.name == "aten::_reshape_alias"
        if isinstance(out, torch.Tensor) and not old:
            self.found = max(self.found, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("grouped", [False, True], ids=["without ids", "with ids"])
@every_metric
def test_an_update_makes_nothing_as_large_as_its_mask(make, data, grouped):
    scores, target = data((1600, 1000), images=1)
    metric = make()
    with Largest() as largest:
        metric.update(scores, target, group=["image"] if grouped else None)
    assert largest.found <= 8 * 2**20 < target.numel() * target.element_size()


# --- the check itself


def test_it_wants_a_function_and_a_batch_that_shows_something():
    probs, target = of_probs((6, 8))
    with pytest.raises(UsageError, match="takes a function"):
        check_metric(BrierScore(3), probs, target)
    with pytest.raises(UsageError, match="at least 4 images"):
        check_metric(lambda **settings: BrierScore(3, **settings), probs[:3], target[:3])
    with pytest.raises(UsageError, match="ignore_index"):
        check_metric(lambda **settings: BrierScore(3, **settings), probs, target.clamp_max(2))


class AddsInSingle(BrierScore):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, probs, target, group=None):
        super().update(probs, target, group)
        self.sums = self.sums.float()


class KeepsAList(BrierScore):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.add_state("seen", [], dist_reduce_fx="cat")


class WeighsBatchesAlike(BrierScore):
    def update(self, probs, target, group=None):
        before = self.sums.clone()
        super().update(probs, target, group)
        self.sums = before + (self.sums - before) / (self.sums - before)[0].clamp_min(1)


class NamesTilesAnew(BrierScore):
    def update(self, probs, target, group=None):
        group = None if group is None else [f"{each} {target.shape[-1]}" for each in group]
        super().update(probs, target, group)


class IsFlatEachPixelAnImage(BrierScore):
    def update(self, probs, target, group=None):
        if target.ndim == 1:
            probs, target = probs.unsqueeze(-1), target.unsqueeze(-1)
            group = None if group is None else [f"{group[0]} {pixel}" for pixel in range(len(target))]
        super().update(probs, target, group)


class StaysInHalf(BrierScore):
    def _values(self, scores, target):
        return super()._values(scores.half(), target).float()

    def update(self, probs, target, group=None):
        super().update(probs.bfloat16() if probs.dtype == torch.float16 else probs, target, group)


class ForgetsInferenceMode(BrierScore):
    def _own(self, name):
        return getattr(self, name)


class FillsGaps(BrierScore):
    def update(self, probs, target, group=None):
        super().update(probs.nan_to_num(), target, group)


class AddsBeforeItLooks(BrierScore):
    def update(self, probs, target, group=None):
        self.ungrouped = self.ungrouped + 0 if group is not None else self.ungrouped
        self.labels = self.labels + 1
        super().update(probs, target, group)


class DropsItsEnds(BrierScore):
    def compute_interval(self, level=0.95):
        low, high = super().compute_interval(level)
        return low + 0.1, high + 0.1


class IsNeverNegative(BrierScore):
    def compute_difference(self, other, level=0.95):
        value, (low, high) = super().compute_difference(other, level)
        return value.abs(), (low, high)


class SharesWhatItLoads(BrierScore):
    def _load_from_state_dict(self, *arguments):
        Metric._load_from_state_dict(self, *arguments)


class IsZeroAtFirst(BrierScore):
    def compute(self):
        return super().compute().nan_to_num()


class DrawsElsewhere(BrierScore):
    def plot(self, val=None, ax=None):
        return super().plot(val)


class SumsThatAreAveraged(BrierScore):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="max")


class Draws(BrierScore):
    def update(self, probs, target, group=None):
        torch.rand(1)
        super().update(probs, target, group)


BROKEN = {
    AddsInSingle: "its type|int64 or float64",
    KeepsAList: "a tensor, and no list",
    WeighsBatchesAlike: "as one batch",
    NamesTilesAnew: "tiles under the id of their image",
    IsFlatEachPixelAnImage: "must be one image",
    StaysInHalf: "in float32",
    ForgetsInferenceMode: "works in inference mode",
    FillsGaps: "NaN at a pixel that counts must be a SeguqError",
    AddsBeforeItLooks: "must take nothing in",
    DropsItsEnds: "must hold its value",
    IsNeverNegative: "the negative one",
    SharesWhatItLoads: "leave the metric and the state_dict",
    IsZeroAtFirst: "must be NaN",
    DrawsElsewhere: "into the axes it is given",
    SumsThatAreAveraged: "merged in any order",
    Draws: "global random generators",
}


@pytest.mark.parametrize(("broken", "sentence"), BROKEN.items(), ids=[each.__name__ for each in BROKEN])
def test_a_broken_promise_is_said_in_a_sentence(broken, sentence):
    with pytest.raises(AssertionError, match=f"^{broken.__name__}.*({sentence})"):
        check_metric(lambda **settings: broken(3, n_boot=20, **settings), *of_probs((6, 8)))


# --- metrics of other things than pixels


def of_items(images=12):
    random = torch.Generator().manual_seed(0)
    error = torch.rand(images, generator=random).square()
    return error + 0.3 * torch.randn(images, generator=random), error


def of_annotators(images=6):
    masks = torch.randint(3, (images, 4, 6, 8), generator=torch.Generator().manual_seed(0))
    masks[:, 0, 0, :2] = 255
    return torch.rand(images, 6, 8, generator=torch.Generator().manual_seed(1)), masks


PIXELS = {"tiles", "spatial", "flat", "ignored", "wrong", "half", "graph", "fixed"}
FEWER = {"tiles", "spatial", "flat", "ignored", "wrong", "differences"}  # of masks there are several an image


@pytest.mark.parametrize("check", [each for each in METRIC_CHECKS if not PIXELS & set(each.__name__.split("_"))])
def test_a_metric_of_items_keeps_the_promises_that_are_not_of_pixels(check):
    make = case("FailureDetection", of_items)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(make, MetricBatch.of(*of_items(), 255))


@pytest.mark.parametrize("check", [each for each in METRIC_CHECKS if not FEWER & set(each.__name__.split("_"))])
def test_a_metric_of_several_masks_an_image_keeps_the_promises_that_are_not_of_one(check):
    make = case("HumanAgreement", of_annotators, 3)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(make, MetricBatch.of(*of_annotators(), 255))
