"""Trainer of another library, and evaluation of its network.

    python -m benchmarks.baseline_trainer NAME SPEC OUT train     # NAME is of TRAINERS; SPEC is JSON, see `TrainerSpec`
    python -m benchmarks.baseline_trainer NAME SPEC OUT evaluate

The first trains until SIGTERM and writes EMA weights to OUT/trained.pt; the second writes samples.npz and numbers.json:
samples of that network by our sampler, and its bound by our likelihood.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import workloads

LONGEST_STEP = 5.0
"""Seconds above which a step was not one: the process stood still meanwhile, as others had their turn."""

BATCH = 100
"""Images at a time, when it is evaluated."""


@dataclasses.dataclass(frozen=True)
class TrainerSpec:
    """Network, data and settings of a training.

    Attributes:
        network: see `workloads.WorkloadSpec`.
        source: of the images, see `config.Data`.
        minutes: of training, over which a falling learning rate falls.
        learning_rate: Adam's.
        seed: of everything random.
        samples, nfe: how many to draw, and of the network for each.
    """

    network: dict[str, Any]
    source: str
    minutes: float
    learning_rate: float
    seed: int
    samples: int
    nfe: int


class TrainedWeights(NamedTuple):
    """Trained weights for the evaluation, readable by torch.load with weights_only.

    Attributes:
        weights: averaged ones, as PyTorch's modules give and take them.
        predicts: what the network gives.
        betas: [T] of its chain, float64.
        steps: of its training.
    """

    weights: dict[str, Any]
    predicts: Any
    betas: Any
    steps: int


Go = Callable[[], bool]
"""Whether there is to be another step."""


def build_network(name: str, spec: TrainerSpec) -> Any:
    """PyTorch module of the network, in channels-last memory format."""
    import torch

    if name == "diffusers":
        from diffusers import UNet2DModel

        net = UNet2DModel.from_config(spec.network["unet"])
    else:
        net = workloads.lucidrains_unet(workloads.WorkloadSpec(**spec.network))
    return net.to(memory_format=torch.channels_last)


def diffusers(spec: TrainerSpec, next_batch: Callable[[], Any], clock: "TrainingClock") -> TrainedWeights:
    """As diffusers' example of unconditional training: AdamW, a rate falling as a cosine, an average that warms up."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    net, noise = build_network("diffusers", spec), DDPMScheduler()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=spec.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    step = 0
    while clock():
        rate = min(1.0, (step + 1) / 500) * 0.5 * (1 + math.cos(math.pi * min(1.0, clock.fraction())))
        optimizer.param_groups[0]["lr"] = spec.learning_rate * rate
        x0 = next_batch()
        eps, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
        loss = torch.nn.functional.mse_loss(net(noise.add_noise(x0, eps, t), t).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.step(net.parameters())
        step += 1
    average.copy_to(net.parameters())
    return TrainedWeights(net.state_dict(), "eps", noise.betas.double(), step)


def denoising_diffusion_pytorch(
    spec: TrainerSpec, next_batch: Callable[[], Any], clock: "TrainingClock"
) -> TrainedWeights:
    """As lucidrains' `Trainer`: Adam at one rate, v under the sigmoid schedule, an average every tenth step."""
    import torch

    net = build_network("denoising-diffusion-pytorch", spec)
    from denoising_diffusion_pytorch import GaussianDiffusion  # pyright: ignore[reportMissingImports]
    from ema_pytorch import EMA  # pyright: ignore[reportMissingImports]

    model = GaussianDiffusion(net, image_size=spec.network["shape"][0], auto_normalize=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.99))
    average = EMA(model, beta=0.995, update_every=10)
    step = 0
    while clock():
        optimizer.zero_grad()
        model(next_batch()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        step += 1
    return TrainedWeights(average.ema_model.model.state_dict(), "v", model.betas.double(), step)


TRAINERS = {"diffusers": diffusers, "denoising-diffusion-pytorch": denoising_diffusion_pytorch}
PACKAGES = {"diffusers": ("diffusers",), "denoising-diffusion-pytorch": ("denoising-diffusion-pytorch", "ema-pytorch")}
"""Of each trainer, beside PyTorch."""


class TrainingClock:
    """Whether to go on, and which part of the time is over; what was spent standing still does not count."""

    def __init__(self, minutes: float):
        self.seconds, self.spent, self.last, self.stopped = 60 * minutes, 0.0, time.monotonic(), False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopped = True

    def __call__(self) -> bool:
        now = time.monotonic()
        taken, self.last = now - self.last, now
        self.spent += taken if taken < LONGEST_STEP else 0.0
        return not self.stopped

    def fraction(self) -> float:
        return self.spent / self.seconds


def batch_source(spec: TrainerSpec) -> Callable[[], Any]:
    """Random training images: each call gives [batch, H, W, C] float32 in [-1, 1]."""
    import numpy as np

    from ddpm_jax import data

    images = data.load(spec.source)
    pixels, random = np.asarray(images.train), np.random.default_rng(spec.seed)

    def next_batch():
        selected = random.integers(0, len(pixels), spec.network["batch"])
        return pixels[selected].astype(np.float32) * np.float32(2 / (images.levels - 1)) - 1

    return next_batch


def train(name: str, spec: TrainerSpec, folder: pathlib.Path) -> None:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(spec.seed)
    source = batch_source(spec)

    def next_batch():
        return torch.from_numpy(source()).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    trained = TRAINERS[name](spec, next_batch, TrainingClock(spec.minutes))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(trained._asdict(), folder / "trained.pt")


def evaluate(name: str, spec: TrainerSpec, folder: pathlib.Path) -> None:
    """Samples and the bound, by this library's sampler and likelihood: only the network is theirs."""
    import jax
    import numpy as np
    import torch

    from ddpm_jax import gaussian, schedules

    torch.set_num_threads(1)  # JAX's threads are there as well, and PyTorch's wait for each other by turning round
    trained, theirs = TrainedWeights(**torch.load(folder / "trained.pt")), build_network(name, spec)
    theirs.load_state_dict(trained.weights)
    theirs.eval()

    def call_torch(x, t):
        with torch.inference_mode():
            nchw = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            found = theirs(nchw, torch.from_numpy(np.array(t)).long() - 1)
        found = found.sample if name == "diffusers" else found
        return np.ascontiguousarray(found.permute(0, 2, 3, 1).numpy())

    def net(x, t):
        return jax.pure_callback(call_torch, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t)

    schedule = schedules.from_betas(trained.betas.numpy())
    bits = measure(spec, folder, schedule, gaussian.denoiser(schedule, net, predicts=trained.predicts, clip=True))
    versions = {package: importlib.metadata.version(package) for package in ("torch", *PACKAGES[name])}
    (folder / "numbers.json").write_text(json.dumps({"steps": trained.steps, "versions": versions, "bits/dim": bits}))


def measure(spec: TrainerSpec, folder: pathlib.Path, schedule: Any, denoise: Any) -> list[float]:
    """Writes samples.npz; returns bits/dim of the held-out images and their standard error."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ddpm_jax import data, likelihood, samplers

    images, times = data.load(spec.source), samplers.times(schedule.T, spec.nfe)

    @jax.jit
    def draw(keys):
        sampler = samplers.ancestral(schedule, denoise, variance_mix=0.0)
        return samplers.sample(keys, sampler, samplers.initial_noise(keys, images.train.shape[1:]), times)

    @jax.jit
    def vlb_bits(keys, x0):
        decoder = likelihood.discretized_gaussian(images.levels)
        found = likelihood.estimate_vlb(keys, schedule, denoise, x0, strata=16, variance_mix=1.0, decoder=decoder)
        return likelihood.bits_per_dim(found.total, x0)

    keys = samplers.image_keys(spec.seed, range(spec.samples))
    x = np.concatenate([np.asarray(draw(keys[i : i + BATCH])) for i in range(0, spec.samples, BATCH)])
    np.savez(folder / "samples.npz", arr_0=data.denormalize(x, images.levels).astype(images.train.dtype))
    held = data.normalize(jnp.asarray(np.asarray(images.test)[: spec.samples]), images.levels)
    keys = samplers.image_keys(spec.seed + 1, range(len(held)))
    bits = np.concatenate(
        [np.asarray(vlb_bits(keys[i : i + BATCH], held[i : i + BATCH])) for i in range(0, len(held), BATCH)]
    )
    return [float(bits.mean()), float(bits.std(ddof=1) / len(bits) ** 0.5)]


if __name__ == "__main__":
    name, spec, out, what = sys.argv[1:]
    {"train": train, "evaluate": evaluate}[what](name, TrainerSpec(**json.loads(spec)), pathlib.Path(out))
