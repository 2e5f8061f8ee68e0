"""The types of a `UNet2DModel`'s blocks: which levels attend, and what changes the size between them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ddpm_jax import config as configs

ResampleBy = Literal["layer", "block"]

_ATTENDS = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}
_RESAMPLES: dict[str, dict[str, ResampleBy]] = {
    "down": {"DownBlock2D": "layer", "ResnetDownsampleBlock2D": "block"},
    "up": {"UpBlock2D": "layer", "ResnetUpsampleBlock2D": "block"},
}
_TYPES: dict[str, ResampleBy] = {"conv": "layer", "resnet": "block"}
"""What changes the size in blocks that attend; the others know it by their name."""


class Levels(NamedTuple):
    """What types of blocks say.

    Attributes:
        attended: the levels that attend, 0 being the largest.
        resample_by: see `config.Net`.
    """

    attended: tuple[int, ...]
    resample_by: ResampleBy


def read(c: Mapping[str, Any]) -> tuple[Levels, list[str]]:
    """What the types say, and what is wrong with them, a line for each field."""
    ways = {"down": [*map(str, c["down_block_types"])], "up": [*map(str, reversed(c["up_block_types"]))]}
    wrong = [
        f"{way}_block_types holds {kind!r}: only {', '.join(map(repr, (*_RESAMPLES[way], _ATTENDS[way])))} can be had"
        for way, kinds in ways.items()
        for kind in dict.fromkeys(kinds)
        if kind not in (*_RESAMPLES[way], _ATTENDS[way])
    ] + [
        f"{way}sample_type = {c[f'{way}sample_type']!r}: only {' or '.join(map(repr, _TYPES))} can be had"
        for way in ways
        if c[f"{way}sample_type"] not in _TYPES
    ]
    if wrong:
        return Levels((), "layer"), wrong
    attended = {way: [i for i, kind in enumerate(kinds) if kind == _ATTENDS[way]] for way, kinds in ways.items()}
    shown = f"down_block_types = {ways['down']}, up_block_types = {c['up_block_types']}"
    if len(ways["down"]) != len(ways["up"]) or attended["down"] != attended["up"]:
        wrong.append(f"{shown} are not each other's mirror: a level attends both ways or not at all")
    # the last block of each way changes no size, whatever its type says of that
    between = [kinds[:-1] if way == "down" else kinds[1:] for way, kinds in ways.items()]
    used: set[ResampleBy] = {
        _RESAMPLES[way].get(kind) or _TYPES[c[f"{way}sample_type"]]
        for way, kinds in zip(ways, between, strict=True)
        for kind in kinds
    }
    if len(used) > 1:
        wrong.append(
            f"{shown}, downsample_type = {c['downsample_type']!r}, upsample_type = {c['upsample_type']!r}: sizes are "
            "changed by layers of their own or in residual blocks, the same everywhere"
        )
    return Levels(tuple(attended["down"]), used.pop() if used else "layer"), wrong


def write(net: configs.Net, attends: Sequence[bool]) -> dict[str, Any]:
    """The fields of a configuration that say which levels attend and what changes the size between them."""
    named = {way: {by: kind for kind, by in kinds.items()}[net.resample_by] for way, kinds in _RESAMPLES.items()}
    kind = {by: kind for kind, by in _TYPES.items()}[net.resample_by]
    return {
        "down_block_types": [_ATTENDS["down"] if here else named["down"] for here in attends],
        "up_block_types": [_ATTENDS["up"] if here else named["up"] for here in reversed(attends)],
        "downsample_type": kind,
        "upsample_type": kind,
    }
