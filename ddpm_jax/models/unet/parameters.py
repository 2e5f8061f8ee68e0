"""Parameters of layers and their initialisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """A float32 parameter, as `module.param` returns it.

    That traces `init` at each call to compare shapes, which is nearly half of the time of tracing a network.
    """
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if getattr(value, "shape", None) == shape:
            return value
    return module.param(name, init, shape, jnp.float32)


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., C] + bias [C], in the dtype of x."""
    return x + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))


def fan_average(scale: float = 1.0) -> Initializer:
    """Uniform initialisation with variance scale / mean(fan-in, fan-out)."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")
