"""The tensor names of improved- and guided-diffusion's `UNetModel` as rules."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax.config import Net
from ddpm_jax.convert.rules import Path, Rule, from_torch, label_embedding, pointwise
from ddpm_jax.models.unet import OPENAI
from ddpm_jax.models.unet.attention import head_count

QKVOrder = Literal["legacy", "new"]
"""The order of queries, keys and values in one tensor: those of the first head, then of the next ("legacy":
improved-diffusion, and guided-diffusion as a rule), or the queries of all heads, then the keys, then the values ("new":
guided-diffusion with use_new_attention_order).  The shapes are the same, so a file does not tell."""

_IN_BLOCK = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "temb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "nin_shortcut": "skip_connection",
}  # fmt: skip
_TOP_LEVEL = {
    ("temb", "dense0"): "time_embed.0", ("temb", "dense1"): "time_embed.2", ("conv_in",): "input_blocks.0.0",
    ("norm_out",): "out.0", ("conv_out",): "out.2",
}  # fmt: skip
_MIDDLE = {"block_1": "middle_block.0", "attn_1": "middle_block.1", "block_2": "middle_block.2"}


def rules(target: Any, net: Net, order: QKVOrder) -> list[Rule]:
    """Our leaf down_0/block_0/conv1/kernel is the tensor input_blocks.1.0.in_layers.2.weight, and so on.

    Args:
        target: our parameters' tree of arrays or `jax.ShapeDtypeStruct`s.
        net: the network that it is of, whose heads divide queries, keys and values.

    Raises:
        ValueError: naming each option by which the network computes what theirs cannot.
    """
    if order not in ("legacy", "new"):
        raise ValueError(f"order must be 'legacy' or 'new', got {order!r}")
    _check_supported(net)
    leaves: dict[tuple[str, ...], Any] = flatten_dict(target)
    converted = []
    for path, leaf in leaves.items():
        if path[:2] == ("label", "table"):
            converted.append(label_embedding(path, "label_emb.weight"))
            continue
        module = _module_name(path[:-1], leaves)
        if module is None or path[-2] in ("k", "v"):  # which come with the queries
            continue
        if path[-2] == "q":
            heads = head_count(leaf.shape[-1], net.heads, net.head_channels)
            converted.append(_qkv_rule(path, module, heads, order))
        elif path[-2:] == ("proj_out", "kernel"):
            converted.append(pointwise(path, f"{module}.weight", 1))
        else:
            converted.append(from_torch(path, leaf, module, conv1x1=path[-2] == "nin_shortcut"))
    return [rule for rule in converted if rule]


def _module_name(path: Path, leaves: Mapping[Path, Any]) -> str | None:
    """The source's name of one of our modules; None if there is none, as for text conditioning."""
    if path in _TOP_LEVEL:
        return _TOP_LEVEL[path]
    kind, _, number = path[0].partition("_")
    if path[0] == "mid" and path[1] in _MIDDLE:
        return f"{_MIDDLE[path[1]]}.{_layer_name(path)}"
    if kind not in ("down", "up") or path[1].startswith("cross"):
        return None
    # their list has every block of every level and, on the way down, every change of size
    levels = len({top for top, *_ in leaves if top.startswith("down_")})
    stride = len({block for top, block, *_ in leaves if top == "up_0" and block.startswith("block_")})
    block_index = (int(number) if kind == "down" else levels - 1 - int(number)) * stride
    attends = (path[0], "attn_0", "norm", "bias") in leaves
    part, _, index = path[1].partition("_")
    if kind == "down":
        if part == "downsample":
            return f"input_blocks.{block_index + stride}.0.{'op' if path[2] == 'conv' else _layer_name(path)}"
        return f"input_blocks.{block_index + 1 + int(index)}.{int(part == 'attn')}.{_layer_name(path)}"
    if part == "upsample":
        return f"output_blocks.{block_index + stride - 1}.{1 + attends}.{_layer_name(path)}"
    return f"output_blocks.{block_index + int(index)}.{int(part == 'attn')}.{_layer_name(path)}"


def _layer_name(path: Path) -> str:
    """The source's name of a layer within a block or an attention."""
    return "qkv" if path[2] in ("q", "k", "v") else _IN_BLOCK.get(path[2], path[2])


def _qkv_rule(path: Path, module: str, heads: int, order: QKVOrder) -> Rule:
    """Queries, keys and values, three matrices [in, out] or biases, as one tensor [3 out, in, 1] or [3 out]."""
    name = f"{module}.bias" if path[-1] == "bias" else f"{module}.weight"
    paths = tuple((*path[:-2], part, path[-1]) for part in ("q", "k", "v"))
    axis = 1 if order == "legacy" else 0  # of the three, where the outputs are [heads, 3, ...] or [3, heads, ...]

    def to_ours(tensor):
        outs, rest = len(tensor) // 3, tensor.shape[1:2]
        split = (heads, 3) if order == "legacy" else (3, heads)
        parts = np.moveaxis(tensor.reshape(*split, outs // heads, *rest), axis, 0)
        return tuple(part.reshape(outs, *rest).T for part in parts)

    def to_theirs(*leaves):
        parts = [leaf.T.reshape(heads, leaf.shape[-1] // heads, *leaf.shape[:-1]) for leaf in leaves]
        joined = np.stack(parts, axis).reshape(3 * leaves[0].shape[-1], *leaves[0].shape[:-1])
        return (joined[..., None] if joined.ndim == 2 else joined,)

    return Rule(paths, (name,), to_ours, to_theirs)


def _check_supported(net: Net) -> None:
    conventions = net.compat
    messages = [
        f"net.compat.{name} = {getattr(conventions, name)!r} where {getattr(OPENAI, name)!r} is right"
        for name in ("eps", "padding", "time_order", "time_shift")
        if getattr(conventions, name) != getattr(OPENAI, name)
    ]
    if net.groups != 32:
        messages.append(f"net.groups = {net.groups} where 32 is right")
    if messages:
        raise ValueError("OpenAI's UNetModel cannot be this network: " + "; ".join(messages))
