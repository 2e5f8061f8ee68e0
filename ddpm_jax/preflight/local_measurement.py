"""Speed and memory of training steps, measured on the local devices."""

import contextlib
import ctypes
import gc
import itertools
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import data, keys, process, trainer
from ddpm_jax.conditions import DatasetConditions
from ddpm_jax.data import device_loader
from ddpm_jax.model import Model
from ddpm_jax.preflight import compile_stats, lowering

WARM_UP_STEPS, MEMORY_STEPS = 2, 2
"""Steps before anything is measured, and steps during which memory is."""

_TIMED_SECONDS, _MIN_TIMED_STEPS = 5.0, 4
"""Seconds of steps to time, and the least number of them."""

_PROC_STATUS, _PROC_CLEAR_REFS = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


class LocalMeasurement(NamedTuple):
    """Measured speed and memory."""

    analysis: int  # bytes of memory on all devices together, by the compiler's analysis
    used: int | None  # bytes by which the memory in use grew; None where it cannot be measured
    how: str  # the method of measuring `used`
    process: int | None  # the peak memory of this process, compilation included; None where it cannot be measured
    steps_per_s: float  # of the training step, data order and host included
    timed: int  # number of timed steps


def memory_limit() -> int | None:
    """Bytes of memory of each local device: reported by the device, or its share of the machine's."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return (devices[0].memory_stats() or {}).get("bytes_limit")
    if not hasattr(os, "sysconf"):  # on Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)


def measure(
    model: Model, images: data.Dataset, compiled: jax.stages.Compiled, devices: Sequence[Any]
) -> LocalMeasurement:
    """Speed and memory of the compiled training step, on images of the source or random ones in their place."""
    config = model.config
    streamed = device_loader.is_streamed(images.train, config.data.stream)
    train = images.train
    if isinstance(train, np.ndarray) and not train.strides[0]:  # stand-ins
        count = min(len(train), 4 * config.batch) if streamed else len(train)
        most = np.iinfo(train.dtype).max if isinstance(images.levels, data.ValueRange) else images.levels - 1
        train = np.random.default_rng(0).integers(0, most, (count, *train.shape[1:]), train.dtype, endpoint=True)
    run_key, order_key = trainer.run_keys(config.seed)[1:3]
    conditions = DatasetConditions(config, images)
    fresh, order = jax.jit(model.init_state), data.EpochShuffle(order_key, len(train))
    run_key, bad = process.replicate((run_key, np.int32(0)), "batch")

    def fresh_inputs():
        # on a CPU the first device takes over the host's array: give it one of its own
        pixels = np.array(train) if isinstance(train, np.ndarray) else train
        fed = device_loader.make_device_loader(
            pixels, order, config.batch, devices, stream=streamed, steps_per_call=config.steps_per_call
        )
        return trainer.place_state(model, fresh(keys.from_seed(config.seed))), fed.batches(0)

    def step(state, batch):
        state, _, metrics = compiled(
            run_key, state, bad, batch.pixels, batch.pixel_indices, conditions.device_batch(batch.indices), None
        )
        return state, metrics

    def run_steps(steps: int) -> None:
        """Takes so many steps from a fresh state, each complete before the next."""
        state, batches = fresh_inputs()
        with contextlib.closing(batches):
            jax.block_until_ready((state, next(batches).pixels))
            _trim_memory()  # memory of the state's initialisation
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
    """Steps per second, with the host one step ahead of the devices, and the number of timed steps."""
    state, before = jax.block_until_ready(step(state, next(batches)))
    start, done = time.perf_counter(), 0
    while done < _MIN_TIMED_STEPS or time.perf_counter() - start < _TIMED_SECONDS:
        state, after = step(state, next(batches))
        jax.block_until_ready(before)
        before, done = after, done + 1
    jax.block_until_ready(state)
    return done / (time.perf_counter() - start), done


def _memory_growth(work: Callable[[], None], devices: Sequence[Any]) -> tuple[int | None, str]:
    """The maximal growth of the memory in use during `work`, in bytes over all devices, and the method."""
    if devices[0].platform != "cpu":
        before = [device.memory_stats() or {} for device in devices]
        work()
        after = [device.memory_stats() or {} for device in devices]
        try:
            growth = sum(a["peak_bytes_in_use"] - b["bytes_in_use"] for a, b in zip(after, before, strict=True))
        except KeyError:
            return None, "these devices do not report it"
        return growth, "device.memory_stats()"
    if not _PROC_CLEAR_REFS.exists():
        return None, "this system does not report it"
    _trim_memory()
    _PROC_CLEAR_REFS.write_text("5", encoding="utf-8")  # the most memory so far is now what is in use
    before = _proc_status("VmRSS")
    work()
    after = _proc_status("VmHWM")
    return (None if before is None or after is None else after - before), "growth of the process's resident memory"


def _trim_memory() -> None:
    """Makes glibc return freed memory to the kernel at once, so that resident memory is memory in use."""
    gc.collect()
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        for name, value in {mmap_threshold: 2**17, trim_threshold: 2**17, top_pad: 2**17, mmap_max: 2**16}.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def _proc_status(name: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    if not _PROC_STATUS.exists():
        return None
    found = re.search(rf"^{name}:\s*(\d+)", _PROC_STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def checkpoint_bytes(model: Model) -> int:
    """Approximate bytes of a checkpoint on disk.

    Arrays are compressed: float32 numbers with random mantissas shrink to 93 %.  Each has about
    400 bytes of metadata.  Measured for states of 6, 16 and 63 MB: within 2 %.  A first checkpoint is smaller.
    """
    leaves = jax.tree.leaves(lowering.train_state(model))
    return round(0.93 * lowering.state_bytes(model)) + 400 * len(leaves)


def disk_bytes(model: Model, images: data.Dataset) -> int:
    """Approximate bytes of a whole run on disk: checkpoints, one of them in writing, snapshots, samples, metrics."""
    config = model.config
    previews = 1 + (config.steps // config.sample_every if config.sample_every else 0)
    grids = previews * config.sampling.num * images.train.nbytes // len(images.train)
    lines = 400 * (config.steps // config.log_every + previews)
    saved = min(config.keep + 1, -(-config.steps // config.save_every))
    averages = len(config.optim.ema_lengths) * lowering.params_bytes(model) * (config.steps // config.snapshot_every)
    return saved * checkpoint_bytes(model) + averages + grids + lines
