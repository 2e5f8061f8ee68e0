"""The patch transformer: its formulas by numpy, patches, positions, padding, conditions, precision, errors, a run."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer
from networks import assert_a_thousandth, image_keys, inputs, jitted_apply, normal, param_shapes
from run_programs import TINY as TINY_CONFIG
from run_programs import assert_same_bytes, load_state, logged_losses, run
from tiny_run import random_params

from ddpm_jax import config as configs
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build
from ddpm_jax.models.patch_transformer import PatchTransformer, TransformerBlock, join_patches, rotate, split_patches
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.unet.parameters import drawn_on_host

NET = PatchTransformer(patch_size=2, width=16, depth=2, heads=2, dropout=0.5, out_channels=2)
X, T = normal(3, 4, 6, 2), np.array([1, 40, 500], np.int32)


# --- formulas


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def swish(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def by_definition(net, params, x, t):
    """The network in float64, for images [B, H, W, C] of whole patches, written with loops."""
    b, height, width, _ = x.shape
    p, heads, n = net.patch_size, net.heads, net.width // net.heads
    places = [(i, j) for i in range(height // p) for j in range(width // p)]
    h = np.stack([x[:, i * p : (i + 1) * p, j * p : (j + 1) * p].reshape(b, -1) for i, j in places], 1)
    h = dense(params["patch_in"], h)
    h = dense(params["bottleneck_out"], h) if net.bottleneck else h
    if net.positions == "learned":
        h = h + params["positions"].reshape(len(places), -1)
    half = net.width // 8
    angle = (t[:, None] - 1) * 10000 ** (-np.arange(half) / (half - 1))
    temb = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    temb = swish(dense(params["temb"]["dense1"], swish(dense(params["temb"]["dense0"], temb))))

    def norm(h, scale, shift):
        h = h - h.mean(-1, keepdims=True) if net.norm == "layer" else h
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale[:, None]) + shift[:, None]

    def rotated(x):  # [B, N, n]: the pairs of channels as complex numbers
        k = n // 4
        angles = np.array([[at * 100 ** (-m / k) for at in place for m in range(k)] for place in places])
        turned = (x[..., : 2 * k] + 1j * x[..., 2 * k : 4 * k]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag, x[..., 4 * k :]], -1)

    for i in range(net.depth):
        q = params[f"block_{i}"]
        scale1, shift1, gate1, scale2, shift2, gate2 = np.split(dense(q["modulation"], temb), 6, -1)
        a, mixed = norm(h, scale1, shift1), []
        for head in range(heads):
            query, key, value = (dense(q[name], a)[..., head * n : (head + 1) * n] for name in "qkv")
            if net.positions == "rotary":
                query, key = rotated(query), rotated(key)
            weights = np.exp(query @ key.swapaxes(1, 2) / math.sqrt(n))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ value)
        h = h + gate1[:, None] * dense(q["proj_out"], np.concatenate(mixed, -1))
        h = h + gate2[:, None] * dense(q["dense1"], gelu(dense(q["dense0"], norm(h, scale2, shift2))))
    out = dense(params["patch_out"], norm(h, *np.split(dense(params["modulation_out"], temb), 2, -1)))
    image = np.zeros((*x.shape[:-1], net.out_channels))
    for (i, j), patch in zip(places, out.swapaxes(0, 1), strict=True):
        image[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = patch.reshape(b, p, p, -1)
    return image


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "layer", "positions": "learned", "bottleneck": 3}, {"positions": "none", "heads": 1}],
    ids=["rotary", "learned", "none"],
)
def test_the_network_is_its_formula(options):
    net = NET.clone(**options)
    params = jax.device_get(random_params(net, X, T))
    expected = by_definition(net, params["params"], X, T)
    assert expected.std() > 0.1
    np.testing.assert_allclose(jitted_apply(net)(params, X, T), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("sides", [(12,), (8, 4), (4, 8, 12)])
def test_patches_are_pieces_of_the_image_and_join_to_it(sides):
    x = normal(2, *sides, 3)
    patches = split_patches(x, 4)
    assert patches.shape == (2, *(side // 4 for side in sides), 4 ** len(sides) * 3)
    last = (slice(None), *(slice(side - 4, side) for side in sides))
    np.testing.assert_array_equal(patches[(slice(None), *(-1,) * len(sides))], x[last].reshape(2, -1))
    np.testing.assert_array_equal(join_patches(patches, 4), x)


def test_the_start_is_zero_and_needs_no_compiled_program():
    model, key, drawn = build(patch_config(), (4, 4, 1), 17), from_seed(3), {}
    with drawn_on_host():
        jax.eval_shape(lambda: drawn.update(model.init(key)))
    assert not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(drawn))
    x = normal(3, 4, 4, 1)
    out, traced = jax.jit(lambda params, key: (model.net(params, model.empty_condition(3))(x, T), model.init(key)))(
        drawn, key
    )
    assert out.shape == x.shape and not np.any(out)
    jax.tree.map(np.testing.assert_array_equal, traced, drawn)
    for name, leaf in drawn["block_1"]["modulation"].items():
        assert not leaf.any(), name


def test_a_block_is_the_identity_at_the_start():
    x, context = normal(2, 2, 3, 16), (normal(2, 4, 5), np.ones((2, 4), bool))
    block = TransformerBlock(2, 4, "rms", rotary=True, dropout=0.0, dropout_index=0, dtype=jnp.float32)
    out = jax.jit(lambda key: block.init_with_output(key, x, normal(2, 16, seed=1), context, None)[0])(from_seed(0))
    np.testing.assert_array_equal(out, x)


# --- positions and padding


def test_patches_without_positions_are_a_set_and_with_positions_are_not():
    order = np.random.default_rng(0).permutation(6)

    def shuffled(x):
        patches = np.asarray(split_patches(x, 2))
        return np.asarray(join_patches(patches.reshape(3, 6, -1)[:, order].reshape(patches.shape), 2))

    for positions in ("none", "rotary", "learned"):
        net = NET.clone(positions=positions)
        params = random_params(net, X, T)
        found, expected = (jitted_apply(net)(params, shuffled(X), T), shuffled(jitted_apply(net)(params, X, T)))
        assert (np.abs(found - expected).max() < 1e-4) == (positions == "none"), positions


@pytest.mark.parametrize("sides", [(7,), (4, 5), (3, 2, 4)])
def test_rotated_products_depend_on_differences_of_positions(sides):
    q, k = normal(2, 1, 1, 14)[:, 0, 0]
    rotated = jax.jit(lambda each: rotate(jnp.broadcast_to(each, (1, *sides, 1, 14)))[0, ..., 0, :])
    everywhere = [np.asarray(rotated(each)) for each in (q, k)]
    np.testing.assert_allclose(everywhere[0][(0,) * len(sides)], q, atol=1e-6)
    products = np.einsum("...c,...c->...", everywhere[0][(slice(None, -1),) * len(sides)],
                         everywhere[1][(slice(1, None),) * len(sides)])  # fmt: skip
    np.testing.assert_allclose(products, products.flat[0], atol=1e-5)
    for axis in range(len(sides)):  # every axis turns
        step = np.take(everywhere[0], 1, axis) - np.take(everywhere[0], 0, axis)
        assert np.abs(step).max() > 0.1


def test_sides_are_padded_with_zeros_at_the_end_and_cropped():
    net = NET.clone(patch_size=4)
    whole, t, params = inputs(net, 8, 4)
    part = whole[:, :7, :3]
    padded = np.pad(part, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = jitted_apply(net)(params, padded, t)
    np.testing.assert_array_equal(jitted_apply(net)(params, part, t), expected[:, :7, :3])


@pytest.mark.parametrize("sides", [(7,), (3, 5), (3, 1, 5)])
def test_every_number_of_sequences_images_and_volumes_changes_the_output(sides):
    x, _, params = inputs(NET.clone(heads=1), *sides, batch=1)
    moved = 1 + np.arange(x.size)
    batch = x.repeat(1 + x.size, axis=0)
    batch.reshape(1 + x.size, -1)[moved, moved - 1] += 1
    keys = image_keys(1)[np.zeros(1 + x.size, int)]
    out = jitted_apply(NET.clone(heads=1))(params, batch, np.full(1 + x.size, 40, np.int32), dropout_keys=keys)
    assert out.shape == batch.shape and out.dtype == np.float32
    assert (np.abs(out[1:] - out[0]).reshape(x.size, -1).max(1) > 1e-5).all()


def test_learned_positions_are_for_one_size():
    net = NET.clone(positions="learned")
    x, t, params = inputs(net, 4, 4)
    with pytest.raises(ValueError, match=re.escape("those of (2, 2) patches, and the image has (1, 4)")):
        net.apply(params, x.reshape(4, 2, 8, 2), t)


# --- dropout, conditions, precision


def test_dropout_of_an_image_is_its_keys_own_and_each_block_has_another():
    x, t, params = inputs(NET, 4, 4)
    whole = jitted_apply(NET)(params, x, t, dropout_keys=image_keys(4))
    alone = jitted_apply(NET)(params, x[2:3], t[2:3], dropout_keys=image_keys(4)[2:3])
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)
    assert np.abs(whole - jitted_apply(NET)(params, x, t)).max() > 1e-3
    twice = jitted_apply(NET)(params, x[[0, 0]], t[[0, 0]], dropout_keys=image_keys(4)[:2])
    assert np.abs(twice[0] - twice[1]).max() > 1e-3


CONDITIONAL = NET.clone(num_classes=3, context_dim=5)


def test_conditions_count_where_they_are_given_and_images_of_a_batch_do_not_mix():
    label, context, image = np.array([0, 1, 2]), normal(3, 7, 5, seed=2), normal(3, 4, 6, 1, seed=3)
    mask = np.arange(7)[None] < np.array([[3], [0], [7]])
    given = {"label": label, "context": context, "mask": mask, "image": image}
    params = random_params(CONDITIONAL, X, T, **given)
    call = jitted_apply(CONDITIONAL)
    found = call(params, X, T, **given)
    noisy = np.where(mask[..., None], context, np.float32(1e3))
    np.testing.assert_array_equal(call(params, X, T, **given | {"context": noisy}), found)
    others = {
        "label": given | {"label": np.array([0, 1, 1])},
        "context": given | {"context": np.concatenate([context[:2], -context[2:]])},
        "image": given | {"image": np.concatenate([image[:2], -image[2:]])},
    }
    for name, other in others.items():
        change = np.abs(call(params, X, T, **other) - found).max((1, 2, 3))
        assert change[2] > 1e-3 and (change[:2] == 0).all(), (name, change)
    none = call(params, X, T, **given | {"label": np.full(3, 3), "mask": np.zeros((3, 7), bool)})
    np.testing.assert_allclose(none, call(params, X, T, image=image), atol=1e-5)


def test_conditions_have_no_effect_at_the_start_of_their_parameters():
    shapes, plain = param_shapes(CONDITIONAL, 4, 6, channels=2), param_shapes(NET, 4, 6, channels=2)
    assert set(shapes) - set(plain) == {"label", "pooled"}
    assert set(shapes["block_0"]) - set(plain["block_0"]) == {"cross_0"}
    fresh = jax.jit(CONDITIONAL.init)(from_seed(0), X, T)["params"]
    for leaf in (fresh["label"], fresh["pooled"], fresh["block_1"]["cross_0"]["proj_out"]):
        assert not any(np.any(each) for each in jax.tree.leaves(leaf))


def test_bfloat16_is_close_and_parameters_are_float32():
    x, t, params = inputs(NET, 4, 4)
    half = NET.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(param_shapes(half, 4, 4))} == {jnp.dtype("float32")}
    exact, close = jitted_apply(NET)(params, x, t), jitted_apply(half)(params, x, t)
    assert close.dtype == np.float32
    assert 0 < np.linalg.norm(close - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize(("positions", "repeats"), [("learned", (1024, 1, 1, 1)), ("none", (1, 32, 32, 1))])
def test_gradients_of_many_equal_patches_are_as_many_times_that_of_one(positions, repeats):
    """Summed in bfloat16, those of positions (over images) and gates (over patches) would stop growing at 256 times."""
    net = PatchTransformer(2, 16, 1, 2, positions=positions, out_channels=8, dtype=jnp.bfloat16)
    x, t = normal(1, 2, 2, 8), np.array([3])
    params = random_params(net, x, t)
    loss = lambda params, x, t: jnp.sum(net.apply(params, x, t) * normal(8))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    one, many = gradient(params, x, t), gradient(params, np.tile(x, repeats), np.repeat(t, repeats[0]))
    assert_a_thousandth(one, many, atol=0.005)


def test_remat_has_the_same_values_and_gradients_and_forward_mode_agrees():
    x, t, params = inputs(NET, 4, 4)
    along = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params)

    def loss(net):
        return lambda params: jnp.square(net.apply(params, x, t, dropout_keys=image_keys(4)) - x).mean()

    @jax.jit
    def derivatives(params):
        plain, saving = (jax.value_and_grad(loss(NET.clone(remat=remat)))(params) for remat in (False, True))
        return plain, saving, jax.jvp(loss(NET), (params,), (along,))[1]

    plain, saving, forward = derivatives(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, saving)
    np.testing.assert_allclose(forward, sum(leaf.sum() for leaf in jax.tree.leaves(plain[1])), rtol=1e-3)
    text = str(jax.make_jaxpr(jax.grad(loss(NET.clone(remat=True))))(params))
    assert "remat" in text or "checkpoint" in text


@pytest.mark.usefixtures("strict_promotion")
def test_types_and_ranks_are_never_promoted():
    net = CONDITIONAL.clone(dtype=jnp.bfloat16, positions="learned")
    given = {"label": np.zeros(3, np.int32), "context": normal(3, 2, 5), "mask": np.ones((3, 2), bool)}

    def gradient(key):
        params = net.init(key, X, T, **given)
        return jax.grad(lambda params: net.apply(params, X, T, dropout_keys=image_keys(3), **given).sum())(params)

    jax.eval_shape(gradient, from_seed(0))


# --- errors


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"norm": "batch"}, "norm = 'batch' is not one of 'rms', 'layer'"),
        ({"positions": "fixed"}, "positions = 'fixed' is not one of 'rotary', 'learned', 'none'"),
        ({"width": 18, "heads": 1}, "width = 18 must be at least 16, a multiple of 4 and of heads = 1"),
        ({"heads": 3}, "width = 16 must be at least 16, a multiple of 4 and of heads = 3"),
        ({"width": 12}, "width = 12 must be at least 16"),
        ({"heads": 8}, "rotary positions along 2 axes need at least 4 channels per head"),
        ({"patch_size": 0}, "patch_size = 0, width = 16, depth = 2, heads = 2, mlp_ratio = 4 must be at least 1"),
        ({"bottleneck": -1}, "and bottleneck = -1 at least 0"),
        ({"dropout": 1.0}, "dropout = 1.0 is not in [0, 1)"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        jax.eval_shape(lambda: NET.clone(**options).init(from_seed(0), X, T))


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": X[0, 0]}, {"x": X.astype(np.uint8)}, {"t": T[:1]}, {"dropout_keys": 7}, {"label": np.zeros(3, np.int32)},
        {"context": normal(3, 2, 5)}, {"mask": np.ones((3, 2), bool)}, {"image": X[:, :2]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_wrong_arguments_are_refused_in_the_words_of_the_unet(wrong):
    messages = []
    for net in (NET, UNet(16, (1,), 1, (), groups=8, out_channels=2)):
        with pytest.raises(ValueError) as raised:
            net.apply({}, **{"x": X, "t": T} | wrong)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


# --- configs and programs


def patch_config(**change):
    transformer = configs.PatchTransformer(patch_size=2, width=16, depth=2, heads=2)
    return configs.Config(net=configs.Net(kind="patch_transformer", transformer=transformer, **change))


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (
            configs.Net(transformer=configs.PatchTransformer(depth=3)),
            "net.transformer.depth 3 has no meaning for net.kind 'unet': leave it at its default, 12, or set net.kind"
            " 'patch_transformer'",
        ),
        (
            patch_config(groups=8).net,
            "net.groups 8 has no meaning for net.kind 'patch_transformer': leave it at its default, 32, or set net.kind"
            " 'unet'",
        ),
        (
            patch_config(compat=configs.CompatOptions(eps=1e-5)).net,
            "net.compat.eps 1e-05 has no meaning for net.kind 'patch_transformer'",
        ),
        (
            configs.Net(kind="patch_transformer", transformer=configs.PatchTransformer(width=24, heads=5)),
            "net.transformer.width must be a multiple of 4 and of net.transformer.heads, got 24 and 5",
        ),
    ],
)
def test_fields_of_the_other_kind_are_refused(net, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        configs.check_trained(configs.Config(net=net))


def test_fields_reach_the_network_and_configs_without_the_field_are_of_unets():
    config = patch_config(num_classes=4, dtype="bfloat16", remat=True, dropout=0.2)
    config = dataclasses.replace(config, loss=configs.Loss("hybrid"), text=configs.Text(layers=1, width=8, heads=2))
    net = build(config, (4, 4, 1), 17).network.net
    assert net == PatchTransformer(
        2, 16, 2, 2, num_classes=4, dtype=jnp.dtype("bfloat16"), remat=True, dropout=0.2, out_channels=2, context_dim=8,
        parent=net.parent, name=net.name,
    )  # fmt: skip
    older = json.loads(configs.to_json(configs.Config()))
    del older["net"]["kind"], older["net"]["transformer"]
    assert configs.from_dict(older) == configs.Config()


def config_file(folder, net="", config=""):
    """A config file of a tiny run, with more fields of the network and of the config."""
    transformer = f"kind='patch_transformer', transformer=PatchTransformer(2, 16, 1, 2), dropout=0.1{net}"
    text = TINY_CONFIG.replace("Net(8, (1,), 1, (), dropout=0.1)", f"Net({transformer}){config}")
    assert text != TINY_CONFIG
    (folder / "patch.py").write_text(text.replace("Net, Optim", "Net, Optim, PatchTransformer, Text"))
    return folder / "patch.py"


def test_a_run_trains_and_samples_and_is_not_for_diffusers(tmp_path):
    workdir = tmp_path / "run"
    run("train.py", config_file(tmp_path), "--workdir", workdir, preview=False)
    assert len(logged_losses(workdir)) == 3
    run("sample.py", workdir, "--num", 4, "--out", tmp_path / "samples")
    assert (tmp_path / "samples" / "grid.png").is_file()
    refused = run("-m", "ddpm_jax", "convert", "to", "diffusers", workdir, tmp_path / "theirs", status=2).stderr
    assert "net.kind = 'patch_transformer': there, networks are U-Nets" in refused


@pytest.mark.slow
def test_a_run_in_shares_with_texts_goes_on_is_sampled_evaluated_and_converted(tmp_path):
    workdir, copy = tmp_path / "run", tmp_path / "copy"
    file = config_file(tmp_path, ", num_classes=10", ", text=Text(1, 8, 2, 16)")
    averages = "--optim.ema-lengths", 0.05, 0.1, "--snapshot-every", 1
    for steps in (2, 3):
        options = "--steps", steps, "--devices", 2, "--shard-update", *averages
        run("train.py", file, "--workdir", workdir, *options)
    assert len(logged_losses(workdir)) == 3
    drawn = "--num", 4, "--weights", "ema:0.1", "--text", "a three", "--label", 3, "--guidance", 2
    run("sample.py", workdir, *drawn, "--out", tmp_path / "samples")
    assert "bits/dim" in run("-m", "ddpm_jax", "evaluate", workdir, "likelihood", "--num", 2).stdout
    run("-m", "ddpm_jax", "convert", "to", "plain", workdir, tmp_path / "plain")
    run("-m", "ddpm_jax", "convert", "from", "plain", tmp_path / "plain", "--workdir", copy)
    assert_same_bytes(load_state(copy).tree.params, load_state(workdir).tree.ema)
