"""The network that is told something: texts as bytes, what padding and masks hide, and the start from nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from flax import traverse_util

from ddpm_jax import config as configs
from ddpm_jax import text
from ddpm_jax.conditioning import Condition
from ddpm_jax.data import sources
from ddpm_jax.text import Conditional, TextEncoder
from ddpm_jax.unet import UNet

SIZES = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention_at": (4,), "groups": 8, "out_channels": 1}
X = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
T = jnp.array([3, 40, 500])
TEXTS = ("a red square left of a blue circle", "", "a blue square left of a red circle")


def told(length=40):
    return Condition(label=jnp.array([1, 0, 3]), tokens=jnp.asarray(text.tokens(TEXTS, length)))


@functools.cache
def compiled(net):
    """Its outputs: each operation alone would be compiled, too."""
    return jax.jit(net.apply)


@pytest.fixture(scope="module")
def conditional():
    return Conditional(UNet(**SIZES, num_classes=4, context_dim=16), TextEncoder(16, 1, 2, 48))


@pytest.fixture(scope="module")
def start(conditional):
    return jax.jit(conditional.init)(jax.random.key(0), X, T, told())


@pytest.fixture(scope="module")
def moved(start):
    """Parameters somewhere else than at the start."""
    leaves, structure = jax.tree.flatten(start)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [leaf + 0.2 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


def test_texts_are_the_bytes_of_their_utf8():
    found = text.tokens(["ab", "é", ""], 4)
    np.testing.assert_array_equal(found, [[97, 98, 0, 0], [0xC3, 0xA9, 0, 0], [0, 0, 0, 0]])
    assert found.dtype == np.uint8


def test_texts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a text of 6 bytes where 4 is the most: .abcdé."):
        text.tokens(["abcdé"], 4)
    with pytest.raises(ValueError, match="a text with the character 0"):
        text.tokens(["a\0b"], 4)


def test_the_standard_reader_has_about_three_million_parameters():
    shapes = jax.eval_shape(TextEncoder().init, jax.random.key(0), jnp.ones((1, 128), jnp.uint8))
    assert 2.8e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 3.5e6


def test_each_byte_is_read_between_its_neighbours():
    x = jnp.arange(1.0, 7.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(text.around(x, 1)[0], [[0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 0, 0]])


def test_words_are_known_in_sentences_never_read():
    """Names of digits: learned from the sentences of a config, told apart in others; a guess is right 1 time in 10."""
    seen = configs.load("configs/digits.py:text").condition.templates
    other = ("somebody wrote {} twice", "look, {}!", "in this picture there is a {}")
    length, reader = 40, TextEncoder(32, 1, 2, 40)
    texts, others = (
        jnp.asarray(text.tokens([line.format(name) for line in lines for name in sources.DIGITS], length))
        for lines in (seen, other)
    )
    params = {"reader": jax.jit(reader.init)(jax.random.key(0), texts), "out": jnp.zeros((32, 10))}
    optimizer = optax.adam(3e-3)

    def logits(params, tokens):
        read = (tokens > 0)[..., None]
        return (reader.apply(params["reader"], tokens) * read).sum(1) / read.sum(1) @ params["out"]

    @jax.jit
    def step(params, state, key):
        chosen = jax.random.randint(key, (64,), 0, len(texts))

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, texts[chosen]), chosen % 10).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for n in range(120):
        params, state = step(params, state, jax.random.fold_in(jax.random.key(1), n))
    right = np.asarray(jax.jit(logits)(params, others).argmax(1)) == np.arange(30) % 10
    assert right.mean() >= 0.95, right.mean()


def test_what_fills_a_text_up_changes_nothing(conditional, moved):
    short, long = (compiled(conditional)(moved, X, T, told(length)) for length in (34, 48))
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_a_text_means_the_same_wherever_it_begins(conditional, moved):
    here = told(48)
    there = here._replace(tokens=jnp.roll(here.tokens, 10, axis=1))
    np.testing.assert_allclose(
        compiled(conditional)(moved, X, T, here), compiled(conditional)(moved, X, T, there), atol=1e-5
    )


def test_heads_begin_by_looking_ahead_and_behind(start):
    table = np.asarray(start["params"]["text"]["layer_0"]["distances"])
    assert table.shape == (2, 2 * 48 - 1) and (table[:, 47] == 0).all()
    np.testing.assert_array_equal(table[0, 47:50], [0, -0.25, -0.5])  # what comes next, to the first head
    np.testing.assert_array_equal(table[0, 44:48], [-3, -2, -1, 0])
    np.testing.assert_array_equal(table[1], table[0, ::-1])


def test_the_order_of_words_counts(conditional, moved):
    """Both texts have the same letters."""
    assert sorted(TEXTS[0]) == sorted(TEXTS[2])
    same = jax.tree.map(lambda leaf: leaf[jnp.array([0, 0, 0])], (X, T, told()))
    other = same[2]._replace(tokens=told().tokens)
    found, reference = compiled(conditional)(moved, *same[:2], other), compiled(conditional)(moved, *same)
    assert float(jnp.abs(found - reference)[2].max()) > 1e-3


def test_at_the_start_it_is_the_network_without_conditions(conditional, start):
    plain = UNet(**SIZES)
    params = jax.jit(plain.init)(jax.random.key(0), X, T)
    here, there = (traverse_util.flatten_dict(tree["params"]) for tree in (start, params))
    for path, leaf in there.items():
        np.testing.assert_array_equal(here[path], leaf)
    added = {path[0] for path in here.keys() - there.keys()}
    assert added == {"text", "label", "pooled", "mid", "down_1", "up_1"}  # with cross-attention where there is any
    np.testing.assert_array_equal(conditional.apply(start, X, T, told()), plain.apply(params, X, T))


def test_a_network_that_is_told_nothing_is_the_same_program():
    """So being able to be told something costs nothing where it is not wanted."""
    plain, conditional = UNet(**SIZES), Conditional(UNet(**SIZES))
    params = jax.eval_shape(plain.init, jax.random.key(0), X, T)
    assert jax.eval_shape(conditional.init, jax.random.key(0), X, T) == params

    def loss_of(net):
        def loss(params):
            return jnp.square(net.apply(params, X, T) - X).mean()

        return jax.jit(jax.value_and_grad(loss)).lower(params).as_text()

    assert loss_of(conditional) == loss_of(plain)


def test_from_the_start_on_it_learns_what_it_is_told(conditional, start):
    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.square(conditional.apply(params, X, T, told()) - X).mean()

    slopes = gradient(start)
    grads = traverse_util.flatten_dict(slopes["params"], sep="/")
    for name in ("label/table/embedding", "pooled/proj/kernel", "mid/cross_1/proj_out/kernel"):
        assert float(jnp.abs(grads[name]).max()) > 0
    stepped = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, start, slopes)
    assert float(jnp.abs(gradient(stepped)["params"]["text"]["bytes"]["embedding"]).max()) > 0


def test_the_empty_text_is_no_text_and_no_label_is_the_last_one(conditional, moved):
    none = Condition(label=jnp.full(3, 4), tokens=jnp.zeros((3, 40), jnp.uint8))
    np.testing.assert_allclose(compiled(conditional)(moved, X, T, none), compiled(conditional)(moved, X, T), atol=1e-6)
    label = told()._replace(label=jnp.full(3, 4))
    found = compiled(conditional)(moved, X, T, label)
    np.testing.assert_allclose(found[1], compiled(conditional)(moved, X, T)[1], atol=1e-5)
    assert float(jnp.abs(found[0] - compiled(conditional)(moved, X, T)[0]).max()) > 1e-3


def test_a_text_read_before_is_the_text(conditional, moved):
    read = jax.jit(lambda params, told: conditional.apply(params, told, method="read"))(moved, told())
    assert read.tokens is None and read.context.shape == (3, 40, 16)
    np.testing.assert_allclose(
        compiled(conditional)(moved, X, T, read), compiled(conditional)(moved, X, T, told()), atol=1e-6
    )


def test_a_context_from_elsewhere_counts_where_its_mask_says(moved):
    net = UNet(**SIZES, context_dim=5)
    context, mask = jax.random.normal(jax.random.key(2), (3, 7, 5)), jnp.arange(7)[None] < jnp.array([[3], [0], [7]])
    params = tiny_run.random_params(net, X, T, context=context)
    found = compiled(net)(params, X, T, context=context, mask=mask)
    noisy = jnp.where(mask[..., None], context, 1e3)
    np.testing.assert_array_equal(compiled(net)(params, X, T, context=noisy, mask=mask), found)
    np.testing.assert_allclose(found[1], compiled(net)(params, X, T)[1], atol=1e-6)
    np.testing.assert_allclose(found[2], compiled(net)(params, X, T, context=context)[2], atol=1e-6)
    assert float(jnp.abs(found - compiled(net)(params, X, T)).max()) > 1e-3


def test_another_image_is_seen_beside_the_noisy_one():
    net, image = UNet(**SIZES), jnp.ones((3, 8, 8, 2))
    params = tiny_run.random_params(net, X, T, image=image)
    assert params["params"]["conv_in"]["kernel"].shape == (3, 3, 3, 16)
    one, other = (compiled(net)(params, X, T, image=shown) for shown in (image, -image))
    assert float(jnp.abs(one - other).max()) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_remat_and_narrow_types_know_conditions_too(dtype, moved):
    kind = {**SIZES, "num_classes": 4, "context_dim": 16, "dtype": dtype}
    reader = TextEncoder(16, 1, 2, 48, dtype)
    wide = Conditional(UNet(**{**kind, "dtype": jnp.float32}), TextEncoder(16, 1, 2, 48))
    again = Conditional(UNet(**kind, remat=True), reader)
    found, wanted = compiled(again)(moved, X, T, told()), compiled(wide)(moved, X, T, told())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == jnp.float32 else 0.3 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"label": jnp.zeros(3, int)}, "num_classes = 0: it was made without labels"),
        ({"context": jnp.zeros((3, 2, 5))}, "context_dim = 0: it was made without context"),
        ({"mask": jnp.ones((3, 2), bool)}, "a mask is given, but no context"),
        ({"image": jnp.zeros((3, 4, 8, 1))}, r"image is float32 \(3, 4, 8, 1\): expected floats \(3, 8, 8, 'C'\)"),
    ],
)
def test_what_a_network_was_not_made_for_is_refused(asked, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(lambda: UNet(**SIZES).init(jax.random.key(0), X, T, **asked))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"label": jnp.zeros(3)}, r"label is float32 \(3,\).*labels are integers \[B\]"),
        ({"label": jnp.zeros(2, int)}, r"label is int32 \(2,\)"),
        (
            {"context": jnp.zeros((3, 2, 4))},
            r"context is float32 \(3, 2, 4\): expected floats \[B, L, D\] = \(3, 2, 5\)",
        ),
        ({"context": jnp.zeros((3, 2, 5)), "mask": jnp.ones((3, 2))}, "mask is float32"),
    ],
)
def test_conditions_of_another_form_are_refused(asked, text):
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(lambda: UNet(**SIZES, num_classes=2, context_dim=5).init(jax.random.key(0), X, T, **asked))


def test_options_and_texts_that_cannot_be_are_refused(conditional):
    with pytest.raises(ValueError, match="num_classes = -1, context_dim = 0: 0 for none"):
        jax.eval_shape(lambda: UNet(**SIZES, num_classes=-1).init(jax.random.key(0), X, T))
    with pytest.raises(ValueError, match="width = 10 must be a multiple of heads = 4"):
        jax.eval_shape(lambda: TextEncoder(10).init(jax.random.key(0), jnp.ones((1, 3), int)))
    with pytest.raises(ValueError, match=r"tokens are int32 \(1, 49\): expected integers \[B, L\], L <= 48"):
        jax.eval_shape(lambda: TextEncoder(16, 1, 2, 48).init(jax.random.key(0), jnp.ones((1, 49), int)))
    with pytest.raises(ValueError, match="without a reader of texts"):
        jax.eval_shape(lambda: Conditional(UNet(**SIZES)).init(jax.random.key(0), X, T, told()))
    both = told()._replace(context=jnp.zeros((3, 2, 16)))
    with pytest.raises(ValueError, match="both a text and a context"):
        jax.eval_shape(lambda: conditional.init(jax.random.key(0), X, T, both))
