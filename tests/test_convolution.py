"""Convolutions and their gradients, against the definition and against lax's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens_loader import precision

from ddpm_jax.unet import convolution
from ddpm_jax.unet.convolution import convolved

LARGE = (5, 64, 64, 4)  # with 16 features of float64, half a MiB an image: pieces of 2, 2, 1


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def by_definition(x, kernel, stride, before):
    """Sums of products, over images padded with zeros: `before` in front of each axis, and enough behind."""
    axes = x.ndim - 2
    sides = [-(-side // stride) for side in x.shape[1:-1]]
    x = np.pad(x, ((0, 0), *((before, 3) for _ in range(axes)), (0, 0)))
    total = 0
    for place in itertools.product(range(3), repeat=axes):
        seen = x[:, *(slice(at, at + stride * n, stride) for at, n in zip(place, sides, strict=True))]
        total = total + seen @ kernel[place]
    return total


@pytest.mark.parametrize(
    ("stride", "padding", "before"), [(1, "end", 1), (1, "both", 1), (2, "end", 0), (2, "both", 1)]
)
@pytest.mark.parametrize("sides", [(8,), (4, 6), (2, 4, 6)])
def test_a_convolution_is_its_definition(sides, stride, padding, before):
    x, kernel = random(2, *sides, 3), random(*(3,) * len(sides), 3, 4)
    with precision("float64"):
        made = convolved(jnp.asarray(x), jnp.asarray(kernel), stride, padding)
    np.testing.assert_allclose(made, by_definition(x, kernel, stride, before), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(1, "end"), (2, "end"), (2, "both")])
@pytest.mark.parametrize("shape", [(3, 4, 6, 2), LARGE, (2, 4, 4, 4, 2)])
def test_gradients_are_lax_s_own(shape, stride, padding):
    axes = len(shape) - 2
    x, kernel = random(*shape), random(*(3,) * axes, shape[-1], 16)
    sides = "DHW"[-axes:]
    order = (f"N{sides}C", f"{sides}IO", f"N{sides}C")
    zeros = "SAME" if padding == "end" else [(1, 1)] * axes

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, zeros, dimension_numbers=order)

    def gradients(f):
        return jax.jit(jax.grad(lambda x, kernel: jnp.sin(f(x, kernel)).sum(), argnums=(0, 1)))(x, kernel)

    with precision("float64"):
        ours, theirs = gradients(lambda x, kernel: convolved(x, kernel, stride, padding)), gradients(plain)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_gradient_may_be_differentiated_either_way():
    x, kernel, along = random(2, 4, 4, 3), random(3, 3, 3, 4), random(3, 3, 3, 4)
    with precision("float64"):
        slope = jax.grad(lambda kernel: jnp.sin(convolved(jnp.asarray(x), kernel)).sum())
        forward = jax.jvp(slope, (kernel,), (along,))[1]
        reverse = jax.grad(lambda kernel: jnp.vdot(slope(kernel), along))(kernel)
        near = (slope(kernel + 1e-5 * along) - slope(kernel - 1e-5 * along)) / 2e-5
    np.testing.assert_allclose(forward, reverse, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(forward, near, rtol=1e-6, atol=1e-6)


def test_only_a_cpu_makes_the_gradient_of_a_kernel_in_pieces():
    """For others, the program is that of lax: one convolution forward, one for each gradient."""
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((8, *LARGE[1:]), (3, 3, LARGE[-1], 16)))
    gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sin(convolved(x, kernel)).sum(), argnums=(0, 1)))

    def convolutions(platform, images):
        traced = gradients.trace(jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype), kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")

    assert convolutions("tpu", 8) == convolutions("cuda", 8) == 3
    assert convolutions("cpu", 4) == 3  # a MiB at a time
    assert convolutions("cpu", 8) == 4
    assert convolutions("cpu", 9) == 5
    assert convolutions("cpu", 1000) <= 2 + 16  # each piece is compiled


def test_pieces_of_half_precision_are_summed_in_single():
    """Summed in bfloat16 piece by piece, small ones would be lost beside what there is already."""
    x = jnp.ones((16, 1024, 512, 1), jnp.bfloat16)  # a MiB an image: 16 pieces
    dy = jnp.zeros_like(x).at[:, 9, 9, 0].set(1).at[0, 9, 9, 0].set(256)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.bfloat16)
    (made,) = jax.jit(lambda kernel: jax.vjp(lambda kernel: convolved(x, kernel), kernel)[1](dy))(kernel)
    assert made[1, 1, 0, 0] == 272  # 271, rounded once; each 1 alone would be lost beside 256


@pytest.mark.parametrize("sides", [(5,), (4, 6), (2, 3, 4)])
def test_doubling_and_convolving_may_be_one(sides):
    random = np.random.default_rng(0).standard_normal
    with precision("float64"):
        x, kernel = random((2, *sides, 3)), random((3,) * len(sides) + (3, 4))
        one, two = (jax.jit(f) for f in (convolution.doubled_in_one, convolution.doubled_in_two))
        np.testing.assert_allclose(one(x, kernel), two(x, kernel), rtol=1e-12, atol=1e-13)
        gradients = (
            jax.grad(lambda *args, f=f: jnp.sin(f(*args)).sum(), argnums=(0, 1))(x, kernel) for f in (one, two)
        )
        for a, b in zip(*gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
