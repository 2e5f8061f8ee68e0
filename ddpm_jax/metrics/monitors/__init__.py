"""Monitors of samples during training: colour statistics and memorisation.

The loss does not show two failures of sampling: colours and contrast that drift (tints, washed-out or oversaturated
images), and copies of training images by a network that is large for its training set.

    reference = monitors.reference(train, held_out, levels)              # once
    report = monitors.report(samples, reference)                         # at each sampling
    print(*monitors.lines(report), sep="\\n")

Everything is numpy on the host.  Images are the integers 0 .. levels - 1 of the data.  Colours are in units of the full
range, levels - 1, comparable across bit depths; distances between images are root mean squares over pixels, in levels.
"""

from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.metrics.monitors.colours import MIN_IMAGES, ColourShift, ColourStatistics, colour_shift, colour_statistics
from ddpm_jax.metrics.monitors.memorisation import (
    DistanceReference,
    MemorisationReport,
    distance_reference,
    memorisation_report,
)

MAX_COLOUR_IMAGES = 50_000
"""Upper limit of training images for the reference's colours."""


class Reference(NamedTuple):
    """Statistics of the data that samples are compared with; see `reference`."""

    levels: int
    colours: ColourStatistics
    distances: DistanceReference


class Report(NamedTuple):
    """Comparison of samples with data; `lines` and `metrics` format it."""

    samples: ColourStatistics
    data: ColourStatistics
    colour_shift: ColourShift
    memorisation: MemorisationReport


def reference(train: np.ndarray, held_out: np.ndarray, levels: int) -> Reference:
    """The reference of every later `report`, by a pass over the training images.

    Args:
        train, held_out: uint8 or uint16 [n, H, W, C], of one shape and type.  If training mirrors images, add the
            mirror images to `train`, or their copies are not found.  The colours are those of at most 50,000 training
            images, evenly spaced.

    Raises:
        ValueError: as `colour_statistics` and `distance_reference`.
    """
    every = max(1, -(-len(train) // MAX_COLOUR_IMAGES))
    return Reference(levels, colour_statistics(train[::every], levels), distance_reference(train, held_out))


def report(samples: np.ndarray, reference: Reference) -> Report:
    """The comparison of samples, uint8 or uint16 [n, H, W, C] as the training images, with the reference.

    Raises:
        ValueError: as `colour_statistics`, `colour_shift` and `memorisation_report`.
    """
    colours, data = colour_statistics(samples, reference.levels), reference.colours
    return Report(colours, data, colour_shift(colours, data), memorisation_report(samples, reference.distances))


def loss_by_tenth(t: np.ndarray, loss: np.ndarray, T: int) -> np.ndarray:
    """[10] mean loss in each tenth of 1 .. T, nan for a tenth without images.

    Args:
        t, loss: [n] the time of each image, 1 .. T, and its loss there.

    Raises:
        ValueError: if they are not [n], or a time is outside 1 .. T.
    """
    if t.ndim != 1 or t.shape != loss.shape:
        raise ValueError(f"loss_by_tenth: expected t [n] and loss [n], got shapes {t.shape} and {loss.shape}")
    if t.size and not 1 <= t.min() <= t.max() <= T:
        raise ValueError(f"loss_by_tenth: expected times 1 .. T = {T}, got {t.min()} .. {t.max()}")
    tenth = (t.astype(np.int64) - 1) * 10 // T
    count = np.bincount(tenth, minlength=10)
    sums = np.bincount(tenth, weights=loss, minlength=10)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def lines(report: Report) -> list[str]:
    """A report as text: the colours of each channel (of more than four, of the worst), and the nearest neighbours.

    Flagged results follow "<-".
    """
    count, off = len(report.colour_shift.is_off), np.flatnonzero(report.colour_shift.is_off)
    if count == 1:
        text = [f"samples   {_describe_colours(report, 0)}"]
    elif count <= 4:
        text = [f"samples {c} {_describe_colours(report, c)}" for c in range(count)]
    else:
        among = off if len(off) else np.arange(count)
        channels, tint = report.colour_shift.channels, report.colour_shift.tint
        z = np.abs(np.stack([channels.mean_z, channels.std_z, tint.mean_z, tint.std_z])).max(0)
        worst = among[np.argmax(np.nan_to_num(z)[among])]
        text = [f"samples   {count} channels, {len(off)} off; channel {worst}: {_describe_colours(report, worst)}"]
    if report.colour_shift.not_judged_because:
        text.append(f"          colours not judged: {report.colour_shift.not_judged_because}, {MIN_IMAGES} are needed")
    copies = report.memorisation
    distances = ["/".join(_format_number(x, 3) for x in row) for row in (copies.samples, copies.held_out)]
    mark = "<- " if copies.verdict in ("near", "copies") else ""
    text.append(
        f"neighbours  nearest training image, in levels, 5 %/median/95 %: {distances[0]} "
        f"({copies.held_out_kind} {distances[1]}): {mark}{copies.reason}"
    )
    return text


def loss_by_tenth_line(tenths: np.ndarray) -> str:
    """The result of `loss_by_tenth` as a line of text."""
    return f"loss by t  {' '.join(_format_number(x, 2) for x in tenths)} (tenths of 1..T)"


def metrics(report: Report) -> dict[str, Any]:
    """A report as values for a line of metrics: floats, text and lists of a number for each channel."""
    colour_shift, memorisation = report.colour_shift, report.memorisation
    values = {
        "sample_mean": report.samples.channels.mean.tolist(),
        "sample_std": report.samples.channels.std.tolist(),
        "sample_mean_z": colour_shift.channels.mean_z.tolist(),
        "sample_std_z": colour_shift.channels.std_z.tolist(),
        "sample_tint": colour_shift.tint.mean.tolist(),
        "sample_tint_z": colour_shift.tint.mean_z.tolist(),
        "sample_tint_spread_z": colour_shift.tint.std_z.tolist(),
        "histogram_distance": colour_shift.distance.tolist(),
        "channels_off": np.flatnonzero(colour_shift.is_off).tolist(),
    }
    names = ("nearest_train_5_percent", "nearest_train_median", "nearest_train_95_percent")
    values |= dict(zip(names, memorisation.samples.tolist(), strict=True))
    return values | {"copying": memorisation.verdict, "copied_share": memorisation.copied}


def _describe_colours(report: Report, c: int) -> str:
    """The colours of one channel as text, and which of them are off."""
    samples, data, shift = report.samples.channels, report.data.channels, report.colour_shift
    text = [
        f"{name} {values[c]:.3f} (data {of_data[c]:.3f}, z {z[c]:+.1f})"
        for name, values, of_data, z in (
            ("mean", samples.mean, data.mean, shift.channels.mean_z),
            ("std", samples.std, data.std, shift.channels.std_z),
        )
    ]
    if len(data.mean) > 1:
        text.append(f"tint {shift.tint.mean[c]:+.3f} (z {shift.tint.mean_z[c]:+.1f})")
    text.append(f"histogram distance {shift.distance[c]:.3f}")
    if shift.is_off[c]:
        parts = {"mean": shift.channels.mean_is_off, "std": shift.channels.std_is_off, "tint": shift.tint.mean_is_off}
        wrong = [name for name, off in parts.items() if off[c]]
        if shift.tint.std_is_off[c]:
            wrong.append(f"spread of tints {shift.tint.std[c]:+.3f} (z {shift.tint.std_z[c]:+.1f})")
        text.append(f"<- off: {', '.join(wrong)}")
    return "  ".join(text)


def _format_number(x: float, digits: int) -> str:
    """A number with at least `digits` digits and no exponent; "-" for nan."""
    if not np.isfinite(x):
        return "-"
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])
    return f"{x:.{max(0, digits - 1 - exponent)}f}"
