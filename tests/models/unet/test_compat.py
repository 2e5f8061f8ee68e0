"""What other published networks do otherwise than the original: the laws that each option obeys, alone and together."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import precision
from networks import (
    ADM,
    assert_equal_slices_are_one,
    assert_gradients_agree,
    convolution_by_definition,
    image_keys,
    inputs,
    jitted_apply,
    normal,
    param_shapes,
)
from tiny_run import random_params

from ddpm_jax import config as configs
from ddpm_jax.keys import from_seed
from ddpm_jax.model import network
from ddpm_jax.models.unet import OPENAI, AttentionBlock, CompatOptions, Downsample, GroupNorm, ResnetBlock, UNet
from ddpm_jax.models.unet.layers import average_pool

# --- a normalisation that the time scales and shifts


def test_a_modulated_normalisation_is_one_and_then_a_line_and_so_are_its_gradients():
    def one(x, scale, bias, by):
        return GroupNorm(swish=True).apply({"params": {"scale": scale, "bias": bias}}, x, by)

    def two(x, scale, bias, by):
        y = GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
        return nn.swish(y * (1 + by[:, None, None, :6]) + by[:, None, None, 6:])

    @jax.jit
    def outputs_and_gradients(*args):
        return [(f(*args), jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1, 2, 3))(*args)) for f in (one, two)]

    with precision("float64"):
        rng = np.random.default_rng(0)
        arguments = rng.normal(size=(2, 3, 2, 6)), 1 + rng.normal(size=6), rng.normal(size=6), rng.normal(size=(2, 12))
        (ours, to_one), (expected, to_two) = outputs_and_gradients(*arguments)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        for a, b in zip(to_one, to_two, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        assert_gradients_agree(
            lambda *args: jnp.sin(one(*args)).sum(), arguments, [rng.normal(size=a.shape) for a in arguments]
        )


NARROW = UNet(
    channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), groups=8,
    time_conditioning="scale_shift", out_channels=2,
)  # fmt: skip


def test_a_time_that_comes_after_the_normalisation_is_felt_by_channels_that_are_groups():
    x, t, params = inputs(NARROW, 4, 4)
    moved = jitted_apply(NARROW)(params, x, t + 300) - jitted_apply(NARROW)(params, x, t)
    assert np.abs(moved).max() > 0.01
    forgetful = NARROW.clone(time_conditioning="add")
    with pytest.raises(ValueError, match="forget the time that is added to it"):
        forgetful.init(from_seed(0), x, t)
    # weights that someone has are what they are: it runs, and the time does nothing but by rounding
    half = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(leaf)[..., :8] if path[-2].key == "temb_proj" else leaf, params
    )
    np.testing.assert_allclose(
        jitted_apply(forgetful)(half, x, t + 300), jitted_apply(forgetful)(half, x, t), atol=1e-3
    )


# --- changes of size


def test_padding_says_at_which_pixels_a_strided_convolution_looks():
    """One that looks everywhere, at every other pixel: the odd ones with zeros at the end alone, else the even ones."""
    x = normal(2, 6, 8, 4)
    params = random_params(Downsample(), x)
    of_conv = jax.device_get(params["params"]["conv"])
    everywhere = convolution_by_definition(x, of_conv["kernel"], 1, 1) + of_conv["bias"]
    for padding, start in (("end", 1), ("both", 0)):
        found = jitted_apply(Downsample(padding=padding))(params, x)
        np.testing.assert_allclose(found, everywhere[:, start::2, start::2], atol=1e-5)


def blocks_of(net: UNet):
    """The blocks of a network by their names, as it makes them."""
    found = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, ResnetBlock) and context.method_name == "__call__":
            found.append(context.module)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(net.init, from_seed(0), normal(1, 8, 8, 2), np.ones(1, int))
    return found


def test_a_block_that_halves_sees_means_of_squares_and_one_that_doubles_sees_pixels_twice():
    """Of an image of equal squares, and of the same one pixel each: each is the other's block with its size changed."""
    made = {block.name: block for block in blocks_of(ADM.clone(dropout=0.0))}
    plain, halve, double = (
        made[name].clone(out_channels=16, name=None, parent=None) for name in ("block_0", "downsample", "upsample")
    )
    small, temb = normal(2, 5, 5, 16), normal(2, 8, seed=1)
    large = small.repeat(2, 1).repeat(2, 2)
    params = random_params(plain, small, temb)

    @jax.jit
    def outputs(params, small, large):
        cases = (halve, large), (plain, small), (double, small), (plain, large)
        return [block.apply(params, x, temb) for block, x in cases]

    of_large, of_small, twice, alike = outputs(params, small, large)
    np.testing.assert_allclose(of_large, of_small, atol=1e-4)
    np.testing.assert_allclose(twice, alike, atol=1e-4)


def test_every_block_that_changes_the_size_drops_with_a_number_of_its_own():
    made = blocks_of(ADM.clone(channel_multipliers=(1, 2, 2), attention_resolutions=(), num_res_blocks=2))
    others = [block.dropout_index for block in made if block.name.startswith("block")]
    assert others == list(range(3 * 2 + 2 + 3 * 3))  # as in a network whose size layers change
    rest = [block.dropout_index for block in made if not block.name.startswith("block")]
    assert len(rest) == 4 and len({*others, *rest}) == len(made)


# --- heads, and where attention stands


def test_heads_by_their_channels_are_heads_by_their_number():
    x = normal(2, 3, 4, 64)
    params = random_params(AttentionBlock(4), x)
    found = jitted_apply(AttentionBlock(head_channels=16))(params, x)
    np.testing.assert_array_equal(found, jitted_apply(AttentionBlock(4))(params, x))
    assert np.abs(found - jitted_apply(AttentionBlock(1))(params, x)).max() > 1e-3


def test_attention_by_factors_is_at_the_same_levels_of_every_size():
    net = UNet(
        channels=16,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        out_channels=1,
        groups=8,
    )
    factors = net.clone(attention_resolutions=(2,), attention_by="factor")

    def tree(net, side):
        return param_shapes(net, side, side, channels=1)

    assert tree(factors, 8) == tree(factors, 32) == tree(net, 8) != tree(net, 32)


# --- the time


def test_a_scale_of_the_time_is_another_count_of_the_same_times():
    """A chain of 4000 steps, rescaled to 1000, sees at its step 4 k + 1 what one of 1000 sees at k + 1."""
    x, _, params = inputs(NARROW, 4, 4)
    apply, slow = jitted_apply(NARROW), jitted_apply(NARROW.clone(compat=CompatOptions(time_scale=0.25)))
    k = np.array([0, 37, 500, 999], np.int32)
    expected = apply(params, x, k + 1)
    np.testing.assert_allclose(slow(params, x, 4 * k + 1), expected, atol=1e-5)
    assert np.abs(slow(params, x, 4 * k + 3) - expected).max((1, 2, 3)).min() > 1e-4


def test_a_time_is_as_long_as_the_channels_or_as_is_said():
    def tree(time_dim):
        return param_shapes(ADM.clone(compat=OPENAI._replace(time_dim=time_dim)), 8, 4, channels=2)

    assert tree(16) == tree(0) and tree(32)["temb"]["dense0"]["kernel"].shape == (32, 128)
    assert tree(32)["down_0"]["block_0"]["temb_proj"]["kernel"].shape == (128, 32)  # a scale and a shift of 16


# --- all of it together, as the original's network is tested


def test_equal_slices_are_seen_as_one_by_a_network_of_one_axis_more():
    """Zeros on both sides would move a slice; blocks that halve and double do not look at others."""
    assert_equal_slices_are_one(ADM)


def test_what_is_not_told_is_no_label():
    x, t, params = inputs(ADM, 8, 4)
    conditional = jitted_apply(ADM)(params, x, t, label=np.array([0, 1, 2, 3], np.int32))
    none = jitted_apply(ADM)(params, x, t)
    np.testing.assert_allclose(none[3], conditional[3], atol=1e-5)
    assert np.abs(none[:3] - conditional[:3]).max((1, 2, 3)).min() > 1e-3


BLOCK = ResnetBlock(16, dropout=0.5, groups=4, time_conditioning="scale_shift", resize=average_pool)


def test_bfloat16_changes_roundings_alone():
    """Of a block with a scale and a shift that halves the size; test_unet does it with a network."""
    x, temb = normal(4, 6, 4, 16), normal(4, 8, seed=1)
    params, narrow = random_params(BLOCK, x, temb), BLOCK.clone(dtype=jnp.bfloat16)
    expected, found = jitted_apply(BLOCK)(params, x, temb), jitted_apply(narrow)(params, x.astype(jnp.bfloat16), temb)
    assert 0 < np.linalg.norm(found.astype(np.float32) - expected) < 0.03 * np.linalg.norm(expected)
    x, t, params = inputs(ADM, 8, 4)
    assert jax.eval_shape(ADM.clone(dtype=jnp.bfloat16).apply, params, x, t).dtype == jnp.float32


def test_remat_changes_no_parameter_and_no_gradient():
    """Only what is kept changes; how much less that is, a compiler for accelerators says (test_preflight).

    Of a small network with dropout, and of a block that does all that blocks do.
    """
    assert param_shapes(ADM, 8, 4, channels=2) == param_shapes(ADM.clone(remat=True), 8, 4, channels=2)
    small = UNet(8, (1,), 1, (4,), dropout=0.1, groups=4, out_channels=1)
    again = small.clone(remat=True)
    x, t, params = inputs(small, 4, 4, batch=2)

    @jax.jit
    def begun(key):  # some of it: all would take seconds to compile
        trees = [net.init(key, x, t)["params"] for net in (small, again)]
        return [(tree["mid"]["block_2"]["conv1"], tree["down_0"]["attn_0"]["q"]) for tree in trees]

    jax.tree.map(np.testing.assert_array_equal, *begun(from_seed(0)))

    def gradient(net, params, *arguments):
        def loss(params, keys):
            return jnp.square(net.apply(params, *arguments, dropout_keys=keys)).mean()

        def some(params, keys):  # the way back is the same to all of them
            slopes = jax.grad(loss)(params, keys)["params"]
            return [slopes[name] for name in ("conv_in", "mid") if name in slopes] or slopes

        return jax.tree.leaves(jax.jit(some)(params, image_keys(2)))

    temb, image = normal(2, 6, seed=1), normal(2, 4, 4, 8)
    kind = {name: getattr(BLOCK, name) for name in ("out_channels", "dropout", "groups", "time_conditioning", "resize")}
    for one, other, *arguments in (
        (small, again, params, x, t),
        (BLOCK, nn.remat(ResnetBlock)(**kind), random_params(BLOCK, image, temb), image, temb),
    ):
        for a, b in zip(gradient(one, *arguments), gradient(other, *arguments), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"heads": 2}, "heads = 2, head_channels = 8: say how many heads there are, or how many channels each has"),
        ({"head_channels": 12}, "head_channels = 12 does not divide the 16 channels of the level with multiplier 1"),
        ({"head_channels": -8}, "head_channels = -8 does not divide the 16 channels"),
        ({"attention_by": "level"}, "attention_by = 'level' is not one of 'size', 'factor'"),
        (
            {"attention_resolutions": (16,)},
            r"attention_resolutions = \(16,\) with attention_by = 'factor': the levels .* by 1, 2\b",
        ),
        ({"time_conditioning": "film"}, "time_conditioning = 'film' is not one of 'add', 'scale_shift'"),
        ({"resample": "conv"}, "resample = 'conv' is not one of 'layer', 'block'"),
        ({"compat": {"padding": "same"}}, "compat.padding = 'same' is not one of 'end', 'both'"),
        ({"compat": {"time_order": "cos"}}, "compat.time_order = 'cos' is not one of 'sin_cos', 'cos_sin'"),
        ({"compat": {"eps": 0.0}}, "compat.eps = 0.0, compat.time_scale = 1.0: both must be positive"),
        ({"compat": {"time_scale": 0.0}}, "compat.time_scale = 0.0: both must be positive"),
        ({"compat": {"time_shift": 2}}, "compat.time_shift = 2, compat.time_dim = 0: the first is 0 or"),
        ({"compat": {"time_dim": -1}}, "compat.time_dim = -1: the first is 0 or 1, the second how many"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(changes, text):
    options = {**changes, "compat": CompatOptions(**changes.get("compat", {}))}
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(ADM.clone(**options).init, from_seed(0), np.zeros((1, 8, 8, 2), np.float32), np.ones(1, int))


def test_a_config_says_all_of_it_and_survives_json():
    fields = {
        "attention_resolutions": (2,), "attention_by": "factor", "head_channels": 8, "resample": "block",
        "time_conditioning": "scale_shift", "channels": 16, "channel_multipliers": (1, 2),
        "compat": {**OPENAI._asdict(), "time_scale": 0.25, "time_dim": 24},
    }  # fmt: skip
    config = configs.from_dict({"net": fields})
    assert configs.from_dict(json.loads(configs.to_json(config))) == config
    net = network(config, 3).net
    assert {name: getattr(net, name) for name in fields} == {
        **fields,
        "compat": CompatOptions(**fields["compat"]),
    }
    # ours and the config's are the same, and so are their defaults
    assert dataclasses.asdict(configs.CompatOptions()) == CompatOptions()._asdict()
    plain = network(configs.Config(), 3).net
    assert all(getattr(plain, name) == getattr(UNet(), name) for name in fields)
    with pytest.raises(ValueError, match=r"net\.compat\.padding must be one of 'end', 'both', got 'same'"):
        configs.from_dict({"net": {"compat": {"padding": "same"}}})
