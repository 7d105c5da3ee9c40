import pytest
import torch

from seguq.calibration import Calibrator, TemperatureScaling, cross_fit
from seguq.calibration.batches import FittingBatch
from seguq.calibration.folds import TooFewGroups
from seguq.core.errors import SeguqError
from seguq.metrics import CalibrationError
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
        self.fitted = [int(image.flatten()[0]) for logits, *_ in batches for image in logits]
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
    """Batches of the given sizes whose images hold their running number in every logit."""
    batches, seen = [], 0
    for size in sizes:
        numbers = torch.arange(seen, seen + size)
        batches.append((numbers.view(-1, 1, 1).float().expand(-1, 2, 3), numbers.view(-1, 1).expand(-1, 3) % 2))
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
    assert all(sorted(spy.fitted + spy.applied) == [*range(sum(sizes))] for spy in spies)


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_without_groups_a_fold_is_a_stretch_of_images(sizes, folds):
    spies = Spies()
    list(cross_fit(spies, numbered(*sizes), folds))
    assert [n for spy in spies for n in spy.applied] == [*range(sum(sizes))]
    assert max(len(spy.applied) for spy in spies) - min(len(spy.applied) for spy in spies) <= 1


@pytest.mark.parametrize("folds", [2, 3, 5])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_image_is_calibrated_once(sizes, folds):
    spies = Spies()
    list(cross_fit(spies, numbered(*sizes), folds))
    assert sorted(n for spy in spies for n in spy.applied) == [*range(sum(sizes))]


@pytest.mark.parametrize("sizes", SIZES)
def test_batches_come_out_in_the_order_and_sizes_they_went_in(sizes):
    out = list(cross_fit(Spies(), numbered(*sizes)))
    assert [batch.numbers for batch in out] == [logits[:, 0, 0].int().tolist() for logits, _ in numbered(*sizes)]


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
    for fold, other in ((slice(3), slice(3, 6)), (slice(3, 6), slice(3))):
        others = TemperatureScaling().fit([(logits[other], target[other])])
        assert torch.equal(out.calibrated[fold], others(logits[fold]))


def test_images_of_different_sizes_are_taken():
    batches = [problem(seed=n, shape=(1, 5 + n, 7)) for n in range(3)]
    out = list(cross_fit(TemperatureScaling, batches))
    assert [batch.calibrated.shape for batch in out] == [logits.shape for logits, _ in batches]


@pytest.mark.parametrize("fit_reads", [Spy, TemperatureScaling])
@pytest.mark.parametrize(("images", "folds"), [(0, 2), (1, 2), (2, 3), (4, 5)])
def test_fewer_images_than_folds_are_an_error(fit_reads, images, folds):
    batches = [problem(seed=n, shape=(1, 5, 5)) for n in range(images)]
    with pytest.raises(SeguqError, match=f"at least {folds} images, as many as folds, but they are in {images}"):
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


def test_batches_are_read_once_to_count_once_a_fit_of_the_spy_and_once_to_calibrate():
    batches = Counted(numbered(3, 3))
    list(cross_fit(Spies(), batches, folds=3))
    assert batches.passes == 1 + 3 + 1


# groups of images


def frames(*videos):
    """A batch of one video after another, each of so many frames, which knows its images' ids."""
    (logits, target), images = numbered(sum(videos))[0], torch.arange(sum(videos)).view(-1, 1, 1).float()
    batch = FittingBatch(logits, images, target)
    batch.image_ids = tuple(f"{name}_{frame}" for name, count in zip("abcde", videos, strict=False)
                            for frame in range(count))  # fmt: skip
    return [batch]


@pytest.mark.parametrize("group", ["^[a-e]", lambda image_id: image_id[0]], ids=["a pattern", "a function"])
@pytest.mark.parametrize("videos", [(5, 1), (3, 3, 3), (4, 1, 7, 2)])
def test_no_group_is_on_both_sides(videos, group):
    spies = Spies()
    (out,) = cross_fit(spies, frames(*videos), group=group)
    assert out.groups == [name for name, count in zip("abcde", videos, strict=False) for _ in range(count)]
    sides = [{out.groups[number] for number in spy.applied} for spy in spies]
    assert not sides[0] & sides[1]


def test_groups_go_to_the_fold_with_fewer_pixels_the_largest_first():
    spies = Spies()
    (out,) = cross_fit(spies, frames(4, 1, 7, 2), group="^.")
    assert [{out.groups[number] for number in spy.applied} for spy in spies] == [{"c"}, {"a", "b", "d"}]


def test_unlabeled_pixels_do_not_count():
    (batch,) = frames(4, 1, 7, 2)
    batch.target[5:12, 1:] = 255  # a third of the labels of c are left
    spies = Spies()
    (out,) = cross_fit(spies, [batch], group="^.")
    assert [{out.groups[number] for number in spy.applied} for spy in spies] == [{"a", "b"}, {"c", "d"}]


def test_one_group_is_an_error_that_says_so():
    with pytest.raises(TooFewGroups, match="at least 2 groups, as many as folds, but they are in 1"):
        next(cross_fit(Spies(), frames(5), group="^."))


def test_groups_of_batches_without_ids_are_made_of_running_numbers():
    (out,) = cross_fit(Spies(), numbered(4), group=lambda image_id: int(image_id) // 3)
    assert out.groups == ["0", "0", "0", "1"]


def test_images_go_along():
    class Looks(Spy):
        def fit(self, batches):
            self.fitted = [int(number) for _, image, _ in batches for number in image[:, 0, 0]]
            return self

        def forward(self, logits, image=None):
            assert torch.equal(image[:, 0, 0], logits[:, 0, 0])
            return super().forward(logits)

    spies = [Looks(), Looks()]
    list(cross_fit(iter(spies).__next__, frames(4, 3)))
    assert [spy.fitted for spy in spies] == [[3, 4, 5, 6], [0, 1, 2]]


def four_videos(size=24):
    """Frames of four videos: in each the model is over-confident in a way of its own, alike in all of its frames."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for video, (count, sharpness) in enumerate(((10, 0.25), (9, 0.6), (8, 0.7), (7, 0.35))):
        logits = 4 * torch.randn(count, 3, size, size, generator=generator)
        drawn = torch.rand(count, 1, size, size, generator=generator)
        target = ((sharpness * logits).softmax(1).cumsum(1) < drawn).sum(1).clamp_max(2)
        batch = FittingBatch(logits, torch.zeros(count, 1, size, size), target)
        batch.image_ids = tuple(f"video{video}/{frame:03}" for frame in range(count))
        batches.append(batch)
    return batches


def error_out_of_sample(batches, **settings):
    metric = CalibrationError(3)
    for part in cross_fit(TemperatureScaling, batches, **settings):
        metric.update(part.calibrated.softmax(1), part.target)
    return float(metric.compute())


def test_folds_by_video_give_the_error_on_videos_that_were_not_seen():
    """Frames on both sides hide most of it: .016 is shown where it is .089."""
    batches = four_videos()
    by_frame = error_out_of_sample(batches, group=lambda image_id: int(image_id[-1]) % 2)
    by_video = error_out_of_sample(batches, group="^[^/]+")
    by_hand = CalibrationError(3)
    for judged, fitted_on in (((0, 3), (1, 2)), ((1, 2), (0, 3))):  # 17 frames each
        calibrator = TemperatureScaling().fit([batches[video] for video in fitted_on])
        for logits, _, target in (batches[video] for video in judged):
            by_hand.update(calibrator(logits).softmax(1), target)
    assert by_video == pytest.approx(float(by_hand.compute()), abs=1e-6)
    assert by_video > 4 * by_frame


def test_a_stream_has_the_error_by_video_too():
    batches, seen = four_videos(), 0
    stream = TemperatureScaling().stream("^[^/]+")
    for batch in batches:
        stream.add(batch.logits, batch.target, batch.image_ids, range(seen, seen + len(batch.target)))
        seen += len(batch.target)
    found = stream.fit().summary()
    assert (found.images, found.groups) == (34, 4)
    assert found.ece_after == pytest.approx(error_out_of_sample(batches, group="^[^/]+"), abs=1e-3)


def test_a_fit_that_does_not_return_the_calibrator_is_an_error_that_names_it():
    class Silent(TemperatureScaling):
        name = "silent_for_a_test"

        def fit(self, batches):
            super().fit(batches)

    data = [(torch.randn(4, 2, 3, 3), torch.randint(2, (4, 3, 3)))]
    with pytest.raises(SeguqError, match=r"Silent\.fit must return the calibrator itself"):
        list(cross_fit(Silent, data))
