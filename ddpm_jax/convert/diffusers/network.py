"""The configuration of a `UNet2DModel` as the fields of our network, and the way back."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import config as configs
from ddpm_jax.config import objects
from ddpm_jax.convert.diffusers import blocks
from ddpm_jax.convert.diffusers.fields import Only, mistyped, problems, unlike

READ = {
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
"""The fields that say which network, and what diffusers takes where they are missing: not what the original has."""

ONLY = {
    "center_input_sample": Only(False, (False,), "images in [-1, 1]"),
    "time_embedding_type": Only("positional", ("positional",), "sines and cosines"),
    "time_embedding_dim": Only(None, (None,), "four times the first level's channels"),
    "mid_block_type": Only("UNetMidBlock2D", ("UNetMidBlock2D",), "a middle with attention"),
    "mid_block_scale_factor": Only(1, (1,), "residuals as they are"),
    "act_fn": Only("silu", ("silu", "swish"), "two names of one function"),
    "add_attention": Only(True, (True,), "a middle with attention"),
    "class_embed_type": Only(None, (None,), "labels of a table (num_class_embeds), or none"),
    "num_train_timesteps": Only(None, (None,), "no table of times"),
}
KINDS = {
    "sample_size": (int, list, tuple, type(None)), "in_channels": int, "out_channels": int,
    "down_block_types": (list, tuple), "up_block_types": (list, tuple), "block_out_channels": (list, tuple),
    "layers_per_block": int, "dropout": (int, float), "attention_head_dim": (int, type(None)), "norm_num_groups": int,
    "attn_norm_num_groups": (int, type(None)), "norm_eps": (int, float), "freq_shift": int,
    "downsample_type": str, "upsample_type": str, "num_class_embeds": (int, type(None)),
}  # fmt: skip

JOINS: dict[Any, Any] = {"default": "add", "scale_shift": "scale_shift"}
PADDING: dict[Any, Any] = {0: "end", 1: "both"}
ORDER: dict[Any, Any] = {False: "sin_cos", True: "cos_sin"}


class Network(NamedTuple):
    """What a configuration says.

    Attributes:
        net: the fields of ours.
        shape: of an image, (H, W, C).
        doubled: whether twice as many channels come out as go in, as with a learned variance.
    """

    net: configs.Net
    shape: tuple[int, int, int]
    doubled: bool


def read(given: Mapping[str, Any], *, null_label: bool = False) -> Network:
    """Our network that computes what a `UNet2DModel` of this configuration computes.

    Args:
        null_label: whether the last of its labels stands for none.

    Raises:
        ValueError: naming every field that stands in the way, its value and what would be right.
    """
    if given.get("_class_name") != "UNet2DModel":
        _refuse([f"_class_name = {given.get('_class_name')!r}: only 'UNet2DModel' can be had"])
    c = {name: given.get(name, default) for name, default in READ.items()}
    choices = {
        "resnet_time_scale_shift": JOINS, "downsample_padding": PADDING, "flip_sin_to_cos": ORDER,
        "freq_shift": (0, 1),
    }  # fmt: skip
    _refuse([*problems(given, READ, ONLY), *mistyped(given, KINDS), *unlike(c, choices)])
    levels, wrong = blocks.read(c)
    sides = [c["sample_size"]] * 2 if isinstance(c["sample_size"], int) else list(c["sample_size"] or [])
    _refuse(wrong + _numbers(c, sides) + _labels(c["num_class_embeds"], null_label))
    widths = list(c["block_out_channels"])
    net = configs.Net(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=c["layers_per_block"],
        attention_at=tuple(min(sides) // 2**i for i in levels.attended),
        head_channels=c["attention_head_dim"] or 0,
        dropout=float(c["dropout"]),
        groups=c["norm_num_groups"],
        num_classes=(c["num_class_embeds"] or 0) - null_label,
        resample_by=levels.resample_by,
        time_joins=JOINS[c["resnet_time_scale_shift"]],
        conventions=configs.Conventions(
            eps=float(c["norm_eps"]),
            padding=PADDING[c["downsample_padding"]],
            time_order=ORDER[c["flip_sin_to_cos"]],
            time_shift=c["freq_shift"],
        ),
    )
    return Network(net, (sides[0], sides[1], c["in_channels"]), c["out_channels"] == 2 * c["in_channels"])


def write(config: configs.Config, shape: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of the `UNet2DModel` that computes what our network computes.

    Raises:
        ValueError: naming everything that diffusers cannot express.
    """
    wrong = _beyond(config, shape)
    if wrong:
        raise ValueError("diffusers' UNet2DModel cannot be this network: " + "; ".join(wrong))
    net, said, (height, width, channels) = config.net, config.net.conventions, shape
    widths = [net.channels * m for m in net.multipliers]
    one_size = widths[-1] // net.heads if net.heads > 1 else None
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if objects.learned_variance(config) else 1),
        "block_out_channels": widths,
        **blocks.write(net, _attended(net, shape)),
        "layers_per_block": net.blocks,
        "dropout": net.dropout,
        "attention_head_dim": net.head_channels or one_size,
        "norm_num_groups": net.groups,
        "attn_norm_num_groups": net.groups,
        "norm_eps": said.eps,
        "downsample_padding": {ours: theirs for theirs, ours in PADDING.items()}[said.padding],
        "flip_sin_to_cos": said.time_order == "cos_sin",
        "freq_shift": said.time_shift,
        "resnet_time_scale_shift": {ours: theirs for theirs, ours in JOINS.items()}[net.time_joins],
        "num_class_embeds": net.num_classes + null_label(config) or None,
        **{name: field.values[0] for name, field in ONLY.items() if field.default is not None},
    }


def null_label(config: configs.Config) -> bool:
    """True if diffusers' table of labels gets a last row for no label: of networks trained with condition.drop."""
    return bool(config.net.num_classes and config.condition.drop)


def _numbers(c: Mapping[str, Any], sides: list[Any]) -> list[str]:
    """What is wrong with the numbers of channels, pixels, layers and groups."""
    levels, wrong, widths = len(c["down_block_types"]), [], list(c["block_out_channels"])
    if not levels:
        return ["down_block_types is empty: at least one block is right"]
    if len(widths) != levels or not all(isinstance(w, int) and w > 0 and w % widths[0] == 0 for w in widths):
        wrong.append(
            f"block_out_channels = {widths}: only multiples of the first, one for each of {levels} blocks, fit"
        )
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 and n % 2 ** (levels - 1) == 0 for n in sides):
        wrong.append(f"sample_size = {c['sample_size']!r}: only multiples of {2 ** (levels - 1)} fit {levels} blocks")
    if c["in_channels"] < 1:
        wrong.append(f"in_channels = {c['in_channels']}: at least 1 is right")
    if c["out_channels"] not in (c["in_channels"], 2 * c["in_channels"]):
        wrong.append(
            f"out_channels = {c['out_channels']}: only in_channels = {c['in_channels']} or twice that can be had"
        )
    if c["layers_per_block"] < 1 or c["norm_num_groups"] < 1:
        wrong.append(
            f"layers_per_block = {c['layers_per_block']}, norm_num_groups = {c['norm_num_groups']}: at least 1"
        )
    elif any(isinstance(w, int) and w % c["norm_num_groups"] for w in widths):
        wrong.append(f"norm_num_groups = {c['norm_num_groups']} does not divide block_out_channels = {widths}")
    elif c["resnet_time_scale_shift"] == "default" and set(widths) == {c["norm_num_groups"]}:
        wrong.append(
            f"norm_num_groups = {c['norm_num_groups']}, as many as block_out_channels = {widths}: each channel is "
            "normalised by itself and forgets the time that was added to it; fewer groups can be had"
        )
    if not 0 < c["norm_eps"] < math.inf:
        wrong.append(f"norm_eps = {c['norm_eps']}: only a positive number can be had")
    if not 0 <= c["dropout"] < 1:
        wrong.append(f"dropout = {c['dropout']}: only in [0, 1)")
    # the middle's own: left out where scale and shift are on, it has no normalisation at all
    usual = (None, c["norm_num_groups"]) if c["resnet_time_scale_shift"] == "default" else (c["norm_num_groups"],)
    if c["attn_norm_num_groups"] not in usual:
        wrong.append(
            f"attn_norm_num_groups = {c['attn_norm_num_groups']}: only {usual[-1]}, as norm_num_groups, can be had"
        )
    size = c["attention_head_dim"]  # the channels of a head, not how many heads there are
    if size is not None and (size < 1 or any(isinstance(w, int) and w % size for w in widths)):
        wrong.append(f"attention_head_dim = {size} does not divide block_out_channels = {widths}")
    return wrong


def _labels(count: int | None, null_label: bool) -> list[str]:
    """Errors of num_class_embeds, in words."""
    least = 2 if null_label else 1
    if not null_label if count is None else count >= least:
        return []
    why = ", the last of which stands for none (--null-label)" if null_label else ", or None for no labels,"
    return [f"num_class_embeds = {count}: at least {least}{why} is right"]


def _attended(net: configs.Net, shape: tuple[int, ...]) -> list[bool]:
    """Whether each level attends."""
    factors = [2**i for i in range(len(net.multipliers))]
    side = min(shape[:-1])
    return [(side // factor if net.attention_by == "size" else factor) in net.attention_at for factor in factors]


def _beyond(config: configs.Config, shape: tuple[int, ...]) -> list[str]:
    """What of our network diffusers cannot express."""
    net, said, c = config.net, config.net.conventions, config.condition
    told = {
        "text.layers": config.text.layers, "condition.coarse": c.coarse, "condition.paired": c.paired,
    }  # fmt: skip
    wrong = [f"{name} = {value!r}: there it is told labels at most" for name, value in told.items() if value]
    if len(shape) != 3:
        return [*wrong, f"images {shape}: there they are [H, W, C]"]
    fewest, widths = 2 ** (len(net.multipliers) - 1), [net.channels * m for m in net.multipliers]
    if any(side % fewest for side in shape[:-1]):
        wrong.append(f"images {shape}: there, sides are multiples of {fewest}")
    if not net.resample_with_conv and net.resample_by == "layer":
        wrong.append("net.resample_with_conv = False: there, layers that change the size convolve")
    odd = sorted({width for width in widths if width % net.groups})
    if odd:  # where ours takes fewer groups, see `group_count`
        wrong.append(f"net.groups = {net.groups}: there they divide the channels of every level, and not {odd}")
    attended = [*_attended(net, shape)[:-1], True]
    attending = {width for width, attends in zip(widths, attended, strict=True) if attends}
    if net.heads > 1 and len(attending) > 1:
        wrong.append(f"net.heads = {net.heads} over {sorted(attending)} channels: there, heads have one size")
    if said.time_scale != 1:
        wrong.append(f"net.conventions.time_scale = {said.time_scale}: there, times are not scaled")
    if said.time_dim not in (0, net.channels):
        wrong.append(f"net.conventions.time_dim = {said.time_dim}: there it is net.channels = {net.channels}")
    return wrong


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise ValueError("the network's config: " + "; ".join(wrong))
