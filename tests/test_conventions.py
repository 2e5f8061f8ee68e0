"""What other published networks do otherwise than the original: the laws that each option obeys, alone and together."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import precision
from jax.test_util import check_grads
from test_unet import deepened, image_keys, random_params, tiny_case

from ddpm_jax import config as configs
from ddpm_jax.config import objects
from ddpm_jax.unet import OPENAI, AttentionBlock, Conventions, Downsample, GroupNorm, ResnetBlock, UNet
from ddpm_jax.unet.layers import halved

ADM = UNet(
    channels=16, multipliers=(1, 2), blocks=1, attention_at=(2,), dropout=0.5, out_channels=2, groups=8,
    head_channels=8, attention_by="factor", time_joins="scale_shift", resample_by="block", conventions=OPENAI,
)  # fmt: skip
"""guided-diffusion's kind: every option is another one than the original's."""


# --- a normalisation that the time scales and shifts


def test_a_modulated_normalisation_is_one_and_then_a_line_and_so_are_its_gradients():
    with precision("float64"):
        rng = np.random.default_rng(0)
        x, by = jnp.asarray(rng.normal(size=(2, 3, 2, 6))), jnp.asarray(rng.normal(size=(2, 12)))
        scale, bias = jnp.asarray(1 + rng.normal(size=6)), jnp.asarray(rng.normal(size=6))

        def one(x, scale, bias, by):
            return GroupNorm(swish=True).apply({"params": {"scale": scale, "bias": bias}}, x, by)

        def two(x, scale, bias, by):
            y = GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
            return nn.swish(y * (1 + by[:, None, None, :6]) + by[:, None, None, 6:])

        inputs = (x, scale, bias, by)
        np.testing.assert_allclose(one(*inputs), two(*inputs), rtol=1e-12)
        to_one, to_two = (jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1, 2, 3))(*inputs) for f in (one, two))
        for a, b in zip(to_one, to_two, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        check_grads(one, inputs, order=2, modes=["rev"])


def test_a_time_that_comes_after_the_normalisation_is_felt_by_channels_that_are_groups():
    narrow = UNet(channels=8, multipliers=(1,), blocks=1, attention_at=(), groups=8, time_joins="scale_shift")
    x, t, params = tiny_case((2, 4, 4, 3), narrow)
    moved = narrow.apply(params, x, t + 300) - narrow.apply(params, x, t)
    assert jnp.abs(moved).max() > 0.01
    forgetful = narrow.clone(time_joins="add")
    with pytest.raises(ValueError, match="forget the time that is added to it"):
        forgetful.init(jax.random.key(0), x, t)
    # weights that someone has are what they are: it runs, and the time does nothing but by rounding
    half = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[..., :8] if path[-2].key == "temb_proj" else leaf, params
    )
    np.testing.assert_allclose(forgetful.apply(half, x, t + 300), forgetful.apply(half, x, t), atol=1e-3)


# --- changes of size


def test_padding_says_at_which_pixels_a_strided_convolution_looks():
    """One that looks everywhere, at every other pixel: the odd ones with zeros at the end alone, else the even ones."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 4))
    params = Downsample().init(jax.random.key(1), x)
    everywhere = nn.Conv(4, (3, 3), padding="SAME").apply({"params": params["params"]["conv"]}, x)
    for padding, first in (("end", 1), ("both", 0)):
        found = Downsample(padding=padding).apply(params, x)
        np.testing.assert_allclose(found, everywhere[:, first::2, first::2], atol=1e-5)


def blocks_of(net: UNet):
    """The blocks of a network by their names, as it makes them."""
    found = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, ResnetBlock) and context.method_name == "__call__":
            found.append(context.module)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)), jnp.ones(1, int))
    return found


def test_a_block_that_halves_sees_means_of_squares_and_one_that_doubles_sees_pixels_twice():
    """Of an image of equal squares, and of the same one pixel each: each is the other's block with its size changed."""
    made = {block.name: block for block in blocks_of(ADM.clone(dropout=0.0))}
    plain, halve, double = (
        made[name].clone(out_channels=16, name=None, parent=None) for name in ("block_0", "downsample", "upsample")
    )
    small, temb = jax.random.normal(jax.random.key(0), (2, 5, 5, 16)), jax.random.normal(jax.random.key(1), (2, 8))
    large = small.repeat(2, 1).repeat(2, 2)
    params = random_params(plain, small, temb)
    np.testing.assert_allclose(halve.apply(params, large, temb), plain.apply(params, small, temb), atol=1e-4)
    np.testing.assert_allclose(double.apply(params, small, temb), plain.apply(params, large, temb), atol=1e-4)


def test_every_block_that_changes_the_size_drops_with_a_number_of_its_own():
    made = blocks_of(ADM.clone(multipliers=(1, 2, 2), attention_at=(), blocks=2))
    others = [block.place for block in made if block.name.startswith("block")]
    assert others == list(range(3 * 2 + 2 + 3 * 3))  # as in a network whose size layers change
    rest = [block.place for block in made if not block.name.startswith("block")]
    assert len(rest) == 4 and len({*others, *rest}) == len(made)


# --- heads, and where attention stands


def test_heads_by_their_channels_are_heads_by_their_number():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 64))
    params = random_params(AttentionBlock(4), x)
    found = AttentionBlock(head_channels=16).apply(params, x)
    np.testing.assert_array_equal(found, AttentionBlock(4).apply(params, x))
    assert jnp.abs(found - AttentionBlock(1).apply(params, x)).max() > 1e-3


def test_attention_by_factors_is_at_the_same_levels_of_every_size():
    net = UNet(channels=16, multipliers=(1, 2, 2), blocks=1, attention_at=(4,), out_channels=1, groups=8)
    factors = net.clone(attention_at=(2,), attention_by="factor")

    def tree(net, side):
        return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 1)), jnp.ones(1, int))

    assert tree(factors, 8) == tree(factors, 32) == tree(net, 8) != tree(net, 32)


# --- the time


def test_a_scale_of_the_time_is_another_count_of_the_same_times():
    """A chain of 4000 steps, rescaled to 1000, sees at its step 4 k + 1 what one of 1000 sees at k + 1."""
    x, _, params = tiny_case((3, 4, 4, 2), ADM)
    apply, slow = jax.jit(ADM.apply), jax.jit(ADM.clone(conventions=OPENAI._replace(time_scale=0.25)).apply)
    k = jnp.array([0, 37, 999])
    wanted = apply(params, x, k + 1)
    np.testing.assert_allclose(slow(params, x, 4 * k + 1), wanted, atol=1e-5)
    assert jnp.abs(slow(params, x, 4 * k + 3) - wanted).max((1, 2, 3)).min() > 1e-4


def test_a_time_is_as_long_as_the_channels_or_as_is_said():
    x, t = jnp.zeros((1, 4, 4, 2)), jnp.ones(1, int)

    def tree(time_dim):
        net = ADM.clone(conventions=OPENAI._replace(time_dim=time_dim))
        return jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]

    assert tree(16) == tree(0) and tree(32)["temb"]["dense0"]["kernel"].shape == (32, 128)
    assert tree(32)["down_0"]["block_0"]["temb_proj"]["kernel"].shape == (128, 32)  # a scale and a shift of 16


# --- all of it together, as the original's network is tested


@pytest.mark.parametrize("sides", [(8,), (8, 8)])
def test_equal_slices_are_seen_as_one_by_a_network_of_one_axis_more(sides):
    """Zeros on both sides would move a slice; blocks that halve and double do not look at others."""
    x, t, params = tiny_case((2, *sides, 2), ADM)
    apply = jax.jit(ADM.apply)
    flat = apply(params, x, t)
    deep = apply(deepened(params), jnp.repeat(x[:, None], 8, axis=1), t)
    assert jnp.std(flat) > 0.01
    np.testing.assert_allclose(deep, jnp.repeat(flat[:, None], 8, axis=1), atol=1e-4)


def test_bfloat16_changes_roundings_alone_and_what_is_not_told_is_no_label():
    net = ADM.clone(num_classes=3)
    x, t, params = tiny_case((4, 7, 5, 2), net)
    label = jnp.array([0, 1, 2, 3])
    apply, narrow = jax.jit(net.apply), jax.jit(net.clone(dtype=jnp.bfloat16).apply)
    wanted, found = apply(params, x, t, label=label), narrow(params, x, t, label=label)
    assert found.dtype == jnp.float32 and found.shape == x.shape
    assert 0 < jnp.linalg.norm(found - wanted) < 0.03 * jnp.linalg.norm(wanted)
    none = apply(params, x, t)
    np.testing.assert_allclose(none[3], wanted[3], atol=1e-5)
    assert jnp.abs(none[:3] - wanted[:3]).max((1, 2, 3)).min() > 1e-3


def test_remat_changes_no_parameter_and_no_gradient():
    """Of a whole network's tree, and of a block that does all of it."""
    x, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 8)), jnp.ones(2, int)
    trees = [jax.eval_shape(ADM.clone(remat=remat).init, jax.random.key(0), x, t) for remat in (False, True)]
    assert trees[0] == trees[1]
    temb, kind = jnp.ones((2, 6)), {"dropout": 0.5, "groups": 4, "time_joins": "scale_shift", "resize": halved}
    block, again = ResnetBlock(16, **kind), nn.remat(ResnetBlock)(16, **kind)
    params = random_params(block, x, temb)

    def gradient(block):
        return jax.jit(jax.grad(lambda params: jnp.square(block.apply(params, x, temb, image_keys(2))).mean()))(params)

    for a, b in zip(jax.tree.leaves(gradient(block)), jax.tree.leaves(gradient(again)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"heads": 2}, "heads = 2, head_channels = 8: say how many heads there are, or how many channels each has"),
        ({"head_channels": 12}, "head_channels = 12 does not divide the 16 channels of the level with multiplier 1"),
        ({"head_channels": -8}, "head_channels = -8 does not divide the 16 channels"),
        ({"attention_by": "level"}, "attention_by = 'level' is not one of 'size', 'factor'"),
        ({"attention_at": (16,)}, r"attention_at = \(16,\) with attention_by = 'factor': the levels .* by 1, 2\b"),
        ({"time_joins": "film"}, "time_joins = 'film' is not one of 'add', 'scale_shift'"),
        ({"resample_by": "conv"}, "resample_by = 'conv' is not one of 'layer', 'block'"),
        ({"conventions": {"padding": "same"}}, "conventions.padding = 'same' is not one of 'end', 'both'"),
        ({"conventions": {"time_order": "cos"}}, "conventions.time_order = 'cos' is not one of 'sin_cos', 'cos_sin'"),
        ({"conventions": {"eps": 0.0}}, "conventions.eps = 0.0, conventions.time_scale = 1.0: both must be positive"),
        ({"conventions": {"time_scale": 0.0}}, "conventions.time_scale = 0.0: both must be positive"),
        ({"conventions": {"time_shift": 2}}, "conventions.time_shift = 2, conventions.time_dim = 0: the first is 0 or"),
        ({"conventions": {"time_dim": -1}}, "conventions.time_dim = -1: the first is 0 or 1, the second how many"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(changes, text):
    said = {**changes, "conventions": Conventions(**changes.get("conventions", {}))}
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(ADM.clone(**said).init, jax.random.key(0), jnp.zeros((1, 8, 8, 2)), jnp.ones(1, int))


def test_a_config_says_all_of_it_and_survives_json():
    fields = {
        "attention_at": (2,), "attention_by": "factor", "head_channels": 8, "resample_by": "block",
        "time_joins": "scale_shift", "channels": 16, "multipliers": (1, 2),
        "conventions": {**OPENAI._asdict(), "time_scale": 0.25, "time_dim": 24},
    }  # fmt: skip
    config = configs.from_dict({"net": fields})
    assert configs.from_dict(json.loads(configs.to_json(config))) == config
    net = objects.network(config, 3).unet
    assert {name: getattr(net, name) for name in fields} == {
        **fields,
        "conventions": Conventions(**fields["conventions"]),
    }
    # ours and the config's are the same, and so are their defaults
    assert dataclasses.asdict(configs.Conventions()) == Conventions()._asdict()
    plain = objects.network(configs.Config(), 3).unet
    assert all(getattr(plain, name) == getattr(UNet(), name) for name in fields)
    with pytest.raises(ValueError, match=r"net\.conventions\.padding must be one of 'end', 'both', got 'same'"):
        configs.from_dict({"net": {"conventions": {"padding": "same"}}})
