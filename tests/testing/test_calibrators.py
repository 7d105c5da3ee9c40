"""What every calibrator promises, asked of every calibrator that there is, and of some that break a promise."""

import pytest
import torch

from seguq.calibration import Calibrator, TemperatureScaling
from seguq.core.errors import SeguqError
from seguq.testing import check_calibrator

OURS = [name for name in Calibrator.names() if Calibrator.named(name).__module__.startswith("seguq.")]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("num_classes", "spatial"), [(2, (12, 10)), (5, (6, 5, 4))], ids=["2-D", "3-D"])
def test_every_calibrator_keeps_its_promises(name, num_classes, spatial):
    calibrator = Calibrator.make(name, num_classes=num_classes, spatial_dims=len(spatial))
    check_calibrator(calibrator, num_classes=num_classes, spatial=spatial)


@pytest.mark.parametrize("ignore_index", [-1, 0])
@pytest.mark.parametrize("name", OURS)
def test_every_calibrator_keeps_its_promises_with_another_ignore_index(name, ignore_index):
    check_calibrator(Calibrator.make(name, num_classes=3, ignore_index=ignore_index))


def test_there_are_calibrators():
    assert "global" in OURS


def test_what_is_checked_is_left_as_it_is():
    calibrator = TemperatureScaling()
    check_calibrator(calibrator)
    assert calibrator.temperature == 1


class ReadsTheImage(TemperatureScaling):
    """A temperature for each image, by its brightness: a promise-keeping one of another package."""

    def forward(self, logits, image=None):
        brightness = image.to(logits).flatten(1).mean(1).view(-1, *[1] * (logits.ndim - 1))
        return super().forward(logits) * torch.exp(-brightness).to(torch.promote_types(logits.dtype, torch.float32))

    def stream(self, group=None):
        return None


def test_one_that_reads_the_image_and_does_not_stream_can_keep_them():
    check_calibrator(ReadsTheImage())


class FitsAnother(TemperatureScaling):
    def fit(self, batches):
        return TemperatureScaling().fit(batches)


class TakesPairsOnly(TemperatureScaling):
    def fit(self, batches):
        return super().fit([(logits, target) for logits, target in batches])


class TakesAnything(TemperatureScaling):
    def fit(self, batches):
        return super().fit([(batch[0].nan_to_num(), batch[-1]) for batch in batches])


class ReadsOnce(TemperatureScaling):
    def fit(self, batches):
        return super().fit(list(batches))


class ReadsRawLogits(TemperatureScaling):
    order_preserving = False

    def forward(self, logits, image=None):
        return super().forward(logits) * torch.sigmoid(logits.float().mean(1, keepdim=True)).to(logits)


class StaysInHalf(TemperatureScaling):
    def forward(self, logits, image=None):
        return super().forward(logits).to(logits.dtype)


class DropsTheImages(TemperatureScaling):
    def forward(self, logits, image=None):
        return super().forward(logits).flatten(2)


class LooksAtTheBatch(TemperatureScaling):
    def forward(self, logits, image=None):
        return super().forward(logits) / (1 + logits.float().softmax(1).std())


class SwapsClasses(TemperatureScaling):
    def forward(self, logits, image=None):
        return super().forward(logits).flip(1)


class Draws(TemperatureScaling):
    def fit(self, batches):
        super().fit(batches)
        self.log_temperature += 0.1 * torch.rand(())
        return self


class DrawsAndThrowsAway(TemperatureScaling):
    def fit(self, batches):
        torch.rand(())
        return super().fit(batches)


class Remembers(TemperatureScaling):
    def fit(self, batches):
        before = self.log_temperature.clone()
        super().fit(batches)
        self.log_temperature += before
        return self


class Overwrites(TemperatureScaling):
    def forward(self, logits, image=None):
        return super().forward(logits.sub_(logits.amax(1, keepdim=True)))


class CountsIgnored(TemperatureScaling):
    def fit(self, batches):
        return super().fit([(z, torch.where(y == self.ignore_index, z.argmax(1), y)) for z, _, y in batches])


class ForgetsItsArguments(TemperatureScaling):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.learned = factor, 1.0

    def fit(self, batches):
        self.learned = 2.0  # no buffer
        return super().fit(batches)

    def forward(self, logits, image=None):
        return super().forward(logits) * self.learned


class StreamsOther(TemperatureScaling):
    def fit(self, batches):
        super().fit(batches)
        self.log_temperature += 0.5
        return self


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        (FitsAnother, "fit must return the calibrator itself"),
        (TakesPairsOnly, "fails where it is checked that it returns itself from fit .*too many values to unpack"),
        (TakesAnything, "must raise a SeguqError for logits with NaN"),
        (ReadsOnce, "must raise a SeguqError for batches that can be read only once"),
        (ReadsRawLogits, "logits z and z \\+ c must give the same probabilities"),
        (StaysInHalf, "logits of torch.float16 must become torch.float32, but become torch.float16"),
        (DropsTheImages, r"logits \(4, 3, 12, 10\) must keep their shape, but become \(4, 3, 120\)"),
        (LooksAtTheBatch, "an image alone must be calibrated as among others"),
        (SwapsClasses, "order_preserving is True, but the predicted class changes"),
        (Draws, "fit must find the same on the same batches"),
        (DrawsAndThrowsAway, "must leave the global random generators as they were"),
        (Remembers, "fit must forget what was fitted before"),
        (Overwrites, "forward must not change the tensors that it is given"),
        (CountsIgnored, "a batch whose target is ignore_index everywhere must change nothing"),
        (ForgetsItsArguments, "must rebuild it: through a checkpoint it calibrates otherwise"),
        (StreamsOther, "what a stream finds must be what fit finds"),
    ],
    ids=lambda item: item.__name__ if isinstance(item, type) else "",
)
def test_a_broken_promise_is_said_in_a_sentence_with_the_name(broken, sentence):
    with pytest.raises(AssertionError, match=f"^{broken.__name__}:? .*{sentence}") as caught:
        check_calibrator(broken())
    assert not isinstance(caught.value, SeguqError)
