"""A training run: its folder, its records, its previews and held-out evaluations."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import data, posthoc_ema, process, tracking, training
from ddpm_jax.checkpoint import fingerprint, snapshots
from ddpm_jax.conditions import DatasetConditions
from ddpm_jax.data import captions, digests
from ddpm_jax.data.folder_report import join_first
from ddpm_jax.metrics import held_out, monitors
from ddpm_jax.model import Model
from ddpm_jax.pipeline import averages, tiles
from ddpm_jax.trainer.finetune import has_checkpoints
from ddpm_jax.trainer.sharded_update import whole_ema, whole_state

_REFERENCE_BYTES = 1 << 28
"""Bytes of images that samples are compared with, where not all are in memory."""


@contextlib.contextmanager
def lock_run(workdir: pathlib.Path, config: configs.Config) -> Iterator[None]:
    """Makes the run's folder, or makes sure that it is this config's own, and keeps other trainers out meanwhile.

    With several processes the first one does so, and all make sure that they see the same folder.

    Raises:
        ValueError: if the folder holds a run of another config (apart from `steps`, and from `steps_per_call`,
            `parallel`, `shard_update`, `data.stream`, `net.remat` and `optim.accumulate`, which another machine may
            need), or something else; if another process trains in it; or if not all processes see it.
        OSError: if it cannot be written, then or later: the body's errors are raised anew with what is left to go on.
    """
    with contextlib.ExitStack() as held:
        failed = None
        if process.is_main_process():
            try:
                _make_folder(workdir)
                held.enter_context(process.FolderLock(workdir))
                _write_config(workdir, config)
            except (ValueError, OSError) as error:
                failed = error
        if process.any_process(failed is not None):
            raise failed or ValueError(f"the first process could not lock {workdir}: see its error message")
        if process.any_process(not (workdir / "config.json").exists()):
            raise ValueError(f"{workdir} must be in a folder that all processes share")
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.errno is None:  # ours, of a file of the data
                raise
            raise OSError(f"{workdir} cannot be written: {error}. {describe_last_checkpoint(workdir)}") from error


def describe_last_checkpoint(workdir: pathlib.Path) -> str:
    """Which step was saved last, as the folder shows it: nothing is waited for."""
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
    last = f"Step {max(steps)} was saved last" if steps else "Nothing was saved yet"
    return f"{last}; the same command continues"


def _make_folder(workdir: pathlib.Path) -> None:
    inside = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    inside -= {".lock", "config.json.part", "config.part"}  # of a process killed before it had written config.json
    if inside and "config.json" not in inside:
        raise ValueError(f"{workdir} is not empty and has no config.json, so it is not a run: give a new folder")
    workdir.mkdir(parents=True, exist_ok=True)


def _write_config(workdir: pathlib.Path, config: configs.Config) -> None:
    path = workdir / "config.json"
    if path.exists():
        old = configs.read(path)
        changed = configs.differences(_with_changeable_fields(old, config), config)
        if changed and has_checkpoints(workdir):  # without a checkpoint nothing has started
            raise ValueError(
                f"{workdir} holds a run of another config: give a new folder, or continue with the run's config. "
                f"Differences: {'; '.join(changed)}"
            )
    process.atomic_write_text(path, configs.to_json(config))
    (workdir / "samples").mkdir(exist_ok=True)


def _with_changeable_fields(old: configs.Config, new: configs.Config) -> configs.Config:
    """The old config, but for what may change during a run."""
    return dataclasses.replace(
        old,
        steps=new.steps,
        steps_per_call=new.steps_per_call,
        parallel=new.parallel,
        shard_update=new.shard_update,
        data=dataclasses.replace(old.data, stream=new.data.stream),
        net=dataclasses.replace(old.net, remat=new.net.remat),
        optim=dataclasses.replace(old.optim, accumulate=new.optim.accumulate),
    )


class Run:
    """A training run: its summary, the record of its checkpoints, its samples and held-out evaluations."""

    def __init__(self, model: Model, workdir: pathlib.Path, images: data.Dataset, key, interrupt):
        self.config, self.model, self.workdir = model.config, model, workdir
        self.images, self.key, self.interrupt = images, key, interrupt
        self.num_held_out = min(self.config.evaluation.images, len(images.test))
        self.tile = model.tile_size(jax.local_devices()[0].platform)
        self.snapshots = workdir / averages.FOLDER
        self.provenance: dict[str, Any] = {}  # source of the first parameters, in every checkpoint
        self.train_conditions = DatasetConditions(self.config, images)
        self.held_out_conditions = DatasetConditions(self.config, images, held_out=True)

        def evaluate(params, keys, examples):
            x0, conditions = examples
            net = model.net(params, conditions)
            evaluate_batch = held_out.make_evaluate_batch(
                model.schedule, net, model.denoiser_of(net), model.example_loss,
                variance_mix=self.config.sampling.variance_mix, decoder=model.decoder,
                strata=self.config.evaluation.strata,
            )  # fmt: skip
            return evaluate_batch(keys, x0)

        program = tiles.sampling_program(tiles.sampler_factory(model), model.shape, self.config.parallel)
        self.sampling_program = partial(program, times=model.times)
        self.evaluation_program = jax.jit(evaluate)
        self.evaluate = tracking.show_first_call("compiling the held-out evaluation", self.evaluation_program)

    def print_summary(self, state, start: int) -> None:
        """The first lines: where, on what, how large, from when to when."""
        config, leaves, devices = self.config, jax.tree.leaves(state.params), jax.devices()
        print(f"run       {self.workdir}" + (f", continued from step {start}" if start else ""))
        hosts = jax.process_count()
        among = f", {len(devices) // hosts} in each of {hosts} processes" if hosts > 1 else ""
        print(f"devices   {len(devices)} x {devices[0].device_kind} ({devices[0].platform}){among}")
        print(f"network   {sum(leaf.size for leaf in leaves):,} parameters, compute in {config.net.dtype}")
        print(f"data      {data.summary(self.images)}")
        if self.untrained_labels:
            names = captions.label_names(self.images)
            named = [names[i] if i < len(names) else str(i) for i in self.untrained_labels]
            print(f"labels    warning: {len(named)} without training images, which stay untrained: {join_first(named)}")
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
        if config.optim.ema_lengths:
            lengths = ", ".join(f"{length:g}" for length in config.optim.ema_lengths)
            print(f"averages  of relative lengths {lengths}; a snapshot every {config.snapshot_every} steps")
        steps = f"steps     {start} of {config.steps}"
        if start >= config.steps:
            print(steps, flush=True)
            return
        intervals = (config.save_every, config.sample_every or config.steps)
        save, draw = (min((start // every + 1) * every, config.steps) for every in intervals)
        print(f"{steps}; next checkpoint ({size:.1f} MB) at {save}, next samples at {draw}")
        print("          remaining time appears after the first steps have compiled", flush=True)

    def remove_snapshots_after(self, start: int) -> None:
        """Removes the snapshots of steps that a continued run takes again; one process does."""
        if process.is_main_process():
            snapshots.remove_after(self.snapshots, start)

    def save_snapshot(self, step: int, state: training.TrainState) -> None:
        """Writes the averages for post-hoc EMA; one process does."""
        ema = posthoc_ema.kept_averages(whole_state(self.model, state).opt_state)
        if process.is_main_process():
            snapshots.save(self.snapshots, step, ema.averages, {"step": step, "count": int(ema.count)})

    def check_consistent(self, meta: Mapping[str, Any], params: training.Params) -> None:
        """Checks that the data are those that the run was trained on, by `meta` of its checkpoint.

        And that all processes have the same config, images, labels, texts and parameters.

        Raises:
            ValueError: if they are not, with the difference; if one process has not.
        """
        now = {"image": self.image_record, "data": self.data_record}
        changed = digests.differences(meta, json.loads(json.dumps(now)))
        if changed:
            raise ValueError(
                f"{self.workdir} was trained on other images than {self.images.name} has now: {'; '.join(changed)}. "
                f"Restore the former images, or give a new folder; --init-from {self.workdir} starts there from this "
                "run's parameters"
            )
        if jax.process_count() > 1:
            process.check_equal_across_processes({
                "config": dataclasses.asdict(self.config),
                "images, labels and texts": now,
                "parameters (--init-from)": fingerprint(params),
            })  # fmt: skip

    def should_stop(self, stop_received: bool) -> bool:
        """True to end after this step: by a signal here; of several processes, by one all received in this step."""
        return stop_received if jax.process_count() > 1 else self.interrupt.requested

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        return {
            "step": step,
            "config": dataclasses.asdict(self.config),
            "image": self.image_record,
            "data": self.data_record,
            "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
            **self.provenance,
        }

    @property
    def image_record(self) -> dict[str, Any]:
        """The record of the images: shape, levels, type, format, names of labels."""
        return {
            "shape": list(self.images.train.shape[1:]),
            "levels": self.images.levels,
            "dtype": str(self.images.train.dtype),
            "format": self.images.format,
            "label_names": list(captions.label_names(self.images)) if self.config.net.num_classes else [],
            "untrained": self.untrained_labels,
        }

    @functools.cached_property
    def untrained_labels(self) -> list[int]:
        """Labels that the network has and no training image."""
        labels = self.train_conditions.labels
        return [] if labels is None else np.setdiff1d(np.arange(self.config.net.num_classes), labels).tolist()

    @functools.cached_property
    def data_record(self) -> dict[str, Any]:
        """The record of the data: the number of images, digests of them and of their conditions."""
        conditions, train = self.train_conditions, self.images.train
        found: dict[str, Any] = {"images": len(train), "pixels": digests.digests(train)}
        if conditions.labels is not None:
            found["labels"] = {"all": digests.digest(conditions.labels)}
        if conditions.text_rows is not None:
            found["texts"] = {"all": digests.digest(conditions.tokens, conditions.text_rows)}
        if self.config.condition.paired:
            found["beside"] = digests.digests(conditions.images)
        return found

    def sample_and_evaluate(self, step: int, state: training.TrainState) -> dict[str, Any]:
        """Draws a grid of samples, prints monitors of them and evaluates held-out images; {} if interrupted."""
        with tracking.Activity(f"evaluating step {step}", active=process.is_main_process()) as shown:
            lines, found = self._sample_and_evaluate(step, whole_ema(self.model, state), shown)
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
        return found

    def _sample_and_evaluate(self, step: int, params, shown: tracking.Activity) -> tuple[list[str], dict[str, Any]]:
        """The lines to print, and the metrics."""
        config, levels = self.config, self.images.levels
        parts = []
        drawn = tiles.draw(
            self.sampling_program, tiles.SamplerInputs(params, self.model.scalars()), seed=config.seed, start=0,
            num=config.sampling.num, tile=self.tile, conditions=self.sample_conditions,
        )  # fmt: skip
        shown.text = f"drawing samples, 0 of {config.sampling.num} images"
        for part in drawn:
            parts.append(part.x)
            shown.text = f"drawing samples, {sum(map(len, parts))} of {config.sampling.num} images"
            if process.any_process(self.interrupt.requested):
                return [], {}
        shown.text, shown.part = f"evaluating {self.num_held_out} held-out images", ""
        integers = self._to_preview(data.denormalize(np.concatenate(parts), levels))
        picture = self.workdir / "samples" / f"{step}.png"
        if process.is_main_process():
            grid = data.make_grid(integers, self._preview_levels)
            data.write_png(picture, grid, scale=data.preview_scale(integers.shape[1:]))
        x0 = np.asarray(data.normalize(self.images.test[: self.num_held_out], levels))
        # on one device, whose program uses all cores of a CPU; the others would compute the same
        own = jax.tree.map(lambda leaf: leaf.addressable_data(0), params)
        found = held_out.evaluate_held_out(
            partial(self.evaluate, own), self.key,
            (x0, self.held_out_conditions.gather_first_text(np.arange(self.num_held_out))),
            min(config.batch, self.num_held_out),
        )  # fmt: skip
        many = f"{self.num_held_out} images" if self.num_held_out > 1 else "1 image, so no error bar"
        error = f" ± {found.standard_error:.3f}" if self.num_held_out > 1 else ""
        bits = f"{found.bits_per_dim:.3f}{error} bits/dim ({many}, estimated bound)"
        tenths = monitors.loss_by_tenth(found.times, found.losses, config.schedule.T)
        monitored = monitors.report(integers, self.reference)
        lines = [f"step {step}: held-out loss {found.loss:.4f}, {bits}; samples in {picture}"]
        lines += [f"  {line}" for line in (monitors.loss_by_tenth_line(tenths), *monitors.lines(monitored))]
        return lines, {
            "held_out_loss": found.loss,
            "held_out_bits_per_dim": found.bits_per_dim,
            "held_out_bits_per_dim_se": found.standard_error,
            "held_out_loss_by_tenth_of_t": tenths,
            **monitors.metrics(monitored),
        }

    def sample_conditions(self, indices: np.ndarray):
        """The conditions of the samples during training: image i has those of held-out image i, cyclically."""
        return self.held_out_conditions.gather_first_text(np.asarray(indices, np.int64) % len(self.images.test))

    @functools.cached_property
    def reference(self) -> monitors.Reference:
        """The reference of the monitors: the training images, as training sees them.

        Of those that are not in memory, so many, evenly spread, as take a quarter of a GiB.
        """
        train = self.images.train
        if isinstance(train, data.LazyImages):
            train = train[:: -(-train.nbytes // _REFERENCE_BYTES)]
        images = np.concatenate([train, train[..., ::-1, :]]) if self.config.data.flip else train
        return monitors.reference(
            self._to_preview(images), self._to_preview(self.images.test[: self.num_held_out]), self._preview_levels
        )

    @property
    def _preview_levels(self) -> int:
        levels = self.images.levels
        return 256 if isinstance(levels, data.ValueRange) else levels

    def _to_preview(self, images: np.ndarray) -> np.ndarray:
        """Images as pictures and monitors take them: integers of the data's type, 8 bits of floating-point ones."""
        levels = self.images.levels
        if isinstance(levels, data.ValueRange):
            return data.to_integer(data.normalize(images, levels), 256)
        return images.astype(self.images.train.dtype, copy=False)
