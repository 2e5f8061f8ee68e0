"""Flags of training that need less memory, to try when something does not fit."""

from contextlib import AbstractContextManager

import jax

from ddpm_jax import config as configs
from ddpm_jax import process

SHARD_HINT = "--shard-update: the same step; each device keeps a share of the optimizer's state and the EMA"


def explain_step_oom(config: configs.Config, resident: int) -> AbstractContextManager[None]:
    """`process.explain_oom` for training steps on all devices, with `step_oom_hints`."""
    devices = jax.device_count()
    what = f"a training step of {config.batch // devices} images per device"
    return process.explain_oom(what, lambda: step_oom_hints(config, devices, resident))


def explain_evaluation_oom(config: configs.Config, tile: int) -> AbstractContextManager[None]:
    """`process.explain_oom` for the samples and held-out evaluations of training."""
    count = min(config.batch, config.evaluation.images)
    fewer = [f"--evaluation.images {count // 2}: held-out images at a time"] * (count > 1)
    hints = process.sampling_oom_hints(tile, "--sampling.tile") + fewer
    return process.explain_oom("what draws samples and evaluates", lambda: hints)


def step_oom_hints(config: configs.Config, devices: int, resident: int, room: float = 0.5) -> list[str]:
    """Flags for a training step that needs less memory, the mildest first, each with what it does.

    Args:
        devices: over which the batch is spread.
        resident: bytes of images that lie on each device all the time; 0 if they are streamed.
        room: the share of what the examples in work take now that there is memory for, as far as it is known.
    """
    device_batch, found = config.batch // devices, []
    micro = device_batch // config.optim.accumulate
    fewer = [n for n in range(2, micro + 1) if micro % n == 0]
    if fewer:
        parts = config.optim.accumulate * next((n for n in fewer if n * room >= 1), fewer[-1])
        found.append(f"--optim.accumulate {parts}: the same step, {device_batch // parts} images at a time")
    if not config.net.remat:
        found.append("--net.remat: the same step; blocks keep their input alone, and work a third more")
    if devices > 1 and not config.shard_update:
        found.append(SHARD_HINT)
    if resident > 1 << 28:
        found.append(f"--data.stream True: {resident / 2**30:.1f} GiB of images no longer lie on each device")
    if micro > 1:
        fewest = max(1, int(micro * room)) * config.optim.accumulate
        found.append(f"--batch {fewest * devices}: {fewest} on each device, which is another run")
    return found
