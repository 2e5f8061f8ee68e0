"""The library works where JAX promotes neither dtypes nor ranks: what mixes them is written out.

Tracing is all that shows it, so nothing is compiled here.  Chains, losses, and the programs of a run are traced so in
test_key_reuse.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import (
    conformance,
    data,
    denoisers,
    editing,
    gaussian,
    guidance,
    likelihood,
    losses,
    measurements,
    samplers,
    schedules,
    training,
)
from ddpm_jax.models.text import TextEncoder
from ddpm_jax.models.unet import UNet

pytestmark = pytest.mark.usefixtures("strict_promotion")

SCHEDULE = schedules.linear(10, 5e-3, 0.6)
X, T2 = jnp.linspace(-1, 1, 18).reshape(2, 3, 3), jnp.array([3, 10], jnp.int32)
KEYS = samplers.image_keys(0, range(2))
TIMES = samplers.times(10, 3)
LABELS = guidance.Condition(label=jnp.arange(2))


def net(x, t):
    return 0.5 * x


def wide(x, t):
    return jnp.concatenate([0.5 * x, 0.1 * x], -1)


def labelled(x, t, condition):
    return x * condition.label.reshape(-1, 1, 1).astype(x.dtype)


CLIPPED = gaussian.denoiser(SCHEDULE, net, "v", clip=True)
LEARNED = gaussian.denoiser(SCHEDULE, wide, learned_variance=True)
DECODERS = {
    "discretized": likelihood.decoder_8bit,
    "tanh": likelihood.discretized_gaussian_tanh(256),
    "softmax": likelihood.softmax_decoder(8),
    "density": likelihood.gaussian_density,
}
WEIGHTS = {"snr": losses.snr, "min_snr": losses.min_snr(), "truncated": losses.truncated_snr(), "p2": losses.p2()}
FUNCTIONS = {
    "transition": lambda x: gaussian.transition(SCHEDULE, x, T2, T2 - 1),
    "kl": lambda x: gaussian.kl(gaussian.posterior(SCHEDULE, x, x, T2, T2 - 1), gaussian.marginal(SCHEDULE, x, T2)),
    "beta": lambda x: (SCHEDULE.beta, SCHEDULE.alpha_bar),
    **{
        f"bound, {name}": lambda x, of=of: likelihood.vlb(KEYS, SCHEDULE, CLIPPED, x, decoder=of)
        for name, of in DECODERS.items()
    },
    "estimate": lambda x: likelihood.estimate_vlb(KEYS, SCHEDULE, LEARNED, x, decoder=likelihood.decoder_8bit),
    "bits": lambda x: likelihood.bits_per_dim(jnp.ones(2), x),
    **{
        f"loss, {name}, {of}": lambda x, w=w, of=of: losses.simple_loss(KEYS, SCHEDULE, net, x, predicts=of, weight=w)
        for name, w in WEIGHTS.items()
        for of in ("eps", "x0", "v", "mean")
    },
    "equation 12": lambda x: losses.weighted_loss(SCHEDULE, net, x, T2, x),
    "learned": lambda x: losses.variational_loss(KEYS, SCHEDULE, wide, x, learned_variance=True),
    "hybrid": lambda x: losses.hybrid_loss(KEYS, SCHEDULE, wide, x),
    "history": lambda x: losses.importance_probabilities(
        losses.record_losses(losses.empty_loss_history(10), T2, x[:, 0, 0])
    ),
    "threshold": lambda x: denoisers.limit_x0(SCHEDULE, CLIPPED, denoisers.dynamic_threshold(99.5))(x, T2),
    "scaled": lambda x: denoisers.scale_eps(SCHEDULE, CLIPPED, jnp.ones(11))(x, T2),
    "slerp": lambda x: (editing.slerp(x, 2 * x, T2 / 10), editing.slerp(x, 2 * x, 0.5)),
    "third order": lambda x: samplers.sample(KEYS, samplers.unipc(SCHEDULE, CLIPPED, order=3), x, TIMES),
    "inversion": lambda x: editing.invert(SCHEDULE, CLIPPED, x, TIMES),
    "guided": lambda x: guidance.classifier_free_guidance(labelled, LABELS, LABELS, 2.0, interval=(2, 8))(x, T2),
    "coarser": lambda x: guidance.block_average(x[..., None], 3),
    **{
        f"measured, {name}": lambda x, A=A: measurements.condition_on_measurement(
            SCHEDULE, CLIPPED, A, A(jnp.ones((1, 3, 3, 3))), 0.1
        )(jnp.stack([x, x, x], -1), T2)
        for name, A in {
            "pixels": measurements.known_pixels(np.eye(3, dtype=bool)),
            "small": measurements.downsample(3),
            "blurred": measurements.blur(0.5),
            "grey": measurements.grey,
        }.items()
    },
    "ideal": lambda x: conformance.ideal_denoiser(SCHEDULE, conformance.checks.MIXTURE)(x[:, 0, :2], T2),
    "law": lambda x: conformance.sample_data(KEYS, conformance.checks.MIXTURE),
    "16 bits": lambda x: data.normalize(jnp.ones((2, 2), jnp.uint16), 65536),
    "a range": lambda x: data.normalize(x, data.ValueRange(0.0, 1.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_their_derivatives(name):
    def total(x):
        return sum(leaf.sum() for leaf in jax.tree.leaves(FUNCTIONS[name](x)))

    jax.eval_shape(jax.value_and_grad(total) if name != "inversion" else total, X)


NETWORKS = {
    "a sequence": ((8, 3), {}, {}),
    "volumes": ((8, 8, 8, 3), {}, {}),
    "half precision": ((8, 8, 3), {"dtype": jnp.bfloat16}, {}),
    "blocks": ((8, 8, 3), {"resample": "block", "time_conditioning": "scale_shift", "heads": 2}, {}),
    "without convolutions": ((8, 8, 3), {"resample_with_conv": False}, {}),
    "labels": ((8, 8, 3), {"num_classes": 3}, {"label": jnp.zeros(2, jnp.int32)}),
    "a context": (
        (8, 8, 3), {"context_dim": 5}, {"context": jnp.zeros((2, 4, 5)), "mask": jnp.ones((2, 4), bool)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_their_gradients(name):
    shape, options, conditions = NETWORKS[name]
    unet = UNet(
        channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), out_channels=3, **options
    )

    def gradient(key, x):
        params = unet.init(key, x, T2, **conditions)
        return jax.grad(lambda params: unet.apply(params, x, T2, **conditions).sum())(params)

    jax.eval_shape(gradient, KEYS[0], jax.ShapeDtypeStruct((2, *shape), jnp.float32))


def test_the_reader_of_texts():
    reader, tokens = TextEncoder(8, 1, 2, 6, jnp.float32), np.ones((2, 6), np.uint8)
    jax.eval_shape(lambda key: jax.grad(lambda p: reader.apply(p, tokens).sum())(reader.init(key, tokens)), KEYS[0])


@pytest.mark.parametrize("options", [{}, {"warmup": 0}, {"decay": 6000}], ids=str)
def test_the_training_step(options):
    optimizer, params = training.optimizer(1e-3, **options), {"w": jnp.ones((3, 3))}
    decay = training.ema_warmup(0.99)
    step = training.make_step(lambda p, keys, x: ((x @ p["w"]) ** 2).mean(), optimizer, ema_decay=decay, accumulate=2)
    jax.eval_shape(functools.partial(step, KEYS[0]), training.init(params, optimizer), jnp.ones((2, 3)))
