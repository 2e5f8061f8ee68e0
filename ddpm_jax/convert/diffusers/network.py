"""The configuration of a `UNet2DModel` as the fields of our network, and the way back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddpm_jax import config as configs
from ddpm_jax.config import objects
from ddpm_jax.convert.diffusers.fields import Only, mistyped, problems

READ = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
"""The fields that say which network, and what diffusers takes where they are missing."""

ONLY = {
    "center_input_sample": Only(False, (False,), "images in [-1, 1]"),
    "time_embedding_type": Only("positional", ("positional",), "sines and cosines"),
    "time_embedding_dim": Only(None, (None,), "four times the first level's channels"),
    "freq_shift": Only(0, (1,), "the original's frequencies, 10000^(-i / (half - 1))"),
    "flip_sin_to_cos": Only(True, (False,), "the original's order, sines first"),
    "mid_block_type": Only("UNetMidBlock2D", ("UNetMidBlock2D",), "with attention"),
    "mid_block_scale_factor": Only(1, (1,), "residuals as they are"),
    "downsample_padding": Only(1, (0,), "the original's, zeros after the bottom and the right alone"),
    "downsample_type": Only("conv", ("conv",), "a convolution of stride 2"),
    "upsample_type": Only("conv", ("conv",), "repetition and a convolution"),
    "act_fn": Only("silu", ("silu", "swish"), "the same function twice"),
    "attn_norm_num_groups": Only(None, (None,), "as many groups as elsewhere"),
    "norm_eps": Only(1e-5, (1e-6,), "the original's"),
    "resnet_time_scale_shift": Only("default", ("default",), "the time is added"),
    "add_attention": Only(True, (True,), "the middle attends"),
    "class_embed_type": Only(None, (None,), "no labels"),
    "num_class_embeds": Only(None, (None,), "no labels"),
    "num_train_timesteps": Only(None, (None,), "no table of times"),
}  # fmt: skip
KINDS = {
    "sample_size": (int, list, tuple, type(None)), "in_channels": int, "out_channels": int,
    "down_block_types": (list, tuple), "up_block_types": (list, tuple), "block_out_channels": (list, tuple),
    "layers_per_block": int,
    "dropout": (int, float), "attention_head_dim": (int, type(None)), "norm_num_groups": int,
}  # fmt: skip


class Network(NamedTuple):
    """What a configuration says.

    net: the fields of ours.
    shape: of an image, (H, W, C).
    doubled: whether the network has twice as many channels going out as coming in, as with a learned variance.
    """

    net: configs.Net
    shape: tuple[int, int, int]
    doubled: bool


def read(given: Mapping[str, Any]) -> Network:
    """Our network that computes what a `UNet2DModel` of this configuration computes.

    Raises:
        ValueError: naming every field that stands in the way, its value and what would be right.
    """
    if given.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"the network's config: _class_name = {given.get('_class_name')!r}: only 'UNet2DModel' can be had"
        )
    found = [*problems(given, READ, ONLY), *mistyped(given, KINDS)]
    if found:
        raise ValueError("the network's config: " + "; ".join(found))
    c = {name: given.get(name, default) for name, default in READ.items()}
    attended, wrong = _attended(c)
    widths = list(c["block_out_channels"])
    sides = [c["sample_size"]] * 2 if isinstance(c["sample_size"], int) else list(c["sample_size"] or [])
    wrong += _sizes(c, widths, sides)
    if wrong:
        raise ValueError("the network's config: " + "; ".join(wrong))
    net = configs.Net(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=c["layers_per_block"],
        attention_at=tuple(min(sides) // 2**i for i in attended),
        heads=_heads(c, [widths[i] for i in attended] + widths[-1:]),
        dropout=float(c["dropout"]),
        groups=c["norm_num_groups"],
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
    net, (height, width, channels) = config.net, shape
    widths = [net.channels * m for m in net.multipliers]
    attends = [min(height, width) // 2**i in net.attention_at for i in range(len(widths))]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if objects.learned_variance(config) else 1),
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if attends[i] else "DownBlock2D" for i in range(len(widths))],
        "up_block_types": ["AttnUpBlock2D" if attends[i] else "UpBlock2D" for i in reversed(range(len(widths)))],
        "layers_per_block": net.blocks,
        "dropout": net.dropout,
        "attention_head_dim": None if net.heads == 1 else widths[-1] // net.heads,
        "norm_num_groups": net.groups,
        **{name: field.values[0] for name, field in ONLY.items() if field.default is not None},
    }


def _attended(c: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """The levels that attend, the largest first, and what is wrong with the blocks."""
    down, up = list(c["down_block_types"]), list(c["up_block_types"])
    wrong = [
        f"{name} holds {kind!r}: only {' and '.join(map(repr, legal))} can be had"
        for name, legal in (("down_block_types", ("DownBlock2D", "AttnDownBlock2D")),
                            ("up_block_types", ("UpBlock2D", "AttnUpBlock2D")))
        for kind in dict.fromkeys(c[name])
        if kind not in legal
    ]  # fmt: skip
    attended = [i for i, kind in enumerate(down) if kind == "AttnDownBlock2D"]
    on_the_way_up = [i for i, kind in enumerate(reversed(up)) if kind == "AttnUpBlock2D"]
    if not wrong and (len(down), attended) != (len(up), on_the_way_up):
        wrong.append(
            f"down_block_types = {down}, up_block_types = {up} are not each other's mirror: a level attends both ways "
            "or not at all"
        )
    return attended, wrong


def _sizes(c: Mapping[str, Any], widths: list[Any], sides: list[Any]) -> list[str]:
    """What is wrong with the numbers of channels and pixels."""
    levels, wrong = len(c["down_block_types"]), []
    if len(widths) != levels or not all(isinstance(w, int) and w > 0 and w % widths[0] == 0 for w in widths):
        wrong.append(
            f"block_out_channels = {widths}: multiples of the first, one for each of {levels} blocks, can be had"
        )
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 and n % 2 ** (levels - 1) == 0 for n in sides):
        wrong.append(
            f"sample_size = {c['sample_size']!r}: multiples of {2 ** (levels - 1)} are right, for {levels} blocks"
        )
    if c["out_channels"] not in (c["in_channels"], 2 * c["in_channels"]):
        wrong.append(
            f"out_channels = {c['out_channels']}: as many as in_channels = {c['in_channels']}, or twice, can be had"
        )
    if c["layers_per_block"] < 1 or c["norm_num_groups"] < 1 or not 0 <= c["dropout"] < 1:
        wrong.append(
            f"layers_per_block = {c['layers_per_block']}, norm_num_groups = {c['norm_num_groups']}: at least 1 is right"
            f"; dropout = {c['dropout']}: in [0, 1)"
        )
    wide = [c["attention_head_dim"]] if c["attention_head_dim"] is not None else []
    if not wrong and wide and (wide[0] < 1 or any(w % wide[0] for w in widths)):
        wrong.append(f"attention_head_dim = {wide[0]} does not divide block_out_channels = {widths}")
    return wrong


def _heads(c: Mapping[str, Any], attending: list[int]) -> int:
    """The number of heads of every attention, over so many channels each.

    Raises:
        ValueError: if they have not all the same.
    """
    size = c["attention_head_dim"]  # the channels of a head, not how many heads there are
    counts = {1 if size is None else width // size for width in attending}
    if len(counts) > 1:
        raise ValueError(
            f"the network's config: attention_head_dim = {size} makes {sorted(counts)} heads of attentions over "
            f"{sorted(set(attending))} channels: only the same number everywhere can be had"
        )
    return counts.pop()


def _beyond(config: configs.Config, shape: tuple[int, ...]) -> list[str]:
    """What of our network diffusers cannot express."""
    net, c = config.net, config.condition
    told = {
        "net.num_classes": net.num_classes, "text.layers": config.text.layers, "condition.coarse": c.coarse,
        "condition.paired": c.paired,
    }  # fmt: skip
    wrong = [f"{name} = {value!r}: it is told nothing" for name, value in told.items() if value]
    if len(shape) != 3:
        return [*wrong, f"images {shape}: they are [H, W, C]"]
    fewest, levels = 2 ** (len(net.multipliers) - 1), len(net.multipliers)
    if any(side % fewest for side in shape[:-1]):
        wrong.append(f"images {shape}: sides must be multiples of {fewest}")
    if not net.resample_with_conv:
        wrong.append("net.resample_with_conv = False: sizes change by convolutions")
    widths = [net.channels * m for m in net.multipliers]
    odd = sorted({width for width in widths if width % net.groups})
    if odd:  # where ours takes fewer groups, see `group_count`
        wrong.append(
            f"net.groups = {net.groups}: it must divide the channels of every level, and does not divide {odd}"
        )
    sides = [min(shape[:-1]) // 2**i for i in range(levels)]
    attending = {widths[i] for i in range(levels) if sides[i] in net.attention_at} | {widths[-1]}
    if net.heads > 1 and len(attending) > 1:
        wrong.append(f"net.heads = {net.heads} over {sorted(attending)} channels: heads have the same size everywhere")
    return wrong
