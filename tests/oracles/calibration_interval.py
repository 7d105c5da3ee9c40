"""The interval of the calibration error as its words say it: truths tried one after the other, in plain loops."""

import math

import numpy as np

from tests.oracles import calibration


def seen_and_noise(images, counts, n_bins=15):
    """The gaps of ``(probs (C, *spatial), target)`` pairs, and what each replicate says their noise is, both signs."""
    bins = [calibration.top1_calibration_bins(p[None], t[None], n_bins, 255)[0] for p, t in images]
    pixels = sum(bins)[0].sum()
    seen = gaps(sum(bins))
    noise, scatter = [], []
    for replicate in counts.T:
        drawn = sum(int(count) * image for count, image in zip(replicate, bins, strict=True))
        if drawn[0].sum() > 0:
            scatter.append((drawn[0].sum() / pixels - 1) ** 2)
            noise.append([g - s for g, s in zip(gaps(drawn), seen, strict=True)])
    images_as_many = len(scatter) / math.fsum(scatter)
    factor = math.sqrt(images_as_many / (images_as_many - 3)) if images_as_many > 4 else 2
    noise = [[factor * e for e in one] for one in noise]
    return seen, noise + [[-e for e in one] for one in noise]


def gaps(bins):
    return [(confidence - right) / sum(bins[0]) for _, confidence, right in zip(*bins, strict=True)]


def error_with_noise(true, noise, share):
    """The quantile of errors that noise makes of the true gaps."""
    return np.quantile([math.fsum(abs(g + e) for g, e in zip(true, one, strict=True)) for one in noise], share)


def least_explaining(seen, direction, noise, share):
    """The least error along a direction that noise lifts to what was seen, found by halving."""
    value = math.fsum(map(abs, seen))
    total = math.fsum(map(abs, direction))
    low, high = 0.0, value
    if error_with_noise([0] * len(seen), noise, share) >= value:
        return 0.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if error_with_noise([middle * d / total for d in direction], noise, share) >= value:
            high = middle
        else:
            low = middle
    return high


def shrunk(seen, noise):
    variances = [math.fsum(one[b] ** 2 for one in noise) / len(noise) for b in range(len(seen))]
    rest = [max(0, 1 - v / g**2) * g if g else 0 for g, v in zip(seen, variances, strict=True)]
    return rest if any(rest) else seen


def interval(images, counts, level=0.95):
    seen, noise = seen_and_noise(images, counts)
    low = least_explaining(seen, shrunk(seen, noise), noise, 1 - 0.75 * (1 - level))
    return low, min(1, error_with_noise(seen, noise, 1 - 0.25 * (1 - level)))


def debiased(images, counts):
    seen, noise = seen_and_noise(images, counts)
    return least_explaining(seen, seen, noise, 0.5)


def difference_interval(first, second, counts, level=0.95):
    """Of two lists of the same images."""
    (one, noise_one), (two, noise_two) = (seen_and_noise(images, counts) for images in (first, second))
    value = size(one) - size(two)
    drawn = [size(plus(one, a)) - size(plus(two, b)) for a, b in zip(noise_one, noise_two, strict=True)]
    low = value - np.quantile(rises(two, noise_two, one, noise_one, level), (1 + level) / 2)
    high = value + np.quantile(rises(one, noise_one, two, noise_two, level), (1 + level) / 2)
    low, high = min(low, np.quantile(drawn, (1 - level) / 2)), max(high, np.quantile(drawn, (1 + level) / 2))
    return max(-1, min(low, value)), min(1, max(high, value))


def size(gaps):
    return math.fsum(map(abs, gaps))


def plus(gaps, noise, times=1):
    return [g + times * e for g, e in zip(gaps, noise, strict=True)]


def rises(seen, noise, other, noise_other, level):
    """How much larger than it looks the error may be beside the other, which is at its interval's lower end."""
    low = least_explaining(other, shrunk(other, noise_other), noise_other, 1 - 0.75 * (1 - level))
    true_other = [g * low / size(other) for g in other]
    true, share = [], []
    for b, gap in enumerate(seen):
        along = math.fsum(a[b] * o[b] for a, o in zip(noise, noise_other, strict=True))
        of_other = math.fsum(o[b] ** 2 for o in noise_other)
        share.append(along / of_other if of_other else 0)
        true.append(gap - share[b] * (other[b] - true_other[b]))
    out = []
    for a, o in zip(noise, noise_other, strict=True):
        common = [k * e for k, e in zip(share, o, strict=True)]
        own = plus(a, common, -1)
        by_common = size(plus(true, common)) - size(true)
        by_own = size(plus(plus(true, common), own, -1)) - size(plus(true, common))
        out.append(by_own - by_common + size(plus(true_other, o)) - size(true_other))
    return out
