"""What of a config makes no sense."""

import math

from ddpm_jax.config.fields import Config


def check(config: Config) -> None:
    """Refuses what cannot be trained, before anything is compiled.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    if config.sampling.sampler == "analytic":
        raise ValueError(
            "sampling.sampler 'analytic' needs the errors of a trained network: train with another one, and give "
            "--sampler analytic to sample.py"
        )
    from ddpm_jax import keys  # which imports JAX: a program's --help must not

    keys.number("seed", config.seed)
    check_trained(config)


def check_trained(config: Config) -> None:
    """What `check` refuses even of a network that has been trained: its samplers may rest on measurements of it.

    Raises:
        ValueError: as `check`.
    """
    for name in ("steps", "batch", "steps_per_call", "log_every", "save_every", "keep"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.sample_every < 0:
        raise ValueError(f"sample_every must be 0 (only at the end) or more, got {config.sample_every}")
    for name in ("steps", "log_every", "save_every", "sample_every"):
        every, together = getattr(config, name), config.steps_per_call
        if every % together:
            raise ValueError(
                f"{name} must be a multiple of steps_per_call, got {every} and {together}; the nearest is "
                f"{max(1, round(every / together)) * together}"
            )
    if config.loss.learned_variance and config.loss.kind == "simple":
        raise ValueError("loss.learned_variance needs loss.kind 'hybrid' or 'variational': L_simple cannot train it")
    if config.loss.weight != "none" and config.loss.kind == "variational":
        raise ValueError(f"loss.weight {config.loss.weight!r} has no meaning for loss.kind 'variational'")
    if not 0 <= config.sampling.mix <= 1 or not 0 <= config.sampling.eta <= 1:
        raise ValueError(f"sampling.mix and eta must lie in [0, 1], got {config.sampling.mix}, {config.sampling.eta}")
    if config.sampling.order not in (1, 2, 3):
        raise ValueError(f"sampling.order must be 1, 2 or 3, got {config.sampling.order}")
    if not 0 <= config.sampling.threshold <= 100:
        raise ValueError(f"sampling.threshold must lie in [0, 100], a percentile, got {config.sampling.threshold}")
    if not config.sampling.eps_scale > 0:
        raise ValueError(f"sampling.eps_scale must be positive, got {config.sampling.eps_scale}")
    _check_condition(config)
    if not 0 <= config.optim.ema_decay < 1:
        raise ValueError(f"optim.ema_decay must lie in [0, 1), got {config.optim.ema_decay}")
    if config.optim.decay and not config.optim.warmup < config.optim.decay >= config.steps:
        raise ValueError(
            f"optim.decay must be 0 (the rate stays), or at least steps, {config.steps}, and more than optim.warmup, "
            f"{config.optim.warmup}, got {config.optim.decay}: afterwards the rate is 0 and nothing is learned"
        )
    if config.sampling.tile < 0 or config.sampling.num < 1:
        raise ValueError(
            f"sampling.tile must be 0 (what suits the device) or more and sampling.num at least 1, got "
            f"{config.sampling.tile} and {config.sampling.num}"
        )
    import numpy as np

    from ddpm_jax.config import objects  # which imports JAX: a program's --help must not

    signal_T = float(np.asarray(objects.noise_schedule(config).signal)[-1])  # by numpy: nothing is compiled
    if config.sampling.eps_scale != 1 and not signal_T > 0:
        raise ValueError(
            f"sampling.eps_scale {config.sampling.eps_scale} needs some signal at t = T, schedule.kind "
            f"{config.schedule.kind!r} leaves none: an x_0 cannot be had from the noise there"
        )
    if config.loss.predicts == "eps" and not signal_T > 0:
        raise ValueError(
            f"loss.predicts 'eps' needs some signal at t = T, schedule.kind {config.schedule.kind!r} leaves none: "
            "an x_0 cannot be had from the noise there; predict 'v' or 'x0'"
        )
    objects.times(config)


def _check_condition(config: Config) -> None:
    net, text, c, sampling = config.net, config.text, config.condition, config.sampling
    if net.num_classes < 0 or text.layers < 0:
        raise ValueError(
            f"net.num_classes and text.layers must be 0 (none) or more, got {net.num_classes}, {text.layers}"
        )
    if min(text.width, text.heads, text.length) < 1 or text.width % text.heads:
        raise ValueError(
            f"text.width must be a multiple of text.heads, and text.length at least 1, got {text.width}, {text.heads}, "
            f"{text.length}"
        )
    if not 0 <= c.drop < 1:
        raise ValueError(f"condition.drop must lie in [0, 1), got {c.drop}")
    if c.templates and not text.layers:
        raise ValueError("condition.templates are texts, and text.layers 0 reads none; --text.layers 2 does")
    if c.coarse < 0 or c.coarse == 1 or c.paired_channels < 0:
        raise ValueError(
            f"condition.coarse must be 0 or at least 2, and paired_channels 0 or more, got {c.coarse}, "
            f"{c.paired_channels}"
        )
    if c.coarse and c.paired:
        raise ValueError("condition.coarse and condition.paired are two other images, and there is room for one")
    if not math.isfinite(sampling.guidance):
        raise ValueError(f"sampling.guidance must be a finite number, got {sampling.guidance}")
    if sampling.guidance != 1 and not (net.num_classes or text.layers):
        raise ValueError(f"sampling.guidance {sampling.guidance:g} needs a network that is told labels or texts")
    if sampling.guidance != 1 and not c.drop:
        raise ValueError(
            f"sampling.guidance {sampling.guidance:g} compares with a network that is told nothing, which "
            "condition.drop 0 did not train"
        )
    interval = sampling.guidance_interval
    if interval and (len(interval) != 2 or not 1 <= interval[0] <= interval[1] <= config.schedule.T):
        raise ValueError(
            f"sampling.guidance_interval must be two times, 1 <= first <= last <= T = {config.schedule.T}, got "
            f"{interval}"
        )
