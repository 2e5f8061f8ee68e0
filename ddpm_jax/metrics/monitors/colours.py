"""Colour statistics of images, and tests of the shift between samples and data.

Colours are in units of the full range, levels - 1, comparable across bit depths.
"""

import math
from typing import NamedTuple

import numpy as np

MAX_Z = 4.0
"""Standard errors above which a difference is flagged: 1 in 16,000 for normal errors."""
INVISIBLE_DIFFERENCE = 0.002
"""Differences of colours up to this, half a level of 8 bits, are never flagged: they are not visible."""
MIN_IMAGES = 16
"""Number of samples, and of data, that the test needs."""


class ChannelMoments(NamedTuple):
    """Mean and standard deviation of pixel values [C], and the standard deviations of both over single images.

    The standard error of n images' mean is mean_error / sqrt(n), as images are independent but their pixels are not.
    Both errors are nan for one image.
    """

    mean: np.ndarray
    std: np.ndarray
    mean_error: np.ndarray
    std_error: np.ndarray


class ColourStatistics(NamedTuple):
    """The colours of a set of images, in units of the full range.

    Attributes:
        images: number of images.
        channels: of the pixel values.
        tint: of the pixel values less the mean of the pixel's channels; 0 for one channel.  A tint changes its mean;
            saturation, and tints that differ between images, change its standard deviation.  As channels mostly vary
            together, it is far more sensitive to a shift of one channel than that channel itself.
        histogram: [C, levels] number of pixels with each value.
    """

    images: int
    channels: ChannelMoments
    tint: ChannelMoments
    histogram: np.ndarray


class Difference(NamedTuple):
    """Samples less data, [C] each; the z are in standard errors, infinite if neither set varies."""

    mean: np.ndarray
    std: np.ndarray
    mean_z: np.ndarray
    std_z: np.ndarray

    @property
    def mean_is_off(self) -> np.ndarray:
        """[C] True for means that are off by more than `MAX_Z` standard errors and more than `INVISIBLE_DIFFERENCE`."""
        return (np.abs(self.mean_z) > MAX_Z) & (np.abs(self.mean) > INVISIBLE_DIFFERENCE)

    @property
    def std_is_off(self) -> np.ndarray:
        """[C] as `mean_is_off`, of standard deviations."""
        return (np.abs(self.std_z) > MAX_Z) & (np.abs(self.std) > INVISIBLE_DIFFERENCE)


class ColourShift(NamedTuple):
    """The shift of samples' colours against data.

    Attributes:
        channels, tint: differences of the `ChannelMoments` of that name.
        distance: [C] 1-Wasserstein distance of the histograms, at least the difference of means; never flagged.
        not_judged_because: reason why nothing is flagged, or "".
    """

    channels: Difference
    tint: Difference
    distance: np.ndarray
    not_judged_because: str

    @property
    def is_off(self) -> np.ndarray:
        """[C] True for channels with anything off."""
        parts = self.channels.mean_is_off | self.channels.std_is_off | self.tint.mean_is_off | self.tint.std_is_off
        return parts & (self.not_judged_because == "")


def colour_statistics(images: np.ndarray, levels: int) -> ColourStatistics:
    """Colour statistics of images, uint8 or uint16 [n, H, W, C] or [n, D, H, W, C] with values 0 .. levels - 1.

    Raises:
        ValueError: if the images are not as described, or there are none.
    """
    check_images("colour_statistics", images)
    if not 2 <= levels <= np.iinfo(images.dtype).max + 1:
        raise ValueError(f"colour_statistics: levels must be 2 to {np.iinfo(images.dtype).max + 1}, got {levels}")
    if images.max() >= levels:
        raise ValueError(f"colour_statistics: images hold the value {images.max()}, above levels - 1 = {levels - 1}")
    count, channels = len(images), images.shape[-1]
    pixels = images.reshape(count, -1, channels)
    means = np.empty((4, count, channels))  # over an image's pixels: of value, value^2, tint, tint^2
    histogram = np.zeros((channels, levels), np.int64)
    step = max(1, 2**20 // pixels[0].size)
    for start in range(0, count, step):
        # Sums of integer levels are exact in float64: constant values have a variance of exactly 0.
        part = np.ascontiguousarray(np.moveaxis(pixels[start : start + step], 1, 2), np.float64)
        tint = channels * part - part.sum(1, keepdims=True)
        squares = [np.einsum("ncp,ncp->nc", x, x) for x in (part, tint)]
        means[:, start : start + step] = np.stack([part.sum(2), squares[0], tint.sum(2), squares[1]]) / pixels.shape[1]
        for channel in range(channels):
            histogram[channel] += np.bincount(part[:, channel].astype(np.int64).ravel(), minlength=levels)
    value, square, tint, tint_square = means
    unit = levels - 1
    return ColourStatistics(
        count, _moments(value, square, unit), _moments(tint, tint_square, channels * unit), histogram
    )


def colour_shift(samples: ColourStatistics, data: ColourStatistics) -> ColourShift:
    """The shift of samples' colours against data, with its standard errors.

        z = (mean of samples - mean of data) / (e sqrt(1/n + 1/m)),    e the larger of the two sets' mean_error

    and likewise for standard deviations.  The larger, as one set may lack the rare images that dominate the error: with
    skewed laws and 16 training images a correct sampler would be flagged often.

    Raises:
        ValueError: if the two differ in channels or levels.
    """
    if samples.histogram.shape != data.histogram.shape:
        raise ValueError(
            "colour_shift: samples and data must be alike, got (channels, levels) "
            f"{samples.histogram.shape} and {data.histogram.shape}"
        )
    few = [f"{p.images} {what}" for p, what in ((samples, "samples"), (data, "data")) if p.images < MIN_IMAGES]
    cdfs = [np.cumsum(p.histogram, 1) / p.histogram.sum(1, keepdims=True) for p in (samples, data)]
    # In one dimension the optimal transport is in order: its cost is the area between the distribution functions.
    distance = np.abs(cdfs[0] - cdfs[1]).sum(1) / (samples.histogram.shape[1] - 1)
    scale = math.sqrt(1 / samples.images + 1 / data.images)
    return ColourShift(
        _difference(samples.channels, data.channels, scale),
        _difference(samples.tint, data.tint, scale),
        distance,
        f"only {' and '.join(few)}" if few else "",
    )


def check_images(caller: str, images: np.ndarray) -> None:
    """Raises a ValueError, naming the caller, unless images are uint8 or uint16 [n, H, W, C] or [n, D, H, W, C]."""
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (4, 5) or images.size == 0:
        raise ValueError(f"{caller}: expected images uint8 or uint16 [n, H, W, C], got {images.dtype} {images.shape}")


def _moments(means: np.ndarray, squares: np.ndarray, unit: int) -> ChannelMoments:
    """Channel moments from each image's means [n, C] of x and x^2, in levels."""
    mean = means.mean(0)
    around = squares - 2 * mean * means + mean**2  # each image's mean squared distance from the mean of all
    std = np.sqrt(np.maximum(around.mean(0), 0))
    scatter = [x.std(0, ddof=1) if len(x) > 1 else np.full_like(mean, np.nan) for x in (means, around)]
    # To first order std = sqrt(mean of around) moves by d around / (2 std); the mean it is taken about does not count.
    error = np.divide(scatter[1], 2 * std, out=np.zeros_like(std), where=std > 0)
    return ChannelMoments(mean / unit, std / unit, scatter[0] / unit, error / unit)


def _difference(samples: ChannelMoments, data: ChannelMoments, scale: float) -> Difference:
    mean, std = samples.mean - data.mean, samples.std - data.std
    return Difference(
        mean,
        std,
        _z_score(mean, np.fmax(samples.mean_error, data.mean_error) * scale),
        _z_score(std, np.fmax(samples.std_error, data.std_error) * scale),
    )


def _z_score(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    """difference / error; 0 for rounding errors, infinite for other differences if the error is 0."""
    certain = np.where(np.abs(difference) > 1e-9, np.copysign(np.inf, difference), 0)
    return np.divide(difference, error, out=certain.copy(), where=(error != 0) & (certain != 0))
