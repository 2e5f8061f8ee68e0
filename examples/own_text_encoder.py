"""A text encoder of your own: any function from texts to vectors conditions the U-Net, with guidance.

    python examples/own_text_encoder.py

Here each word is a fixed random vector; a pretrained encoder's output takes its place in the same way.
"""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import UNet, data, gaussian, guidance, keys, losses, samplers, schedules, training
from ddpm_jax.models.conditional import ConditionalNetwork

NAMES = "zero one two three four five six seven eight nine".split()
WORDS, SIZE = 4, 16


def encode(texts):
    """A condition of texts: context [B, WORDS, SIZE], a vector for each word, and a mask of the words there are."""
    context, mask = np.zeros((len(texts), WORDS, SIZE), np.float32), np.zeros((len(texts), WORDS), bool)
    for i, text in enumerate(texts):
        for j, token in enumerate(text.split()[:WORDS]):
            context[i, j] = np.random.default_rng(zlib.crc32(token.encode())).normal(size=SIZE)
            mask[i, j] = True
    return guidance.Condition(context=jnp.asarray(context), mask=jnp.asarray(mask))


def main(steps=600, batch=64, channels=24, scale=2.0):
    """Trains on digits with texts and returns ten samples [10, 8, 8, 1], of "the digit zero" to "the digit nine"."""
    digits = data.load("digits")
    images, schedule = data.normalize(digits.train, levels=17), schedules.cosine(200)
    condition = encode([f"the digit {NAMES[label]}" for label in digits.train_labels])
    unet = UNet(
        channels, (1, 2), num_res_blocks=1, attention_resolutions=(4,), groups=8, out_channels=1, context_dim=SIZE
    )
    net = ConditionalNetwork(unet)
    example = jax.tree.map(lambda a: a[:1], condition)
    params = jax.jit(net.init)(keys.from_seed(0), images[:1], jnp.ones((1,), int), example)

    def loss(params, example_keys, batch):
        x0, condition = batch
        drop_keys, loss_keys = keys.split_keys(example_keys, 2)
        dropped = guidance.drop_condition(drop_keys, condition, guidance.null_condition(condition, 0), 0.1)
        conditioned = guidance.condition_on(partial(net.apply, params), dropped)
        return losses.simple_loss(loss_keys, schedule, conditioned, x0, predicts="v").mean()

    optimizer = training.optimizer(3e-3, warmup=50)
    state, step = training.init(params, optimizer), jax.jit(training.make_step(loss, optimizer, ema_decay=0.99))
    order = data.EpochShuffle(keys.from_seed(1), len(images))
    for n in range(steps):
        rows = order.indices(n, batch)
        state, metrics = step(keys.from_seed(2), state, (images[rows], jax.tree.map(lambda a: a[rows], condition)))
    print(f"loss {metrics['loss']:.3f}")

    requested = encode([f"the digit {name}" for name in NAMES])
    null = guidance.null_condition(requested, 0)
    guided_net = guidance.classifier_free_guidance(partial(net.apply, state.ema), requested, null, scale)
    denoise = gaussian.denoiser(schedule, guided_net, predicts="v", clip=True)
    image_keys = samplers.image_keys(seed=0, indices=range(10))
    x_T = samplers.initial_noise(image_keys, images.shape[1:])
    return samplers.sample(image_keys, samplers.ddim(schedule, denoise), x_T, samplers.times(200, 50))


if __name__ == "__main__":
    data.write_png("own_text_encoder.png", data.make_grid(data.to_integer(main(), 17), 17), scale=8)
    print("zero to nine: own_text_encoder.png")
