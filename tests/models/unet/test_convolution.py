"""Convolutions and their gradients, against the definition and against lax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import precision
from networks import assert_gradients_agree, convolution_by_definition

from ddpm_jax.models.unet import convolution, winograd
from ddpm_jax.models.unet.convolution import convolve
from ddpm_jax.models.unet.parameters import add_bias


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def by_lax(x, kernel, stride, padding):
    axes = x.ndim - 2
    sides = "DHW"[-axes:]
    order = (f"N{sides}C", f"{sides}IO", f"N{sides}C")
    zeros = "SAME" if padding == "end" else [(1, 1)] * axes
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, zeros, dimension_numbers=order)


WINOGRAD = [(2, 12, 16, 64, 64), (3, 8, 8, 128, 192), (4, 32, 32, 72, 64), (3, 32, 32, 96, 32), (2, 7, 16, 96, 96)]
"""Batches, sides and channels whose convolutions with a kernel of size 3 a CPU computes by Winograd's algorithm."""


def pieces_of(monkeypatch, images: int, dy: tuple[int, ...], bytes_each: int = 8) -> None:
    """So many images of a result's gradient [B, ...] are a piece."""
    monkeypatch.setattr(convolution, "_PIECE_BYTES", images * int(np.prod(dy[1:])) * bytes_each)


KINDS = [(1, "end", 1), (1, "both", 1), (2, "end", 0), (2, "both", 1)]
"""Stride, padding, and the zeros in front of each axis."""


def test_a_convolution_is_its_definition():
    shapes = [(8,), (4, 6), (2, 4, 6)]
    inputs = [(random(2, *sides, 3), random(*(3,) * len(sides), 3, 4)) for sides in shapes]

    @jax.jit
    def outputs(inputs):
        return [[convolve(x, kernel, stride, padding) for stride, padding, _ in KINDS] for x, kernel in inputs]

    with precision("float64"):
        found = outputs(inputs)
    for (x, kernel), made in zip(inputs, found, strict=True):
        for (stride, padding, before), ours in zip(KINDS, made, strict=True):
            expected = convolution_by_definition(x, kernel, stride, before)
            case = f"{x.shape}, stride {stride}, {padding}"
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12, err_msg=case)


@pytest.mark.parametrize("shape", [(3, 6, 2), (3, 4, 6, 2), (5, 8, 4, 4), (2, 4, 4, 4, 2)])
def test_gradients_are_lax_s_own(shape, monkeypatch):
    """In pieces too: five images in pieces of 2, 2 and 1 (of stride 2, of all)."""
    axes = len(shape) - 2
    x, kernel = random(*shape), random(*(3,) * axes, shape[-1], 16)
    if shape[0] == 5:
        pieces_of(monkeypatch, 2, (*shape[:-1], 16))

    @jax.jit
    def gradients(x, kernel):
        def of(f, stride, padding):
            return jax.grad(lambda x, kernel: jnp.sin(f(x, kernel, stride, padding)).sum(), (0, 1))(x, kernel)

        return {
            f"stride {stride}, {padding}": [of(f, stride, padding) for f in (convolve, by_lax)]
            for stride, padding in ((1, "end"), (2, "end"), (2, "both"))
        }

    with precision("float64"):
        for case, (ours, theirs) in gradients(x, kernel).items():
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=case)


@pytest.mark.parametrize("shape", WINOGRAD)
def test_winograd_s_algorithm_is_the_convolution(shape):
    """In one piece, and in several; a TPU convolves as ever."""
    (*inputs, features), kernel_shape = shape, (3, 3, *shape[3:])
    x, kernel = random(*inputs).astype(np.float32), random(*kernel_shape).astype(np.float32)
    dy = random(*inputs[:-1], features).astype(np.float32)

    def both(convolution, x, kernel, dy):
        out, back = jax.vjp(convolution, x, kernel)
        return out, *back(dy)

    assert winograd.is_faster(x, kernel)
    traced = jax.jit(functools.partial(both, convolve)).trace(x, kernel, dy)
    plain = jax.jit(functools.partial(both, functools.partial(by_lax, stride=1, padding="end")))(x, kernel, dy)
    for a, b in zip(traced.lower().compile()(x, kernel, dy), plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4e-6 * np.abs(b).max())
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("stablehlo.convolution") == 3
    assert "stablehlo.convolution" not in jax.jit(convolve).lower(x, kernel).as_text()


@pytest.mark.parametrize(
    ("shape", "features", "kernel_sides"),
    [
        ((2, 32, 32, 16), 64, (3, 3)),
        ((2, 4, 8, 192), 192, (3, 3)),
        ((2, 14, 14, 32), 96, (3, 3)),
        ((2, 16, 16, 64), 64, (2, 2)),
        ((2, 256, 64), 64, (3,)),
        ((1, 512, 512, 64), 64, (3, 3)),
    ],
    ids=["few channels", "few pixels", "few products", "another kernel", "one axis", "windows too large for memory"],
)
def test_other_convolutions_are_plain(shape, features, kernel_sides):
    x, kernel = (jax.ShapeDtypeStruct(s, np.float32) for s in (shape, (*kernel_sides, shape[-1], features)))
    assert not winograd.is_faster(x, kernel)
    half = jax.ShapeDtypeStruct((2, 16, 16, 64), jnp.bfloat16)
    assert not winograd.is_faster(half, jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.bfloat16))


def test_a_gradient_may_be_differentiated_either_way():
    x, kernel, along = random(2, 4, 4, 3), random(3, 3, 3, 4), random(3, 3, 3, 4)
    with precision("float64"):
        assert_gradients_agree(lambda kernel: jnp.sin(convolve(x, kernel)).sum(), (kernel,), (along,))


def test_only_a_cpu_makes_the_gradient_of_a_kernel_in_pieces():
    """For others, the program is that of lax: one convolution forward, one for each gradient."""
    sides, kernel = (64, 64, 4), jax.ShapeDtypeStruct((3, 3, 4, 16), np.float32)  # a quarter of a MiB an image
    gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sin(convolve(x, kernel)).sum(), argnums=(0, 1)))

    def convolutions(platform, images):
        traced = gradients.trace(jax.ShapeDtypeStruct((images, *sides), np.float32), kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert convolutions("tpu", 8) == convolutions("cuda", 8) == 3
    assert convolutions("cpu", 4) == 3  # a MiB at a time
    assert convolutions("cpu", 8) == 4
    assert convolutions("cpu", 9) == 5
    assert convolutions("cpu", 1000) <= 2 + 16  # each piece is compiled


def test_pieces_of_half_precision_are_summed_in_single(monkeypatch):
    """Summed in bfloat16 piece by piece, small ones would be lost beside what there is already."""
    x = np.ones((16, 16, 16, 1), jnp.bfloat16)
    pieces_of(monkeypatch, 1, x.shape, 2)
    dy = np.zeros_like(x)
    dy[:, 9, 9, 0] = 1
    dy[0, 9, 9, 0] = 256
    kernel = np.zeros((3, 3, 1, 1), jnp.bfloat16)
    (made,) = jax.jit(lambda kernel: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy))(kernel)
    assert made[1, 1, 0, 0] == 272  # 271, rounded once; each 1 alone would be lost beside 256


@pytest.mark.parametrize("sides", [(5,), (4, 6), (2, 3, 4)])
def test_doubling_and_convolving_may_be_one(sides):
    ways = (
        convolution.upsample_then_convolve, convolution.fused_upsample_convolve, convolution.subpixel_upsample_convolve
    )  # fmt: skip

    @jax.jit
    def outputs_and_gradients(*args):
        return [(f(*args), jax.grad(lambda *args, f=f: jnp.sin(f(*args)).sum(), argnums=(0, 1))(*args)) for f in ways]

    with precision("float64"):
        (plain, of_plain), *others = outputs_and_gradients(random(2, *sides, 3), random(*(3,) * len(sides), 3, 4))
    for one, of_one in others:
        np.testing.assert_allclose(one, plain, rtol=1e-12, atol=1e-13)
        for a, b in zip(of_one, of_plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_bias_gradient_in_bfloat16_is_summed_in_float32():
    """Summed in bfloat16, it would stop growing at 256 terms."""
    y, bias, shift = jnp.zeros((3, 16, 16, 2), jnp.bfloat16), jnp.zeros(2), jnp.zeros((3, 2))
    back = jax.jit(lambda dy: jax.vjp(lambda bias, shift: add_bias(y, bias, shift), bias, shift)[1](dy))
    of_bias, of_shift = back(jnp.ones_like(y))
    np.testing.assert_array_equal(of_bias, np.full(2, 768.0))
    np.testing.assert_array_equal(of_shift, np.full((3, 2), 256.0))
