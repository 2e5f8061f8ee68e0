"""Images per second of both data loaders, and the rate that the networks need.

    python -m benchmarks.data_loading [--out data_loading.json]
    python -m benchmarks.data_loading --survey 200000

Images on the device: the time of their part of a digits step (order on the host; gather, scaling and flip in the step)
and of the whole step.  Images read ahead: batches of 64 images of 256x256x3 from a folder of JPEG files, of PNG files
and of .npy arrays, and from a data set of `ddpm-jax prepare`.  They are random fields with the spectrum of photographs.
Medians of alternating rounds.  With --survey N, only the time in which a folder of N pictures of 32x32x3, half of them
JPEG and half PNG files, is surveyed.
"""

import argparse
import contextlib
import importlib.metadata
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS, IMAGES, BATCH, REPEATS = 5, 192, 64, 200
V5E = {"peak_flops": 197e12, "chips": 4, "cpus": 112}
"""Published by Google: bfloat16 FLOP/s of a v5e chip, chips and virtual CPUs of a host (ct5lp-hightpu-4t)."""


def synthetic_photographs(count: int, side: int = 256) -> np.ndarray:
    """uint8 [count, side, side, 3]: Gaussian fields of amplitude 1/f, with correlated colours."""
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    f[0, 0] = f[0, 1]
    mixing = np.array([[1, 0.9, 0.8], [0, 0.4, 0.3], [0, 0, 0.3]])
    fields = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(count, 3, side, side))) / f, s=(side, side))
    fields /= fields.std(axis=(-2, -1), keepdims=True)
    return np.clip(np.einsum("nchw,cd->nhwd", fields, mixing) * 50 + 128, 0, 255).astype(np.uint8)


def write_sources(folder: pathlib.Path, images: np.ndarray) -> dict[str, str]:
    """The sources, by name."""
    from PIL import Image

    from ddpm_jax.programs import cli

    for kind in ("jpg", "png", "npy"):
        (folder / kind).mkdir()
        for i, image in enumerate(images):
            path = folder / kind / f"{i:04}.{kind}"
            np.save(path, image) if kind == "npy" else Image.fromarray(image).save(path, quality=92)
    prepare = ["prepare", f"folder:{folder}/png", "--name", "photographs", "--out", str(folder / "tfds")]
    with contextlib.redirect_stdout(None):
        assert cli.call(prepare) == 0
    return {kind: f"folder:{folder}/{kind}" for kind in ("jpg", "png", "npy")} | {
        "tfds": f"tfds:photographs@{folder}/tfds"
    }


def time_call(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure_resident(rounds: int) -> dict[str, float]:
    """Seconds of a digits step and of what images cost in it."""
    import jax

    from ddpm_jax import config as configs
    from ddpm_jax import data, trainer, training
    from ddpm_jax.data.device_loader import make_device_loader
    from ddpm_jax.guidance import Condition
    from ddpm_jax.model import build

    config = configs.load(pathlib.Path(__file__).parents[1] / "configs" / "digits.py:wide")
    images = data.load("digits")
    devices = jax.local_devices()
    _, run_key, order_key, _ = trainer.run_keys(0)
    model = build(config, (8, 8, 1), images.levels)
    step = trainer.parallelise(trainer.train_step(model, trainer.example_losses(model)), None)
    params = jax.jit(model.init)(jax.random.key(0))
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(training.init(params, model.optimizer), replicated)
    order, b = data.EpochShuffle(order_key, len(images.train)), config.batch // len(devices)
    batches = make_device_loader(images.train, order, config.batch, devices).batches(0)
    keys = jax.random.split(jax.random.key(1, impl="threefry2x32"), b)

    def examples(pixels, many):
        """The images of REPEATS steps, one step after the other as in a program, and something made of each."""

        def one(total, places):
            return total + data.gather_examples(keys, pixels, places, levels=17, flip=config.data.flip), None

        return jax.lax.scan(one, np.zeros((b, *images.train.shape[1:]), np.float32), many)[0]

    taken = jax.pmap(examples, in_axes=(None, 0))
    whole, part, host = [], [], []
    for n in range(10 * rounds):
        fresh = data.EpochShuffle(order_key, len(images.train))
        # REPEATS steps in a row, the permutations of their epochs included
        host.append(time_call(lambda: [fresh.indices(i, config.batch) for i in range(REPEATS)]) / REPEATS)
        batch = next(batches)
        many = np.stack([order.indices(n * REPEATS + i, config.batch) for i in range(REPEATS)], 1)
        many = many.reshape(len(devices), b, REPEATS).swapaxes(1, 2)
        part.append(time_call(lambda: jax.block_until_ready(taken(batch.pixels, many))) / REPEATS)
        begun = time.perf_counter()
        state = jax.block_until_ready(
            step(run_key, state, np.int32(0), batch.pixels, batch.pixel_indices, Condition(), None)
        )[0]
        whole.append(time.perf_counter() - begun)
    middle = {
        name: statistics.median(times[10:]) for name, times in [("step", whole), ("gather", part), ("order", host)]
    }
    return middle | {
        "share_of_step": (middle["gather"] + middle["order"]) / middle["step"],
        "images_per_s": config.batch / (middle["gather"] + middle["order"]),
        "step_images_per_s": config.batch / middle["step"],
    }


def measure_streamed(sources: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Images per second of each source, round by round, in alternation."""
    import jax

    from ddpm_jax import data
    from ddpm_jax.data.device_loader import read_ahead

    pixels = {name: data.load(source, stream=True).train for name, source in sources.items()}
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for n in range(rounds):
        for name, unread in pixels.items():
            order = data.EpochShuffle(jax.random.key(n, impl="threefry2x32"), len(unread))
            with contextlib.closing(read_ahead(unread, order, BATCH, 0)) as batches:
                # three times what is ever ahead: what is being read at the end and not counted is the least part
                rates[name].append(48 * BATCH / time_call(lambda: [next(batches) for _ in range(48)]))
    return rates


def measure_survey(count: int, rounds: int) -> tuple[float, float]:
    """Median CPU and wall seconds of the report on a folder of `count` small pictures."""
    import io

    from PIL import Image

    from ddpm_jax.data.folder_report import make_folder_report

    contents = []
    for i, image in enumerate(synthetic_photographs(min(count, 4000), 32)):
        file, kind = io.BytesIO(), ("png", "jpeg")[i % 2]
        Image.fromarray(image).save(file, kind)
        contents.append((f".{kind}", file.getvalue()))
    cpu, wall = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            extension, content = contents[i % len(contents)]
            (pathlib.Path(folder) / f"{i}{extension}").write_bytes(content)
        for _ in range(rounds):
            begun = time.process_time()
            wall.append(time_call(lambda: make_folder_report(pathlib.Path(folder), "pictures")))
            cpu.append(time.process_time() - begun)
    return statistics.median(cpu), statistics.median(wall)


def flops_per_image() -> float:
    """Floating-point operations of the 256x256 training step, per image."""
    from ddpm_jax import config as configs
    from ddpm_jax.model import build
    from ddpm_jax.preflight import lowering

    config = configs.load(pathlib.Path(__file__).parents[1] / "configs" / "celebahq256.py")
    images = lowering.load_images(config, (256, 256, 3), 27_000)
    return lowering.step_flops(build(config, (256, 256, 3), images.levels), images, config.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--survey", type=int, metavar="N")
    args = parser.parse_args()
    if args.survey:
        cpu, wall = measure_survey(args.survey, args.rounds)
        return print(f"survey of {args.survey:,} files: {cpu:.1f} CPU seconds, {wall:.1f} s")
    from ddpm_jax import process

    process.initialize()
    digits = measure_resident(args.rounds)
    print(f"on the device: {digits['gather'] * 1e3:.4f} ms in and {digits['order'] * 1e3:.4f} ms before a digits step "
          f"of {digits['step'] * 1e3:.1f} ms: {digits['share_of_step']:.2%}; {digits['images_per_s']:,.0f} images/s, "
          f"the step takes {digits['step_images_per_s']:,.0f}", flush=True)  # fmt: skip
    cores = process.num_cores()
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(pathlib.Path(folder), synthetic_photographs(IMAGES))
        rates = measure_streamed(sources, args.rounds)
    for name, per_round in rates.items():
        print(f"read ahead, {name}: {statistics.median(per_round):,.0f} images/s on {cores} cores "
              f"({min(per_round):,.0f} to {max(per_round):,.0f})", flush=True)  # fmt: skip
    flops = flops_per_image()
    most = V5E["chips"] * V5E["peak_flops"] / flops
    slowest = min(rates, key=lambda name: statistics.median(rates[name]))
    per_core = statistics.median(rates[slowest]) / cores
    print(f"a v5e host: {flops / 1e12:.2f} TFLOP per image of the 256x256 step; {V5E['chips']} chips at their peak of "
          f"{V5E['peak_flops'] / 1e12:.0f} TFLOP/s would take {most:,.0f} images/s; from {slowest} that is "
          f"{most / per_core:.1f} cores such as these, of {V5E['cpus']}")  # fmt: skip
    if args.out is not None:
        found = {
            "digits": digits,
            "streamed_images_per_s": rates,
            "cores": cores,
            "flop_per_image_256": flops,
            "v5e": V5E | {"images_per_s_at_peak": most, "cores_needed": most / per_core, "source": slowest},
            "machine": {"processor": platform.processor(), "system": platform.platform()},
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "grain", "pillow", "numpy")},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
