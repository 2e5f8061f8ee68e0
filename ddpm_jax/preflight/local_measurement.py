"""Steps on the devices at hand: how fast they are, and how much memory they really take."""

import contextlib
import ctypes
import gc
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import data, keys, process, trainer
from ddpm_jax.data import device_loader
from ddpm_jax.data.conditions import DatasetConditions
from ddpm_jax.model import Model
from ddpm_jax.preflight import compile_stats, lowering

WARM_UP_STEPS, MEMORY_STEPS = 2, 2
"""Steps before anything is measured, and steps during which memory is."""

_TIMED_SECONDS, _MIN_TIMED_STEPS = 5.0, 4
"""Seconds of steps to time, and the least number of them."""

_PROC_STATUS, _PROC_CLEAR_REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class LocalMeasurement(NamedTuple):
    """What was measured.

    Attributes:
        analysis: bytes of memory on all devices together, by the compiler's analysis.
        used: bytes by which the memory in use really grew; None where it cannot be told.
        how: how that was measured.
        process: the most memory that this process ever had, compilation included; None where it cannot be told.
        steps_per_s: of the training step, data order and host included.
        timed: how many steps were timed.
    """

    analysis: int
    used: int | None
    how: str
    process: int | None
    steps_per_s: float
    timed: int


def memory_limit() -> int | None:
    """Bytes of memory for each device at hand: what the device says, or its share of the machine's."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats:
        return stats.get("bytes_limit")
    if devices[0].platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)


def measure(
    model: Model, images: data.Dataset, compiled: jax.stages.Compiled, devices: Sequence[Any]
) -> LocalMeasurement:
    """Takes steps with the compiled training step on images of the source, or on random ones in their place."""
    config = model.config
    streamed = device_loader.is_streamed(images.train, config.data.stream)
    train = images.train
    if isinstance(train, np.ndarray) and not train.strides[0]:  # stand-ins
        count = min(len(train), 4 * config.batch) if streamed else len(train)
        most = np.iinfo(train.dtype).max if isinstance(images.levels, data.ValueRange) else images.levels - 1
        train = np.random.default_rng(0).integers(0, most, (count, *train.shape[1:]), train.dtype, endpoint=True)
    run_key, order_key = trainer.run_keys(config.seed)[1:3]
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    said = DatasetConditions(config, images)
    fresh, order = lowering.train_state(model)[0], data.EpochShuffle(order_key, len(train))
    run_key, bad = jax.device_put((run_key, np.int32(0)), everywhere)

    def fresh_inputs():
        # on a CPU the first device takes the host's array as its own: let it be one that is there for this
        pixels = np.array(train) if isinstance(train, np.ndarray) else train
        fed = device_loader.make_device_loader(
            pixels, order, config.batch, devices, stream=streamed, steps_per_call=config.steps_per_call
        )
        return jax.device_put(fresh(keys.from_seed(config.seed)), everywhere), fed.batches(0)

    def step(state, batch):
        state, _, metrics = compiled(
            run_key, state, bad, batch.pixels, batch.pixel_indices, said.device_batch(batch.indices), None
        )
        return state, metrics

    def run_steps(steps: int) -> None:
        """So many calls of a state of their own, each complete before the next."""
        state, batches = fresh_inputs()
        with contextlib.closing(batches):
            jax.block_until_ready((state, next(batches).pixels))
            _trim_memory()  # what making the state took
            for batch in itertools.islice(batches, steps):
                state, _ = jax.block_until_ready(step(state, batch))

    run_steps(WARM_UP_STEPS)
    used, how = _memory_growth(lambda: run_steps(MEMORY_STEPS), devices)
    if devices[0].platform == "cpu":
        process.tune_malloc()  # as `train.py` does
    state, batches = fresh_inputs()
    with contextlib.closing(batches):
        rate, timed = _calls_per_second(step, state, batches)
    analysis = compile_stats.compiled_memory(compiled).peak * len(devices)
    together = config.steps_per_call
    return LocalMeasurement(analysis, used, how, _proc_status("VmHWM"), rate * together, timed * together)


def _calls_per_second(step: Callable, state: Any, batches: Iterator[device_loader.Batch]) -> tuple[float, int]:
    """Calls per second, the host one call ahead of the devices, and how many were timed."""
    state, before = jax.block_until_ready(step(state, next(batches)))
    begun, done = time.perf_counter(), 0
    while done < _MIN_TIMED_STEPS or time.perf_counter() - begun < _TIMED_SECONDS:
        state, after = step(state, next(batches))
        jax.block_until_ready(before)
        before, done = after, done + 1
    jax.block_until_ready(state)
    return done / (time.perf_counter() - begun), done


def _memory_growth(work: Callable[[], None], devices: Sequence[Any]) -> tuple[int | None, str]:
    """By how many bytes at most the memory in use grows while `work` is done, on all devices, and how that is known."""
    if devices[0].platform != "cpu":
        before = [_device_stat(device, "bytes_in_use") for device in devices]
        work()
        most = [_device_stat(device, "peak_bytes_in_use") for device in devices]
        if None in before or None in most:
            return None, "these devices do not tell"
        return sum(a - b for a, b in zip(most, before, strict=True)), "device.memory_stats()"
    if not _PROC_CLEAR_REFS.exists():
        return None, "this system does not tell"
    _trim_memory()
    _PROC_CLEAR_REFS.write_text("5", encoding="utf-8")  # the most memory so far is now what is in use
    before = _proc_status("VmRSS")
    work()
    after = _proc_status("VmHWM")
    return (None if before is None or after is None else after - before), "growth of the process's resident memory"


def _trim_memory() -> None:
    """Lets glibc give freed memory back to the kernel at once, so that what is resident is what is in use."""
    gc.collect()
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        for name, value in {mmap_threshold: 2**17, trim_threshold: 2**17, top_pad: 2**17, mmap_max: 2**16}.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def _device_stat(device: Any, name: str) -> Any:
    return (device.memory_stats() or {}).get(name)


def _proc_status(name: str) -> int | None:
    """A figure of the kernel about this process's memory, in bytes; None where there is none."""
    if sys.platform != "linux":
        return None
    found = [
        line.split()[1] for line in _PROC_STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:")
    ]
    return int(found[0]) * 1024 if found else None


def checkpoint_bytes(model: Model) -> int:
    """What a checkpoint takes on the disk, about.

    Arrays are compressed: of float32 numbers that look random but for their exponents 93 % are left.  Each has about
    400 bytes of metadata.  Measured for states of 6, 16 and 63 MB: within 2 %.  A first checkpoint is smaller.
    """
    leaves = jax.tree.leaves(lowering.train_state(model)[1])
    return round(0.93 * lowering.state_bytes(model)) + 400 * len(leaves)


def disk_bytes(model: Model, images: data.Dataset) -> int:
    """What a whole run takes on the disk, about: its checkpoints, with one being written, samples and metrics."""
    config = model.config
    looks = 1 + (config.steps // config.sample_every if config.sample_every else 0)
    grids = looks * config.sampling.num * images.train.nbytes // len(images.train)
    lines = 400 * (config.steps // config.log_every + looks)
    saved = min(config.keep + 1, -(-config.steps // config.save_every))
    return saved * checkpoint_bytes(model) + grids + lines
