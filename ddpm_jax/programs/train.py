"""Trains a diffusion model.

    ddpm-jax train digits --workdir runs/digits [--optim.learning-rate 1e-4 --steps 2000 ...]

The same command continues a run that was interrupted.  Read this file from top to bottom.
"""

import contextlib
import dataclasses
import pathlib
import time
from typing import TYPE_CHECKING, Annotated

import tyro

from ddpm_jax import config as configs
from ddpm_jax import process
from ddpm_jax.config import flags, ranges

if TYPE_CHECKING:  # --help imports no JAX
    from ddpm_jax.checkpoint import Checkpoints
    from ddpm_jax.trainer import Run, StepMetrics


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Trains a model of a config, or continues the run in --workdir.

    CONFIG is the name of a file in configs/ and perhaps of a variant in it, as digits or digits:text, or a Python file.
    Flags change its fields; the defaults are the config's.
    """

    config: Annotated[configs.Config, tyro.conf.arg(name="")]
    workdir: str = tyro.MISSING
    """The run's folder: config.json, metrics.jsonl, checkpoints/STEP, samples/."""
    init: tyro.conf.OmitArgPrefixes[flags.InitFrom] = flags.InitFrom()
    devices: flags.OptionalFlag[ranges.Devices] = None
    """On a CPU: number of JAX devices (default: one per core)."""
    hosts: tyro.conf.OmitArgPrefixes[process.DistributedOptions] = process.DistributedOptions()
    tracking: tyro.conf.OmitArgPrefixes[flags.TrackingOptions] = flags.TrackingOptions()


def main(argv: list[str]) -> int:
    """Runs or continues a training run; exit statuses are in docs/files.md."""
    args = flags.parse_with_config(Arguments, argv, usage="ddpm-jax train CONFIG --workdir DIR [options]")
    process.initialize(devices=args.devices, distributed=args.hosts)
    with process.abort_together("train"):
        return train(args.config, pathlib.Path(args.workdir), args.init, args.tracking)


def train(config: configs.Config, workdir: pathlib.Path, init: flags.InitFrom, options: flags.TrackingOptions) -> int:
    """Data, model, loss, gradient step, devices, and the state of the newest checkpoint; then `loop`."""
    import jax
    import numpy as np

    from ddpm_jax import checkpoint, data, tracking, trainer
    from ddpm_jax.conditions import load_images
    from ddpm_jax.data.device_loader import make_device_loader
    from ddpm_jax.model import build, check

    check(config)
    trainer.check_tracking(options, config.steps)
    images = load_images(config.data, report=print, progress=tracking.stage_progress(active=process.is_main_process()))
    init_key, run_key, order_key, eval_key = trainer.run_keys(config.seed)

    # the model, its loss, and a step along the loss's gradient
    model = build(config, images.train.shape[1:], images.levels)
    loss = trainer.example_losses(model)
    gradient_step = trainer.train_step(model, loss)

    # pmap, or shard_map: the state whole on every device, or in part a share; the batch spread over them
    devices = jax.local_devices()
    order = data.EpochShuffle(order_key, len(images.train))
    with trainer.explain_step_oom(config, images.train.nbytes):
        loader = make_device_loader(
            images.train, order, config.batch, devices, stream=config.data.stream, steps_per_call=config.steps_per_call
        )
    steps = trainer.parallelise(gradient_step, loader.in_axis, by=config.parallel, shard_update=config.shard_update)
    steps = tracking.show_first_call("compiling the training step", steps)
    run_key = process.replicate(run_key, "batch")

    # a new run's first state, before anything is written: weights that do not fit are refused
    begun = process.any_process(process.is_main_process() and trainer.has_checkpoints(workdir))
    finetuned = trainer.init_from_run(model, init_key, init) if init.init_from and not begun else None

    with (
        process.Interrupt() as interrupt,  # first, so that the last save is complete before a signal can end it
        trainer.lock_run(workdir, config),
        checkpoint.Checkpoints(workdir / "checkpoints", keep=config.keep) as saved,
    ):
        run = trainer.Run(model, workdir, images, eval_key, interrupt)
        with process.abort_together("train", lambda: trainer.describe_last_checkpoint(workdir)):
            start, meta = 0, {}
            if saved.latest() is not None:
                start, state, meta = saved.restore(jax.eval_shape(model.init_state, init_key))
                run.provenance = trainer.provenance(meta, init, workdir)
            elif init.init_from is not None:
                state, run.provenance = finetuned or trainer.init_from_run(model, init_key, init)
            else:
                with tracking.Activity("drawing the first parameters", active=process.is_main_process()):
                    state = trainer.init_state(model, trainer.init_params(model, init_key))
            run.check_consistent(meta, state.params)
            run.remove_snapshots_after(start)
            run.print_summary(state, start)

            def take_steps(state, bad, batch):
                rows, stop = run.train_conditions.device_batch(batch.indices), trainer.stop_flag(interrupt.requested)
                return steps(run_key, state, bad, batch.pixels, batch.pixel_indices, rows, stop)

            resident = images.train.nbytes if loader.in_axis is None else 0
            with (
                trainer.track(options.log, config, workdir, start) as step_metrics,
                trainer.explain_step_oom(config, resident),
                trainer.profile(options.profile, workdir, start, take_steps) as annotated_steps,
                contextlib.closing(loader.batches(start)) as batches,
            ):
                state = trainer.place_state(model, state)
                bad = process.replicate(np.int32(0), "batch")  # steps in a row that were skipped, of what follows
                return loop(run, saved, step_metrics, start, (state, bad), annotated_steps, batches)


def loop(run: "Run", saved: "Checkpoints", step_metrics: "StepMetrics", start: int, carry, take_steps, batches) -> int:
    """Steps start + 1 ... config.steps; what is written after each call, and what ends them early."""
    from ddpm_jax import tracking, trainer

    config, (state, bad) = run.config, carry
    begun = time.monotonic()

    def due(step, every):
        return step == config.steps or (every and step % every == 0)

    def evaluate(step, state):
        with trainer.explain_evaluation_oom(config, run.tile):
            step_metrics.write_evaluation(step, lambda: run.sample_and_evaluate(step, state))

    # a run that was saved and ended before it drew its samples
    if start and due(start, config.sample_every) and process.any_process(not step_metrics.has_evaluation):
        evaluate(start, state)
    done = start
    while done < config.steps:
        batch = next(batches)
        state, bad, metrics = take_steps(state, bad, batch)
        done += len(batch.indices)
        step_metrics.add(done, metrics, batch.indices)
        stopping = run.should_stop(step_metrics.stop_received)
        often = config.log_every, config.save_every, config.sample_every
        logging, saving, evaluating = (due(done, every) for every in often)
        averaging = config.optim.ema_lengths and done % config.snapshot_every == 0
        if stopping or logging or saving or evaluating or averaging:
            step_metrics.flush()
        if step_metrics.skip_limit_reached:  # the parameters are still those before the first skipped step
            return step_metrics.dump_nonfinite(state, run.images, run.train_conditions.gather)

        if stopping or logging:
            step_metrics.write_metrics(done)
            saved.check()
        if averaging:  # before the checkpoint: what a kill leaves unfinished is taken again
            run.save_snapshot(done, state)
        if stopping or saving:
            saved.save(done, trainer.whole_state(run.model, state), run.meta(done))
        if evaluating:
            evaluate(done, state)
        if stopping or (evaluating and process.any_process(run.interrupt.requested)):
            if not (stopping or saving):
                saved.save(done, trainer.whole_state(run.model, state), run.meta(done))
            saved.wait()
            step_metrics.progress.close()
            print(f"interrupted: saved step {done}; the same command continues", flush=True)
            return 0
    step_metrics.progress.close()
    seconds = tracking.format_duration(time.monotonic() - begun)
    complete = f"the run is complete: {start} steps; raise --steps to continue"
    print(complete if start >= config.steps else f"steps {start + 1} to {config.steps} took {seconds} in total")
    return 0
