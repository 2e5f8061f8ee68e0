"""The tensor names of a `UNet2DModel` as rules."""

from collections.abc import Iterable
from typing import Any, Literal

from flax.traverse_util import flatten_dict

from ddpm_jax.convert.rules import Path, Rule, from_torch, identity, label_embedding

AttentionNames = Literal["old", "today"]
"""The names in attentions: those of the files of 2022 (query, key, value, proj_attn), or today's (to_q, ...)."""

_ATTENTION = {
    "old": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
    "today": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
}
_MODULES = {
    "temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut", "norm": "group_norm", "norm_out": "conv_norm_out",
    "dense0": "linear_1", "dense1": "linear_2",
}  # fmt: skip

LABEL_TABLE = ("label", "table", "embedding")
"""The path of our table of labels."""


def attention_names(names: Iterable[str]) -> AttentionNames:
    """The naming of the attentions in these tensors."""
    return "old" if any(".attentions." in name and ".query." in name for name in names) else "today"


def rules(target: Any, attention: AttentionNames = "today", *, null_label: bool = False) -> list[Rule]:
    """Our leaf down_0/block_0/conv1/kernel is the tensor down_blocks.0.resnets.0.conv1.weight, and so on.

    Levels of the decoder are numbered from the smallest there, and from the largest here.

    Args:
        null_label: whether their table of labels has a row for none, its last, as ours has.
    """
    leaves = flatten_dict(target)
    table = leaves.pop(LABEL_TABLE, None) is not None
    levels = 1 + max(int(path[0].removeprefix("down_")) for path in leaves if path[0].startswith("down_"))
    converted = (
        from_torch(path, leaf, module_name(path[:-1], levels, attention), conv1x1=path[-2] == "nin_shortcut")
        for path, leaf in leaves.items()
    )
    label_rule = identity if null_label else label_embedding
    label_rules = [label_rule(LABEL_TABLE, "class_embedding.weight")] if table else []
    return [*(rule for rule in converted if rule), *label_rules]


def module_name(path: Path, levels: int, attention: AttentionNames) -> str:
    """The source's name of one of our modules."""
    return ".".join(_component_name(name, levels, _ATTENTION[attention], i == 0, path) for i, name in enumerate(path))


def _component_name(name: str, levels: int, attention: dict[str, str], top: bool, path: Path) -> str:
    kind, _, number = name.partition("_")
    if top and kind in ("down", "up"):
        return f"{kind}_blocks.{number if kind == 'down' else levels - 1 - int(number)}"
    if kind in ("block", "attn") and number.isdigit():
        index = int(number) - (path[0] == "mid")  # whose own numbers begin at 1
        return f"{'resnets' if kind == 'block' else 'attentions'}.{index}"
    if name in ("downsample", "upsample"):
        return f"{name}rs.0"
    if top and name in ("mid", "temb"):
        return {"mid": "mid_block", "temb": "time_embedding"}[name]
    return attention.get(name) or _MODULES.get(name, name)
