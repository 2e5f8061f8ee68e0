"""The types of a `UNet2DModel`'s blocks: attention levels, and the resampling between levels."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ddpm_jax import config as configs

Resample = Literal["layer", "block"]

_ATTENTION_BLOCKS = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}
_RESAMPLE_BLOCKS: dict[str, dict[str, Resample]] = {
    "down": {"DownBlock2D": "layer", "ResnetDownsampleBlock2D": "block"},
    "up": {"UpBlock2D": "layer", "ResnetUpsampleBlock2D": "block"},
}
_RESAMPLE_TYPES: dict[str, Resample] = {"conv": "layer", "resnet": "block"}
"""The resampling of blocks with attention; the types of the others define it."""


def from_diffusers(c: Mapping[str, Any]) -> tuple[list[int], Resample, list[str]]:
    """The levels with attention, 0 being the largest, the resampling of `config.Net`, and errors for other types."""
    block_types = {"down": [*map(str, c["down_block_types"])], "up": [*map(str, reversed(c["up_block_types"]))]}
    known = {way: (*_RESAMPLE_BLOCKS[way], _ATTENTION_BLOCKS[way]) for way in block_types}
    messages = [
        f"{way}_block_types holds {kind!r}: only {', '.join(map(repr, known[way]))} is supported"
        for way, kinds in block_types.items()
        for kind in dict.fromkeys(kinds)
        if kind not in known[way]
    ] + [
        f"{way}sample_type = {c[f'{way}sample_type']!r}: only {' or '.join(map(repr, _RESAMPLE_TYPES))} is supported"
        for way in block_types
        if c[f"{way}sample_type"] not in _RESAMPLE_TYPES
    ]
    if messages:
        return [], "layer", messages
    attended = {
        way: [i for i, kind in enumerate(kinds) if kind == _ATTENTION_BLOCKS[way]] for way, kinds in block_types.items()
    }
    shown = f"down_block_types = {block_types['down']}, up_block_types = {c['up_block_types']}"
    if len(block_types["down"]) != len(block_types["up"]) or attended["down"] != attended["up"]:
        messages.append(f"{shown} are not each other's mirror: a level attends both ways or not at all")
    # the last block of each way changes no size, whatever its type says of that
    between = [kinds[:-1] if way == "down" else kinds[1:] for way, kinds in block_types.items()]
    used: set[Resample] = {
        _RESAMPLE_BLOCKS[way].get(kind) or _RESAMPLE_TYPES[c[f"{way}sample_type"]]
        for way, kinds in zip(block_types, between, strict=True)
        for kind in kinds
    }
    if len(used) > 1:
        messages.append(
            f"{shown}, downsample_type = {c['downsample_type']!r}, upsample_type = {c['upsample_type']!r}: sizes are "
            "changed by layers of their own or in residual blocks, the same everywhere"
        )
    return attended["down"], used.pop() if used else "layer", messages


def to_diffusers(net: configs.Net, attends: Sequence[bool]) -> dict[str, Any]:
    """The fields of a configuration for attention levels and resampling."""
    named = {way: {by: kind for kind, by in kinds.items()}[net.resample] for way, kinds in _RESAMPLE_BLOCKS.items()}
    kind = {by: kind for kind, by in _RESAMPLE_TYPES.items()}[net.resample]
    return {
        "down_block_types": [_ATTENTION_BLOCKS["down"] if attended else named["down"] for attended in attends],
        "up_block_types": [_ATTENTION_BLOCKS["up"] if attended else named["up"] for attended in reversed(attends)],
        "downsample_type": kind,
        "upsample_type": kind,
    }
