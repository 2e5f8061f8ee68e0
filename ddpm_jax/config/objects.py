"""The objects that a config stands for."""

import jax.numpy as jnp

from ddpm_jax import estimates, gaussian, likelihood, losses, samplers, schedules, training
from ddpm_jax.config import Config
from ddpm_jax.unet import UNet


def learned_variance(config: Config) -> bool:
    """Whether the network's last axis is doubled."""
    return config.loss.kind == "hybrid" or config.loss.learned_variance


def noise_schedule(config: Config):
    """The `ddpm_jax.schedules.Schedule`."""
    c = config.schedule
    if c.kind == "cosine":
        return schedules.cosine(c.T, c.offset, c.max_beta)
    if c.kind == "const":
        return schedules.const(c.T, c.beta_T)
    if c.kind == "jsd":
        return schedules.jsd(c.T)
    rising = {
        "linear": schedules.linear,
        "quad": schedules.quad,
        "warmup10": schedules.warmup10,
        "warmup50": schedules.warmup50,
    }
    return rising[c.kind](c.T, c.beta_1, c.beta_T)


def network(config: Config, channels: int):
    """The `ddpm_jax.unet.UNet` for images of so many channels."""
    c = config.net
    return UNet(
        channels=c.channels,
        multipliers=tuple(c.multipliers),
        blocks=c.blocks,
        attention_at=tuple(c.attention_at),
        heads=c.heads,
        dropout=c.dropout,
        out_channels=channels * (2 if learned_variance(config) else 1),
        groups=c.groups,
        resample_with_conv=c.resample_with_conv,
        dtype=jnp.dtype(c.dtype),
        remat=c.remat,
    )


def optimizer(config: Config):
    """The optax transformation."""
    c = config.optim
    return training.optimizer(c.learning_rate, warmup=c.warmup, clip=c.clip, b1=c.b1, b2=c.b2, eps=c.eps)


def ema_decay(config: Config):
    """What `training.make_step` takes as ema_decay."""
    return training.ema_warmup(config.optim.ema_decay) if config.optim.ema_warmup else config.optim.ema_decay


def weight(config: Config):
    """The `losses.Weight`, or None."""
    return {
        "none": None,
        "snr": losses.snr,
        "snr_plus_one": losses.snr_plus_one,
        "truncated_snr": losses.truncated_snr(),
        "min_snr": losses.min_snr(config.loss.min_snr_gamma),
        "p2": losses.p2(config.loss.p2_gamma),
    }[config.loss.weight]


def decoder(levels: int | tuple[float, float]):
    """The `likelihood.Decoder` of images of so many levels, or of floating-point images, given the range of these."""
    return likelihood.density if isinstance(levels, tuple) else likelihood.discretized(levels)


def example_loss(config: Config, levels: int | tuple[float, float]):
    """(keys [b], schedule, net, x0 [b, ...], t [b]) -> loss [b]: the loss of each example at given times."""
    c, of_data = config.loss, decoder(levels)

    def loss(keys, schedule, net, x0, t):
        if c.kind == "simple":
            return losses.simple_loss(keys, schedule, net, x0, predicts=c.predicts, weight=weight(config), t=t)
        if c.kind == "hybrid":
            return losses.hybrid_loss(
                keys, schedule, net, x0,
                predicts=c.predicts, weight=weight(config), vlb_scale=c.vlb_scale, decoder=of_data, t=t,
            )  # fmt: skip
        return losses.variational_loss(
            keys, schedule, net, x0,
            predicts=c.predicts, mix=config.sampling.mix, decoder=of_data, learned_variance=c.learned_variance, t=t,
        )  # fmt: skip

    return loss


def denoiser(config: Config, schedule, net):
    """The `gaussian.Denoiser` of a network (x_t, t) -> output: its eps scaled first, its x_0 limited last."""
    c, predicts, learned = config.sampling, config.loss.predicts, learned_variance(config)
    if c.eps_scale == 1 and not c.threshold:
        return gaussian.denoiser(schedule, net, predicts, clip=c.clip, learned_variance=learned)
    denoise = gaussian.denoiser(schedule, net, predicts, clip=False, learned_variance=learned)
    if c.eps_scale != 1:
        denoise = estimates.scaled(schedule, denoise, c.eps_scale)
    if c.threshold:
        return estimates.limited(schedule, denoise, estimates.threshold(c.threshold))
    return estimates.limited(schedule, denoise, estimates.clip) if c.clip else denoise


def refinements(config: Config) -> dict[str, bool | float]:
    """What is done to a prediction, by name: whether it is clipped, and what else is on."""
    c = config.sampling
    scale = {"eps_scale": c.eps_scale} if c.eps_scale != 1 else {}
    return scale | ({"threshold": c.threshold} if c.threshold else {"clip": c.clip})


def sampler(config: Config, schedule, denoise):
    """The `samplers.Sampler`."""
    c = config.sampling
    if c.sampler == "ddim":
        return samplers.ddim(schedule, denoise, eta=c.eta)
    if c.sampler == "dpm_solver_pp":
        return samplers.dpm_solver_pp(schedule, denoise, order=c.order)  # pyright: ignore[reportArgumentType]
    return samplers.ancestral(schedule, denoise, mix=c.mix)


def sampler_option(config: Config) -> tuple[str, float]:
    """The name and value of the one option that a config's sampler has."""
    c = config.sampling
    return {"ancestral": ("mix", c.mix), "ddim": ("eta", c.eta), "dpm_solver_pp": ("order", c.order)}[c.sampler]


def times(config: Config):
    """The times that sampling visits, int32 [steps + 1]."""
    return samplers.times(config.schedule.T, config.sampling.steps, spacing=config.sampling.spacing)
