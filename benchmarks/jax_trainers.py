"""Trainers of other JAX projects, and evaluation of their networks, as `baseline_trainer`.

    python -m benchmarks.jax_trainers NAME SPEC OUT train     # NAME is of TRAINERS; SPEC is JSON, see `TrainerSpec`
    python -m benchmarks.jax_trainers NAME SPEC OUT evaluate

"flaxdiff" trains as its README.  "flax-tutorial" trains as the diffusion tutorial of Flax's documentation describes it
(flax.readthedocs.io/en/latest/examples/digits_diffusion_model.html), whose network has 64 channels;
"flax-tutorial-small" has 5 and the size of ours.  These networks take any noise level: for the bound and our sampler
they see the x_t of the config's noise schedule, rescaled to their own paths.  own.npz: samples of their own samplers.
"""

import contextlib
import importlib.metadata
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import baseline_trainer
from benchmarks.baseline_trainer import TrainerSpec, TrainingClock
from ddpm_jax import config as configs
from ddpm_jax import data, gaussian, keys
from ddpm_jax.gaussian import Net
from ddpm_jax.model import noise_schedule
from ddpm_jax.schedules import Schedule, gather

EPOCH = 100
"""Steps of flaxdiff between two records of its state: fewer than that many are lost at the end."""

Levelled = Callable[[jax.Array, jax.Array], jax.Array]
"""A network of a continuous noise level: (x [B, ...], level [B]) -> [B, ...]."""


class Project(NamedTuple):
    """A project's trainer.

    Attributes:
        train: (spec, next_batch, clock) -> parameters, steps.
        net: (spec, schedule, parameters) -> network that predicts x_0 from x_t.
        sample: (spec, parameters, key) -> [samples, H, W, C] in [-1, 1], by its own sampler.
        packages: beside JAX, Flax and Optax.
    """

    train: Callable[[TrainerSpec, Callable[[], np.ndarray], TrainingClock], tuple[Any, int]]
    net: Callable[[TrainerSpec, Schedule, Any], Net]
    sample: Callable[[TrainerSpec, Any, jax.Array], jax.Array]
    packages: tuple[str, ...]


def x0_from_velocity(schedule: Schedule, velocity: Levelled) -> Net:
    """Network that predicts x_0, of one that predicts x_0 - eps on the path level x_0 + (1 - level) eps.

    x_t = signal x_0 + noise eps is a point of the path times signal + noise; its level is signal / (signal + noise).
    """

    def net(x_t: jax.Array, t: jax.Array) -> jax.Array:
        signal, noise = gather(schedule.signal, t, x_t), gather(schedule.noise, t, x_t)
        x, level = x_t / (signal + noise), signal / (signal + noise)
        return x + (1 - level) * velocity(x, level.ravel())

    return net


def x0_from_sigma(schedule: Schedule, denoise: Levelled) -> Net:
    """Network that predicts x_0 from x_t, of one that predicts it from x_0 + sigma eps and sigma."""

    def net(x_t: jax.Array, t: jax.Array) -> jax.Array:
        signal, noise = gather(schedule.signal, t, x_t), gather(schedule.noise, t, x_t)
        return denoise(x_t / signal, (noise / signal).ravel())

    return net


# --- flaxdiff


class NoText:
    """Condition for flaxdiff's U-Net, which needs one: a single vector of zeros."""

    key = "textcontext"

    def __call__(self, images: Any) -> jax.Array:
        return jnp.zeros((len(images), 1, 8))


def flaxdiff_parts(spec: TrainerSpec) -> tuple[Any, Any, Any]:
    """Its network of the size of ours, with EDM's preconditioning, and its description of the input."""
    from flaxdiff.inputs import ConditionalInputConfig, DiffusionInputConfig
    from flaxdiff.models.simple_unet import Unet
    from flaxdiff.predictors import KarrasPredictionTransform

    shape, unet = tuple(spec.network["shape"]), spec.network["unet"]
    attention = [
        {"heads": 4, "only_pure_attention": False} if kind.startswith("Attn") else None
        for kind in unet["down_block_types"]
    ]
    model = Unet(
        output_channels=shape[-1], emb_features=160, feature_depths=unet["block_out_channels"],
        attention_configs=attention, num_res_blocks=unet["layers_per_block"], num_middle_res_blocks=1,
    )  # fmt: skip
    condition = ConditionalInputConfig(NoText(), conditioning_data_key="image")
    return model, KarrasPredictionTransform(sigma_data=0.5), DiffusionInputConfig("image", shape, [condition])


def train_flaxdiff(spec: TrainerSpec, next_batch: Callable[[], np.ndarray], clock: TrainingClock) -> tuple[Any, int]:
    """As its README: EDM's noise levels and weights, Adam at one rate, an average of 0.999; without checkpoints."""
    from flaxdiff.schedulers import EDMNoiseScheduler
    from flaxdiff.trainer import GeneralDiffusionTrainer

    model, transform, inputs = flaxdiff_parts(spec)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = GeneralDiffusionTrainer(
            model, optimizer=optax.adam(spec.learning_rate), input_config=inputs, rngs=keys.from_seed(spec.seed),
            noise_schedule=EDMNoiseScheduler(1, sigma_max=80, rho=7, sigma_data=0.5), model_output_transform=transform,
            checkpoint_base_path=checkpoints,
        )  # fmt: skip
        trainer.wandb, trainer.save = None, lambda *_, **__: None

        def batches():
            while clock():
                yield {"image": 127.5 * next_batch() + 127.5}

        with contextlib.suppress(StopIteration):  # how it ends when there are no more batches
            source = {"train": batches, "local_batch_size": spec.network["batch"]}
            trainer.fit(source, EPOCH, epochs=sys.maxsize, val_steps_per_epoch=0)
    return trainer.state.ema_params, trainer.latest_step


def flaxdiff_net(spec: TrainerSpec, schedule: Schedule, params: Any) -> Net:
    model, transform, _ = flaxdiff_parts(spec)

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        rates = jnp.ones((len(x), 1, 1, 1)), sigma[:, None, None, None]
        out = model.apply(params, x * transform.get_input_scale(rates), jnp.log(sigma) / 4, NoText()(x))
        return transform.pred_transform(x, out, rates)

    return x0_from_sigma(schedule, denoise)


def sample_flaxdiff(spec: TrainerSpec, params: Any, key: jax.Array) -> jax.Array:
    """Ancestral Euler steps on Karras' noise levels, 200 function evaluations: the validation of its trainer."""
    from flaxdiff.samplers import EulerAncestralSampler
    from flaxdiff.schedulers import KarrasVENoiseScheduler
    from flaxdiff.utils import RandomMarkovState

    model, transform, inputs = flaxdiff_parts(spec)
    noise_key, chain_key = jax.random.split(key)
    levels = KarrasVENoiseScheduler(1, sigma_max=80, rho=7, sigma_data=0.5)
    noise = jax.random.normal(noise_key, (spec.samples, *spec.network["shape"]))  # its own has three channels always
    return EulerAncestralSampler(model, levels, transform, inputs).generate_samples(
        params, spec.samples, noise.shape[1], diffusion_steps=200, start_step=1000, priors=noise * (1 + 80**2) ** 0.5,
        rngstate=RandomMarkovState(chain_key), model_conditioning_inputs=(NoText()(noise),),
    )  # fmt: skip


# --- the tutorial


class TutorialUNet(nn.Module):
    """U-Net of the tutorial: four resolutions, attention at the lower two and between encoder and decoder.

    Attributes:
        channels: at the highest resolution; twice as many at each lower one.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        def residual(x, width):
            h = x
            for _ in range(2):
                h = nn.gelu(nn.LayerNorm()(nn.Conv(width, (3, 3))(h)))
            return h + nn.Conv(width, (1, 1))(x)

        def attend(x):
            tokens = x.reshape(len(x), -1, x.shape[-1])
            return x + nn.MultiHeadDotProductAttention(num_heads=1)(tokens).reshape(x.shape)

        angles = 1000 * level[:, None] * 1e4 ** -jnp.linspace(0, 1, 64)
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        time = nn.Dense(128)(nn.gelu(nn.Dense(128)(time)))
        outputs, widths, skips = x.shape[-1], [self.channels * 2**i for i in range(4)], []
        for i, width in enumerate(widths):
            x = residual(x, width)
            x = attend(x) if i >= 2 else x
            skips.append(x + nn.Dense(width)(time)[:, None, None])
            x = nn.max_pool(skips[-1], (2, 2), (2, 2), "SAME")
        x = residual(attend(residual(x, 2 * widths[-1])), 2 * widths[-1])
        for width, skip in zip(reversed(widths), reversed(skips), strict=True):
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "nearest")
            x = residual(jnp.concatenate([x, skip], axis=-1), width)
        return nn.Conv(outputs, (3, 3))(nn.gelu(nn.LayerNorm()(x)))


def tutorial(channels: int) -> Project:
    """The tutorial's training and sampling of a network with so many channels."""
    unet = TutorialUNet(channels)

    def train(spec: TrainerSpec, next_batch: Callable[[], np.ndarray], clock: TrainingClock) -> tuple[Any, int]:
        """Flow matching at logit-normal times; AdamW, a rate that rises for half of the time and falls as a cosine."""
        init_key, run_key = jax.random.split(keys.from_seed(spec.seed))
        params = jax.jit(unet.init)(init_key, jnp.zeros((1, *spec.network["shape"])), jnp.zeros(1))
        adamw = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.add_decayed_weights(2e-5)
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), *adamw)

        @jax.jit
        def update(params, state, n, x0, rate):
            level_key, eps_key = jax.random.split(jax.random.fold_in(run_key, n))
            level = jax.nn.sigmoid(jax.random.normal(level_key, x0.shape[:1]))
            eps = jax.random.normal(eps_key, x0.shape)

            def loss(params):
                share = level[:, None, None, None]
                return jnp.mean((unet.apply(params, share * x0 + (1 - share) * eps, level) - (x0 - eps)) ** 2)

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

        state, step = optimizer.init(params), 0
        while clock():
            done = 2 * min(1.0, clock.fraction())
            rate = spec.learning_rate * (done if done < 1 else 0.01 + 0.99 * (1 + math.cos(math.pi * (done - 1))) / 2)
            params, state = jax.block_until_ready(update(params, state, step, next_batch(), rate))
            step += 1
        return params, step

    def net(spec: TrainerSpec, schedule: Schedule, params: Any) -> Net:
        return x0_from_velocity(schedule, lambda x, level: unet.apply(params, x, level))

    def sample(spec: TrainerSpec, params: Any, key: jax.Array) -> jax.Array:
        """Ten steps of Tsitouras' method along the path, 61 function evaluations."""
        import diffrax

        def velocity(level, x, _):
            return unet.apply(params, x, jnp.full(len(x), level))

        noise = jax.random.normal(key, (spec.samples, *spec.network["shape"]))
        return diffrax.diffeqsolve(diffrax.ODETerm(velocity), diffrax.Tsit5(), 0, 1, 0.1, noise).ys[0]

    return Project(train, net, sample, ("diffrax",))


TRAINERS = {
    "flaxdiff": Project(train_flaxdiff, flaxdiff_net, sample_flaxdiff, ("flaxdiff",)),
    "flax-tutorial": tutorial(64),
    "flax-tutorial-small": tutorial(5),
}


def main(name: str, spec: TrainerSpec, folder: pathlib.Path, what: str) -> None:
    project, path = TRAINERS[name], folder / "trained.msgpack"
    if what == "train":
        params, steps = project.train(spec, baseline_trainer.batch_source(spec), TrainingClock(spec.minutes))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(flax.serialization.msgpack_serialize({"params": jax.device_get(params), "steps": steps}))
        return
    trained = flax.serialization.msgpack_restore(path.read_bytes())
    schedule = noise_schedule(configs.load(spec.network["config"]))
    net = project.net(spec, schedule, trained["params"])
    bits = baseline_trainer.measure(spec, folder, schedule, gaussian.denoiser(schedule, net, "x0", clip=True))
    own = np.asarray(project.sample(spec, trained["params"], keys.from_seed(spec.seed)))
    images = data.load(spec.source)
    np.savez(folder / "own.npz", arr_0=data.denormalize(own, images.levels).astype(images.train.dtype))
    packages = ("jax", "flax", "optax", *project.packages)
    versions = {package: importlib.metadata.version(package) for package in packages}
    sizes = [leaf.size for leaf in jax.tree.leaves(trained["params"])]
    found = {"steps": trained["steps"], "parameters": sum(sizes), "versions": versions, "bits/dim": bits}
    (folder / "numbers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    name, spec, out, what = sys.argv[1:]
    main(name, TrainerSpec(**json.loads(spec)), pathlib.Path(out), what)
