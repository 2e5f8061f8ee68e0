"""The library's U-Net, which is a linen module, inside a flax.nnx module: trained in place, and as a function.

    python examples/unet_in_nnx.py

`nnx.jit` takes the module and changes it; `jax.jit` takes the parameters, as all functions of the library do.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax import UNet, data, gaussian, keys, losses, samplers, schedules, training


class Network(nnx.Module):
    """The U-Net and a layer in nnx, of images [B, 8, 8, 1] and times [B]."""

    def __init__(self, channels, rngs):
        unet = UNet(channels, (1, 2), num_res_blocks=1, attention_resolutions=(4,), groups=4, out_channels=1)
        # random keys only to begin with: dropout's are an argument.  Parameters have their names in linen
        self.unet = nnx.bridge.ToNNX(unet).lazy_init(jnp.zeros((1, 8, 8, 1)), jnp.ones(1, int), rngs=rngs)
        self.shortcut = nnx.Conv(1, 1, (3, 3), rngs=rngs)

    def __call__(self, x_t, t):
        return self.shortcut(x_t) + self.unet(x_t, t)


def main(steps=300, batch=64, channels=16):
    """Trains on digits by nnx.jit and by jax.jit; returns the losses of both, and samples [16, 8, 8, 1]."""
    images, schedule = data.normalize(data.load("digits").train, levels=17), schedules.cosine(1000)
    order, run_key = data.EpochShuffle(keys.from_seed(1), len(images)), keys.from_seed(2)
    optimizer = training.optimizer(3e-3, warmup=20)

    def loss(net, example_keys, x0):
        return losses.simple_loss(example_keys, schedule, net, x0, predicts="v").mean()

    # a function of the parameters
    graph, params = nnx.split(Network(channels, nnx.Rngs(0)))

    def net_of(params):
        return lambda x_t, t: nnx.merge(graph, params)(x_t, t)

    step = jax.jit(training.make_step(lambda params, *batch: loss(net_of(params), *batch), optimizer, ema_decay=0.99))
    state = training.init(params, optimizer)

    # a module that changes
    module = Network(channels, nnx.Rngs(0))
    module_optimizer = nnx.Optimizer(module, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step_in_place(module, module_optimizer, n, x0):
        example_keys = training.step_keys(run_key, n, jnp.arange(len(x0)))
        value, grads = nnx.value_and_grad(loss)(module, example_keys, x0)
        module_optimizer.update(module, grads)
        return value

    by_function, in_place = [], []
    for n in range(steps):
        x0 = images[order.indices(n, batch)]
        state, metrics = step(run_key, state, x0)
        by_function.append(float(metrics["loss"]))
        in_place.append(float(step_in_place(module, module_optimizer, n, x0)))
    print(f"loss {by_function[0]:.3f} at first, {by_function[-1]:.3f} at last; in place {in_place[-1]:.3f}")

    denoise = gaussian.denoiser(schedule, net_of(state.ema), predicts="v", clip=True)
    image_keys = samplers.image_keys(seed=0, indices=range(16))
    x_T = samplers.initial_noise(image_keys, images.shape[1:])
    x = samplers.sample(image_keys, samplers.ddim(schedule, denoise), x_T, samplers.times(1000, 50))
    return by_function, in_place, x


if __name__ == "__main__":
    data.write_png("unet_in_nnx.png", data.make_grid(data.to_integer(main()[2], 17), 17), scale=8)
    print("16 samples: unet_in_nnx.png")
