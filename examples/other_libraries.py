"""A network in Equinox or in Haiku: as a function of its parameters it trains and samples like any other.

    python examples/other_libraries.py equinox | haiku

after `pip install equinox`, or `pip install dm-haiku`.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from ddpm_jax import data, gaussian, keys, losses, samplers, schedules, training

SIDE, WIDTH = 8, 128


def features(x_t, t):
    """The pixels of an image and waves of its time, in one vector."""
    angle = t / 1000 * 2.0 ** jnp.arange(8)
    return jnp.concatenate([x_t.reshape(-1), jnp.sin(angle), jnp.cos(angle)])


def equinox_network(key):
    """(params, net): a multilayer perceptron; Equinox's layers take one example."""
    import equinox as eqx

    module = eqx.nn.MLP(SIDE * SIDE + 16, SIDE * SIDE, WIDTH, depth=3, activation=jax.nn.silu, key=key)
    params, rest = eqx.partition(module, eqx.is_inexact_array)

    def net(params, x_t, t):
        module = eqx.combine(params, rest)
        return jax.vmap(lambda x_t, t: module(features(x_t, t)).reshape(x_t.shape))(x_t, t)

    return params, net


def haiku_network(key):
    """(params, net): a multilayer perceptron; Haiku's functions are pure once transformed."""
    import haiku as hk

    def forward(x_t, t):
        mlp = hk.nets.MLP([WIDTH] * 3 + [SIDE * SIDE], activation=jax.nn.silu)
        return mlp(jax.vmap(features)(x_t, t)).reshape(x_t.shape)

    transformed = hk.without_apply_rng(hk.transform(forward))
    return transformed.init(key, jnp.zeros((1, SIDE, SIDE, 1)), jnp.ones(1, int)), transformed.apply


NETWORKS = {"equinox": equinox_network, "haiku": haiku_network}


def main(library, steps=1000, batch=64):
    """Trains on digits; returns the losses, and 16 samples [16, 8, 8, 1]."""
    images, schedule = data.normalize(data.load("digits").train, levels=17), schedules.cosine(1000)
    params, net = NETWORKS[library](keys.from_seed(0))

    def loss(params, example_keys, x0):
        return losses.simple_loss(example_keys, schedule, partial(net, params), x0, predicts="v").mean()

    optimizer = training.optimizer(3e-3, warmup=20)
    state, step = training.init(params, optimizer), jax.jit(training.make_step(loss, optimizer, ema_decay=0.99))
    order = data.EpochShuffle(keys.from_seed(1), len(images))
    loss_history = []
    for n in range(steps):
        state, metrics = step(keys.from_seed(2), state, images[order.indices(n, batch)])
        loss_history.append(float(metrics["loss"]))
    print(f"{library}: loss {loss_history[0]:.3f} at the first step, {loss_history[-1]:.3f} at the last")

    denoise = gaussian.denoiser(schedule, partial(net, state.ema), predicts="v", clip=True)
    image_keys = samplers.image_keys(seed=0, indices=range(16))
    x_T = samplers.initial_noise(image_keys, images.shape[1:])
    return loss_history, samplers.sample(image_keys, samplers.ddim(schedule, denoise), x_T, samplers.times(1000, 50))


if __name__ == "__main__":
    if sys.argv[1:] not in ([name] for name in NETWORKS):
        raise SystemExit(f"usage: python examples/other_libraries.py {' | '.join(NETWORKS)}")
    main(sys.argv[1])
