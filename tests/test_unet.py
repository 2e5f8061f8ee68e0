"""The U-Net against the original's variables and outputs, and the laws that its parts obey."""

import math
import re

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import Golden, cases, exact, precision
from jax.test_util import check_grads
from tiny_run import random_params

from ddpm_jax.unet import (
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
from ddpm_jax.unet.norm import group_count
from ddpm_jax.unet.parameters import parameter

# --- golden data

LEAF = {"W": "kernel", "b": "bias", "gamma": "scale", "beta": "bias"}


def variables(golden: Golden) -> dict:
    """The original's TF variables, "var:scope/a/b/W", as our tree {"params": {"a": {"b": {"kernel": ...}}}}."""
    tree: dict = {}
    for name in golden.names:
        if name.startswith("var:"):
            _, *path, leaf = name.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[LEAF[leaf]] = golden[name]
    return {"params": tree}


@cases("g/*")
def test_embedding_of_time_is_that_of_the_peers(golden: Golden):
    args = golden.args
    if golden.id.startswith("g/diffusers"):
        dim, cos_first, shift = args["embedding_dim"], args["flip_sin_to_cos"], args["downscale_freq_shift"]
    else:
        ours = golden.id.startswith("g/original")
        dim, cos_first, shift = args["embedding_dim" if ours else "dim"], not ours, int(ours)
    t = golden["t"].astype(golden.dtype)
    golden.close("emb", timestep_embedding(t, dim, cos_first=cos_first, shift=shift))


@cases("h/original_unet_A")
def test_unet_with_the_originals_variables_is_the_original(golden: Golden):
    args = golden.args
    net = UNet(
        args["ch"], args["ch_mult"], args["num_res_blocks"], args["attn_resolutions"], out_channels=args["out_ch"],
        dtype=golden.dtype,
    )  # fmt: skip
    params, x, t = variables(golden), golden["x"], golden["t"] + 1
    ours = jax.eval_shape(net.init, jax.random.key(0), x, t)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ours)} == {"float32"}

    def scalar(params):
        out = net.apply(params, x, t)
        return jnp.sum(out.reshape(-1) * jnp.cos(jnp.arange(out.size, dtype=out.dtype))), out

    with jax.default_matmul_precision("highest"):
        (_, out), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    golden.close("out", out)

    norms = {}
    for path, g in jax.tree_util.tree_leaves_with_path(grads["params"]):
        *scope, leaf = (p.key for p in path)
        tf = "W" if leaf == "kernel" else "gamma" if leaf == "scale" else "beta" if "norm" in scope[-1] else "b"
        norms["/".join([*scope, tf])] = jnp.linalg.norm(g.reshape(-1))
    names = [re.sub("^model/|:0$", "", str(n)) for n in exact(golden.id, "grad_norm_names")]
    golden.left_out("grad_norm_names")
    assert sorted(names) == sorted(norms)
    golden.close("grad_norms", jnp.stack([norms[n] for n in names]))


LAYERS = {
    "h/layer_downsample_conv": Downsample(),
    "h/layer_downsample_pool": Downsample(with_conv=False),
    "h/layer_upsample_noconv": Upsample(with_conv=False),
    "h/layer_attn_block": AttentionBlock(),
    "h/layer_resnet_block_up": ResnetBlock(32),
    "h/layer_resnet_block_conv_shortcut": ResnetBlock(32, conv_shortcut=True),
}


@cases("h/layer_*")
def test_layers_with_the_originals_variables_are_the_originals(golden: Golden):
    layer = LAYERS[golden.id].clone(dtype=golden.dtype)
    inputs = [golden[name] for name in ("x", "temb") if name in golden.names]
    with jax.default_matmul_precision("highest"):
        out = jax.jit(layer.apply)(variables(golden), *inputs)
    # the original's output was computed in float64 and stored in float32
    golden.close("out", out) if golden.single else np.testing.assert_allclose(out, golden["out"], rtol=1e-7, atol=1e-8)
    golden.left_out("out")


# --- group normalisation


def plain_group_norm(x, scale, bias, groups, swish=False):
    """From the definition, in float64."""
    x = np.asarray(x, np.float64)
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(x.shape)
    y = y * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)
    return y / (1 + np.exp(-y)) if swish else y


def norm_case(shape, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    scale, bias = (jnp.asarray(rng.normal(size=shape[-1:]) + offset, dtype) for offset in (1, 0))
    return rng.normal(size=shape), {"params": {"scale": scale, "bias": bias}}


@pytest.mark.parametrize(
    ("channels", "groups"), [(32, 32), (128, 32), (384, 32), (48, 24), (40, 20), (33, 11), (37, 1), (16, 8), (3, 1)]
)
def test_groups_are_32_or_the_most_that_hold_two_channels(channels, groups):
    assert group_count(channels) == groups
    x, params = norm_case((2, 3, 5, channels))
    x = 3 * x + np.arange(channels) % 7
    for swish in (False, True):
        ours = GroupNorm(swish=swish).apply(params, jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(ours, plain_group_norm(x, *params["params"].values(), groups, swish), atol=2e-5)


def test_fewer_groups_let_a_narrow_level_feel_the_time():
    """At 32 channels and 32 groups a constant added to a channel is taken out again; at 8 groups it is not."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 32)), jnp.float32)
    params = GroupNorm().init(jax.random.key(0), x)
    shifted = x + jnp.arange(32) / 8
    change = [
        float(jnp.abs(n.apply(params, shifted) - n.apply(params, x)).max()) for n in (GroupNorm(), GroupNorm(groups=8))
    ]
    assert change[0] < 1e-5 and change[1] > 0.1
    narrow = UNet(channels=32, multipliers=(1,), blocks=1, attention_at=(), groups=8)
    with pytest.raises(ValueError, match="groups = 0: a normalisation needs at least one"):
        narrow.copy(groups=0).init(jax.random.key(0), x, jnp.ones(1, int))


@pytest.mark.parametrize("shape", [(2, 8, 8, 32), (1, 64, 64, 64)])
def test_a_mean_of_2000_standard_deviations_does_no_harm(shape):
    x, params = norm_case(shape)
    x = jnp.asarray(x + 2000, jnp.float32)
    wanted = plain_group_norm(x, *params["params"].values(), 32)
    # float32 holds numbers near 2000 to 1.2e-4, and the mean is one of them; E[x^2] - E[x]^2 is wrong by more than 1
    np.testing.assert_allclose(GroupNorm().apply(params, x), wanted, atol=2e-3)


@pytest.mark.parametrize(("mean", "again"), [(0, False), (30, False), (200, True), (2000, True)])
def test_one_pass_has_three_digits_or_becomes_two(mean, again):
    x = jnp.asarray(norm_case((2, 16, 16, 64))[0] + mean, jnp.float32)
    parts = x[..., :16], x[..., 16:]
    found, wanted = (jax.jit(f, static_argnums=1)(parts, 8) for f in (norm._moments_in_one_pass, norm._moments))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    assert np.array_equal(found[1], wanted[1]) == again


@pytest.mark.parametrize("swish", [False, True])
def test_a_norm_of_parts_is_that_of_the_whole(swish):
    with precision("float64"):
        x, params = norm_case((2, 3, 4, 12), dtype=np.float64)
        apply = GroupNorm(swish=swish, groups=4).apply
        parts = tuple(jnp.split(jnp.asarray(x), [2, 7], axis=-1))
        np.testing.assert_allclose(apply(params, parts), apply(params, jnp.asarray(x)), rtol=1e-12)
        whole = jax.grad(lambda x: jnp.sin(apply(params, x)).sum())(jnp.asarray(x))
        by_part = jax.grad(lambda parts: jnp.sin(apply(params, parts)).sum())(parts)
        np.testing.assert_allclose(jnp.concatenate(by_part, axis=-1), whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("swish", [False, True])
def test_gradient_of_group_norm_is_that_of_finite_differences_twice(swish):
    with precision("float64"):
        x, params = norm_case((2, 2, 3, 6), dtype=np.float64)
        apply = lambda x, scale, bias: GroupNorm(swish=swish).apply({"params": {"scale": scale, "bias": bias}}, x)  # noqa: E731
        check_grads(apply, (jnp.asarray(x), *params["params"].values()), order=2, modes=["rev"])


def test_group_norm_under_vmap_is_a_loop():
    x, params = norm_case((3, 2, 4, 4, 32))
    x = jnp.asarray(x, jnp.float32)
    f = lambda x: jnp.sum(jnp.sin(GroupNorm(swish=True).apply(params, x)))  # noqa: E731
    together = jax.vmap(jax.value_and_grad(f))(x)
    alone = [jax.value_and_grad(f)(one) for one in x]
    for a, b in zip(jax.tree.leaves(together), zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(a, jnp.stack(b), rtol=1e-5, atol=1e-6)


def test_statistics_of_bfloat16_are_float32():
    x, params = norm_case((2, 32, 32, 64))
    x = jnp.asarray(8 + x, jnp.bfloat16)
    wanted = plain_group_norm(np.asarray(x, np.float64), *params["params"].values(), 32, swish=True)
    ours, vjp = jax.vjp(lambda x: GroupNorm(swish=True).apply(params, x), x)
    assert ours.dtype == vjp(ours)[0].dtype == jnp.bfloat16
    # one rounding to 8 bits at the end, and none before: sums in bfloat16 would stop growing at 256 terms
    np.testing.assert_allclose(np.asarray(ours, np.float64), wanted, rtol=2**-8, atol=1e-5)


# --- attention


def attention_case(heads, c=64):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, c))
    block = AttentionBlock(heads)
    return block, x, random_params(block, x)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_does_not_know_where_pixels_are(heads):
    block, x, params = attention_case(heads)
    order = np.random.default_rng(0).permutation(12)
    shuffle = lambda a: a.reshape(2, 12, -1)[:, order].reshape(a.shape)  # noqa: E731
    np.testing.assert_allclose(block.apply(params, shuffle(x)), shuffle(block.apply(params, x)), atol=1e-5)


def test_attention_with_equal_logits_is_the_mean_and_with_huge_ones_the_best():
    block, x, params = attention_case(1)
    p = params["params"]
    p["proj_out"] = {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}
    values = GroupNorm().apply({"params": p["norm"]}, x) @ p["v"]["kernel"] + p["v"]["bias"]
    p["q"] = {"kernel": jnp.zeros((64, 64)), "bias": jnp.zeros(64)}
    mean = jnp.broadcast_to(values.mean((1, 2), keepdims=True), x.shape)
    np.testing.assert_allclose(block.apply(params, x) - x, mean, atol=1e-5)

    p["q"]["bias"] = p["q"]["bias"].at[5].set(1e6)
    key = (GroupNorm().apply({"params": p["norm"]}, x) @ p["k"]["kernel"] + p["k"]["bias"])[..., 5].reshape(2, -1)
    best = values.reshape(2, -1, 64)[np.arange(2), key.argmax(1)][:, None, None]
    np.testing.assert_allclose(block.apply(params, x) - x, jnp.broadcast_to(best, x.shape), atol=1e-5)


def test_a_head_looks_at_its_own_channels_alone():
    block, x, params = attention_case(4)
    params["params"]["proj_out"]["kernel"] = jnp.eye(64)
    before = block.apply(params, x)
    params["params"]["q"]["kernel"] = params["params"]["q"]["kernel"].at[:, 16:32].add(1.0)
    changed = jnp.abs(block.apply(params, x) - before).max((0, 1, 2)) > 1e-6
    np.testing.assert_array_equal(changed, (np.arange(64) >= 16) & (np.arange(64) < 32))


# --- dropout


def image_keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_the_mask_of_an_image_is_its_own_wherever_it_is_computed():
    x, keys = jnp.ones((8, 5, 7, 3)), image_keys(8)
    together = dropout(x, keys, 0.3, 4)
    alone = jnp.concatenate([dropout(x[i : i + 1], keys[i : i + 1], 0.3, 4) for i in range(8)])
    np.testing.assert_array_equal(together, alone)
    devices = jax.device_count()
    assert devices == 8
    spread = jax.pmap(lambda x, k: dropout(x, k, 0.3, 4))(x[:, None], keys.reshape(8, 1))
    np.testing.assert_array_equal(together, spread[:, 0])


def test_masks_differ_between_images_and_places():
    x, keys = jnp.ones((2, 16, 16, 4)), image_keys(2)
    a, b = dropout(x, keys, 0.5, 0), dropout(x, keys, 0.5, 1)
    for one, other in [(a[0], a[1]), (a, b)]:
        # independent fair coins agree half of the time, with a standard error of 1 / sqrt(4 n)
        agree = jnp.mean((one == 0) == (other == 0))
        assert abs(agree - 0.5) < 4 / math.sqrt(4 * one.size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 2**-10])
def test_dropout_drops_its_rate_and_leaves_the_mean(rate):
    n = 2**18
    y = dropout(jnp.ones((16, n // 16)), image_keys(16), rate, 0)
    kept = 1 - round(rate * 2**16) / 2**16
    assert abs(jnp.mean(y != 0) - kept) < 4 * math.sqrt(kept * (1 - kept) / n)
    np.testing.assert_allclose(y[y != 0], 1 / kept, rtol=1e-6)


def test_gradient_of_dropout_is_its_mask():
    x, keys = jax.random.normal(jax.random.key(5), (4, 6, 6, 8)), image_keys(4)
    grad = jax.grad(lambda x: dropout(x, keys, 0.25, 2).sum())(x)
    np.testing.assert_array_equal(grad, dropout(jnp.ones_like(x), keys, 0.25, 2))


# --- the whole network


TINY = UNet(channels=16, multipliers=(1, 2), blocks=1, attention_at=(8,), dropout=0.5, out_channels=3)


def tiny_case(shape=(4, 16, 16, 3), net=TINY):
    x = jax.random.normal(jax.random.key(0), shape)
    t = 1 + 97 * jnp.arange(shape[0])
    return x, t, random_params(net, x, t)


def count(net, size):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), x, t)))


def test_parameter_counts_are_those_of_the_published_networks():
    large = UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)
    assert count(UNet(), 32) == 35_746_307
    assert count(UNet(heads=4), 32) == 35_746_307
    assert count(large, 256) == 113_673_219
    assert count(large.clone(channels=192), 256) == 255_677_955
    resampling = (128**2 * 9 + 128) + 5 * (256**2 * 9 + 256)
    assert count(UNet(resample_with_conv=False), 32) == 35_746_307 - resampling


def test_dropout_of_an_image_does_not_depend_on_its_batch():
    x, t, params = tiny_case()
    apply, keys = jax.jit(TINY.apply), image_keys(4)
    together = apply(params, x, t, dropout_keys=keys)
    alone = jnp.concatenate([apply(params, x[i : i + 1], t[i : i + 1], dropout_keys=keys[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    without = apply(params, x, t)
    assert (jnp.abs(together - without).max((1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(without, apply(params, x, t))


def test_every_block_drops_with_a_number_of_its_own():
    places = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, ResnetBlock) and context.method_name == "__call__":
            places.append(context.module.place)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        count(UNet(), 32)
    assert places == list(range(4 * 2 + 2 + 4 * 3))


def test_images_and_times_of_a_batch_do_not_mix():
    x, t, params = tiny_case()
    apply = jax.jit(TINY.apply)
    before = apply(params, x, t)
    moved = np.abs(apply(params, x.at[1].add(0.1), t.at[2].add(1)) - before).max((1, 2, 3))
    assert (moved[[0, 3]] == 0).all()
    assert (moved[[1, 2]] > 1e-4).all()


@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 47, 2), (16, 16, 3), (20, 200, 4), (1, 64, 5)])
def test_any_size_and_any_channels(shape):
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention_at=(), dropout=0.1, out_channels=shape[-1])
    x, t, params = tiny_case((2, *shape), net)

    def loss(params, x):
        out = net.apply(params, x, t, dropout_keys=image_keys(2))
        return jnp.mean(out**2), out

    (_, out), (to_params, to_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    assert out.shape == x.shape
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves((out, to_params)))
    assert (jnp.abs(to_x) > 0).mean() > 0.999  # every pixel counts, up to the last row and column


@pytest.mark.parametrize("sides", [(61,), (5, 6, 9)])
def test_sequences_and_volumes_of_any_size_are_felt_everywhere(sides):
    net = UNet(channels=8, multipliers=(1, 2), blocks=1, attention_at=(4,), out_channels=2, resample_with_conv=False)
    x, t, params = tiny_case((2, *sides, 2), net)

    def loss(x):
        out = net.apply(params, x, t, dropout_keys=image_keys(2))
        return jnp.mean(out**2), out

    (_, out), to_x = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    assert out.shape == x.shape and jnp.isfinite(out).all()
    assert (jnp.abs(to_x) > 0).mean() > 0.999


def sizes(axes):
    """How many numbers are in the kernels of 3 of CIFAR-10's network, and how many in everything else."""
    x, t = jax.ShapeDtypeStruct((1, *(32,) * axes, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    leaves = jax.tree.leaves(jax.eval_shape(UNet().init, jax.random.key(0), x, t))
    kernels, rest = ([leaf.size for leaf in leaves if (leaf.ndim > 2) == is_kernel] for is_kernel in (True, False))
    return sum(kernels), sum(rest)


def test_each_axis_triples_the_kernels_and_changes_nothing_else():
    (one, rest), (two, same), (three, same_too) = map(sizes, (1, 2, 3))
    assert rest == same == same_too and (3 * one, 3 * two) == (two, three)
    assert two + rest == 35_746_307


def deepened(params):
    """The same weights in the middle plane of kernels of one axis more, which are 0 elsewhere."""

    def plane(leaf):
        return jnp.stack([0 * leaf, leaf, 0 * leaf]) if leaf.ndim > 2 else leaf

    return jax.tree.map(plane, params)


@pytest.mark.parametrize("sides", [(8,), (8, 8)])
def test_equal_slices_are_seen_as_one_by_a_network_of_one_axis_more(sides):
    """By kernels that reach no other slice: statistics and attention over equal slices are those over one."""
    net = UNet(channels=16, multipliers=(1, 2), blocks=1, attention_at=(4,), out_channels=2, resample_with_conv=False)
    x, t, params = tiny_case((2, *sides, 2), net)
    apply = jax.jit(net.apply)
    flat = apply(params, x, t)
    deep = apply(deepened(params), jnp.repeat(x[:, None], 8, axis=1), t)
    assert jnp.std(flat) > 0.01
    np.testing.assert_allclose(deep, jnp.repeat(flat[:, None], 8, axis=1), atol=1e-4)


@pytest.mark.parametrize("make", [Upsample, Downsample])
def test_slices_of_a_volume_are_resized_as_images_are(make):
    """Each alone, with the middle plane of the kernel; depth itself is doubled, or every other slice is taken."""
    x, layer = jax.random.normal(jax.random.key(3), (2, 6, 8, 10, 4)), make()
    params = layer.init(jax.random.key(4), x[:, 0])
    slices = jnp.stack([layer.apply(params, x[:, i]) for i in range(6)], axis=1)
    expected = jnp.repeat(slices, 2, axis=1) if make is Upsample else slices[:, 1::2]
    np.testing.assert_allclose(layer.apply(deepened(params), x), expected, atol=1e-5)


def test_a_volume_has_the_same_answer_whichever_way_it_lies():
    """Swapping two axes of the image and of all kernels swaps them in the result; sizes that halve need no padding."""
    net = UNet(channels=16, multipliers=(1, 2), blocks=1, attention_at=(4,), out_channels=2)
    x, t, params = tiny_case((1, 4, 8, 12, 2), net)
    turned = jax.tree.map(lambda leaf: leaf.swapaxes(0, 2) if leaf.ndim > 2 else leaf, params)
    apply = jax.jit(net.apply)
    expected = apply(params, x, t).swapaxes(1, 3)
    np.testing.assert_allclose(apply(turned, x.swapaxes(1, 3), t), expected, atol=1e-4)


def test_what_is_cut_off_were_zeros_in_the_input():
    x, t, params = tiny_case((2, 15, 5, 3))
    whole = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    apply = jax.jit(TINY.apply)
    np.testing.assert_allclose(apply(params, whole, t)[:, :15, :5], apply(params, x, t), atol=1e-4)


def padded(size):
    """The size of the image that the first level of a network with three of them sees."""
    seen = []

    def record(next_fun, args, kwargs, context):
        if context.module.name == "conv_in":
            seen.append(args[0].shape[1:3])
        return next_fun(*args, **kwargs)

    net = TINY.clone(multipliers=(1, 2, 2))
    with nn.intercept_methods(record):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *size, 3)), jnp.ones((1,), int))
    return seen


def test_padding_goes_to_the_next_size_that_halves_and_no_further():
    assert padded((28, 12)) == [(28, 12)]
    assert padded((29, 47)) == [(32, 48)]
    assert padded((1, 64)) == [(4, 64)]


@pytest.mark.parametrize(
    ("size", "at", "levels"),
    [
        ((32, 32), (16,), {1}), ((32, 32), (16, 8), {1, 2}), ((32, 32), (), set()),
        ((8, 64), (4,), {1}), ((29, 64), (32,), {0}),
    ],
)  # fmt: skip
def test_attention_follows_every_block_at_its_sizes_and_the_middle(size, at, levels):
    net = UNet(channels=16, multipliers=(1, 2, 2), blocks=2, attention_at=at)
    tree = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *size, 3)), jnp.ones((1,), int))["params"]
    found = {f"{level}/{name}" for level, parts in tree.items() for name in parts if name.startswith("attn")}
    down = {f"down_{i}/attn_{j}" for i in levels for j in range(2)}
    up = {f"up_{i}/attn_{j}" for i in levels for j in range(3)}
    assert found == {"mid/attn_1"} | down | up


def test_parameters_that_are_there_are_taken_as_they_are_and_none_of_another_shape():
    asked = []

    def sevens(key, shape, dtype):
        asked.append(shape)
        return jnp.full(shape, 7, dtype)

    class Times(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * parameter(self, "factor", sevens, x.shape)

    made = Times().init(jax.random.key(0), jnp.ones(2))
    assert made["params"]["factor"].tolist() == [7, 7] and asked == [(2,)]
    assert Times().apply({"params": {"factor": jnp.array([2.0, 3.0])}}, jnp.ones(2)).tolist() == [2, 3]
    assert len(asked) == 1  # to begin with alone
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r'"factor" .* shape \(3,\), but .* shape \(2,\)'):
        Times().apply(made, jnp.ones(3))


def test_the_start_is_silence():
    net = UNet(channels=32, multipliers=(1, 2), blocks=1, attention_at=(8,))
    x, eps = jax.random.normal(jax.random.key(1), (2, 4, 16, 16, 3))
    t = jnp.array([1, 10, 300, 1000])
    params = jax.jit(net.init)(jax.random.key(0), x, t)
    out = jax.jit(net.apply)(params, x, t)
    # swish of a standard normal has a mean square of 0.3556; 32 x 9 such inputs, kernel variance 1e-10 / (9 x 35 / 2)
    assert 0.5 < out.std() / math.sqrt(0.3556 * 32 * 9 * 1e-10 * 2 / (9 * 35)) < 1.5
    loss = jnp.mean((out - eps) ** 2)
    assert abs(loss - 1) < 4 * math.sqrt(2 / eps.size) and abs(loss - jnp.mean(eps**2)) < 1e-5

    for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"]):
        *scope, kind = (p.key for p in path)
        if kind == "kernel":  # uniform, of variance scale / fan average
            fan = math.prod(leaf.shape[:-2]) * (leaf.shape[-2] + leaf.shape[-1]) / 2
            scale = 1e-10 if scope[-1] in ("conv2", "proj_out", "conv_out") else 1.0
            bound = math.sqrt(3 * scale / fan)
            assert 0.98 * bound < jnp.abs(leaf).max() <= 1.0001 * bound, scope
            assert abs(leaf.std() * math.sqrt(3) / bound - 1) < 4 / math.sqrt(leaf.size), scope
        else:
            assert (leaf == (kind == "scale")).all(), scope


def test_bfloat16_computes_and_float32_remembers():
    x, t, params = tiny_case()
    half = TINY.clone(dtype=jnp.bfloat16)
    kept = jax.eval_shape(half.init, jax.random.key(0), x, t)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    exact, close = jax.jit(TINY.apply)(params, x, t), jax.jit(half.apply)(params, x, t)
    assert close.dtype == jnp.float32
    # 8 bits a number, through some thirty layers
    assert 0 < jnp.linalg.norm(close - exact) < 0.03 * jnp.linalg.norm(exact)
    assert jax.eval_shape(half.apply, params, x.astype(jnp.bfloat16), t).dtype == jnp.float32


def test_float64_images_come_back_as_float64():
    with precision("float64"):
        x, t = jnp.zeros((1, 16, 16, 3), jnp.float64), jnp.ones((1,), int)
        params = jax.eval_shape(TINY.init, jax.random.key(0), x, t)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert jax.eval_shape(TINY.apply, params, x, t).dtype == jnp.float64


X, T = jnp.zeros((2, 16, 16, 3)), jnp.array([1, 2])


@pytest.mark.parametrize(
    ("net", "x", "t", "keys", "text"),
    [
        (
            TINY, X[0, 0], T, None,
            "x has shape (16, 3): images are [B, H, W, C], volumes [B, D, H, W, C], sequences [B, L, C]",
        ),
        (
            TINY, X.astype(jnp.uint8), T, None,
            "x is uint8: scale uint8 images to [-1, 1] first, as floats (x / 127.5 - 1)",
        ),
        (TINY, X, T[:1], None, "t has shape (1,), x has shape (2, 16, 16, 3): t is [B], one time per image"),
        (TINY, X, T[0], None, "t has shape (), x has shape (2, 16, 16, 3): t is [B], one time per image"),
        (TINY, X, T / 2, None, "t is float32: times are the integers 1 .. T"),
        (
            TINY.clone(multipliers=()), X, T, None,
            "multipliers is empty: give one integer per level, such as (1, 2, 2, 2)",
        ),
        (
            TINY.clone(heads=3), X, T, None,
            "heads = 3 does not divide the 16 channels of the level with multiplier 1 (channels = 16): every head needs"
            " the same number of them",
        ),
        (
            TINY.clone(channels=32, multipliers=(1, 1)), X, T, None,
            "channels = 32, multipliers = (1, 1): every channel would be a group of the normalisation by itself and"
            " forget the time that is added to it; some level needs more than groups = 32 channels",
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
            TINY, X, T, jax.random.key_data(image_keys(2)),
            "dropout_keys is uint32: give typed keys, jax.random.split(jax.random.key(seed), B)",
        ),
        (TINY, X, T, 7, "dropout_keys is int: give typed keys, jax.random.split(jax.random.key(seed), B)"),
        (
            TINY, X, T, jax.random.split(jax.random.key(0, impl="rbg"), 2),
            "dropout_keys is key<rbg>: under vmap only threefry2x32 keys give each image its own bits",
        ),
        (
            TINY, X, T, jax.random.key(0),
            "dropout_keys has shape (), x has shape (2, 16, 16, 3): one key per image, [B]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_words(net, x, t, keys, text):
    with pytest.raises(ValueError, match=f"(?m)^{re.escape(text)}$"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), x, t, dropout_keys=keys))


def test_remat_changes_no_parameter_and_no_gradient():
    """Only what is kept changes; how much less that is, a compiler for accelerators says (test_preflight)."""
    nets = [UNet(8, (1,), 1, (8,), dropout=0.1, groups=4, out_channels=1, remat=remat) for remat in (False, True)]
    x, t = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.arange(1, 5)
    params = [jax.jit(net.init)(jax.random.key(0), x, t)["params"] for net in nets]
    jax.tree.map(np.testing.assert_array_equal, *params)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params[0])

    def gradient(net):
        def loss(params, keys):
            return jnp.square(net.apply({"params": params}, x, t, dropout_keys=keys) - x).mean()

        return jax.jit(jax.grad(loss))(moved, jax.random.split(jax.random.key(2), 4))

    for a, b in zip(*(jax.tree.leaves(gradient(net)) for net in nets), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
