"""What training prints of its samples: are their colours and contrast those of the data, and are they copies of it?

Two things go wrong with samplers and do not show in the loss.  Colours and contrast drift: a tint, a washed-out or an
oversaturated look.  And a network that is large for its training set draws the training images themselves.

    reference = monitors.reference(train, held_out, levels)              # once
    found = monitors.report(samples, reference)                          # at each sampling
    print(*monitors.lines(found), sep="\\n")

Everything is numpy on the host.  Images are the integers 0 .. levels - 1 of the data.  Colours are in units of the full
range, levels - 1, so that numbers compare across bit depths; distances between images are root mean squares over
pixels, in levels.
"""

from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.metrics.monitors.colours import (
    MIN_IMAGES,
    ChannelMoments,
    ColourShift,
    ColourStatistics,
    Difference,
    colour_shift,
    colour_statistics,
)
from ddpm_jax.metrics.monitors.memorisation import (
    DistanceReference,
    MemorisationReport,
    distance_reference,
    memorisation,
    memorisation_from_distances,
)

__all__ = [
    "ChannelMoments",
    "ColourShift",
    "ColourStatistics",
    "Difference",
    "DistanceReference",
    "MemorisationReport",
    "Reference",
    "Report",
    "colour_shift",
    "colour_statistics",
    "distance_reference",
    "lines",
    "loss_by_tenth",
    "loss_by_tenth_line",
    "memorisation",
    "memorisation_from_distances",
    "metrics",
    "reference",
    "report",
]

MAX_COLOUR_IMAGES = 50_000
"""How many training images the reference's colours are taken from."""


class Reference(NamedTuple):
    """What samples are compared with; `reference` makes it."""

    levels: int
    colours: ColourStatistics
    distances: DistanceReference


class Report(NamedTuple):
    """Samples and data; `lines` and `metrics` say it in words and numbers."""

    samples: ColourStatistics
    data: ColourStatistics
    colour_shift: ColourShift
    memorisation: MemorisationReport


def reference(train: np.ndarray, held_out: np.ndarray, levels: int) -> Reference:
    """What every later `report` compares with; it takes a pass over the training images.

    Args:
        train, held_out: uint8 or uint16 [n, H, W, C], alike.  Where training mirrors images, give `train` with its
            mirror images, or copies of these go unnoticed.  The colours are those of at most 50,000 training images,
            evenly spaced.

    Raises:
        ValueError: as `colour_statistics` and `distance_reference`.
    """
    every = max(1, -(-len(train) // MAX_COLOUR_IMAGES))
    return Reference(levels, colour_statistics(train[::every], levels), distance_reference(train, held_out))


def report(samples: np.ndarray, reference: Reference) -> Report:
    """Samples, uint8 or uint16 [n, H, W, C] of the reference's kind, against it.

    Raises:
        ValueError: as `colour_statistics`, `colour_shift` and `memorisation`.
    """
    found, data = colour_statistics(samples, reference.levels), reference.colours
    return Report(found, data, colour_shift(found, data), memorisation(samples, reference.distances))


def loss_by_tenth(t: np.ndarray, loss: np.ndarray, T: int) -> np.ndarray:
    """[10] mean loss in each tenth of 1 .. T, nan where there is none.

    Args:
        t, loss: [n] the time of each image, 1 .. T, and its loss then.

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
    """A report in words: the colours of each channel (of more than four, of the worst), and the neighbours.

    What is flagged stands behind "<-".
    """
    count, off = len(report.colour_shift.is_off), np.flatnonzero(report.colour_shift.is_off)
    if count == 1:
        said = [f"samples   {_describe_colours(report, 0)}"]
    elif count <= 4:
        said = [f"samples {c} {_describe_colours(report, c)}" for c in range(count)]
    else:
        among = off if len(off) else np.arange(count)
        worst = among[np.argmax(np.nan_to_num(np.max(np.abs(_all_z(report.colour_shift)), 0))[among])]
        said = [f"samples   {count} channels, {len(off)} off; channel {worst}: {_describe_colours(report, worst)}"]
    if report.colour_shift.not_judged_because:
        said.append(f"          colours not judged: {report.colour_shift.not_judged_because}, {MIN_IMAGES} are needed")
    found = report.memorisation
    distances = ["/".join(_format_number(x, 3) for x in row) for row in (found.samples, found.held_out)]
    mark = "<- " if found.verdict in ("near", "copies") else ""
    said.append(
        f"neighbours  nearest training image, in levels, 5 %/median/95 %: {distances[0]} "
        f"({found.held_out_kind} {distances[1]}): {mark}{found.reason}"
    )
    return said


def loss_by_tenth_line(tenths: np.ndarray) -> str:
    """The line of what `loss_by_tenth` returns."""
    return f"loss by t  {' '.join(_format_number(x, 2) for x in tenths)} (tenths of 1..T)"


def metrics(report: Report) -> dict[str, Any]:
    """A report in numbers, for a line of metrics: floats, text and lists of a number for each channel."""
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


def _all_z(shift: ColourShift) -> np.ndarray:
    return np.stack([shift.channels.mean_z, shift.channels.std_z, shift.tint.mean_z, shift.tint.std_z])


def _describe_colours(report: Report, c: int) -> str:
    """The colours of one channel, and what of them is off."""
    samples, data, shift = report.samples.channels, report.data.channels, report.colour_shift
    said = [
        f"{name} {values[c]:.3f} (data {of_data[c]:.3f}, z {z[c]:+.1f})"
        for name, values, of_data, z in (
            ("mean", samples.mean, data.mean, shift.channels.mean_z),
            ("std", samples.std, data.std, shift.channels.std_z),
        )
    ]
    if len(data.mean) > 1:
        said.append(f"tint {shift.tint.mean[c]:+.3f} (z {shift.tint.mean_z[c]:+.1f})")
    said.append(f"histogram distance {shift.distance[c]:.3f}")
    if shift.is_off[c]:
        parts = {"mean": shift.channels.mean_is_off, "std": shift.channels.std_is_off, "tint": shift.tint.mean_is_off}
        wrong = [name for name, off in parts.items() if off[c]]
        if shift.tint.std_is_off[c]:
            wrong.append(f"spread of tints {shift.tint.std[c]:+.3f} (z {shift.tint.std_z[c]:+.1f})")
        said.append(f"<- off: {', '.join(wrong)}")
    return "  ".join(said)


def _format_number(x: float, digits: int) -> str:
    """So many digits, more where they stand before the point, and no exponent; "-" for nan."""
    if not np.isfinite(x):
        return "-"
    exponent = int(f"{x:.{digits - 1}e}".split("e")[1])
    return f"{x:.{max(0, digits - 1 - exponent)}f}"
