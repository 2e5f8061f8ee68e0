"""Parameters, and the linear maps that are made of nothing else."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...]) -> Any:
    """A parameter of float32, as `module.param` gives it.

    That would trace `init` at each call to compare shapes, which is nearly half of what tracing a network takes.
    """
    if module.has_variable("params", name):
        found = module.get_variable("params", name)
        if getattr(found, "shape", None) == shape:
            return found
    return module.param(name, init, shape, jnp.float32)


def fan_average(scale: float = 1.0) -> Callable[..., Any]:
    """Initial kernels: uniform, of the variance scale / the mean of fan-in and fan-out."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


class Dense(nn.Module):
    """The same linear map at every pixel.

    Attributes:
        scale: of the kernel's initial variance.
        dtype: what it is computed in.
    """

    features: int
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., C] -> [..., features]."""
        kernel = parameter(self, "kernel", fan_average(self.scale), (x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        last = ((x.ndim - 1,), (0,)), ((), ())
        return jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), last) + bias.astype(self.dtype)
