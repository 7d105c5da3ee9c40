"""What every calibrator promises, as one function that tests call: for those of seguq, and for one's own.

`check_calibrator` is to calibrators what scikit-learn's `check_estimator` is to its estimators: it raises an
AssertionError that says in one sentence which promise is broken.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seguq.calibration import Calibrator
from seguq.calibration.base import Stream
from seguq.calibration.batches import FittingBatch
from seguq.calibration.checkpoint import pack, unpack
from seguq.core.errors import SeguqError, UsageError
from seguq.core.seeds import other_generators
from seguq.testing.claims import claim, named


def check_calibrator(
    calibrator: Calibrator, *, num_classes: int = 3, image_channels: int = 3, spatial: tuple[int, ...] = (12, 10)
) -> None:
    """Raise unless a calibrator keeps what all of them promise.

    It is fitted some dozen times on four small images. These are the promises:

    - ``arguments()`` and the ``state_dict`` rebuild it, also through a checkpoint;
    - `fit` takes ``(logits, image, target)``, returns the calibrator, gives the same for the same, forgets what was
      fitted before, leaves out what is ``ignore_index``, and touches neither its inputs nor the global generators;
    - `fit` raises a SeguqError for logits with NaN, and for batches that can be read only once;
    - calibrated logits have the shape and the device of the raw ones, at least float32, and are finite; half precision
      is computed in float32;
    - they are the same for logits z and z + c, and for an image alone and among others;
    - the predicted class stays where ``order_preserving`` says so;
    - inference mode makes no difference, neither around a fit nor around a call;
    - a `stream`, where it has one, finds what `fit` finds, also where two processes have seen a part each.

    Args:
        calibrator: an unfitted one; it is left as it is.
        num_classes: C of the logits that it is for.
        image_channels: channels of the images that it is for.
        spatial: size of these images.

    Raises:
        AssertionError: for the first promise that is broken.

    Example:
        >>> from seguq import TemperatureScaling
        >>> check_calibrator(TemperatureScaling())
    """
    if not isinstance(calibrator, Calibrator):
        raise UsageError(f"check_calibrator takes a calibrator, such as Mine(), but was given {calibrator!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bounds, of few data: not what is looked at here
        for check in CALIBRATOR_CHECKS:
            problem = _Problem.drawn(num_classes, image_channels, spatial, calibrator.ignore_index)
            with named(calibrator, check.__name__):
                check(lambda: copy.deepcopy(calibrator), problem)


@dataclass(frozen=True)
class _Problem:
    """Four images with over-confident logits, half of them for a fit, and all of them to be calibrated."""

    logits: Tensor
    image: Tensor
    target: Tensor

    @classmethod
    def drawn(cls, num_classes: int, image_channels: int, spatial: tuple[int, ...], ignore_index: int) -> _Problem:
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(4, num_classes, *spatial, generator=generator)
        image = torch.randn(4, image_channels, *spatial, generator=generator)
        drawn = torch.rand(4, 1, *spatial, generator=generator)
        target = ((0.5 * logits).softmax(1).cumsum(1) < drawn).sum(1).clamp_max(num_classes - 1)
        target[torch.rand(4, *spatial, generator=generator) < 0.1] = ignore_index
        return cls(logits, image, target)

    def batches(self, add: Tensor | float = 0.0) -> list[FittingBatch]:
        return [FittingBatch(self.logits[i] + add, self.image[i], self.target[i]) for i in (slice(2), slice(2, 4))]

    def probs(self, calibrator: Calibrator, add: Tensor | float = 0.0) -> Tensor:
        """What a calibrator makes of it."""
        with torch.no_grad():
            calibrated: Tensor = calibrator(self.logits + add, self.image)
        return calibrated.softmax(1)


Make = Callable[[], Calibrator]


def _rebuilds_itself(make: Make, problem: _Problem) -> None:
    fitted = make().fit(problem.batches())
    file = io.BytesIO()
    torch.save(pack(fitted, "weights", 3), file)
    file.seek(0)
    again = unpack("tag", torch.load(file, weights_only=True))
    claim(type(again) is type(fitted), "its name must be that of its own class, in a checkpoint too")
    claim(again.arguments() == fitted.arguments(), "arguments() must be what the constructor was given")
    claim(
        torch.equal(problem.probs(again), problem.probs(fitted)),
        "arguments() and state_dict() must rebuild it: through a checkpoint it calibrates otherwise",
    )


def _returns_itself_from_fit(make: Make, problem: _Problem) -> None:
    calibrator = make()
    claim(calibrator.fit(problem.batches()) is calibrator, "fit must return the calibrator itself")


def _finds_the_same_again(make: Make, problem: _Problem) -> None:
    fitted, again = make().fit(problem.batches()), make().fit(problem.batches())
    same = torch.equal(problem.probs(fitted), problem.probs(again))
    claim(same, "fit must find the same on the same batches: draw from a generator of its own, with a seed")
    again.fit([FittingBatch(-batch.logits, batch.image, batch.target) for batch in problem.batches()])
    again.fit(problem.batches())
    claim(_close(problem.probs(again), problem.probs(fitted)), "fit must forget what was fitted before")


def _leaves_the_world_as_it_is(make: Make, problem: _Problem) -> None:
    batches, kept = problem.batches(), copy.deepcopy(problem.batches())
    states = torch.get_rng_state(), other_generators()
    fitted = make().fit(batches)
    logits, image = problem.logits.clone(), problem.image.clone()
    fitted(logits, image)
    claim(
        torch.equal(torch.get_rng_state(), states[0]) and other_generators() == states[1],
        "fit and forward must leave the global random generators as they were",
    )
    same = all(
        torch.equal(a, b) for one, other in zip(batches, kept, strict=True) for a, b in zip(one, other, strict=True)
    )
    claim(same, "fit must not change the tensors that it is given")
    same = torch.equal(problem.logits, logits) and torch.equal(problem.image, image)
    claim(same, "forward must not change the tensors that it is given")


def _leaves_ignored_pixels_out(make: Make, problem: _Problem) -> None:
    calibrator = make()
    generator = torch.Generator().manual_seed(1)
    other = 9 * torch.randn(problem.logits[:2].shape, generator=generator)
    nothing = FittingBatch(other, problem.image[:2], torch.full_like(problem.target[:2], calibrator.ignore_index))
    with_nothing = make().fit([*problem.batches(), nothing])
    same = _close(problem.probs(with_nothing), problem.probs(calibrator.fit(problem.batches())))
    claim(same, "a batch whose target is ignore_index everywhere must change nothing in fit")
    without = FittingBatch(torch.full_like(other, float("nan")), nothing.image, nothing.target)
    same = _close(problem.probs(make().fit([*problem.batches(), without])), problem.probs(with_nothing))
    claim(same, "logits where the target is ignore_index may be NaN (fitting_pairs leaves them out)")


def _refuses_what_cannot_be_fitted(make: Make, problem: _Problem) -> None:
    damaged = problem.batches()
    damaged[1].logits[0, 0].fill_(float("nan"))
    try:
        make().fit(damaged)
    except SeguqError as error:
        claim("batch 1" in str(error), "the error for logits with NaN must say which batch they are in, as 'batch 1'")
    else:
        claim(False, "fit must raise a SeguqError for logits with NaN")
    try:
        make().fit(iter(problem.batches()))
    except SeguqError:
        return
    claim(False, "fit must raise a SeguqError for batches that can be read only once (fitting_pairs does it)")


def _keeps_shape_type_and_device(make: Make, problem: _Problem) -> None:
    fitted = make().fit(problem.batches())
    for given in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        logits, wanted = problem.logits.to(given), torch.promote_types(given, torch.float32)
        with torch.no_grad():
            out = fitted(logits, problem.image)
            exact = fitted(logits.to(wanted), problem.image)
        shape = tuple(out.shape)
        claim(shape == tuple(logits.shape), f"logits {tuple(logits.shape)} must keep their shape, but become {shape}")
        claim(out.dtype == wanted, f"logits of {given} must become {wanted}, but become {out.dtype}")
        claim(out.device == logits.device, f"logits on {logits.device} must stay there, but go to {out.device}")
        claim(bool(torch.isfinite(out).all()), "calibrated logits must be finite")
        claim(_close(out.softmax(1), exact.softmax(1), 1e-3), f"logits of {given} must be computed in {wanted}")


def _is_the_same_for_an_offset(make: Make, problem: _Problem) -> None:
    offset = 50 * torch.randn(2, 1, *problem.logits.shape[2:], generator=torch.Generator().manual_seed(2))
    fitted, elsewhere = make().fit(problem.batches()), make().fit(problem.batches(offset))
    both = torch.cat((offset, offset))
    claim(
        _close(problem.probs(fitted, both), problem.probs(fitted), 1e-3),
        "logits z and z + c must give the same probabilities: feed log_softmax(z) where z itself is read",
    )
    same = _close(problem.probs(elsewhere), problem.probs(fitted), 1e-3)
    claim(same, "fitted on logits z + c it must be as fitted on z")


def _takes_each_image_for_itself(make: Make, problem: _Problem) -> None:
    fitted = make().fit(problem.batches())
    with torch.no_grad():
        alone = fitted(problem.logits[:1], problem.image[:1]).softmax(1)
    same = _close(alone, problem.probs(fitted)[:1])
    claim(same, "an image alone must be calibrated as among others: is a layer still in training mode?")


def _keeps_the_order(make: Make, problem: _Problem) -> None:
    calibrator = make()
    claim(isinstance(calibrator.order_preserving, bool), "order_preserving must be True or False")
    fitted = calibrator.fit(problem.batches())
    for scale in (0.01, 1.0, 10.0):
        logits = scale * problem.logits
        with torch.no_grad():
            kept = torch.equal(fitted(logits, problem.image).argmax(1), logits.argmax(1))
        claim(kept or not calibrator.order_preserving, "order_preserving is True, but the predicted class changes")


def _works_in_inference_mode(make: Make, problem: _Problem) -> None:
    fitted = make().fit(problem.batches())
    with torch.inference_mode():
        inside = make().fit([FittingBatch(*(tensor.clone() for tensor in batch)) for batch in problem.batches()])
        called = fitted(problem.logits, problem.image).softmax(1)
    claim(_close(called, problem.probs(fitted)), "a call in inference mode must be like one outside of it")
    same = _close(problem.probs(inside), problem.probs(fitted))
    claim(same, "fitted in inference mode it must be as fitted outside of it")
    inside.fit(problem.batches())  # buffers that were made inside could not be filled


def _streams_what_it_fits(make: Make, problem: _Problem) -> None:
    calibrator = make()
    streams = [calibrator.stream() for _ in range(3)]
    if any(stream is None for stream in streams):
        claim(all(stream is None for stream in streams), "stream() must always or never be None")
        return
    whole, *parts = [stream for stream in streams if isinstance(stream, Stream)]
    for number, batch in enumerate(problem.batches()):
        ids, numbers = [f"{2 * number}", f"{2 * number + 1}"], [2 * number, 2 * number + 1]
        for stream in (whole, parts[number]):
            stream.add(batch.logits, batch.target, ids, numbers, batch.image)
    parts[0].combine([part.state() for part in parts])
    found, together = whole.fit(), parts[0].fit()
    claim(isinstance(found, type(calibrator)), "a stream must fit a calibrator of the same kind")
    assert isinstance(found, Calibrator)
    same = _close(problem.probs(found), problem.probs(calibrator.fit(problem.batches())), 5e-3)
    claim(same, "what a stream finds must be what fit finds")
    assert isinstance(together, Calibrator)
    same = _close(problem.probs(together), problem.probs(found), 1e-4)
    claim(same, "what two processes have seen must go together: combine() of both must fit what one stream fits")
    measured = found.summary()
    claim((measured.images, measured.groups) == (4, 4), "a stream must count the images and their groups")
    claim(measured.nll_after is not None, "a stream must know the likelihood out of sample")


CALIBRATOR_CHECKS: tuple[Callable[[Make, _Problem], None], ...] = (
    _returns_itself_from_fit,
    _finds_the_same_again,
    _keeps_shape_type_and_device,
    _is_the_same_for_an_offset,
    _takes_each_image_for_itself,
    _keeps_the_order,
    _leaves_the_world_as_it_is,
    _leaves_ignored_pixels_out,
    _refuses_what_cannot_be_fitted,
    _works_in_inference_mode,
    _rebuilds_itself,
    _streams_what_it_fits,
)


def _close(one: Tensor, other: Tensor, atol: float = 1e-4) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=atol)
