"""The flags of improved- and guided-diffusion's scripts as a config of ours.

Their files hold nothing but tensors: which network these are of, and how the noise was made, is in the command that
trained it.  What a flag means, and what it is where it is not given, is as in their `script_util.py`.
"""

import difflib
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from ddpm_jax import config as configs
from ddpm_jax.convert.openai import names
from ddpm_jax.convert.rules import Rule
from ddpm_jax.models.unet import OPENAI

Family = Literal["improved", "guided"]

_COMMON_DEFAULTS: dict[str, Any] = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "attention_resolutions": "16,8", "dropout": 0.0, "class_cond": False, "use_scale_shift_norm": True,
    "learn_sigma": False, "diffusion_steps": 1000, "noise_schedule": "linear", "timestep_respacing": "",
    "use_kl": False, "predict_xstart": False, "use_checkpoint": False, "use_ddim": False, "clip_denoised": True,
    "lr": 1e-4, "batch_size": 128,
}  # fmt: skip
DEFAULTS: dict[Family, dict[str, Any]] = {
    "improved": _COMMON_DEFAULTS | {"sigma_small": False, "rescale_timesteps": True, "rescale_learned_sigmas": True},
    "guided": _COMMON_DEFAULTS | {
        "num_head_channels": -1, "channel_mult": "", "resblock_updown": False, "use_new_attention_order": False,
        "use_fp16": False, "rescale_timesteps": False, "rescale_learned_sigmas": False,
    },
}  # fmt: skip
"""The flags of each family that are known here, with the values that they have where they are not given."""

_CHANNEL_MULT: dict[Family, dict[int, tuple[float, ...]]] = {
    "improved": {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)},
    "guided": {
        512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4),
    },
}  # fmt: skip

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


class ModelSpec(NamedTuple):
    """The network that a command trained, as a config."""

    config: configs.Config  # ours.  Its data are of no source that would be there
    shape: tuple[int, int, int]  # of an image, (H, W, C)
    rules: Callable[[Any], list[Rule]]  # of our tree of parameters


def model_from_flags(family: Family, flags: str, *, num_classes: int = 1000) -> ModelSpec:
    """The model that these flags make, such as "--image_size 64 --num_res_blocks 3 --learn_sigma True".

    The flags are those of the model, of the diffusion, of training (`lr` and `batch_size` alone) and of sampling.
    `use_fp16` is accepted and ignored: the network here is float32.

    Args:
        num_classes: of a network with `class_cond`; theirs is 1000, of ImageNet, whatever the data.

    Raises:
        ValueError: for a flag that is not known, a value that is not of its kind, or one that is not supported.
    """
    if family not in DEFAULTS:
        raise ValueError(f"family must be one of {', '.join(map(repr, DEFAULTS))}, got {family!r}")
    f = DEFAULTS[family] | _parse(flags, DEFAULTS[family])
    side, T, respacing = f["image_size"], f["diffusion_steps"], f["timestep_respacing"]
    messages = _unsupported(f)
    if messages:
        raise ValueError(f"{family}-diffusion's flags: " + "; ".join(messages))
    # their linear schedule adds up to as much noise whatever T is
    betas = {"beta_1": 1e-4 * 1000 / T, "beta_T": 0.02 * 1000 / T} if f["noise_schedule"] == "linear" else {}
    config = configs.Config(
        batch=f["batch_size"],
        data=configs.Data(flip=family == "guided"),
        schedule=configs.Schedule(kind=f["noise_schedule"], T=T, **betas),
        net=_net(family, f, num_classes),
        condition=configs.Condition(dropout=0.0 if f["class_cond"] else configs.Condition().dropout),
        loss=_loss(f),
        optim=configs.Optim(learning_rate=f["lr"], warmup=0, clip=None),
        sampling=configs.Sampling(
            sampler="ddim" if f["use_ddim"] else "ancestral",
            steps=int(respacing.removeprefix("ddim") or T),
            spacing="ddim" if respacing.startswith("ddim") else "uniform",
            variance_mix=0.0 if f.get("sigma_small") else 1.0,
            clip=f["clip_denoised"],
        ),
    )
    order = "new" if f.get("use_new_attention_order") else "legacy"
    return ModelSpec(config, (side, side, 3), partial(names.rules, net=config.net, order=order))


def _parse(flags: str, known: dict[str, Any]) -> dict[str, Any]:
    words, values = flags.replace("=", " ").split(), {}
    if len(words) % 2:
        raise ValueError(f"flags are pairs such as '--image_size 64', and {words[-1]!r} is left over")
    for name, value in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--") or name[2:] not in known:
            near = difflib.get_close_matches(name.removeprefix("--"), known, 1)
            raise ValueError(f"unknown flag {name!r}" + (f"; did you mean '--{near[0]}'?" if near else ""))
        kind = type(known[name[2:]])
        try:
            values[name[2:]] = _BOOLEANS[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise ValueError(f"{name} must be {kind.__name__}, got {value!r}") from None
    return values


def _unsupported(f: dict[str, Any]) -> list[str]:
    """Errors for the flags that are not supported."""
    counts = ("image_size", "num_channels", "num_res_blocks", "num_heads", "diffusion_steps", "batch_size")
    messages = [f"{name} = {f[name]}: at least 1 is right" for name in counts if f[name] < 1]
    if not 0 <= f["dropout"] < 1:
        messages.append(f"dropout = {f['dropout']}: only in [0, 1)")
    if f["num_heads_upsample"] not in (-1, f["num_heads"]):
        messages.append(f"num_heads_upsample = {f['num_heads_upsample']}: only as many heads as on the way down")
    if f["noise_schedule"] not in ("linear", "cosine"):
        messages.append(f"noise_schedule = {f['noise_schedule']!r}: 'linear' and 'cosine' are theirs")
    T, respacing = f["diffusion_steps"], f["timestep_respacing"]
    if f["noise_schedule"] == "linear" and 1 <= T < 20 + (not f["predict_xstart"]):
        messages.append(
            f"diffusion_steps = {T}: the 'linear' noise_schedule, whose last beta is 20 / {T}, takes more than 20"
        )
    if "," in respacing:
        messages.append(
            f"timestep_respacing = {respacing!r}: sections are samplers.section_times, for programs of "
            "one's own; 'N' and 'ddimN' are supported"
        )
    elif not respacing.removeprefix("ddim").isdecimal() and respacing:
        messages.append(f"timestep_respacing = {respacing!r}: 'N' and 'ddimN' are supported")
    elif respacing and not 1 <= int(respacing.removeprefix("ddim")) <= T:
        messages.append(f"timestep_respacing = {respacing!r}: 1 to diffusion_steps = {T} times are supported")
    elif respacing.startswith("ddim") and all(
        len(range(0, T, stride)) != int(respacing[4:]) for stride in range(1, T + 1)
    ):
        messages.append(f"timestep_respacing = {respacing!r}: no stride over diffusion_steps = {T} gives as many times")
    return messages


def _net(family: Family, f: dict[str, Any], num_classes: int) -> configs.Net:
    side, width = f["image_size"], f["num_channels"]
    if f.get("channel_mult"):
        channel_multipliers = _parse_integers("channel_mult", f["channel_mult"])
    elif side in _CHANNEL_MULT[family]:
        channel_multipliers = _CHANNEL_MULT[family][side]
    else:
        raise ValueError(f"image_size = {side}: {family}-diffusion has networks for {[*_CHANNEL_MULT[family]]}")
    channels, first_multiplier = int(channel_multipliers[0] * width), channel_multipliers[0]
    if channels < 1 or any(m % first_multiplier for m in channel_multipliers):
        raise ValueError(f"channel_mult = {channel_multipliers}: multiples of the first are supported")
    factors = [2**i for i in range(len(channel_multipliers))]
    attention_factors = {side // size for size in _parse_integers("attention_resolutions", f["attention_resolutions"])}
    head_channels = max(f.get("num_head_channels", -1), 0)
    widths = [int(m * width) for m in channel_multipliers]
    if any(w % (head_channels or f["num_heads"]) for w in widths):
        name = "num_head_channels" if head_channels else "num_heads"
        raise ValueError(f"{name} = {f[name]} does not divide the channels of the levels, {widths}")
    if not f["use_scale_shift_norm"] and set(widths) == {32}:
        raise ValueError(f"num_channels = {width}: with as many channels as the 32 groups the time would be forgotten")
    return configs.Net(
        channels=channels,
        channel_multipliers=tuple(int(m // first_multiplier) for m in channel_multipliers),
        num_res_blocks=f["num_res_blocks"],
        attention_resolutions=tuple(factor for factor in factors if factor in attention_factors),
        attention_by="factor",
        heads=1 if head_channels else f["num_heads"],
        head_channels=head_channels,
        dropout=f["dropout"],
        resample="block" if f.get("resblock_updown") else "layer",
        time_conditioning="scale_shift" if f["use_scale_shift_norm"] else "add",
        remat=f["use_checkpoint"],
        num_classes=num_classes if f["class_cond"] else 0,
        compat=configs.CompatOptions(
            **OPENAI._replace(
                time_scale=1000 / f["diffusion_steps"] if f["rescale_timesteps"] else 1.0,
                time_dim=0 if channels == width else width,
            )._asdict()
        ),
    )


def _parse_integers(name: str, text: str) -> tuple[int, ...]:
    if not all(number.isdecimal() and int(number) for number in text.split(",")):
        raise ValueError(f"--{name} must be positive integers with commas between, got {text!r}")
    return tuple(int(number) for number in text.split(","))


def _loss(f: dict[str, Any]) -> configs.Loss:
    predicts = "x0" if f["predict_xstart"] else "eps"
    if f["use_kl"]:
        return configs.Loss(kind="variational", predicts=predicts, learned_variance=f["learn_sigma"])
    if not f["learn_sigma"]:
        return configs.Loss(predicts=predicts)
    # they count the bound in bits, and take one thousandth of it or, not rescaled, its mean over all t
    bits_weight = 1e-3 if f["rescale_learned_sigmas"] else 1 / f["diffusion_steps"]
    return configs.Loss(kind="hybrid", predicts=predicts, vlb_scale=bits_weight / math.log(2))
