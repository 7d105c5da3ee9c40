import pytest
import torch

from seguq.calibration import Calibrator, TemperatureScaling, cross_fit
from seguq.core.errors import SeguqError
from tests.calibration.problems import Counted, problem


class Spy(Calibrator):
    """Remembers the images that it was fitted on and applied to; an image is known by its first logit."""

    order_preserving = True

    def __init__(self):
        super().__init__()
        self.fitted, self.applied = [], []

    def arguments(self):
        return {}

    def fit(self, batches):
        self.fitted = [int(image.flatten()[0]) for logits, _ in batches for image in logits]
        return self

    def forward(self, logits, image=None):
        self.applied += [int(image.flatten()[0]) for image in logits]
        return logits + 1000


class Spies(list):
    """Makes spies, and keeps them."""

    def __call__(self):
        self.append(Spy())
        return self[-1]


def numbered(*sizes):
    """Batches of the given sizes whose images hold their running number in every logit and label."""
    batches, seen = [], 0
    for size in sizes:
        numbers = torch.arange(seen, seen + size)
        batches.append((numbers.view(-1, 1, 1).float().expand(-1, 2, 3), numbers.view(-1, 1).expand(-1, 3)))
        seen += size
    return batches


SIZES = [(1, 1, 1, 1, 1), (5,), (2, 2, 1), (1, 4, 3), (7, 1)]


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_no_image_is_calibrated_by_a_calibrator_that_was_fitted_on_it(sizes, folds):
    spies = Spies()
    list(cross_fit(spies, numbered(*sizes), folds))
    assert all(spy.fitted and spy.applied and not {*spy.fitted} & {*spy.applied} for spy in spies)


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_each_calibrator_is_fitted_on_every_image_of_the_other_folds(sizes, folds):
    spies = Spies()
    list(cross_fit(spies, numbered(*sizes), folds))
    assert [spy.fitted for spy in spies] == [[n for n in range(sum(sizes)) if n % folds != f] for f in range(folds)]


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_image_is_calibrated_once(sizes, folds):
    spies = Spies()
    list(cross_fit(spies, numbered(*sizes), folds))
    assert sorted(n for spy in spies for n in spy.applied) == [*range(sum(sizes))]


@pytest.mark.parametrize("sizes", SIZES)
def test_batches_come_out_in_the_order_and_sizes_they_went_in(sizes):
    out = list(cross_fit(Spies(), numbered(*sizes)))
    assert [batch.numbers for batch in out] == [target[:, 0].tolist() for _, target in numbered(*sizes)]


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_and_targets_come_out_as_they_went_in(sizes):
    for (logits, target), batch in zip(numbered(*sizes), cross_fit(Spies(), numbered(*sizes)), strict=True):
        assert torch.equal(batch.logits, logits)
        assert torch.equal(batch.target, target)


@pytest.mark.parametrize("sizes", SIZES)
def test_calibrated_logits_stand_beside_their_own_raw_ones(sizes):
    for batch in cross_fit(Spies(), numbered(*sizes)):
        assert torch.equal(batch.calibrated, batch.logits + 1000)


def test_temperatures_are_those_fitted_by_hand_without_the_fold():
    logits, target = problem(shape=(6, 8, 8))
    (out,) = cross_fit(TemperatureScaling, [(logits, target)])
    for fold in (0, 1):
        others = TemperatureScaling().fit([(logits[1 - fold :: 2], target[1 - fold :: 2])])
        assert torch.equal(out.calibrated[fold::2], others(logits[fold::2]))


def test_images_of_different_sizes_are_taken():
    batches = [problem(seed=n, shape=(1, 5 + n, 7)) for n in range(3)]
    out = list(cross_fit(TemperatureScaling, batches))
    assert [batch.calibrated.shape for batch in out] == [logits.shape for logits, _ in batches]


@pytest.mark.parametrize("fit_reads", [Spy, TemperatureScaling])
@pytest.mark.parametrize(("images", "folds"), [(0, 2), (1, 2), (2, 3), (4, 5)])
def test_fewer_images_than_folds_are_an_error(fit_reads, images, folds):
    batches = [problem(seed=n, shape=(1, 5, 5)) for n in range(images)]
    with pytest.raises(SeguqError, match=f"at least {folds} images, as many as folds, but there are {images}"):
        next(cross_fit(fit_reads, batches, folds))


def test_as_many_images_as_folds_are_enough():
    batches = [problem(seed=n, shape=(1, 5, 5)) for n in range(3)]
    assert len(list(cross_fit(TemperatureScaling, batches, folds=3))) == 3


@pytest.mark.parametrize("folds", [1, 0, -2])
def test_fewer_than_2_folds_are_an_error_that_names_them(folds):
    with pytest.raises(SeguqError, match=f"folds must be at least 2, but is {folds}"):
        next(cross_fit(TemperatureScaling, [problem()], folds))


def test_what_can_be_read_only_once_is_an_error():
    with pytest.raises(SeguqError, match="read only once"):
        next(cross_fit(TemperatureScaling, iter([problem()])))


def test_an_error_in_a_batch_tells_its_number():
    damaged = problem()
    damaged[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(SeguqError, match="batch 1: logits hold NaN"):
        next(cross_fit(TemperatureScaling, [problem(), damaged]))


def test_batches_are_read_once_a_fit_of_the_spy_and_once_to_calibrate():
    batches = Counted(numbered(3, 3))
    list(cross_fit(Spies(), batches, folds=3))
    assert batches.passes == 3 + 1
