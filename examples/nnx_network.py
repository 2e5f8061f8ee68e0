"""A network written in flax.nnx: split into a graph and its parameters, it is a function like any other.

python examples/nnx_network.py
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax import data, gaussian, keys, losses, samplers, schedules, training


class Network(nnx.Module):
    """A small residual convolutional network of images [B, 8, 8, 1] and times [B]."""

    def __init__(self, channels, depth, rngs):
        self.conv_in = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.time = nnx.Linear(16, channels, rngs=rngs)
        self.conv_blocks = nnx.List([nnx.Conv(channels, channels, (3, 3), rngs=rngs) for _ in range(depth)])
        self.conv_out = nnx.Conv(channels, 1, (3, 3), rngs=rngs)

    def __call__(self, x, t):
        angle = t[:, None] / 1000 * 2.0 ** jnp.arange(8)
        time_features = self.time(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], 1))
        h = self.conv_in(x) + time_features[:, None, None]
        for block in self.conv_blocks:
            h = h + block(nnx.silu(h))
        return self.conv_out(nnx.silu(h))


def main(steps=1000, batch=64, channels=32):
    """Trains on digits and returns the first and the last loss, and 16 samples [16, 8, 8, 1]."""
    images, schedule = data.normalize(data.load("digits").train, levels=17), schedules.cosine(1000)
    graph, params = nnx.split(Network(channels, 4, nnx.Rngs(0)))

    def net_of(params):
        return lambda x_t, t: nnx.merge(graph, params)(x_t, t)

    def loss(params, example_keys, x0):
        return losses.simple_loss(example_keys, schedule, net_of(params), x0, predicts="v").mean()

    optimizer = training.optimizer(3e-3, warmup=20)
    state, step = training.init(params, optimizer), jax.jit(training.make_step(loss, optimizer, ema_decay=0.99))
    order = data.EpochShuffle(keys.from_seed(1), len(images))
    loss_history = []
    for n in range(steps):
        state, metrics = step(keys.from_seed(2), state, images[order.indices(n, batch)])
        loss_history.append(float(metrics["loss"]))
    print(f"loss {loss_history[0]:.3f} at the first step, {loss_history[-1]:.3f} at the last")

    denoise = gaussian.denoiser(schedule, net_of(state.ema), predicts="v", clip=True)
    image_keys = samplers.image_keys(seed=0, indices=range(16))
    x_T = samplers.initial_noise(image_keys, images.shape[1:])
    return loss_history, samplers.sample(image_keys, samplers.ddim(schedule, denoise), x_T, samplers.times(1000, 50))


if __name__ == "__main__":
    data.write_png("nnx_network.png", data.make_grid(data.to_integer(main()[1], 17), 17), scale=8)
    print("16 samples: nnx_network.png")
