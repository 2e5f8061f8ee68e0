"""Trains a diffusion model.

    ddpm-jax train digits --workdir runs/digits [--optim.learning-rate 1e-4 --steps 2000 ...]

The same command continues a run that was interrupted.  Read this file from top to bottom.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Annotated

import tyro

from ddpm_jax import config as configs
from ddpm_jax import process
from ddpm_jax.config import flags, ranges


@dataclasses.dataclass(frozen=True)
class Arguments:
    workdir: str
    """The run's folder: config.json, metrics.jsonl, checkpoints/STEP, samples/."""
    config: Annotated[configs.Config, tyro.conf.arg(name="")]
    begin: tyro.conf.OmitArgPrefixes[flags.Begin] = flags.Begin()
    devices: flags.Given[int] = None
    """On a CPU: into how many JAX devices to divide it (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.Hosts] = process.Hosts()


def parse(argv: list[str]) -> Arguments:
    """The command line: a config file, then flags for its fields."""
    default, rest = configs.Config(), argv
    if argv and not argv[0].startswith("-"):
        default, rest = configs.load(argv[0]), argv[1:]
    elif "-h" not in argv and "--help" not in argv:
        raise ValueError("name a config first, e.g. ddpm-jax train digits --workdir runs/digits")
    usage = "ddpm-jax train CONFIG --workdir DIR [options]"
    parsed = tyro.cli(Arguments, prog=usage, args=rest, default=Arguments(tyro.MISSING, default))
    return parsed


def main(argv: list[str]) -> int:
    """Runs or continues a training run; the exit status says how it ended (see README)."""
    args = parse(flags.checked(argv))
    ranges.check_flags(args)
    process.prepare(devices=args.devices, hosts=args.hosts)
    with process.as_one("train"):
        configs.check(args.config)
        return train(args.config, pathlib.Path(args.workdir), args.begin)


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
    cpu = jax.default_backend() == "cpu"

    # runs once: a CPU's compiler leaves out of it what takes longer than it saves, and changes no bit
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1} if cpu else None)
    def fresh_state(key):
        return training.init(objects.parameters(config, net, key, shape), optimizer)

    # where: the state whole on every device, the batch spread over them
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    order = data.Order(order_key, len(images.train))
    fed = feed(images.train, order, config.batch, devices, stream=config.data.stream, together=config.steps_per_call)
    steps = runs.over_devices(runs.train_step(config, schedule, net, optimizer, images.levels), fed.axis)
    run_key = jax.device_put(run_key, everywhere)

    # before anything is written, as what does not fit is refused
    begun = runs.begin(config, net, init_key, shape, begin) if begin.init_from and not runs.under_way(workdir) else None

    with (
        process.Interrupt() as interrupt,  # first, so that the last save is complete before a signal can end it
        runs.claim(workdir, config),
        checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep) as saved,
    ):
        run = runs.Run(config, workdir, images, schedule, net, eval_key, interrupt)
        with process.as_one("train", lambda: runs.standing(workdir)):
            start, state, meta = 0, jax.eval_shape(fresh_state, init_key), {}
            if saved.latest() is not None:
                start, state, meta = saved.restore(state)
                run.kept = runs.kept(meta, begin, workdir)
            elif begin.init_from is not None:
                state, run.kept = begun or runs.begin(config, net, init_key, shape, begin)
            else:
                state = fresh_state(init_key)
            run.check_same(start, meta)
            state = jax.device_put(state, everywhere)
            run.introduce(state, start)

            def take_steps(state, bad, batch):
                rows, word = run.said.batch(batch.indices), runs.word(interrupt.requested)
                return steps(run_key, state, bad, batch.pixels, batch.places, rows, word)

            resident = images.train.nbytes if fed.axis is None else 0
            with (
                runs.fitting(
                    f"a training step of {config.batch // jax.device_count()} images per device",
                    lambda: runs.lighter_step(config, jax.device_count(), resident),
                ),
                contextlib.closing(fed.batches(start)) as batches,
            ):
                bad = jax.device_put(np.int32(0), everywhere)  # steps in a row that were skipped, of what follows
                return loop(config, run, saved, start, (state, bad), take_steps, batches)


def loop(config: configs.Config, run, saved, start: int, carried, take_steps, batches) -> int:
    """Steps start + 1 ... config.steps; what is written after each call, and what ends them early."""
    from ddpm_jax import log, runs

    state, bad = carried
    begun, watch = time.monotonic(), runs.Watch(config, run.workdir, start)
    progress = log.Progress(config.steps, start=start, active=process.first())

    def due(step, every):
        return step == config.steps or (every and step % every == 0)

    # what was saved, and ended before its samples
    if start and due(start, config.sample_every) and process.agree(not watch.noted):
        watch.note(start, run.look(start, state.ema))
    done = start
    while done < config.steps:
        batch = next(batches)
        state, bad, metrics = take_steps(state, bad, batch)
        done += len(batch.indices)
        watch.add(done, metrics, batch.indices)
        stopping = run.stopping(watch.word)
        often = config.log_every, config.save_every, config.sample_every
        logging, saving, looking = (due(done, every) for every in often)
        if stopping or logging or saving or looking:
            watch.settle()
        if watch.bad:  # the parameters are still those before the first bad step
            progress.close()
            return watch.give_up(state, run.images, run.said.rows)

        if stopping or logging:
            progress.update(done, watch.line(done))
            saved.check()
        if stopping or saving:
            saved.save(done, state, run.meta(done))
        if looking:
            with runs.fitting("what draws samples and evaluates", lambda: runs.lighter_look(config, run.tile)):
                watch.note(done, run.look(done, state.ema))
        if stopping or (looking and process.agree(run.interrupt.requested)):
            if not stopping and saved.latest() != done:
                saved.save(done, state, run.meta(done))
            saved.wait()
            progress.close()
            print(f"interrupted: saved step {done}; the same command continues", flush=True)
            return 0
    progress.close()
    if start >= config.steps:
        print(f"the run is complete: {start} steps; raise --steps to go on")
    else:
        print(f"steps {start + 1} to {config.steps} took {log.duration(time.monotonic() - begun)}, all included")
    return 0
