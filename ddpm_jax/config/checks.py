"""Checks of a config: combinations of fields that make no sense."""

from ddpm_jax.config import ranges
from ddpm_jax.config.fields import Config, Net, flatten

_OF_ALL_NETWORKS = ("net.kind", "net.dropout", "net.dtype", "net.remat", "net.num_classes")


def check(config: Config) -> None:
    """Refuses what cannot be trained, as far as the fields say; see `model.check`.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    if config.sampling.sampler == "analytic":
        hint = "train with another sampler, and give --sampler analytic to ddpm-jax sample"
        raise ValueError(f"sampling.sampler 'analytic' needs the errors of a trained network: {hint}")
    from ddpm_jax import keys  # which imports JAX: a program's --help must not

    ranges.check(config)
    if config.sampling.steps > config.schedule.T:
        T = config.schedule.T
        raise ValueError(f"sampling.steps must be at most schedule.T, {T}, got {config.sampling.steps}")
    lengths = config.optim.ema_lengths
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"optim.ema_lengths must differ from each other, got {lengths}")
    if lengths and config.snapshot_every > config.steps:
        raise ValueError(
            f"snapshot_every must be at most steps, {config.steps}, with optim.ema_lengths, got "
            f"{config.snapshot_every}: 30 to 60 snapshots in a run are enough"
        )
    keys.check_integer("seed", config.seed)
    for name in ("steps", "log_every", "save_every", "sample_every", *(["snapshot_every"] if lengths else [])):
        every, together = getattr(config, name), config.steps_per_call
        if every % together:
            hint = f"the nearest is {max(1, round(every / together)) * together}"
            raise ValueError(f"{name} must be a multiple of steps_per_call, got {every} and {together}; {hint}")
    if config.optim.decay and not config.optim.warmup < config.optim.decay >= config.steps:
        raise ValueError(
            f"optim.decay must be 0 (the rate stays), or at least steps, {config.steps}, and more than optim.warmup, "
            f"{config.optim.warmup}, got {config.optim.decay}: afterwards the rate is 0 and nothing is learned"
        )
    check_trained(config)


def check_trained(config: Config) -> None:
    """The part of `check` that also holds for a trained network, whose sampler may use measurements of it.

    Raises:
        ValueError: as `check`.
    """
    ranges.check(config.sampling, "sampling.")
    if config.loss.learned_variance and config.loss.kind == "simple":
        raise ValueError("loss.learned_variance needs loss.kind 'hybrid' or 'variational': L_simple cannot train it")
    for name, default in (("weight", "none"), ("space", "predicted")):
        value = getattr(config.loss, name)
        if value != default and config.loss.kind == "variational":
            raise ValueError(f"loss.{name} {value!r} has no meaning for loss.kind 'variational'")
    if config.loss.space != "predicted" and config.loss.weight != "none":
        raise ValueError(
            f"loss.space {config.loss.space!r} and loss.weight {config.loss.weight!r} exclude each other, because each "
            "sets the weight of the squared error of x_0: set only one"
        )
    _check_net(config.net)
    _check_condition(config)


def _check_net(net: Net) -> None:
    """Raises a ValueError for a field of the other kind of network that is not at its default."""
    defaults = flatten(Net(), "net.")
    for name, value in flatten(net, "net.").items():
        kind = "patch_transformer" if name.startswith("net.transformer.") else "unet"
        if name not in _OF_ALL_NETWORKS and kind != net.kind and value != defaults[name]:
            hint = f"leave it at its default, {defaults[name]!r}, or set net.kind {kind!r}"
            raise ValueError(f"{name} {value!r} has no meaning for net.kind {net.kind!r}: {hint}")
    transformer = net.transformer
    if net.kind == "patch_transformer" and (transformer.width % 4 or transformer.width % transformer.heads):
        raise ValueError(
            f"net.transformer.width must be a multiple of 4 and of net.transformer.heads, got {transformer.width} and "
            f"{transformer.heads}"
        )


def _check_condition(config: Config) -> None:
    net, text, c, sampling = config.net, config.text, config.condition, config.sampling
    if text.width % text.heads:
        raise ValueError(f"text.width must be a multiple of text.heads, got {text.width} and {text.heads}")
    if c.templates and not text.layers:
        raise ValueError("condition.templates need a text encoder, but text.layers is 0: set --text.layers 2")
    if c.super_resolution_factor == 1:
        raise ValueError("condition.super_resolution_factor must be 0 or at least 2, got 1: the same image")
    if c.super_resolution_factor and c.paired:
        raise ValueError("condition.super_resolution_factor and condition.paired exclude each other: set only one")
    if sampling.guidance != 1 and not (net.num_classes or text.layers):
        raise ValueError(f"sampling.guidance {sampling.guidance:g} needs a network with labels or texts")
    if sampling.guidance != 1 and not c.dropout:
        raise ValueError(f"sampling.guidance {sampling.guidance:g} needs training with condition.dropout above 0")
    interval = sampling.guidance_interval
    if interval and (len(interval) != 2 or not 1 <= interval[0] <= interval[1] <= config.schedule.T):
        T = config.schedule.T
        raise ValueError(f"sampling.guidance_interval must be two times, 1 <= first <= last <= T = {T}, got {interval}")
