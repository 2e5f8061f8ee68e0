"""The model that a config describes, for training, previews, sampling, evaluation and preflight alike.

`build` reads the config once.  What it returns takes parameters and arrays: no string of the config decides anything
later, while a program is traced.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import config as configs
from ddpm_jax import denoisers, gaussian, guidance, likelihood, losses, posthoc_ema, samplers, schedules, training
from ddpm_jax.config import Config
from ddpm_jax.guidance import Condition
from ddpm_jax.models.conditional import ConditionalNetwork
from ddpm_jax.models.patch_transformer import PatchTransformer
from ddpm_jax.models.text import TextEncoder
from ddpm_jax.models.unet import CompatOptions, UNet
from ddpm_jax.schedules import Schedule


class SamplingScalars(NamedTuple):
    """The numbers of sampling that a compiled program takes as arguments: other values need no other program.

    variance_mix, eta, guidance: float32 [], see `config.Sampling`.
    guidance_interval: int32 [2], the first and the last time with guidance.
    x0_mse: float32 [T+1] for the analytic sampler, see `samplers.analytic`; None for the others.
    """

    variance_mix: Any
    eta: Any
    guidance: Any
    guidance_interval: Any
    x0_mse: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network with its schedule, its loss, its optimizer and its sampler; made by `build`.

    Attributes:
        config: what it was built from.
        shape: of an image, (H, W, C) or (D, H, W, C).
        levels: of the images, or the range of floating-point ones.
        schedule: of the noise.
        network: its `init` and `apply` take x, t and a `Condition`.
        optimizer: the optax transformation.
        ema_decay: as `training.make_step` takes it.
        decoder: L_0's, for images of these levels.
        example_loss: (keys [b], schedule, net, x0 [b, *shape], t [b]) -> loss [b].
        times: int32 [steps + 1], those that sampling visits.
        sampler_of: (denoise, scalars) -> the config's sampler of any denoiser.
    """

    config: Config
    shape: tuple[int, ...]
    levels: int | tuple[float, float]
    schedule: Schedule
    network: ConditionalNetwork
    optimizer: optax.GradientTransformation
    ema_decay: Any
    decoder: likelihood.Decoder
    example_loss: Callable[[Any, Schedule, gaussian.Net, Any, Any], Any]
    times: np.ndarray
    sampler_of: Callable[[gaussian.Denoiser, SamplingScalars], samplers.Sampler]

    def init(self, key) -> Any:
        """Fresh parameters."""
        x, t = np.zeros((1, *self.shape), np.float32), np.ones(1, np.int32)
        return self.network.init(key, x, t, self.empty_condition(1))["params"]

    def init_state(self, key) -> training.TrainState:
        """Fresh parameters with their optimizer's state and moving average."""
        return training.init(self.init(key), self.optimizer)

    def empty_condition(self, batch: int) -> Condition:
        """The condition of unconditional images, as arrays of the kinds that the network takes."""
        return empty_condition(self.config, batch, self.shape)

    def net(self, params, condition: Condition, dropout_keys=None) -> gaussian.Net:
        """The network (x_t, t) -> output with these parameters and this condition, without guidance."""
        apply: Any = partial(self.network.apply, {"params": params})
        return lambda x_t, t: apply(x_t, t, condition, dropout_keys=dropout_keys)

    def guided_net(self, params, condition: Condition, scalars: SamplingScalars) -> gaussian.Net:
        """The same with classifier-free guidance, where the condition is one that guidance can strengthen."""
        apply: Any = partial(self.network.apply, {"params": params})
        condition = apply(condition, method="encode_text")
        if not is_conditional(self.config):
            return guidance.condition_on(apply, condition)
        null = guidance.null_condition(condition, self.config.net.num_classes)
        return guidance.classifier_free_guidance(
            apply, condition, null, scalars.guidance, interval=scalars.guidance_interval
        )

    def denoiser_of(
        self, net: gaussian.Net, transform: Callable[[gaussian.Denoiser], gaussian.Denoiser] | None = None
    ) -> gaussian.Denoiser:
        """The denoiser of a network: its eps scaled first, its x_0 limited last, as the config says.

        `transform`, if given, makes another denoiser of this one before x_0 is limited.
        """
        c, predicts, learned = self.config.sampling, self.config.loss.predicts, has_learned_variance(self.config)
        if c.eps_scale == 1 and not c.threshold and transform is None:
            return gaussian.denoiser(self.schedule, net, predicts, clip=c.clip, learned_variance=learned)
        denoise = gaussian.denoiser(self.schedule, net, predicts, clip=False, learned_variance=learned)
        if c.eps_scale != 1:
            denoise = denoisers.scale_eps(self.schedule, denoise, c.eps_scale)
        if transform is not None:
            denoise = transform(denoise)
        if c.threshold:
            return denoisers.limit_x0(self.schedule, denoise, denoisers.dynamic_threshold(c.threshold))
        return denoisers.limit_x0(self.schedule, denoise, denoisers.clip) if c.clip else denoise

    def denoiser(self, params, condition: Condition, scalars: SamplingScalars, transform=None) -> gaussian.Denoiser:
        """The denoiser of the network with these parameters, this condition and guidance; see `denoiser_of`."""
        return self.denoiser_of(self.guided_net(params, condition, scalars), transform)

    def sampler(self, params, condition: Condition, scalars: SamplingScalars, transform=None) -> samplers.Sampler:
        """The sampler of that denoiser."""
        return self.sampler_of(self.denoiser(params, condition, scalars, transform), scalars)

    def scalars(self, x0_mse=None) -> SamplingScalars:
        """The config's numbers of sampling; x0_mse is the trained network's, see `SamplingScalars`."""
        c = self.config.sampling
        interval = np.array(c.guidance_interval or (1, self.config.schedule.T), np.int32)
        return SamplingScalars(np.float32(c.variance_mix), np.float32(c.eta), np.float32(c.guidance), interval, x0_mse)

    @property
    def sampler_spec(self) -> tuple:
        """All of the config's sampling that a sampler's program is compiled for; the rest are its arguments."""
        c = self.config.sampling
        return c.sampler, c.order, c.clip, c.threshold, c.eps_scale

    def tile_size(self, platform: str) -> int:
        """Images per device and network call on a platform, as JAX names it; by default a power of 2.

        On accelerators as many as have 2^18 pixels, 256 images 32x32 or four 256x256, but 256 at most; on a CPU as many
        as have 2^14, but 32 at most.  Chosen so that there is enough to do and room for it; which is fastest was not
        measured.
        """
        if self.config.sampling.tile:
            return self.config.sampling.tile
        pixels, most = (2**14, 32) if platform == "cpu" else (2**18, 256)
        return min(most, 2 ** max(0, (pixels // math.prod(self.shape[:-1])).bit_length() - 1))


def build(config: Config, shape: Sequence[int], levels: int | tuple[float, float]) -> Model:
    """The model of a config for images of a shape, of so many levels or of a range.

    Raises:
        ValueError: if the config makes no sense, naming the field, its value and what would be right.
    """
    configs.check_trained(config)
    schedule, shape, sampling = noise_schedule(config), tuple(shape), config.sampling
    _check_signal(config, schedule)
    decoder = likelihood.gaussian_density if isinstance(levels, tuple) else likelihood.discretized_gaussian(levels)
    return Model(
        config=config,
        shape=shape,
        levels=levels,
        schedule=schedule,
        network=network(config, shape[-1]),
        optimizer=optimizer(config),
        ema_decay=training.ema_warmup(config.optim.ema_decay) if config.optim.ema_warmup else config.optim.ema_decay,
        decoder=decoder,
        example_loss=_example_loss(config, decoder),
        times=samplers.times(schedule, sampling.steps, spacing=sampling.spacing),
        sampler_of=_sampler(config, schedule),
    )


def check(config: Config) -> None:
    """Refuses what cannot be trained, before images are read and anything is compiled.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    configs.check(config)
    schedule = noise_schedule(config)
    _check_signal(config, schedule)
    samplers.times(schedule, config.sampling.steps, spacing=config.sampling.spacing)


def has_learned_variance(config: Config) -> bool:
    """True if the network's last axis is doubled."""
    return config.loss.kind == "hybrid" or config.loss.learned_variance


def is_conditional(config: Config) -> bool:
    """True if the network has a condition that guidance can strengthen: a label or a text."""
    return bool(config.net.num_classes or config.text.layers)


def noise_schedule(config: Config) -> Schedule:
    """The schedule of the noise."""
    c = config.schedule
    options = {"cosine": (c.offset, c.max_beta), "const": (c.beta_T,), "jsd": ()}.get(c.kind, (c.beta_1, c.beta_T))
    schedule = getattr(schedules, c.kind)(c.T, *options)
    return schedules.zero_terminal_snr(schedule) if c.zero_terminal_snr else schedule


def network(config: Config, channels: int) -> ConditionalNetwork:
    """The network for images of so many channels."""
    c, text, dtype = config.net, config.text, jnp.dtype(config.net.dtype)
    encoder = TextEncoder(text.width, text.layers, text.heads, text.length, dtype) if text.layers else None
    shared: dict[str, Any] = {
        **{name: getattr(c, name) for name in ("dropout", "remat", "num_classes")},
        "dtype": dtype,
        "out_channels": channels * (2 if has_learned_variance(config) else 1),
        "context_dim": text.width if text.layers else 0,
    }
    if c.kind == "patch_transformer":
        return ConditionalNetwork(PatchTransformer(**dataclasses.asdict(c.transformer), **shared), encoder)
    other = {"kind", "transformer", "compat", *shared}
    own = {field.name: getattr(c, field.name) for field in dataclasses.fields(c) if field.name not in other}
    return ConditionalNetwork(UNet(**own, **shared, compat=CompatOptions(**dataclasses.asdict(c.compat))), encoder)


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optax transformation; with `optim.ema_lengths` its state ends with a `posthoc_ema.PowerEmaState`."""
    c = config.optim
    adam = training.optimizer(
        c.learning_rate, warmup=c.warmup, decay=c.decay, clip=c.clip, b1=c.b1, b2=c.b2, eps=c.eps,
        axis_name="batch" if config.shard_update else None,
    )  # fmt: skip
    return optax.chain(adam, posthoc_ema.power_ema(c.ema_lengths)) if c.ema_lengths else adam


def conditioning_image_shape(config: Config, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the conditioning image of an image of this shape; None if the network takes none."""
    if config.condition.paired:
        return (*shape[:-1], config.condition.paired_channels or shape[-1])
    return shape if config.condition.super_resolution_factor else None


def empty_condition(config: Config, batch: int, shape: tuple[int, ...]) -> Condition:
    """The condition of so many unconditional images of a shape, as arrays of the kinds that the network takes."""
    classes, text, image = config.net.num_classes, config.text, conditioning_image_shape(config, shape)
    return Condition(
        label=np.full(batch, classes, np.int32) if classes else None,
        tokens=np.zeros((batch, text.length), np.uint8) if text.layers else None,
        image=None if image is None else np.zeros((batch, *image), np.float32),
    )


def training_condition(config: Config, keys, condition: Condition) -> Condition:
    """The condition of training examples with keys [b]: of the texts of each one, and at times the null condition.

    Args:
        condition: of all that is known of the examples, see `conditions.DatasetConditions.gather`.
    """
    if not is_conditional(config):
        return condition
    if condition.tokens is not None:
        condition = condition._replace(tokens=guidance.random_caption(keys, condition.tokens))
    null = guidance.null_condition(condition, config.net.num_classes)
    return guidance.drop_condition(keys, condition, null, config.condition.dropout)


def denoiser_options(config: Config) -> dict[str, bool | float]:
    """The options of the denoiser by name: clipping or thresholding, and what else is on."""
    c = config.sampling
    scale = {"eps_scale": c.eps_scale} if c.eps_scale != 1 else {}
    return scale | ({"threshold": c.threshold} if c.threshold else {"clip": c.clip})


def sampler_options(config: Config) -> dict[str, str]:
    """The options of a config's sampler, by name, as text."""
    c = config.sampling
    variance = {"variance": "learned"} if has_learned_variance(config) else {"mix": f"{c.variance_mix:g}"}
    eta, order = {"eta": f"{c.eta:g}"}, {"order": f"{c.order}"}
    return {"ancestral": variance, "analytic": {}, "ddim": eta, "dpm_solver_pp": order, "unipc": order}[c.sampler]


def _check_signal(config: Config, schedule: Schedule) -> None:
    if float(np.asarray(schedule.signal)[-1]) > 0:  # by numpy: nothing is compiled
        return
    noise = f"schedule.kind {config.schedule.kind!r}" + " with zero_terminal_snr" * config.schedule.zero_terminal_snr
    if config.sampling.eps_scale != 1:
        raise ValueError(
            f"sampling.eps_scale {config.sampling.eps_scale} needs some signal at t = T, {noise} "
            "leaves none: an x_0 cannot be had from the noise there"
        )
    if config.loss.predicts == "eps":
        hint = "an x_0 cannot be had from the noise there; predict 'v' or 'x0'"
        raise ValueError(f"loss.predicts 'eps' needs some signal at t = T, {noise} leaves none: {hint}")


def _example_loss(config: Config, decoder: likelihood.Decoder):
    c = config.loss
    weight = {
        "none": losses.space_weight("predicted" if c.space == c.predicts else c.space),
        "snr": losses.snr,
        "snr_plus_one": losses.snr_plus_one,
        "truncated_snr": losses.truncated_snr(),
        "min_snr": losses.min_snr(c.min_snr_gamma),
        "p2": losses.p2(c.p2_gamma),
    }[c.weight]
    loss: Any = {
        "simple": partial(losses.simple_loss, weight=weight),
        "hybrid": partial(losses.hybrid_loss, weight=weight, vlb_scale=c.vlb_scale, decoder=decoder),
        "variational": partial(
            losses.variational_loss, variance_mix=config.sampling.variance_mix, decoder=decoder,
            learned_variance=c.learned_variance,
        ),
    }[c.kind]  # fmt: skip
    return lambda keys, schedule, net, x0, t: loss(keys, schedule, net, x0, predicts=c.predicts, t=t)


def _sampler(config: Config, schedule: Schedule):
    order: Any = config.sampling.order  # 1 to 3, by `config.ranges`
    return {
        "ancestral": lambda denoise, scalars: samplers.ancestral(schedule, denoise, variance_mix=scalars.variance_mix),
        "analytic": lambda denoise, scalars: samplers.analytic(schedule, denoise, scalars.x0_mse),
        "ddim": lambda denoise, scalars: samplers.ddim(schedule, denoise, eta=scalars.eta),
        "dpm_solver_pp": lambda denoise, scalars: samplers.dpm_solver_pp(schedule, denoise, order=order),
        "unipc": lambda denoise, scalars: samplers.unipc(schedule, denoise, order=order),
    }[config.sampling.sampler]
