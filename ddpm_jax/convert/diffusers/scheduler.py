"""The configuration of a `DDPMScheduler` or `DDIMScheduler` as our schedule, loss and sampling, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.convert.diffusers.fields import Supported, field_errors
from ddpm_jax.convert.plain import schedule_table
from ddpm_jax.model import has_learned_variance, noise_schedule
from ddpm_jax.samplers import times as spaced_times

DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "predict_epsilon": True,
    "rescale_betas_zero_snr": False,
}
"""The sampling fields with diffusers' defaults."""

SUPPORTED_BY_BOTH = {
    "trained_betas": Supported((None,), "betas of a formula"),
    "thresholding": Supported((False,), "clipping (ddpm-jax sample --threshold is another thresholding)"),
    "dynamic_thresholding_ratio": Supported((0.995,), "as thresholding is off"),
    "sample_max_value": Supported((1.0,), "as thresholding is off"),
    "clip_sample_range": Supported((1.0,), "images in [-1, 1]"),
    "steps_offset": Supported((0,), "times from the first"),
    "timestep_values": Supported((None,), "all times"),
    "tensor_format": Supported(("pt", "np"), "arrays"),
}  # fmt: skip
SUPPORTED_BY_DDIM = {"set_alpha_to_one": Supported((True,), "a last step that ends at the data")}
SUPPORTED = {"DDPMScheduler": SUPPORTED_BY_BOTH, "DDIMScheduler": SUPPORTED_BY_BOTH | SUPPORTED_BY_DDIM}
TYPES = {
    "num_train_timesteps": int, "beta_start": (int, float), "beta_end": (int, float), "clip_sample": bool,
    "predict_epsilon": bool, "rescale_betas_zero_snr": bool,
}  # fmt: skip

SCHEDULES: dict[str, Any] = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}
PREDICTS: dict[str, Any] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SPACINGS: tuple[Any, ...] = ("leading", "trailing", "linspace")
VARIANCES = {"fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0, "learned_range": 1.0}
"""Each as our `variance_mix`, which a learned variance does not use."""

DDIM_STEPS = 50
"""The default number of steps of diffusers' DDIM pipeline."""


def from_diffusers(config: Mapping[str, Any], *, learned_variance: bool) -> configs.Config:
    """A config whose schedule, loss and sampling are equivalent to a scheduler's configuration; the rest is by default.

    Args:
        learned_variance: whether the network has twice as many output as input channels.

    Raises:
        ValueError: naming every unsupported field, its value and the supported ones.
    """
    kind = config.get("_class_name")
    if kind not in [*SUPPORTED]:  # JSON's lists have no hash
        raise ValueError(f"the scheduler's config: _class_name = {kind!r}: only {' and '.join(SUPPORTED)} are right")
    fields = DEFAULTS | ({"variance_type": "fixed_small"} if kind == "DDPMScheduler" else {})
    c = {name: config.get(name, default) for name, default in fields.items()}
    choices = {"beta_schedule": SCHEDULES, "prediction_type": PREDICTS, "timestep_spacing": SPACINGS}
    messages = field_errors(config, fields, SUPPORTED[kind], TYPES, choices) + _variance_errors(c, learned_variance)
    messages = messages or _beta_errors(c)  # which rest on numbers
    if messages:
        raise ValueError("the scheduler's config: " + "; ".join(messages))
    T, predicts = c["num_train_timesteps"], PREDICTS[c["prediction_type"]] if c["predict_epsilon"] else "x0"
    schedule = configs.Schedule(
        SCHEDULES[c["beta_schedule"]],
        T=T,
        beta_1=float(c["beta_start"]),
        beta_T=float(c["beta_end"]),
        zero_terminal_snr=c["rescale_betas_zero_snr"],
    )
    ancestral = kind == "DDPMScheduler"
    sampling = configs.Sampling(
        "ancestral" if ancestral else "ddim",
        steps=T if ancestral else min(DDIM_STEPS, T),
        spacing=c["timestep_spacing"],
        variance_mix=VARIANCES[c["variance_type"]] if ancestral else 1.0,
        clip=c["clip_sample"],
    )
    loss = configs.Loss("hybrid" if learned_variance else "simple", predicts=predicts)
    return configs.Config(schedule=schedule, loss=loss, sampling=sampling)


def to_diffusers(config: configs.Config) -> dict[str, Any]:
    """The configuration of the scheduler that is equivalent to our config.

    Raises:
        ValueError: naming everything that diffusers cannot express.
    """
    c, schedule = config.sampling, config.schedule
    messages = _unsupported(config)
    if messages:
        raise ValueError("diffusers' schedulers cannot sample like this: " + "; ".join(messages))
    beta_schedules = {ours: theirs for theirs, ours in SCHEDULES.items()}
    betas = {} if schedule.kind in beta_schedules else {"trained_betas": schedule_table(config)["betas"].tolist()}
    shared = {
        "num_train_timesteps": schedule.T,
        "beta_start": schedule.beta_1,
        "beta_end": schedule.beta_T,
        "beta_schedule": beta_schedules.get(schedule.kind, "linear"),
        "rescale_betas_zero_snr": schedule.zero_terminal_snr and schedule.kind in beta_schedules,
        **betas,
        "clip_sample": c.clip,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTS.items()}[config.loss.predicts],
        "timestep_spacing": c.spacing if c.spacing in SPACINGS else "leading",
    }
    if c.sampler == "ddim":
        return {"_class_name": "DDIMScheduler", **shared, "set_alpha_to_one": True, "steps_offset": 0}
    fixed = "fixed_large" if c.variance_mix == 1 else "fixed_small"
    variance = "learned_range" if has_learned_variance(config) else fixed
    return {"_class_name": "DDPMScheduler", **shared, "variance_type": variance}


def differences(config: configs.Config) -> list[str]:
    """Notes on differences between diffusers' sampler with these settings and ours."""
    c, T, notes = config.sampling, config.schedule.T, []
    if c.sampler == "ddim" and c.clip:
        notes.append(
            "clip_sample = True: diffusers' DDIM clips x_0 and goes on from the noise that the unclipped one implied; "
            "call its pipeline with use_clipped_model_output=True"
        )
    times, stride = spaced_times(noise_schedule(config), c.steps, spacing=c.spacing), T // c.steps
    if c.sampler == "ddim" and (np.maximum(times[:-1] - stride, 0) != times[1:]).any():
        notes.append(
            f"timestep_spacing = {c.spacing!r}: every step of diffusers' DDIM is {stride} long, {T} // {c.steps}, and "
            "does not end at the next of its times; with 'leading' it does"
        )
    if c.sampler == "ancestral" and c.spacing == "trailing" and (c.variance_mix or has_learned_variance(config)):
        notes.append(
            f"timestep_spacing = 'trailing': in fewer steps than {T}, the last step of diffusers' DDPM adds noise to "
            "the image; with 'leading' and 'linspace' it does not"
        )
    return notes


def _beta_errors(c: Mapping[str, Any]) -> list[str]:
    """Errors for the noise schedule's numbers."""
    T, beta_1, beta_T = c["num_train_timesteps"], c["beta_start"], c["beta_end"]
    least = 2 if c["rescale_betas_zero_snr"] else 1
    messages = [] if T >= least else [f"num_train_timesteps = {T}: at least {least} is right"]
    zero_snr = c["rescale_betas_zero_snr"]
    if c["beta_schedule"] != "squaredcos_cap_v2":
        if not (0 < beta_1 < 1 and 0 < beta_T <= 1):
            messages.append(f"beta_start = {beta_1}, beta_end = {beta_T}: only positive numbers below 1 are supported")
        zero_snr = zero_snr or beta_T == 1
    if zero_snr and c["predict_epsilon"] and c["prediction_type"] == "epsilon":
        messages.append(
            f"rescale_betas_zero_snr = {c['rescale_betas_zero_snr']}, beta_end = {beta_T}: no signal is left at the "
            "last time, and x_0 cannot be computed there from prediction_type = 'epsilon', but from 'sample' or "
            "'v_prediction'"
        )
    return messages


def _variance_errors(c: Mapping[str, Any], learned_variance: bool) -> list[str]:
    """Errors for the reverse variance."""
    if "variance_type" not in c:
        error = "a DDIMScheduler takes no learned variance, and the network gives one: a DDPMScheduler is right"
        return [error] if learned_variance else []
    kind = c["variance_type"]
    if kind not in [*VARIANCES]:
        return [f"variance_type = {kind!r}: only {', '.join(map(repr, VARIANCES))} is supported"]
    if learned_variance != (kind == "learned_range"):
        channels = "twice as many channels as it takes" if learned_variance else "as many channels as it takes"
        return [f"variance_type = {kind!r}, but the network gives {channels}"]
    return []


def _unsupported(config: configs.Config) -> list[str]:
    """Errors for the sampling options that diffusers cannot express."""
    c, schedule, learned = config.sampling, config.schedule, has_learned_variance(config)
    ancestral, ddim, cosine = c.sampler == "ancestral", c.sampler == "ddim", schedule.kind == "cosine"
    other_cosine = cosine and (schedule.offset, schedule.max_beta) != (0.008, 0.999)
    errors = {
        f"sampling.sampler = {c.sampler!r}: give --sampler ancestral or ddim": not (ancestral or ddim),
        f"sampling.variance_mix = {c.variance_mix}: its variances are those of 0 and 1, give --variance-mix": (
            ancestral and not learned and c.variance_mix not in (0, 1)
        ),
        "sampling.sampler = 'ddim' of a network with a learned variance: give --sampler ancestral": ddim and learned,
        f"sampling.eta = {c.eta}: it is an argument of its pipeline's call, give --eta 0": ddim and c.eta,
        f"sampling.spacing = {c.spacing!r}: give --spacing {', '.join(SPACINGS)}": (
            c.steps < schedule.T and c.spacing not in SPACINGS
        ),
        f"loss.predicts = {config.loss.predicts!r}: its networks predict eps, x0 or v": (
            config.loss.predicts not in PREDICTS.values()
        ),
        f"sampling.threshold = {c.threshold}: its thresholding is another one, give --threshold 0": c.threshold,
        f"sampling.eps_scale = {c.eps_scale}: give --eps-scale 1": c.eps_scale != 1,
        f"schedule.offset = {schedule.offset}, max_beta = {schedule.max_beta}: its cosine has 0.008 and 0.999": (
            other_cosine
        ),
    }
    return [error for error, holds in errors.items() if holds]
