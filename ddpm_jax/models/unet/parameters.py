"""Parameters of layers and their initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from ddpm_jax import keys


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """A float32 parameter, as `module.param` returns it.

    That traces `init` at each call to compare shapes, which is nearly half of the time of tracing a network.  A
    parameter of a key that is not traced is computed at once, also while the network is traced.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if getattr(value, "shape", None) == shape:
            return value
    with jax.ensure_compile_time_eval():
        return module.param(name, init, shape, jnp.float32)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., C] + bias [C], in the dtype of x."""
    return x + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))


def constant(value: float) -> Initializer:
    """Initialisation with one number, without a compiled program."""
    return lambda key, shape, dtype: np.full(shape, value, dtype)


def fan_average(scale: float = 1.0) -> Initializer:
    """Uniform initialisation with variance scale / mean(fan-in, fan-out), by numpy if the key is not traced."""
    traced = nn.initializers.variance_scaling(scale, "fan_avg", "uniform")

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array | np.ndarray:
        on_host = not isinstance(key, Tracer) and jax.random.key_impl(key) == keys.GENERATOR
        if not on_host or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
            return traced(key, shape, dtype)
        fan = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        return keys.uniform_on_host(key, shape) * np.sqrt(3 * np.float32(scale / fan))

    return draw
