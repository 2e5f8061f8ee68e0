"""The configuration of a `UNet2DModel` as the fields of our network, and back."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import config as configs
from ddpm_jax.convert.diffusers import blocks
from ddpm_jax.convert.diffusers.fields import Supported, field_errors
from ddpm_jax.model import has_learned_variance

DEFAULTS = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_type": "conv",
    "upsample_type": "conv",
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
}
"""The network's fields with diffusers' defaults, which are not those of the original."""

SUPPORTED = {
    "center_input_sample": Supported((False,), "images in [-1, 1]"),
    "time_embedding_type": Supported(("positional",), "sines and cosines"),
    "time_embedding_dim": Supported((None,), "four times the first level's channels"),
    "mid_block_type": Supported(("UNetMidBlock2D",), "a middle with attention"),
    "mid_block_scale_factor": Supported((1,), "residuals as they are"),
    "act_fn": Supported(("silu", "swish"), "two names of one function"),
    "add_attention": Supported((True,), "a middle with attention"),
    "class_embed_type": Supported((None,), "labels of a table (num_class_embeds), or none"),
    "num_train_timesteps": Supported((None,), "no table of times"),
}
TYPES = {
    "sample_size": (int, list, tuple, type(None)), "in_channels": int, "out_channels": int,
    "down_block_types": (list, tuple), "up_block_types": (list, tuple), "block_out_channels": (list, tuple),
    "layers_per_block": int, "dropout": (int, float), "attention_head_dim": (int, type(None)), "norm_num_groups": int,
    "attn_norm_num_groups": (int, type(None)), "norm_eps": (int, float), "freq_shift": int,
    "downsample_type": str, "upsample_type": str, "num_class_embeds": (int, type(None)),
}  # fmt: skip

TIME_CONDITIONING: dict[Any, Any] = {"default": "add", "scale_shift": "scale_shift"}
PADDING: dict[Any, Any] = {0: "end", 1: "both"}
TIME_ORDER: dict[Any, Any] = {False: "sin_cos", True: "cos_sin"}


class NetworkConfig(NamedTuple):
    """The network of a configuration."""

    net: configs.Net  # the fields of ours
    shape: tuple[int, int, int]  # of an image, (H, W, C)
    learned_variance: bool  # whether there are twice as many output as input channels


def from_diffusers(config: Mapping[str, Any], *, null_label: bool = False) -> NetworkConfig:
    """Our network that is equivalent to a `UNet2DModel` of this configuration.

    Args:
        null_label: whether the last of its labels stands for none.

    Raises:
        ValueError: naming every unsupported field, its value and the supported ones.
    """
    if config.get("_class_name") != "UNet2DModel":
        _raise_if_any([f"_class_name = {config.get('_class_name')!r}: only 'UNet2DModel' is supported"])
    c = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    choices = {
        "resnet_time_scale_shift": TIME_CONDITIONING, "downsample_padding": PADDING, "flip_sin_to_cos": TIME_ORDER,
        "freq_shift": (0, 1),
    }  # fmt: skip
    _raise_if_any(field_errors(config, DEFAULTS, SUPPORTED, TYPES, choices))
    attention_levels, resample, messages = blocks.from_diffusers(c)
    sides = [c["sample_size"]] * 2 if isinstance(c["sample_size"], int) else list(c["sample_size"] or [])
    _raise_if_any(messages + _size_errors(c, sides) + _label_errors(c["num_class_embeds"], null_label))
    widths = list(c["block_out_channels"])
    net = configs.Net(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=c["layers_per_block"],
        attention_resolutions=tuple(min(sides) // 2**i for i in attention_levels),
        head_channels=c["attention_head_dim"] or 0,
        dropout=float(c["dropout"]),
        groups=c["norm_num_groups"],
        num_classes=(c["num_class_embeds"] or 0) - null_label,
        resample=resample,
        time_conditioning=TIME_CONDITIONING[c["resnet_time_scale_shift"]],
        compat=configs.CompatOptions(
            eps=float(c["norm_eps"]),
            padding=PADDING[c["downsample_padding"]],
            time_order=TIME_ORDER[c["flip_sin_to_cos"]],
            time_shift=c["freq_shift"],
        ),
    )
    return NetworkConfig(net, (sides[0], sides[1], c["in_channels"]), c["out_channels"] == 2 * c["in_channels"])


def to_diffusers(config: configs.Config, shape: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of the `UNet2DModel` that is equivalent to our network.

    Raises:
        ValueError: naming everything that diffusers cannot express.
    """
    messages = _unsupported(config, shape)
    if messages:
        raise ValueError("diffusers' UNet2DModel cannot be this network: " + "; ".join(messages))
    net, conventions, (height, width, channels) = config.net, config.net.compat, shape
    widths = [net.channels * m for m in net.channel_multipliers]
    head_size = widths[-1] // net.heads if net.heads > 1 else None
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if has_learned_variance(config) else 1),
        "block_out_channels": widths,
        **blocks.to_diffusers(net, _has_attention(net, shape)),
        "layers_per_block": net.num_res_blocks,
        "dropout": net.dropout,
        "attention_head_dim": net.head_channels or head_size,
        "norm_num_groups": net.groups,
        "attn_norm_num_groups": net.groups,
        "norm_eps": conventions.eps,
        "downsample_padding": {ours: theirs for theirs, ours in PADDING.items()}[conventions.padding],
        "flip_sin_to_cos": conventions.time_order == "cos_sin",
        "freq_shift": conventions.time_shift,
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in TIME_CONDITIONING.items()}[net.time_conditioning],
        "num_class_embeds": net.num_classes + null_label(config) or None,
        **{name: field.values[0] for name, field in SUPPORTED.items() if field.values[0] is not None},
    }


def null_label(config: configs.Config) -> bool:
    """True if diffusers' table of labels gets a last row for no label: of networks trained with condition.dropout."""
    return bool(config.net.num_classes and config.condition.dropout)


def _size_errors(c: Mapping[str, Any], sides: list[Any]) -> list[str]:
    """Errors for the numbers of channels, pixels, layers and groups."""
    levels, widths, groups = len(c["down_block_types"]), list(c["block_out_channels"]), c["norm_num_groups"]
    if not levels:
        return ["down_block_types is empty: at least one block is right"]
    counts = ("in_channels", "layers_per_block", "norm_num_groups")
    messages = [f"{name} = {c[name]}: at least 1 is right" for name in counts if c[name] < 1]
    if len(widths) != levels or not all(isinstance(w, int) and w > 0 and w % widths[0] == 0 for w in widths):
        messages.append(f"block_out_channels = {widths}: multiples of the first, one for each of {levels} blocks, fit")
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 and n % 2 ** (levels - 1) == 0 for n in sides):
        messages.append(f"sample_size = {c['sample_size']!r}: only multiples of {2 ** (levels - 1)} fit the blocks")
    if c["out_channels"] not in (c["in_channels"], 2 * c["in_channels"]):
        messages.append(
            f"out_channels = {c['out_channels']}: only in_channels = {c['in_channels']} or twice that is supported"
        )
    if groups > 0 and any(isinstance(w, int) and w % groups for w in widths):
        messages.append(f"norm_num_groups = {groups} does not divide block_out_channels = {widths}")
    elif c["resnet_time_scale_shift"] == "default" and widths.count(groups) == levels:
        messages.append(
            f"norm_num_groups = {groups}, as many as block_out_channels = {widths}: each channel is normalised by "
            "itself and forgets the time that was added to it; fewer groups are supported"
        )
    if not 0 < c["norm_eps"] < math.inf:
        messages.append(f"norm_eps = {c['norm_eps']}: only a positive number is supported")
    if not 0 <= c["dropout"] < 1:
        messages.append(f"dropout = {c['dropout']}: only in [0, 1)")
    # the middle's own: left out where scale and shift are on, it has no normalisation at all
    usual = (None, groups) if c["resnet_time_scale_shift"] == "default" else (groups,)
    if c["attn_norm_num_groups"] not in usual:
        messages.append(
            f"attn_norm_num_groups = {c['attn_norm_num_groups']}: only {usual[-1]}, as norm_num_groups, is supported"
        )
    size = c["attention_head_dim"]  # the channels of a head, not how many heads there are
    if size is not None and (size < 1 or any(isinstance(w, int) and w % size for w in widths)):
        messages.append(f"attention_head_dim = {size} does not divide block_out_channels = {widths}")
    return messages


def _label_errors(count: int | None, null_label: bool) -> list[str]:
    """Errors for num_class_embeds."""
    least = 2 if null_label else 1
    if not null_label if count is None else count >= least:
        return []
    why = ", the last of which stands for none (--null-label)" if null_label else ", or None for no labels,"
    return [f"num_class_embeds = {count}: at least {least}{why} is right"]


def _has_attention(net: configs.Net, shape: tuple[int, ...]) -> list[bool]:
    """For each level, True if it has attention."""
    factors = [2**i for i in range(len(net.channel_multipliers))]
    side = min(shape[:-1])
    return [
        (side // factor if net.attention_by == "size" else factor) in net.attention_resolutions for factor in factors
    ]


def _unsupported(config: configs.Config, shape: tuple[int, ...]) -> list[str]:
    """Errors for the options of our network that diffusers cannot express."""
    net, conventions, c = config.net, config.net.compat, config.condition
    if net.kind != "unet":
        return [f"net.kind = {net.kind!r}: there, networks are U-Nets"]
    other_conditions = {
        "text.layers": config.text.layers, "condition.super_resolution_factor": c.super_resolution_factor,
        "condition.paired": c.paired,
    }  # fmt: skip
    messages = [
        f"{name} = {value!r}: there, labels are the only condition" for name, value in other_conditions.items() if value
    ]
    if len(shape) != 3:
        return [*messages, f"images {shape}: there they are [H, W, C]"]
    fewest, widths = 2 ** (len(net.channel_multipliers) - 1), [net.channels * m for m in net.channel_multipliers]
    if any(side % fewest for side in shape[:-1]):
        messages.append(f"images {shape}: there, sides are multiples of {fewest}")
    if not net.resample_with_conv and net.resample == "layer":
        messages.append("net.resample_with_conv = False: there, layers that change the size convolve")
    odd = sorted({width for width in widths if width % net.groups})
    if odd:  # where ours takes fewer groups, see `group_count`
        messages.append(f"net.groups = {net.groups}: there they divide the channels of every level, and not {odd}")
    has_attention = [*_has_attention(net, shape)[:-1], True]
    attention_widths = {width for width, attends in zip(widths, has_attention, strict=True) if attends}
    if net.heads > 1 and len(attention_widths) > 1:
        messages.append(f"net.heads = {net.heads} over {sorted(attention_widths)} channels: there, heads have one size")
    if conventions.time_scale != 1:
        messages.append(f"net.compat.time_scale = {conventions.time_scale}: there, times are not scaled")
    if conventions.time_dim not in (0, net.channels):
        messages.append(f"net.compat.time_dim = {conventions.time_dim}: there it is net.channels = {net.channels}")
    return messages


def _raise_if_any(messages: list[str]) -> None:
    if messages:
        raise ValueError("the network's config: " + "; ".join(messages))
