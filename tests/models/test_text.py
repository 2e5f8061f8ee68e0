"""The text encoder and conditional networks: bytes, padding, masks, and initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from networks import assert_a_thousandth, jitted_apply, normal, param_shapes
from tiny_run import random_params

from ddpm_jax import config as configs
from ddpm_jax.data import sources
from ddpm_jax.guidance import Condition
from ddpm_jax.keys import from_seed
from ddpm_jax.models import text
from ddpm_jax.models.conditional import ConditionalNetwork
from ddpm_jax.models.text import TextEncoder
from ddpm_jax.models.unet import CrossAttention, UNet

SIZES = {
    "channels": 16,
    "channel_multipliers": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "groups": 8,
    "out_channels": 1,
}
LEVELS = SIZES | {"channel_multipliers": (1, 2), "attention_resolutions": (4,)}
X, T = normal(3, 4, 4, 1), np.array([3, 40, 500], np.int32)
TEXTS = ("a red square left of a blue circle", "", "a blue square left of a red circle")
CONDITIONAL = ConditionalNetwork(UNet(**SIZES, num_classes=4, context_dim=16), TextEncoder(16, 1, 2, 48))


def full_condition(length=48):
    return Condition(label=np.array([1, 0, 3], np.int32), tokens=text.tokenize(TEXTS, length))


PLAIN = UNet(**SIZES)
"""The same without conditions."""


@pytest.fixture(scope="module")
def initialised():
    """What the network begins with, and some of what the one without conditions does: all takes seconds to compile."""

    @jax.jit
    def params(key):
        plain = PLAIN.init(key, X, T)["params"]
        return CONDITIONAL.init(key, X, T, full_condition()), {
            name: plain[name] for name in ("conv_in", "temb", "conv_out")
        }

    return jax.device_get(params(from_seed(0)))


@pytest.fixture(scope="module")
def moved(initialised):
    """Parameters somewhere else than at the start."""
    leaves, structure = jax.tree.flatten(initialised[0])
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [leaf + 0.2 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


@pytest.fixture(scope="module")
def outputs(moved):
    """The outputs of the network there: conditional, and unconditional."""
    return jitted_apply(CONDITIONAL)(moved, X, T, full_condition()), jitted_apply(CONDITIONAL)(moved, X, T)


def test_texts_that_look_alike_have_the_same_bytes():
    composed, decomposed = text.tokenize(["caf\u00e9", "cafe\u0301"], 5)
    assert bytes(composed) == bytes(decomposed) == b"caf\xc3\xa9"


def test_texts_are_the_bytes_of_their_utf8():
    found = text.tokenize(["ab", "é", ""], 4)
    np.testing.assert_array_equal(found, [[97, 98, 0, 0], [0xC3, 0xA9, 0, 0], [0, 0, 0, 0]])
    assert found.dtype == np.uint8


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a text of 6 bytes where 4 is the most: .abcdé."):
        text.tokenize(["abcdé"], 4)
    with pytest.raises(ValueError, match="a text with the character 0"):
        text.tokenize(["a\0b"], 4)


def test_the_standard_reader_has_about_three_million_parameters():
    shapes = jax.eval_shape(TextEncoder().init, from_seed(0), np.ones((1, 128), np.uint8))
    assert 2.8e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 3.5e6


def test_each_byte_is_read_between_its_neighbours():
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(1, 3, 2)
    np.testing.assert_array_equal(
        text.stack_neighbours(x, 1)[0], [[0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 0, 0]]
    )


def test_words_are_known_in_sentences_never_read():
    """Names of digits: learned from the sentences of a config, recognised in others; a guess is right 1 time in 10."""
    known_templates = configs.load("configs/digits.py:text").condition.templates
    new_templates = ("somebody wrote {} twice", "look, {}!", "in this picture there is a {}")
    length, reader = 36, TextEncoder(32, 1, 2, 40)
    texts, others = (
        text.tokenize([line.format(name) for line in lines for name in sources.DIGIT_NAMES], length)
        for lines in (known_templates, new_templates)
    )
    params = {"reader": jax.jit(reader.init)(from_seed(0), texts), "out": np.zeros((32, 10), np.float32)}
    optimizer = optax.adam(3e-3)

    def logits(params, tokens):
        read = (tokens > 0)[..., None]
        return (reader.apply(params["reader"], tokens) * read).sum(1) / read.sum(1) @ params["out"]

    @jax.jit
    def step(params, state, selected):
        chosen_texts, digits = jnp.asarray(texts)[selected], selected % 10

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, chosen_texts), digits).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for selected in np.random.default_rng(1).integers(0, len(texts), (80, 64), np.int32):
        params, state = step(params, state, selected)
    right = np.asarray(jax.jit(logits)(params, others).argmax(1)) == np.arange(30) % 10
    assert right.mean() >= 0.95, right.mean()


def test_what_fills_a_text_up_changes_nothing(moved, outputs):
    short = jitted_apply(CONDITIONAL)(moved, X, T, full_condition(34))
    np.testing.assert_allclose(short, outputs[0], atol=1e-5)


def test_a_text_means_the_same_wherever_it_begins(moved, outputs):
    there = full_condition()._replace(tokens=np.roll(full_condition().tokens, 10, axis=1))
    np.testing.assert_allclose(jitted_apply(CONDITIONAL)(moved, X, T, there), outputs[0], atol=1e-5)


def test_heads_begin_by_looking_ahead_and_behind(initialised):
    table = initialised[0]["params"]["text"]["layer_0"]["distances"]
    assert table.shape == (2, 2 * 48 - 1) and (table[:, 47] == 0).all()
    np.testing.assert_array_equal(table[0, 47:50], [0, -0.25, -0.5])  # what comes next, to the first head
    np.testing.assert_array_equal(table[0, 44:48], [-3, -2, -1, 0])
    np.testing.assert_array_equal(table[1], table[0, ::-1])


def test_the_order_of_words_counts(moved):
    """Both texts have the same letters."""
    assert sorted(TEXTS[0]) == sorted(TEXTS[2])
    same = jax.tree.map(lambda leaf: leaf[[0, 0, 0]], (X, T, full_condition()))
    other = same[2]._replace(tokens=full_condition().tokens)
    found, reference = jitted_apply(CONDITIONAL)(moved, *same[:2], other), jitted_apply(CONDITIONAL)(moved, *same)
    assert float(np.abs(found - reference)[2].max()) > 1e-3


def test_at_the_start_it_is_the_network_without_conditions(initialised):
    conditional_params, some = initialised
    for name, parts in some.items():
        jax.tree.map(np.testing.assert_array_equal, conditional_params["params"][name], parts)
    flat = traverse_util.flatten_dict(conditional_params["params"])
    plain_params = {path: flat[path] for path in traverse_util.flatten_dict(param_shapes(PLAIN, 4, 4, channels=1))}
    assert {path[0] for path in flat.keys() - plain_params.keys()} == {"text", "label", "pooled", "mid"}
    plain = jitted_apply(PLAIN)({"params": traverse_util.unflatten_dict(plain_params)}, X, T)
    np.testing.assert_array_equal(jitted_apply(CONDITIONAL)(conditional_params, X, T, full_condition()), plain)


def test_conditions_come_with_cross_attention_where_there_is_any():
    nets = ConditionalNetwork(UNet(**LEVELS, num_classes=4, context_dim=16), TextEncoder(16, 1, 2, 48)), UNet(**LEVELS)
    x = normal(3, 8, 8, 1)
    conditional, plain = (
        set(traverse_util.flatten_dict(jax.eval_shape(net.init, from_seed(0), x, T, *conditions)["params"]))
        for net, conditions in zip(nets, ((full_condition(),), ()), strict=True)
    )
    added = conditional - plain
    assert plain < conditional and {path[0] for path in added} == {"text", "label", "pooled", "mid", "down_1", "up_1"}
    assert {path[1] for path in added if path[0] in ("mid", "down_1", "up_1")} == {"cross_0", "cross_1"}


def test_a_network_that_is_told_nothing_is_the_same_program():
    """So the ability to take conditions costs nothing where they are not used."""
    plain, conditional = UNet(**SIZES), ConditionalNetwork(UNet(**SIZES))
    params = jax.eval_shape(plain.init, from_seed(0), X, T)
    assert jax.eval_shape(conditional.init, from_seed(0), X, T) == params

    def loss_of(net):
        def loss(params):
            return jnp.square(net.apply(params, X, T) - X).mean()

        return jax.jit(jax.value_and_grad(loss)).lower(params).as_text()

    assert loss_of(conditional) == loss_of(plain)


def test_conditions_are_learned_from_the_first_step(initialised):
    flat = traverse_util.flatten_dict(initialised[0]["params"], sep="/")
    zero = ("label/table/embedding", "pooled/proj/kernel", "mid/cross_1/proj_out/kernel")
    some = {name: flat[name] for name in (*zero, "text/bytes/embedding")}

    @jax.jit
    @jax.grad
    def gradient(some, flat):
        params = {"params": traverse_util.unflatten_dict(flat | some, sep="/")}
        return jnp.square(CONDITIONAL.apply(params, X, T, full_condition()) - X).mean()

    slopes = jax.device_get(gradient(some, flat))
    for name in zero:
        assert float(np.abs(slopes[name]).max()) > 0, name
    assert not slopes["text/bytes/embedding"].any()
    stepped = {name: leaf - np.float32(0.1) * slopes[name] for name, leaf in some.items()}
    assert float(np.abs(gradient(stepped, flat)["text/bytes/embedding"]).max()) > 0


def test_the_empty_text_is_no_text_and_no_label_is_the_last_one(moved, outputs):
    conditional, unconditional = outputs
    none = Condition(label=np.full(3, 4, np.int32), tokens=np.zeros((3, 48), np.uint8))
    np.testing.assert_allclose(jitted_apply(CONDITIONAL)(moved, X, T, none), unconditional, atol=1e-6)
    found = jitted_apply(CONDITIONAL)(moved, X, T, full_condition()._replace(label=np.full(3, 4, np.int32)))
    np.testing.assert_allclose(found[1], unconditional[1], atol=1e-5)
    assert float(np.abs(found[0] - unconditional[0]).max()) > 1e-3
    assert float(np.abs(found[0] - conditional[0]).max()) > 1e-3


def test_an_encoded_text_is_the_text(moved, outputs):
    read = jax.jit(lambda params, condition: CONDITIONAL.apply(params, condition, method="encode_text"))(
        moved, full_condition()
    )
    assert read.tokens is None and read.context.shape == (3, 48, 16)
    np.testing.assert_allclose(jitted_apply(CONDITIONAL)(moved, X, T, read), outputs[0], rtol=1e-5, atol=1e-5)


def test_a_context_from_elsewhere_counts_where_its_mask_says():
    net = UNet(**SIZES, context_dim=5)
    context, mask = normal(3, 7, 5, seed=2), np.arange(7)[None] < np.array([[3], [0], [7]])
    params = random_params(net, X, T, context=context)
    found = jitted_apply(net)(params, X, T, context=context, mask=mask)
    noisy = np.where(mask[..., None], context, np.float32(1e3))
    np.testing.assert_array_equal(jitted_apply(net)(params, X, T, context=noisy, mask=mask), found)
    none = jitted_apply(net)(params, X, T)
    np.testing.assert_allclose(found[1], none[1], atol=1e-6)
    np.testing.assert_allclose(found[2], jitted_apply(net)(params, X, T, context=context)[2], atol=1e-6)
    assert float(np.abs(found - none).max()) > 1e-3


def test_another_image_is_seen_beside_the_noisy_one():
    net, image = UNet(**SIZES), np.ones((3, 4, 4, 2), np.float32)
    params = random_params(net, X, T, image=image)
    assert params["params"]["conv_in"]["kernel"].shape == (3, 3, 3, 16)
    one, other = (jitted_apply(net)(params, X, T, image=shown) for shown in (image, -image))
    assert float(np.abs(one - other).max()) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_remat_and_narrow_types_know_conditions_too(dtype, moved, outputs):
    unet = UNet(**SIZES, num_classes=4, context_dim=16, dtype=dtype, remat=True)
    found, expected = (
        jitted_apply(ConditionalNetwork(unet, TextEncoder(16, 1, 2, 48, dtype)))(moved, X, T, full_condition()),
        outputs[0],
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, expected, atol=1e-5 if dtype == jnp.float32 else 0.3 * float(np.abs(expected).max())
    )


@pytest.mark.parametrize(
    ("net", "arguments"),
    [
        (TextEncoder(8, 1, 2, 4, jnp.bfloat16), [text.tokenize(["abba"], 4)]),
        (CrossAttention(2, jnp.bfloat16, 4), [normal(1, 2, 2, 8), normal(1, 3, 8), np.ones((1, 3), bool)]),
    ],
)
def test_gradients_of_many_equal_examples_are_as_many_times_that_of_one(net, arguments):
    """Summed in bfloat16, they would stop growing at 256 times."""
    params = random_params(net, *arguments)
    loss = lambda params, *args: jnp.sum(net.apply(params, *args).astype(jnp.float32) * normal(8))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    one, many = gradient(params, *arguments), gradient(params, *(np.repeat(each, 1024, 0) for each in arguments))
    assert_a_thousandth(one, many, atol=0.002)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"label": np.zeros(3, np.int32)}, "num_classes = 0: it was made without labels"),
        ({"context": np.zeros((3, 2, 5), np.float32)}, "context_dim = 0: it was made without context"),
        ({"mask": np.ones((3, 2), bool)}, "a mask is given without a context"),
        (
            {"image": np.zeros((3, 2, 4, 1), np.float32)},
            r"image is float32 \(3, 2, 4, 1\): expected floats \(3, 4, 4, 'C'\)",
        ),
    ],
)
def test_what_a_network_was_not_made_for_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(lambda: UNet(**SIZES).init(from_seed(0), X, T, **arguments))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"label": np.zeros(3, np.float32)}, r"label is float32 \(3,\).*labels are integers \[B\]"),
        ({"label": np.zeros(2, np.int32)}, r"label is int32 \(2,\)"),
        (
            {"context": np.zeros((3, 2, 4), np.float32)},
            r"context is float32 \(3, 2, 4\): expected floats \[B, L, D\] = \(3, 2, 5\)",
        ),
        ({"context": np.zeros((3, 2, 5), np.float32), "mask": np.ones((3, 2), np.float32)}, "mask is float32"),
    ],
)
def test_conditions_of_another_form_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(lambda: UNet(**SIZES, num_classes=2, context_dim=5).init(from_seed(0), X, T, **arguments))


def test_options_and_texts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_classes = -1, context_dim = 0: 0 for none"):
        jax.eval_shape(lambda: UNet(**SIZES, num_classes=-1).init(from_seed(0), X, T))
    with pytest.raises(ValueError, match="width = 10 must be a multiple of heads = 4"):
        jax.eval_shape(lambda: TextEncoder(10).init(from_seed(0), np.ones((1, 3), np.int32)))
    with pytest.raises(ValueError, match=r"tokens are int32 \(1, 49\): expected integers \[B, L\], L <= 48"):
        jax.eval_shape(lambda: TextEncoder(16, 1, 2, 48).init(from_seed(0), np.ones((1, 49), np.int32)))
    with pytest.raises(ValueError, match=r"tokens have shape \(0, 3\): give at least one text"):
        jax.eval_shape(lambda: TextEncoder(16, 1, 2, 48).init(from_seed(0), np.ones((0, 3), np.int32)))
    with pytest.raises(ValueError, match="without a text encoder"):
        jax.eval_shape(lambda: ConditionalNetwork(UNet(**SIZES)).init(from_seed(0), X, T, full_condition()))
    both = full_condition()._replace(context=np.zeros((3, 2, 16), np.float32))
    with pytest.raises(ValueError, match="both a text and a context"):
        jax.eval_shape(lambda: CONDITIONAL.init(from_seed(0), X, T, both))


def test_a_distance_is_that_from_the_byte_that_reads_to_the_one_that_is_read():
    """Where the one distance that counts is 1, every byte reads the next."""
    layer, x, mask = text.TransformerLayer(heads=1, length=6), normal(2, 4, 8), np.ones((2, 4), bool)
    flat = traverse_util.flatten_dict(jax.tree.map(np.zeros_like, random_params(layer, x, mask)), sep="/")
    flat |= {f"params/{name}/kernel": np.eye(8, dtype=np.float32) for name in ("v", "proj_out")}
    flat["params/norm1/scale"] = np.ones(8, np.float32)
    flat["params/distances"] = np.where(np.arange(11) == 5 + 1, 0, np.float32(-1e9))[None].astype(np.float32)
    found = jitted_apply(layer)(traverse_util.unflatten_dict(flat, sep="/"), x, mask) - x
    normed = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(found[:, :-1], normed[:, 1:], atol=1e-4)
