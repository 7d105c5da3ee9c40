"""One of each kind, as somebody writes it in a package of their own: about ten lines each, and nothing else."""

import numpy as np
import torch

import seguq
from seguq.acquisition import Ranked
from seguq.calibration import Calibrator
from seguq.calibration.batches import fitting_pairs
from seguq.calibration.sums import SumStream
from seguq.functional.logits import full_precision
from seguq.inference.estimator import OneModelEstimator
from seguq.inference.evaluation import evaluation_mode
from seguq.inference.sampling import SamplingEstimator
from seguq.regions import Partition
from seguq.regions.partition import stored_pixels


class HalfWay(Calibrator):
    """Logits go a share of the way down to what the share of right pixels asks for."""

    name = "half_way"
    order_preserving = True

    def __init__(self, share=0.5, ignore_index=255):
        super().__init__()
        self.share, self.ignore_index = share, ignore_index
        self.register_buffer("factor", torch.ones(()))

    def fit(self, batches):
        right = pixels = 0
        for logits, target in fitting_pairs(batches, self.task, self.ignore_index):
            right += int((logits.argmax(1) == target).sum())
            pixels += int((target != self.ignore_index).sum())
        return self.settle(right / pixels)

    def settle(self, accuracy):
        with torch.inference_mode(False):
            self.factor = torch.full_like(self.factor, 1 - self.share * (1 - accuracy))
        return self

    def forward(self, logits, image=None):
        return full_precision(logits) * self.factor.to(logits.device)

    def stream(self, group=None):
        return ShareOfRight(self, 2, group)


class ShareOfRight(SumStream):
    """The same from sums: right and labeled pixels; it says nothing of likelihood and calibration."""

    def measure(self, logits, target, image):
        labeled = target != self.calibrator.ignore_index
        return torch.stack((((logits.argmax(1) == target) & labeled).sum(), labeled.sum()))

    def fitted_on(self, sums):
        return HalfWay(**self.calibrator.arguments()).settle(float(sums[0] / sums[1]))

    def judged_on(self, sums, calibrator):
        return float("nan"), torch.full((15,), float("nan"))


class Halves(Partition):
    """The left and the right part of an image."""

    fills_boxes = True

    def __init__(self, at=0.5):
        self.at = at

    def __call__(self, image, maps=None):
        height, width = maps.prediction.shape[-2:]
        return (torch.arange(width) >= self.at * width).int().expand(height, width)


class Shades(Partition):
    """Pixels of like brightness, of the image as stored."""

    needs_image = of_image_alone = True

    def __init__(self, count=4):
        self.count = count

    def __call__(self, image, maps=None):
        gray = stored_pixels(image).mean(-1)
        return torch.from_numpy((gray * self.count / 256).astype(np.int32))


class LargestFirst(Ranked):
    """The largest regions, of those with a score of at least so much."""

    def __init__(self, least=0.0):
        self.least = least

    def rank(self, pool, generator):
        order = np.lexsort((generator.random(len(pool)), -pool.column("area")))
        return order[pool.column("score")[order] >= self.least]


GINI = seguq.Measure("gini", "probs", lambda probs: 1 - probs.square().sum(1), None, "how mixed the probabilities are")


class Brightness(OneModelEstimator, SamplingEstimator):
    """Samples are the images under more and more light."""

    name = "brightness"
    tag = "brightness"

    def __init__(self, model=None, samples=3, step=0.1, **settings):
        super().__init__(model, **settings)
        self.number_of_samples, self.step = samples, step

    def sample_logits(self, images, ids):
        for number in range(self.number_of_samples):
            with evaluation_mode(self.network):
                yield self.logits_of(self.network, images * (1 + number * self.step))
