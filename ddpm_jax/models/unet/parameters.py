"""Parameters of layers, and what they are at the start."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """A parameter of float32, as `module.param` gives it.

    That would trace `init` at each call to compare shapes, which is nearly half of what tracing a network takes.
    """
    if module.has_variable("params", name):
        found = module.get_variable("params", name)
        if getattr(found, "shape", None) == shape:
            return found
    return module.param(name, init, shape, jnp.float32)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """What sums are in, and statistics: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., C] + bias [C], in the dtype of x."""
    return x + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))


def fan_average(scale: float = 1.0) -> Initializer:
    """Initial kernels: uniform, of the variance scale / the mean of fan-in and fan-out."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")
