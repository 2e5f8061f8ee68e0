"""Loss and bits/dim of a model on held-out images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import likelihood, losses
from ddpm_jax.gaussian import Denoiser, Net
from ddpm_jax.keys import fold_in_each, split_keys
from ddpm_jax.schedules import Schedule

EvaluateBatch = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array, jax.Array]]
"""(keys [b], x0, a pytree of arrays [b, ...]) -> each image's time, its loss there, and its bits/dim, all [b]."""


class HeldOut(NamedTuple):
    """Loss and bits/dim of held-out images.

    Attributes:
        loss: mean training loss, each image at fixed times and noise.
        bits_per_dim: the variational bound, estimated on a sample of its terms.
        standard_error: of bits_per_dim, over images and sampled terms together; nan for one image.
        times, losses: [n] the time of each image, and its loss there.
    """

    loss: float
    bits_per_dim: float
    standard_error: float
    times: np.ndarray
    losses: np.ndarray


def evaluate_held_out(evaluate_batch: EvaluateBatch, key: jax.Array, x0: Any, batch: int) -> HeldOut:
    """Loss and bits/dim over x0, batch after batch; the same key gives the same times and noise.

    Args:
        evaluate_batch: see `make_evaluate_batch`.
        x0: [n, ...] data in [-1, 1]; or any pytree of arrays [n, ...] that `evaluate_batch` takes.
        batch: images at a time; the last batch is padded with images that do not count.
    """
    n = len(jax.tree.leaves(x0)[0])
    rows = []
    for start in range(0, n, batch):
        places = np.arange(start, start + batch) % n
        some = jax.tree.map(lambda leaf, places=places: leaf[places], x0)
        keys = fold_in_each(key, jnp.asarray(places, jnp.uint32))
        rows.append(np.stack(jax.device_get(evaluate_batch(keys, some)))[:, : n - start])
    times, loss, bits = np.concatenate(rows, axis=1).astype(np.float64)
    error = float(bits.std(ddof=1) / n**0.5) if n > 1 else math.nan
    return HeldOut(float(loss.mean()), float(bits.mean()), error, times.astype(np.int64), loss)


def make_evaluate_batch(
    schedule: Schedule,
    net: Net,
    denoise: Denoiser,
    example_loss: Callable[[jax.Array, Schedule, Net, jax.Array, jax.Array], jax.Array],
    *,
    variance_mix: float,
    decoder: likelihood.Decoder,
    strata: int,
) -> EvaluateBatch:
    """The function that `evaluate_held_out` applies, to be compiled by the caller.

    Args:
        net, denoise: of the parameters to be evaluated.
        example_loss: (keys [b], schedule, net, x0, t [b]) -> the loss of each image [b].
        variance_mix: the reverse variance (a learned one takes precedence).
        decoder: of the data.  Bits/dim by `likelihood.gaussian_density` are those of a density in [-1, 1]:
            they may be negative.
        strata: of `likelihood.estimate_vlb`.
    """

    def evaluate_batch(keys: jax.Array, x0: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        time_keys, draw_keys, bound_keys = split_keys(keys, 3)
        t = losses.uniform_times(time_keys, schedule.T)
        loss = example_loss(draw_keys, schedule, net, x0, t)
        vlb = likelihood.estimate_vlb(
            bound_keys, schedule, denoise, x0, strata=strata, variance_mix=variance_mix, decoder=decoder
        )
        return t, loss, likelihood.bits_per_dim(vlb.total, x0)

    return evaluate_batch
