"""The U-Net against the original's variables and outputs, and the laws that its parts obey."""

import functools
import math
import re

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import Golden, cases, ids, precision, stored_array
from networks import (
    TINY,
    add_kernel_axis,
    assert_equal_slices_are_one,
    assert_gradients_agree,
    image_keys,
    inputs,
    jitted_apply,
    normal,
    original_tree,
    param_shapes,
    tensors,
)
from tiny_run import random_params

from ddpm_jax.keys import from_seed
from ddpm_jax.models.unet import (
    AttentionBlock,
    Downsample,
    GroupNorm,
    ResnetBlock,
    UNet,
    Upsample,
    dropout,
    norm,
    timestep_embedding,
)
from ddpm_jax.models.unet.norm import group_count
from ddpm_jax.models.unet.parameters import parameter

# --- golden data


@functools.cache
def embeddings(dtype: str) -> dict:
    """Those of all golden cases, from one program."""

    def options(golden: Golden) -> dict:
        args = golden.args
        if golden.id.startswith("g/diffusers"):
            values = args["embedding_dim"], args["flip_sin_to_cos"], args["downscale_freq_shift"]
        else:
            ours = golden.id.startswith("g/original")
            values = args["embedding_dim" if ours else "dim"], not ours, int(ours)
        return dict(zip(("dim", "cos_first", "shift"), values, strict=True))

    goldens = [Golden(id, dtype) for id in ids("g/*")]
    kinds = {golden.id: options(golden) for golden in goldens}
    t = {golden.id: golden["t"].astype(golden.dtype) for golden in goldens}
    return jax.jit(lambda t: {id: timestep_embedding(t[id], **kind) for id, kind in kinds.items()})(t)


@cases("g/*")
def test_embedding_of_time_is_that_of_the_peers(golden: Golden):
    golden.close("emb", embeddings(str(golden.dtype))[golden.id])


@cases("h/original_unet_A")
def test_unet_with_the_originals_variables_is_the_original(golden: Golden):
    args = golden.args
    net = UNet(
        args["ch"], args["ch_mult"], args["num_res_blocks"], args["attn_resolutions"], out_channels=args["out_ch"],
        dtype=golden.dtype,
    )  # fmt: skip
    params, x, t = original_tree(tensors(golden, "var:")), golden["x"], golden["t"] + 1
    ours = jax.eval_shape(net.init, from_seed(0), x, t)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours)} == {"float32"}

    def scalar(params):
        out = net.apply({"params": params}, x, t)
        return jnp.sum(out.reshape(-1) * jnp.cos(jnp.arange(out.size, dtype=out.dtype))), out

    with jax.default_matmul_precision("highest"):
        (_, out), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    golden.close("out", out, **({"rtol": 1e-5, "atol": 1e-5} if golden.single else {}))

    norms = {}
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        *scope, leaf = (p.key for p in path)
        tf = "W" if leaf == "kernel" else "gamma" if leaf == "scale" else "beta" if "norm" in scope[-1] else "b"
        norms["/".join([*scope, tf])] = np.linalg.norm(np.asarray(g).reshape(-1))
    names = [re.sub("^model/|:0$", "", str(n)) for n in stored_array(golden.id, "grad_norm_names")]
    golden.exempt("grad_norm_names")
    assert sorted(names) == sorted(norms)
    golden.close("grad_norms", np.stack([norms[n] for n in names]))


LAYERS = {
    "h/layer_downsample_conv": Downsample(),
    "h/layer_downsample_pool": Downsample(with_conv=False),
    "h/layer_upsample_noconv": Upsample(with_conv=False),
    "h/layer_attn_block": AttentionBlock(),
    "h/layer_resnet_block_up": ResnetBlock(32),
    "h/layer_resnet_block_conv_shortcut": ResnetBlock(32, conv_shortcut=True),
}


@functools.cache
def outputs_of_layers(dtype: str) -> dict:
    """Those of all layers, from one program."""
    goldens = {id: Golden(id, dtype) for id in LAYERS}
    variables = {id: original_tree(tensors(golden, "var:")) for id, golden in goldens.items()}
    arrays = {id: [golden[name] for name in ("x", "temb") if name in golden.names] for id, golden in goldens.items()}

    def outputs(variables, arrays):
        return {
            id: layer.clone(dtype=jnp.dtype(dtype)).apply({"params": variables[id]}, *arrays[id])
            for id, layer in LAYERS.items()
        }

    with jax.default_matmul_precision("highest"):
        return jax.jit(outputs)(variables, arrays)


@cases("h/layer_*")
def test_layers_with_the_originals_variables_are_the_originals(golden: Golden):
    out = outputs_of_layers(str(golden.dtype))[golden.id]
    # the original's output was computed in float64 and stored in float32
    golden.close("out", out) if golden.single else np.testing.assert_allclose(out, golden["out"], rtol=1e-7, atol=1e-8)
    golden.exempt("out")


# --- group normalisation


def plain_group_norm(x, params, groups, swish=False):
    """From the definition, in float64."""
    x = np.asarray(x, np.float64)
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(x.shape)
    y = y * np.asarray(params["scale"], np.float64) + np.asarray(params["bias"], np.float64)
    return y / (1 + np.exp(-y)) if swish else y


def norm_case(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    scale, bias = ((rng.normal(size=shape[-1:]) + offset).astype(dtype) for offset in (1, 0))
    return rng.normal(size=shape).astype(dtype), {"scale": scale, "bias": bias}


GROUPS = {32: 32, 128: 32, 384: 32, 48: 24, 40: 20, 33: 11, 37: 1, 16: 8, 3: 1}


def test_groups_are_32_or_the_most_that_hold_two_channels():
    pairs = {channels: norm_case((2, 3, 5, channels)) for channels in GROUPS}
    pairs = {channels: (3 * x + np.arange(channels) % 7, params) for channels, (x, params) in pairs.items()}

    @jax.jit
    def outputs(pairs):
        both = [GroupNorm(swish=swish) for swish in (False, True)]
        return {c: [layer.apply({"params": params}, x) for layer in both] for c, (x, params) in pairs.items()}

    pairs = jax.tree.map(lambda a: a.astype(np.float32), pairs)
    for channels, found in outputs(pairs).items():
        assert group_count(channels) == GROUPS[channels], channels
        for swish, ours in enumerate(found):
            expected = plain_group_norm(*pairs[channels], GROUPS[channels], swish)
            np.testing.assert_allclose(ours, expected, atol=2e-5, err_msg=f"{channels} channels, swish {swish}")


def test_fewer_groups_let_a_narrow_level_feel_the_time():
    """At 32 channels and 32 groups a constant added to a channel is taken out again; at 8 groups it is not."""
    x, params = normal(1, 4, 4, 32), {"params": {"scale": np.ones(32), "bias": np.zeros(32)}}

    @jax.jit
    def change(x, shifted):
        return [
            jnp.abs(n.apply(params, shifted) - n.apply(params, x)).max() for n in (GroupNorm(), GroupNorm(groups=8))
        ]

    none, some = change(x, x + np.arange(32, dtype=np.float32) / 8)
    assert none < 1e-5 and some > 0.1
    narrow = UNet(channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), groups=8)
    with pytest.raises(ValueError, match="groups = 0: a normalisation needs at least one"):
        narrow.copy(groups=0).init(from_seed(0), x, np.ones(1, int))


def test_a_mean_of_2000_standard_deviations_does_no_harm():
    pairs = [norm_case(shape) for shape in ((2, 8, 8, 32), (1, 64, 64, 64))]
    pairs = [(x + np.float32(2000), params) for x, params in pairs]
    found = jax.jit(lambda pairs: [GroupNorm().apply({"params": params}, x) for x, params in pairs])(pairs)
    for ours, (x, params) in zip(found, pairs, strict=True):
        # float32 holds numbers near 2000 to 1.2e-4, and the mean is one of them; E[x^2] - E[x]^2 is wrong by more than
        # 1
        np.testing.assert_allclose(ours, plain_group_norm(x, params, 32), atol=2e-3, err_msg=str(x.shape))


def test_one_pass_has_three_digits_or_becomes_two():
    in_one, in_two = (jax.jit(f, static_argnums=1) for f in (norm._moments_in_one_pass, norm._moments))
    for mean, again in ((0, False), (30, False), (200, True), (2000, True)):
        x = norm_case((2, 16, 16, 64))[0] + np.float32(mean)
        parts = x[..., :16], x[..., 16:]
        found, expected = in_one(parts, 8), in_two(parts, 8)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6, err_msg=f"a mean of {mean}")
        assert np.array_equal(found[1], expected[1]) == again, mean


def test_a_norm_of_parts_is_that_of_the_whole():
    def outputs(params, parts, x):
        apply = GroupNorm(swish=swish, groups=4).apply
        by_part, whole = (jax.grad(lambda x: jnp.sin(apply(params, x)).sum())(argument) for argument in (parts, x))
        return apply(params, parts), apply(params, x), jnp.concatenate(by_part, axis=-1), whole

    with precision("float64"):
        x, params = norm_case((2, 3, 4, 12), dtype=np.float64)
        for swish in (False, True):
            parts = tuple(np.split(x, [2, 7], axis=-1))
            ours, expected, slopes, along = jax.jit(outputs)({"params": params}, parts, x)
            np.testing.assert_allclose(ours, expected, rtol=1e-12, err_msg=f"swish {swish}")
            np.testing.assert_allclose(slopes, along, rtol=1e-10, atol=1e-14, err_msg=f"swish {swish}")


@pytest.mark.parametrize("swish", [False, True])
def test_gradient_of_group_norm_is_that_of_finite_differences_twice(swish):
    with precision("float64"):
        x, params = norm_case((2, 2, 3, 6), dtype=np.float64)
        args = (x, params["scale"], params["bias"])
        rng = np.random.default_rng(1)

        def f(x, scale, bias):
            return jnp.sin(GroupNorm(swish=swish).apply({"params": {"scale": scale, "bias": bias}}, x)).sum()

        assert_gradients_agree(f, args, [rng.normal(size=a.shape) for a in args])


def test_group_norm_under_vmap_is_a_loop():
    x, params = norm_case((3, 2, 4, 4, 32))
    f = lambda x: jnp.sum(jnp.sin(GroupNorm(swish=True).apply({"params": params}, x)))  # noqa: E731
    alone = jax.jit(jax.value_and_grad(f))
    together, apart = jax.jit(jax.vmap(jax.value_and_grad(f)))(x), [alone(one) for one in x]
    for a, b in zip(jax.tree.leaves(together), zip(*apart, strict=True), strict=True):
        np.testing.assert_allclose(a, np.stack(b), rtol=1e-5, atol=1e-6)


def test_statistics_of_bfloat16_are_float32():
    x, params = norm_case((2, 32, 32, 64))
    x = (8 + x).astype(jnp.bfloat16)
    expected = plain_group_norm(x, params, 32, swish=True)

    @jax.jit
    def output_and_gradient(x):
        ours, vjp = jax.vjp(lambda x: GroupNorm(swish=True).apply({"params": params}, x), x)
        return ours, vjp(ours)[0]

    ours, gradient = output_and_gradient(x)
    assert ours.dtype == gradient.dtype == jnp.bfloat16
    # one rounding to 8 bits at the end, and none before: sums in bfloat16 would stop growing at 256 terms
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2**-8, atol=1e-5)


# --- attention


def attention_case(heads, c=64):
    block, x = AttentionBlock(heads), normal(2, 3, 4, c)
    return block, x, jax.device_get(random_params(block, x))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_does_not_know_where_pixels_are(heads):
    block, x, params = attention_case(heads)
    order = np.random.default_rng(0).permutation(12)
    shuffle = lambda a: np.asarray(a).reshape(2, 12, -1)[:, order].reshape(a.shape)  # noqa: E731
    apply = jitted_apply(block)
    np.testing.assert_allclose(apply(params, shuffle(x)), shuffle(apply(params, x)), atol=1e-5)


def test_attention_with_equal_logits_is_the_mean_and_with_huge_ones_the_best():
    block, x, params = attention_case(1)
    p = params["params"]
    p["proj_out"] = {"kernel": np.eye(64, dtype=np.float32), "bias": np.zeros(64, np.float32)}
    normed = plain_group_norm(x, p["norm"], 32)
    values = normed @ p["v"]["kernel"] + p["v"]["bias"]
    p["q"] = {"kernel": np.zeros((64, 64), np.float32), "bias": np.zeros(64, np.float32)}
    mean = np.broadcast_to(values.mean((1, 2), keepdims=True), x.shape)
    np.testing.assert_allclose(jitted_apply(block)(params, x) - x, mean, atol=1e-5)

    p["q"]["bias"][5] = 1e6
    key = (normed @ p["k"]["kernel"] + p["k"]["bias"])[..., 5].reshape(2, -1)
    best = values.reshape(2, -1, 64)[np.arange(2), key.argmax(1)][:, None, None]
    np.testing.assert_allclose(jitted_apply(block)(params, x) - x, np.broadcast_to(best, x.shape), atol=1e-5)


def test_a_head_looks_at_its_own_channels_alone():
    block, x, params = attention_case(4)
    p = params["params"]
    p["proj_out"]["kernel"] = np.eye(64, dtype=np.float32)
    before = jitted_apply(block)(params, x)
    p["q"]["kernel"] = p["q"]["kernel"] + np.float32((np.arange(64) >= 16) & (np.arange(64) < 32))
    changed = np.abs(jitted_apply(block)(params, x) - before).max((0, 1, 2)) > 1e-6
    np.testing.assert_array_equal(changed, (np.arange(64) >= 16) & (np.arange(64) < 32))


# --- dropout

dropped = jax.jit(dropout, static_argnums=(2, 3))


def test_the_mask_of_an_image_is_its_own_wherever_it_is_computed():
    x, keys = np.ones((8, 5, 7, 3), np.float32), image_keys(8)
    together = np.asarray(dropped(x, keys, 0.3, 4))
    alone = [dropped(x[i : i + 1], keys[i : i + 1], 0.3, 4) for i in range(8)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    devices = jax.device_count()
    assert devices == 8
    spread = jax.pmap(lambda x, k: dropout(x, k, 0.3, 4))(x[:, None], keys.reshape(8, 1))
    np.testing.assert_array_equal(together, np.asarray(spread)[:, 0])


def test_masks_differ_between_images_and_places():
    x, keys = np.ones((2, 16, 16, 4), np.float32), image_keys(2)
    a, b = (np.asarray(dropped(x, keys, 0.5, dropout_index)) for dropout_index in (0, 1))
    for one, other in [(a[0], a[1]), (a, b)]:
        # independent fair coins agree half of the time, with a standard error of 1 / sqrt(4 n)
        agreement = np.mean((one == 0) == (other == 0))
        assert abs(agreement - 0.5) < 4 / math.sqrt(4 * one.size)


def test_dropout_drops_its_rate_and_leaves_the_mean():
    n, rates = 2**18, (0.1, 0.5, 2**-10)
    x = np.ones((16, n // 16), np.float32)
    found = jax.jit(lambda x, keys: [dropout(x, keys, rate, 0) for rate in rates])(x, image_keys(16))
    for rate, y in zip(rates, map(np.asarray, found), strict=True):
        keep_prob = 1 - round(rate * 2**16) / 2**16
        assert abs(np.mean(y != 0) - keep_prob) < 4 * math.sqrt(keep_prob * (1 - keep_prob) / n), rate
        np.testing.assert_allclose(y[y != 0], 1 / keep_prob, rtol=1e-6)


def test_gradient_of_dropout_is_its_mask():
    x, keys = normal(4, 6, 6, 8), image_keys(4)
    grad = jax.jit(jax.grad(lambda x: dropout(x, keys, 0.25, 2).sum()))(x)
    np.testing.assert_array_equal(grad, dropped(np.ones_like(x), keys, 0.25, 2))


# --- the whole network


def count(net, side):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(net, side, side)))


LARGE = UNet(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)


def test_parameter_counts_are_those_of_the_published_networks():
    assert count(UNet(), 32) == 35_746_307
    assert count(LARGE, 256) == 113_673_219
    # neither is in the number of heads
    assert param_shapes(TINY.clone(heads=4), 8, 4, channels=2) == param_shapes(TINY, 8, 4, channels=2)
    resampling = (16**2 * 9 + 16) + (32**2 * 9 + 32)
    assert count(TINY, 8) - count(TINY.clone(resample_with_conv=False), 8) == resampling


@pytest.mark.slow
def test_parameter_counts_are_those_of_the_larger_networks():
    assert count(LARGE.clone(channels=192), 256) == 255_677_955
    assert count(UNet(heads=4), 32) == 35_746_307
    resampling = (128**2 * 9 + 128) + 5 * (256**2 * 9 + 256)
    assert count(UNet(resample_with_conv=False), 32) == 35_746_307 - resampling


def test_dropout_of_an_image_does_not_depend_on_its_batch():
    x, t, params = inputs(TINY, 8, 4)
    apply, keys = jitted_apply(TINY), image_keys(4)
    together = apply(params, x, t, dropout_keys=keys)
    # elsewhere in a batch, beside others
    order = np.array([2, 3, 0, 0])
    moved = apply(params, x[order], t[order], dropout_keys=keys[order])
    np.testing.assert_allclose(moved, together[order], atol=1e-4)
    without = apply(params, x, t)
    assert (np.abs(together - without).max((1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(without, apply(params, x, t))


def test_every_block_drops_with_a_number_of_its_own():
    places = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, ResnetBlock) and context.method_name == "__call__":
            places.append(context.module.dropout_index)
        return next_fun(*args, **kwargs)

    net = TINY.clone(channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=())
    with nn.intercept_methods(record):
        jax.eval_shape(net.init, from_seed(0), normal(1, 8, 8, 2), np.ones(1, int))
    assert places == list(range(3 * 2 + 2 + 3 * 3))


def test_images_and_times_of_a_batch_do_not_mix():
    x, t, params = inputs(TINY, 8, 4)
    other, later = x.copy(), t.copy()
    other[1] += 0.1
    later[2] += 1
    moved = np.abs(jitted_apply(TINY)(params, other, later) - jitted_apply(TINY)(params, x, t)).max((1, 2, 3))
    assert (moved[[0, 3]] == 0).all()
    assert (moved[[1, 2]] > 1e-4).all()


ANY = UNet(channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(), dropout=0.1)


@pytest.mark.parametrize("sides", [(13,), (7, 5), (3, 1, 5)])
def test_sequences_images_and_volumes_of_any_size_are_felt_everywhere(sides):
    """Each number of one alone, moved, moves the output: an image of the batch has one that is moved."""
    net = ANY.clone(out_channels=2, attention_resolutions=(2, 14), resample_with_conv=False)
    x, _, params = inputs(net, *sides, batch=1)
    moved = 1 + np.arange(x.size)
    batch = x.repeat(1 + x.size, axis=0)
    batch.reshape(1 + x.size, -1)[moved, moved - 1] += 1
    keys = image_keys(1)[np.zeros(1 + x.size, int)]  # what is dropped is the same for all
    out = jitted_apply(net)(params, batch, np.full(1 + x.size, 40, np.int32), dropout_keys=keys)
    assert out.shape == batch.shape and np.isfinite(out).all()
    change = np.abs(out[1:] - out[0]).reshape(x.size, -1).max(1)
    assert (change > 1e-5).all(), change


def sizes(*sides):
    """How many numbers are in the kernels of 3 of a network, and how many in everything else."""
    leaves = jax.tree.leaves(param_shapes(TINY, *sides, channels=2))
    kernels, rest = ([leaf.size for leaf in leaves if (leaf.ndim > 2) == is_kernel] for is_kernel in (True, False))
    return sum(kernels), sum(rest)


def test_each_axis_triples_the_kernels_and_changes_nothing_else():
    (one, rest), (two, same), (three, same_too) = sizes(4), sizes(8, 4), sizes(4, 8, 4)
    assert rest == same == same_too and (3 * one, 3 * two) == (two, three)


def test_equal_slices_are_seen_as_one_by_a_network_of_one_axis_more():
    """By kernels that reach no other slice: statistics and attention over equal slices are those over one."""
    assert_equal_slices_are_one(TINY)


@pytest.mark.parametrize("make", [Upsample, Downsample])
def test_slices_of_a_volume_are_resized_as_images_are(make):
    """Each alone, with the middle plane of the kernel; depth itself is doubled, or every other slice is taken."""
    x, layer = normal(2, 6, 8, 10, 4, seed=3), make()
    params = random_params(layer, x[:, 0])
    slices = np.stack([jitted_apply(layer)(params, x[:, i]) for i in range(6)], axis=1)
    expected = np.repeat(slices, 2, axis=1) if make is Upsample else slices[:, 1::2]
    np.testing.assert_allclose(jitted_apply(layer)(add_kernel_axis(params), x), expected, atol=1e-5)


@pytest.mark.parametrize("make", [Upsample, Downsample])
def test_resizing_keeps_the_precision_of_its_input(make):
    x = jnp.ones((1, 4, 4, 8), jnp.bfloat16)
    assert make(with_conv=False).apply({}, x).dtype == jnp.bfloat16


def test_a_volume_has_the_same_answer_whichever_way_it_lies():
    """Swapping two axes of the image and of all kernels swaps them in the result; sizes that halve need no padding."""
    x, t, params = inputs(TINY, 4, 8, 4, batch=1)
    turned = jax.tree.map(lambda leaf: np.asarray(leaf).swapaxes(0, 2) if leaf.ndim > 2 else leaf, params)
    expected = jitted_apply(TINY)(params, x, t).swapaxes(1, 3)
    np.testing.assert_allclose(jitted_apply(TINY)(turned, x.swapaxes(1, 3), t), expected, atol=1e-4)


def test_what_is_cut_off_were_zeros_in_the_input():
    whole, t, params = inputs(TINY, 8, 4)
    part = whole[:, :7, :3]
    padded = np.pad(part, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(
        jitted_apply(TINY)(params, padded, t)[:, :7, :3], jitted_apply(TINY)(params, part, t), atol=1e-4
    )


class Seen(Exception):
    """What the first level of a network sees: nothing after it has to be traced."""


def padded(size):
    """The size of the image that the first level of a network with three of them sees."""

    def stop(next_fun, args, kwargs, context):
        if context.module.name == "conv_in":
            raise Seen(args[0].shape[1:3])
        return next_fun(*args, **kwargs)

    net = TINY.clone(channel_multipliers=(1, 2, 2))
    with nn.intercept_methods(stop), pytest.raises(Seen) as raised:
        jax.eval_shape(net.init, from_seed(0), normal(1, *size, 3), np.ones(1, int))
    return raised.value.args[0]


def test_padding_goes_to_the_next_size_that_halves_and_no_further():
    assert padded((28, 12)) == (28, 12)
    assert padded((29, 47)) == (32, 48)
    assert padded((1, 64)) == (4, 64)


@pytest.mark.parametrize(
    ("per_level", "size", "sides", "levels"),
    [
        (2, (32, 32), (16, 8), {1, 2}), (1, (32, 32), (16,), {1}), (1, (32, 32), (), set()),
        (1, (8, 64), (4,), {1}), (1, (29, 64), (32,), {0}),
    ],
)  # fmt: skip
def test_attention_follows_every_block_at_its_sizes_and_the_middle(per_level, size, sides, levels):
    tree = param_shapes(
        UNet(channels=16, channel_multipliers=(1, 2, 2), num_res_blocks=per_level, attention_resolutions=sides), *size
    )
    found = {f"{level}/{name}" for level, parts in tree.items() for name in parts if name.startswith("attn")}
    down = {f"down_{i}/attn_{j}" for i in levels for j in range(per_level)}
    up = {f"up_{i}/attn_{j}" for i in levels for j in range(per_level + 1)}
    assert found == {"mid/attn_1"} | down | up


def test_parameters_that_are_there_are_taken_as_they_are_and_none_of_another_shape():
    shapes = []

    def sevens(key, shape, dtype):
        shapes.append(shape)
        return jnp.full(shape, 7, dtype)

    class Times(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * parameter(self, "factor", sevens, x.shape)

    two = np.array([2, 3], np.float32)
    made = Times().init(from_seed(0), np.ones(2, np.float32))
    assert made["params"]["factor"].tolist() == [7, 7] and shapes == [(2,)]
    assert Times().apply({"params": {"factor": two}}, np.ones(2, np.float32)).tolist() == [2, 3]
    assert len(shapes) == 1  # to begin with alone
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r'"factor" .* shape \(3,\), but .* shape \(2,\)'):
        Times().apply(made, np.ones(3, np.float32))


def test_the_start_is_silence():
    net = UNet(channels=32, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), groups=8)
    x, eps = normal(2, 4, 8, 8, 3)
    t = np.array([1, 10, 300, 1000])

    @jax.jit
    def begun(key):
        params = net.init(key, x, t)
        return params, net.apply(params, x, t)

    params, out = jax.device_get(begun(from_seed(0)))
    # swish of a standard normal has a mean square of 0.3556; 32 x 9 such inputs, kernel variance 1e-10 / (9 x 35 / 2)
    assert 0.5 < out.std() / math.sqrt(0.3556 * 32 * 9 * 1e-10 * 2 / (9 * 35)) < 1.5
    loss = np.mean((out - eps) ** 2)
    assert abs(loss - 1) < 4 * math.sqrt(2 / eps.size) and abs(loss - np.mean(eps**2)) < 1e-5

    for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"]):
        *scope, kind = (p.key for p in path)
        if kind == "kernel":  # uniform, of variance scale / fan average
            fan = math.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1]) / 2
            scale = 1e-10 if scope[-1] in ("conv2", "proj_out", "conv_out") else 1.0
            limit = math.sqrt(3 * scale / fan)
            assert 0.98 * limit < np.abs(leaf).max() <= 1.0001 * limit, scope
            assert abs(leaf.std() * math.sqrt(3) / limit - 1) < 4 / math.sqrt(leaf.size), scope
        else:
            assert (leaf == (kind == "scale")).all(), scope


def test_bfloat16_computes_and_float32_remembers():
    x, t, params = inputs(TINY, 8, 4)
    half = TINY.clone(dtype=jnp.bfloat16)
    shapes = param_shapes(half, 8, 4, channels=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    exact, close = jitted_apply(TINY)(params, x, t), jitted_apply(half)(params, x, t)
    assert close.dtype == jnp.float32
    # 8 bits a number, through some thirty layers
    assert 0 < np.linalg.norm(close - exact) < 0.03 * np.linalg.norm(exact)
    assert jax.eval_shape(half.apply, params, x.astype(jnp.bfloat16), t).dtype == jnp.float32


@pytest.mark.parametrize("options", [{}, {"resample": "block", "num_classes": 2, "context_dim": 3}])
def test_forward_mode_agrees_with_reverse_mode(options):
    """<w, J v> = <J' w, v>, J being the derivative by the image and the parameters; and the outputs are the same.

    J v is also that of finite differences.
    """
    net = UNet(8, (1, 2), 1, (4,), groups=4, out_channels=2, dtype=jnp.float64, **options)
    draw, t = np.random.default_rng(0), np.array([1, 7])
    x, w = draw.standard_normal((2, 2, 8, 8, 2))
    conditions = {"label": np.array([0, 1]), "context": draw.standard_normal((2, 3, 3))} if options else {}

    def derivatives(primals, along, w):
        plain = net.clone(forward_mode=True)
        y, forward = jax.jvp(lambda params, x: plain.apply(params, x, t, **conditions), primals, along)
        usual, back = jax.vjp(lambda params, x: net.apply(params, x, t, **conditions), *primals)
        reverse = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (back(w), along)), strict=True))
        return y, usual, forward, reverse

    with precision("float64"):
        shapes = jax.eval_shape(net.init, from_seed(0), x, t, **conditions), x
        primals, along = (jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape) / 3, shapes) for _ in range(2))
        y, usual, forward, reverse = jax.jit(derivatives)(primals, along, w)
        after, before = (
            jitted_apply(net)(*jax.tree.map(lambda p, d: p + h * d, primals, along), t, **conditions)
            for h in (1e-5, -1e-5)
        )
    np.testing.assert_allclose(y, usual, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.vdot(w, forward), reverse, rtol=1e-10)
    np.testing.assert_allclose(forward, (after - before) / 2e-5, rtol=1e-6, atol=1e-6 * np.abs(forward).max())


def test_float64_images_come_back_as_float64():
    with precision("float64"):
        x, t = np.zeros((1, 8, 4, 2)), np.ones(1, int)
        params = jax.eval_shape(TINY.init, from_seed(0), x, t)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert jax.eval_shape(TINY.apply, params, x, t).dtype == jnp.float64


X, T = np.zeros((2, 16, 16, 3), np.float32), np.array([1, 2], np.int32)


@pytest.mark.parametrize(
    ("net", "x", "t", "keys", "text"),
    [
        (
            TINY, X[0, 0], T, None,
            "x has shape (16, 3): images are [B, H, W, C], volumes [B, D, H, W, C], sequences [B, L, C]",
        ),
        (
            TINY, X.astype(np.uint8), T, None,
            "x is uint8: scale uint8 images to [-1, 1] first, as floats (x / 127.5 - 1)",
        ),
        (TINY, X[:0], T[:0], None, "x has shape (0, 16, 16, 3): give at least one image, with no side of 0"),
        (TINY, X[:, :0], T, None, "x has shape (2, 0, 16, 3): give at least one image, with no side of 0"),
        (TINY, X, T[:1], None, "t has shape (1,), x has shape (2, 16, 16, 3): t is [B], one time per image"),
        (TINY, X, T[0], None, "t has shape (), x has shape (2, 16, 16, 3): t is [B], one time per image"),
        (TINY, X, (T / 2).astype(np.float32), None, "t is float32: times are the integers 1 .. T"),
        (
            TINY.clone(channel_multipliers=()), X, T, None,
            "channel_multipliers is empty: give one integer per level, such as (1, 2, 2, 2)",
        ),
        (
            TINY.clone(heads=3), X, T, None,
            "heads = 3 does not divide the 16 channels of the level with multiplier 1 (channels = 16): every head needs"
            " the same number of them",
        ),
        (
            TINY.clone(channels=32, channel_multipliers=(1, 1)), X, T, None,
            "channels = 32, channel_multipliers = (1, 1): every channel would be a group of the normalisation by itself"
            " and forget the time that is added to it; some level needs more than groups = 32 channels",
        ),
        (
            TINY.clone(dropout=1.0), X, T, None,
            "dropout = 1.0 is not in [0, 1): it is the share of numbers that are set to 0",
        ),
        (
            TINY.clone(dropout=-0.1), X, T, None,
            "dropout = -0.1 is not in [0, 1): it is the share of numbers that are set to 0",
        ),
        (
            TINY, X, T, lambda: jax.random.key_data(image_keys(2)),
            "dropout_keys is uint32: give typed keys, jax.random.split(jax.random.key(seed), B)",
        ),
        (TINY, X, T, lambda: 7, "dropout_keys is int: give typed keys, jax.random.split(jax.random.key(seed), B)"),
        (
            TINY, X, T, lambda: jax.random.split(jax.random.key(0, impl="rbg"), 2),
            "dropout_keys is key<rbg>: under vmap only threefry2x32 keys give each image its own bits",
        ),
        (
            TINY, X, T, lambda: from_seed(0),
            "dropout_keys has shape (), x has shape (2, 16, 16, 3): one key per image, [B]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_words(net, x, t, keys, text):
    with pytest.raises(ValueError, match=f"(?m)^{re.escape(text)}$"):
        jax.eval_shape(lambda: net.init(from_seed(0), x, t, dropout_keys=keys and keys()))
