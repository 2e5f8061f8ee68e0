"""The objects that a config stands for."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import denoisers, gaussian, guidance, likelihood, losses, samplers, schedules, training
from ddpm_jax.config import Config
from ddpm_jax.guidance import Condition
from ddpm_jax.models.conditional import ConditionalUNet
from ddpm_jax.models.text import TextEncoder
from ddpm_jax.models.unet import CompatOptions, UNet


class SamplingScalars(NamedTuple):
    """The numbers of sampling that a compiled program takes as arguments: others need no other program.

    variance_mix, eta, guidance: float32 [], see `config.Sampling`.
    guidance_interval: int32 [2], the first and the last time to guide at.
    x0_mse: float32 [T+1] for the analytic sampler, see `samplers.analytic`; None for the others.
    """

    variance_mix: Any
    eta: Any
    guidance: Any
    guidance_interval: Any
    x0_mse: Any


def has_learned_variance(config: Config) -> bool:
    """Whether the network's last axis is doubled."""
    return config.loss.kind == "hybrid" or config.loss.learned_variance


def noise_schedule(config: Config):
    """The `ddpm_jax.schedules.Schedule`."""
    c = config.schedule
    if c.zero_terminal_snr:
        plain = dataclasses.replace(c, zero_terminal_snr=False)
        return schedules.zero_terminal_snr(noise_schedule(dataclasses.replace(config, schedule=plain)))
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
    """The `ConditionalUNet` for images of so many channels; `init` takes x, t and `empty_condition`."""
    c, text, dtype = config.net, config.text, jnp.dtype(config.net.dtype)
    reader = TextEncoder(text.width, text.layers, text.heads, text.length, dtype) if text.layers else None
    unet = UNet(
        channels=c.channels,
        channel_multipliers=tuple(c.channel_multipliers),
        num_res_blocks=c.num_res_blocks,
        attention_resolutions=tuple(c.attention_resolutions),
        heads=c.heads,
        dropout=c.dropout,
        out_channels=channels * (2 if has_learned_variance(config) else 1),
        groups=c.groups,
        resample_with_conv=c.resample_with_conv,
        dtype=dtype,
        remat=c.remat,
        num_classes=c.num_classes,
        context_dim=text.width if text.layers else 0,
        head_channels=c.head_channels,
        attention_by=c.attention_by,
        time_conditioning=c.time_conditioning,
        resample=c.resample,
        compat=CompatOptions(**dataclasses.asdict(c.compat)),
    )
    return ConditionalUNet(unet, reader)


def is_conditional(config: Config) -> bool:
    """Whether the network is told anything that guidance could strengthen."""
    return bool(config.net.num_classes or config.text.layers)


def conditioning_image_shape(config: Config, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the image that the network sees beside one of this shape; None if it sees none."""
    if config.condition.paired:
        return (*shape[:-1], config.condition.paired_channels or shape[-1])
    return shape if config.condition.super_resolution_factor else None


def empty_condition(config: Config, batch: int, shape: tuple[int, ...]) -> Condition:
    """The `Condition` of so many images of a shape that says nothing, in arrays of the kinds that the network takes."""
    classes, text, other = config.net.num_classes, config.text, conditioning_image_shape(config, shape)
    return Condition(
        label=np.full(batch, classes, np.int32) if classes else None,
        tokens=np.zeros((batch, text.length), np.uint8) if text.layers else None,
        image=None if other is None else np.zeros((batch, *other), np.float32),
    )


def init_params(config: Config, net, key, shape: tuple[int, ...]):
    """Fresh parameters of `network` for images of this shape."""
    x, t = np.zeros((1, *shape), np.float32), np.ones(1, np.int32)
    return net.init(key, x, t, empty_condition(config, 1, shape))["params"]


def optimizer(config: Config):
    """The optax transformation."""
    c = config.optim
    return training.optimizer(c.learning_rate, warmup=c.warmup, decay=c.decay, clip=c.clip, b1=c.b1, b2=c.b2, eps=c.eps)


def ema_decay(config: Config):
    """What `training.make_step` takes as ema_decay."""
    return training.ema_warmup(config.optim.ema_decay) if config.optim.ema_warmup else config.optim.ema_decay


def loss_weight(config: Config):
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
    return likelihood.gaussian_density if isinstance(levels, tuple) else likelihood.discretized_gaussian(levels)


def example_loss(config: Config, levels: int | tuple[float, float]):
    """(keys [b], schedule, net, x0 [b, ...], t [b]) -> loss [b]: the loss of each example at given times."""
    c, of_data = config.loss, decoder(levels)

    def loss(keys, schedule, net, x0, t):
        if c.kind == "simple":
            return losses.simple_loss(keys, schedule, net, x0, predicts=c.predicts, weight=loss_weight(config), t=t)
        if c.kind == "hybrid":
            return losses.hybrid_loss(
                keys, schedule, net, x0,
                predicts=c.predicts, weight=loss_weight(config), vlb_scale=c.vlb_scale, decoder=of_data, t=t,
            )  # fmt: skip
        return losses.variational_loss(
            keys, schedule, net, x0,
            predicts=c.predicts, variance_mix=config.sampling.variance_mix, decoder=of_data,
            learned_variance=c.learned_variance, t=t,
        )  # fmt: skip

    return loss


def denoiser(config: Config, schedule, net, transform=None):
    """The `gaussian.Denoiser` of a network (x_t, t) -> output: its eps scaled first, its x_0 limited last.

    `transform`, if given, makes another denoiser of this one before x_0 is limited.
    """
    c, predicts, learned = config.sampling, config.loss.predicts, has_learned_variance(config)
    if c.eps_scale == 1 and not c.threshold and transform is None:
        return gaussian.denoiser(schedule, net, predicts, clip=c.clip, learned_variance=learned)
    denoise = gaussian.denoiser(schedule, net, predicts, clip=False, learned_variance=learned)
    if c.eps_scale != 1:
        denoise = denoisers.scale_eps(schedule, denoise, c.eps_scale)
    if transform is not None:
        denoise = transform(denoise)
    if c.threshold:
        return denoisers.limit_x0(schedule, denoise, denoisers.dynamic_threshold(c.threshold))
    return denoisers.limit_x0(schedule, denoise, denoisers.clip) if c.clip else denoise


def denoiser_options(config: Config) -> dict[str, bool | float]:
    """What is done to a prediction, by name: whether it is clipped, and what else is on."""
    c = config.sampling
    scale = {"eps_scale": c.eps_scale} if c.eps_scale != 1 else {}
    return scale | ({"threshold": c.threshold} if c.threshold else {"clip": c.clip})


def tile_size(config: Config, shape: Sequence[int], platform: str) -> int:
    """Images [*shape] per device and network call; where the config leaves that open, a power of 2.

    On accelerators as many as have 2^18 pixels, 256 images 32x32 or four 256x256, but 256 at most; on a CPU as many as
    have 2^14, but 32 at most.  Chosen so that there is enough to do and room for it; which is fastest was not measured.

    Args:
        platform: of the device, as JAX names it.
    """
    if config.sampling.tile:
        return config.sampling.tile
    pixels, most = (2**14, 32) if platform == "cpu" else (2**18, 256)
    return min(most, 2 ** max(0, (pixels // math.prod(shape[:-1])).bit_length() - 1))


def sampling_scalars(config: Config, x0_mse=None) -> SamplingScalars:
    """The numbers of a config's sampling; the errors are the network's, which the config does not know."""
    c = config.sampling
    interval = np.array(c.guidance_interval or (1, config.schedule.T), np.int32)
    return SamplingScalars(np.float32(c.variance_mix), np.float32(c.eta), np.float32(c.guidance), interval, x0_mse)


def conditioned_net(config: Config, net, params, condition: Condition, scalars: SamplingScalars):
    """The `gaussian.Net` of a network with these parameters that is told this condition, and guided by it."""

    def predict(x_t, t, condition):
        return net.apply({"params": params}, x_t, t, condition)

    condition = net.apply({"params": params}, condition, method="encode_text")
    if not is_conditional(config):
        return guidance.condition_on(predict, condition)
    null = guidance.null_condition(condition, config.net.num_classes)
    return guidance.classifier_free_guidance(
        predict, condition, null, scalars.guidance, interval=scalars.guidance_interval
    )


def sampler(config: Config, schedule, denoise, scalars: SamplingScalars):
    """The `samplers.Sampler`."""
    c = config.sampling
    if c.sampler == "ddim":
        return samplers.ddim(schedule, denoise, eta=scalars.eta)
    if c.sampler in ("dpm_solver_pp", "unipc"):
        solver = {"dpm_solver_pp": samplers.dpm_solver_pp, "unipc": samplers.unipc}[c.sampler]
        return solver(schedule, denoise, order=c.order)
    if c.sampler == "analytic":
        return samplers.analytic(schedule, denoise, scalars.x0_mse)
    return samplers.ancestral(schedule, denoise, variance_mix=scalars.variance_mix)


def sampler_options(config: Config) -> dict[str, str]:
    """The options of a config's sampler, by name, as text."""
    c = config.sampling
    if c.sampler == "ancestral":
        return {"variance": "learned"} if has_learned_variance(config) else {"mix": f"{c.variance_mix:g}"}
    named = {"eta": f"{c.eta:g}", "order": f"{c.order}"}
    of = {"analytic": (), "ddim": ("eta",), "dpm_solver_pp": ("order",), "unipc": ("order",)}
    return {name: named[name] for name in of[c.sampler]}


def times(config: Config):
    """The times that sampling visits, int32 [steps + 1]."""
    return samplers.times(noise_schedule(config), config.sampling.steps, spacing=config.sampling.spacing)
