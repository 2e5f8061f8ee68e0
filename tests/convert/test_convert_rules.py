"""Rules between another file's tensors and our parameters, and everything that may be wrong with such a file."""

import pathlib

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ddpm_jax.convert import rules


def shaped(*shape, dtype=np.float32):
    return np.empty(shape, dtype)


TARGET = {
    "conv": {"kernel": shaped(3, 3, 2, 4), "bias": shaped(4)},
    "attn": {"q": {"kernel": shaped(4, 4)}, "k": {"kernel": shaped(4, 4)}, "v": {"kernel": shaped(4, 4)}},
    "nin": {"kernel": shaped(2, 4)},
    "dense": {"kernel": shaped(5, 7)},
}


def three_in_one() -> rules.Rule:
    """Queries, keys and values in one tensor [3 x 4, 4], as fused attentions have them."""
    paths = tuple(("attn", name, "kernel") for name in ("q", "k", "v"))
    return rules.Rule(
        paths,
        ("qkv",),
        lambda tensor: tuple(part.T for part in np.split(tensor, 3)),
        lambda *leaves: (np.concatenate([leaf.T for leaf in leaves]),),
    )


RULES = [
    rules.conv(("conv", "kernel"), "c.weight"),
    rules.identity(("conv", "bias"), "c.bias"),
    three_in_one(),
    rules.pointwise(("nin", "kernel"), "n.weight", 2),
    rules.dense(("dense", "kernel"), "d.weight"),
]
SHAPES = {"c.weight": (4, 2, 3, 3), "c.bias": (4,), "qkv": (12, 4), "n.weight": (4, 2, 1, 1), "d.weight": (7, 5)}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def test_what_was_applied_is_undone_to_the_bit():
    before = tensors()
    before["c.bias"][0] = -0.0
    params = rules.apply(RULES, before, TARGET)
    after = rules.invert(RULES, params)
    assert set(after) == set(before)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_each_number_lands_where_the_layouts_say():
    t = tensors()
    params = rules.apply(RULES, t, TARGET)
    # [out, in, height, width] there, [height, width, in, out] here
    assert params["conv"]["kernel"][2, 1, 0, 3] == t["c.weight"][3, 0, 2, 1]
    assert params["dense"]["kernel"][4, 6] == t["d.weight"][6, 4]
    assert params["nin"]["kernel"][1, 3] == t["n.weight"][3, 1, 0, 0]
    assert params["attn"]["v"]["kernel"][1, 2] == t["qkv"][8 + 2, 1]
    assert all(leaf.flags.c_contiguous and leaf.flags.owndata for leaf in flatten_dict(params).values())


def test_everything_that_is_wrong_is_said_at_once():
    t = tensors()
    del t["c.bias"]
    t["c.weight"] = t["c.weight"].transpose(2, 3, 1, 0)
    t["d.weight"] = np.zeros((7, 6), np.float32)
    t["n.weight"] = t["n.weight"].reshape(4, 2)
    t["qkv"] = t["qkv"].astype(np.int64)
    t["num_batches_tracked"] = np.zeros(())
    with pytest.raises(ValueError) as raised:
        rules.apply(RULES, t, TARGET)
    message = str(raised.value)
    for part in (
        "1 tensors are missing: c.bias (4,)",
        "1 tensors are unused: num_batches_tracked ()",
        "c.weight (3, 3, 2, 4) where (4, 2, 3, 3) is right, which looks transposed",
        "d.weight (7, 6) where (7, 5) is right",
        "n.weight (4, 2) where (4, 2, 1, 1) is right, of as many numbers",
        "1 tensors are not of floats: qkv is int64",
    ):
        assert part in message, (part, message)


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("c.bias", lambda a: np.full_like(a, np.nan), "c.bias holds NaN or infinity"),
        ("qkv", lambda a: np.where(np.arange(4) == 2, np.inf, a), "qkv holds NaN or infinity"),
        ("d.weight", lambda a: a.astype(np.float64) / 3, "d.weight, float64, is not exact in float32"),
    ],
)
def test_numbers_that_are_none_or_would_be_rounded_are_refused(name, spoil, message):
    t = tensors()
    t[name] = spoil(t[name])
    with pytest.raises(ValueError, match=message):
        rules.apply(RULES, t, TARGET)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda d: np.dtype(d).name)
def test_other_floats_are_taken_where_that_is_exact(dtype):
    narrow = {name: t.astype(ml_dtypes.bfloat16).astype(np.float16) for name, t in tensors().items()}
    narrow = {name: (np.round(t * 8) / 8).astype(dtype) for name, t in narrow.items()}
    params = rules.apply(RULES, narrow, TARGET)
    assert params["conv"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(params["conv"]["bias"], narrow["c.bias"].astype(np.float32))


def test_rules_that_leave_a_leaf_out_or_name_one_twice_are_refused():
    with pytest.raises(ValueError, match=r"1 leaves of ours have no rule in this format: dense/kernel"):
        rules.apply(RULES[:-1], tensors(), TARGET)
    with pytest.raises(ValueError, match=r"(?s)tensors have two rules: c.bias.*leaves have two rules: conv/bias"):
        rules.invert([*RULES, RULES[1]], rules.apply(RULES, tensors(), TARGET))
    with pytest.raises(ValueError, match="1 rules name leaves that the network does not have: gone/bias"):
        rules.apply([*RULES, rules.identity(("gone", "bias"), "g.bias")], tensors(), TARGET)


def test_parameters_that_are_not_finite_do_not_leave():
    params = rules.apply(RULES, tensors(), TARGET)
    params["nin"]["kernel"][0, 0] = np.inf
    with pytest.raises(ValueError, match="1 leaves hold no usable numbers: nin/kernel holds NaN or infinity"):
        rules.invert(RULES, params)


def test_no_code_of_the_converters_runs_what_it_reads():
    for path in (pathlib.Path(rules.__file__).parent).rglob("*.py"):
        text = path.read_text()
        for unsafe_call in ("pickle.load", "allow_pickle=True", "weights_only=False", "eval(", "exec("):
            assert unsafe_call not in text, (path, unsafe_call)
