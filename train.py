"""Trains a diffusion model.

    python train.py configs/digits.py --workdir runs/digits [--optim.learning-rate 1e-4 --steps 2000 ...]

The same command continues a run that was interrupted.  Read this file from top to bottom.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import Annotated

import tyro

from ddpm_jax import config as configs
from ddpm_jax import process
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    workdir: str
    """The run's folder: config.json, metrics.jsonl, checkpoints/STEP, samples/."""
    config: Annotated[configs.Config, tyro.conf.arg(name="")]
    begin: tyro.conf.OmitArgPrefixes[flags.Begin] = flags.Begin()
    devices: int | None = None
    """On a CPU: into how many JAX devices to divide it (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.Hosts] = process.Hosts()


def parse(argv: list[str]) -> Arguments:
    """The command line: a config file, then flags for its fields."""
    default, rest = configs.Config(), argv
    if argv and not argv[0].startswith("-"):
        default, rest = configs.load(argv[0]), argv[1:]
    elif "-h" not in argv and "--help" not in argv:
        raise ValueError("name a config file first, e.g. python train.py configs/digits.py --workdir runs/digits")
    usage = "train.py CONFIG.py --workdir DIR [options]"
    parsed = tyro.cli(Arguments, prog=usage, args=rest, default=Arguments(tyro.MISSING, default))
    return parsed


def main(argv: list[str]) -> int:
    """Runs or continues a training run; the exit status says how it ended (see README)."""
    try:
        args = parse(argv)
        process.prepare(devices=args.devices, hosts=args.hosts)
        with process.as_one("train.py"):
            configs.check(args.config)
            return train(args.config, pathlib.Path(args.workdir), args.begin)
    except (ValueError, FileNotFoundError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return process.leave(2)
    except OSError as error:  # a full disk, a folder that is not ours to write
        print(f"train.py: {error}", file=sys.stderr)
        return process.leave(process.UNWRITABLE)
    except MemoryError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return process.leave(process.TOO_LARGE)


def train(config: configs.Config, workdir: pathlib.Path, begin: flags.Begin) -> int:
    """Sets the stage: data, network, optimizer, devices, and the state of the newest checkpoint, if there is one."""
    import jax
    import numpy as np

    from ddpm_jax import checkpoint, data, log, runs, training
    from ddpm_jax.config import objects
    from ddpm_jax.data.stream import feed

    images = data.load(
        config.data.source, held_out=config.data.held_out, levels=config.data.levels,
        value_range=config.data.range, resolution=config.data.resolution, skip_bad=config.data.skip_bad,
        stream=config.data.stream, report=print, progress=log.stages(active=process.first()),
    )  # fmt: skip

    # what is trained, and how
    init_key, run_key, order_key, eval_key = runs.keys_of(config.seed)
    schedule, shape = objects.noise_schedule(config), images.train.shape[1:]
    net, optimizer = objects.network(config, channels=shape[-1]), objects.optimizer(config)

    @jax.jit
    def fresh_state(key):
        return training.init(objects.parameters(config, net, key, shape), optimizer)

    # where: the state whole on every device, the batch spread over them
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    order = data.Order(order_key, len(images.train))
    fed = feed(images.train, order, config.batch, devices, stream=config.data.stream)
    step = runs.over_devices(runs.train_step(config, schedule, net, optimizer, images.levels), fed.axis)
    run_key = jax.device_put(run_key, everywhere)

    # before anything is written, as what does not fit is refused
    begun = runs.begin(config, net, init_key, shape, begin) if begin.init_from and not runs.under_way(workdir) else None

    with (
        runs.claim(workdir, config),
        checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep) as saved,
        process.Interrupt() as interrupt,
    ):
        run = runs.Run(config, workdir, images, schedule, net, eval_key, interrupt)
        with process.as_one("train.py", lambda: runs.standing(workdir)):
            start, state = 0, jax.eval_shape(fresh_state, init_key)
            if saved.latest() is not None:
                start, state, meta = saved.restore(state)
                run.kept = runs.kept(meta, begin, workdir)
            elif begin.init_from is not None:
                state, run.kept = begun or runs.begin(config, net, init_key, shape, begin)
            else:
                state = fresh_state(init_key)
            run.check_same(start)
            state = jax.device_put(state, everywhere)
            run.introduce(state, start)

            def take_step(state, batch):
                rows = run.said.batch(batch.indices)
                return step(run_key, state, batch.pixels, batch.places, rows, runs.word(interrupt.requested))

            resident = images.train.nbytes if fed.axis is None else 0
            with (
                runs.fitting(
                    f"a training step of {config.batch // jax.device_count()} images per device",
                    lambda: runs.lighter_step(config, jax.device_count(), resident),
                ),
                contextlib.closing(fed.batches(start)) as batches,
            ):
                return loop(config, run, saved, start, state, take_step, batches)


def loop(config: configs.Config, run, saved, start: int, state, take_step, batches) -> int:
    """Steps start + 1 ... config.steps; what is written after each, and what ends them early."""
    from ddpm_jax import log, runs

    begun, watch = time.monotonic(), runs.Watch(config, run.workdir, start)
    progress = log.Progress(config.steps, start=start, active=process.first())

    def look_at(step):
        return step == config.steps or (config.sample_every and step % config.sample_every == 0)

    if start and look_at(start) and process.agree(not watch.noted):  # what was saved, and ended before its samples
        watch.note(start, run.look(start, state.ema))
    for done in range(start + 1, config.steps + 1):
        batch = next(batches)
        state, metrics = take_step(state, batch)
        watch.add(done, metrics, batch.indices)
        if watch.bad:  # the parameters are still those before the first bad step
            progress.close()
            return watch.give_up(state, run.images, run.said.rows)

        stopping, last = run.stopping(watch.word), done == config.steps
        if done % config.log_every == 0 or last or stopping:
            progress.update(done, watch.line(done))
            saved.check()
        if done % config.save_every == 0 or last or stopping:
            saved.save(done, state, run.meta(done))
        looking = look_at(done)
        if looking:
            with runs.fitting("what draws samples and evaluates", lambda: runs.lighter_look(config)):
                watch.note(done, run.look(done, state.ema))
        if stopping or (looking and process.agree(run.interrupt.requested)):
            if not stopping and saved.latest() != done:
                saved.save(done, state, run.meta(done))
            progress.close()
            print(f"interrupted: saved step {done}; the same command continues", flush=True)
            return 0
    progress.close()
    if start >= config.steps:
        print(f"the run is complete: {start} steps; raise --steps to go on")
    else:
        print(f"steps {start + 1} to {config.steps} took {log.duration(time.monotonic() - begun)}, all included")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
