"""A run's folder: who owns it, what its checkpoints say of it, and how training watches over it.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import ddpm_jax
from ddpm_jax import checkpoint, data, generate, log
from ddpm_jax import config as configs
from ddpm_jax.config import objects
from ddpm_jax.metrics import held_out, monitors


def claim(workdir: pathlib.Path, config: configs.Config) -> None:
    """Makes the run's folder, or makes sure that it is this config's own.

    Raises:
        ValueError: if the folder holds a run of another config (more steps are the same run), or something else.
    """
    path = workdir / "config.json"
    if path.exists():
        old = configs.from_dict(json.loads(path.read_text()))
        changed = configs.differences(dataclasses.replace(old, steps=config.steps), config)
        if changed and any((workdir / "checkpoints").glob("[0-9]*")):  # without a checkpoint nothing was begun
            raise ValueError(
                f"{workdir} holds a run of another config; take a new folder, or go on with its own. "
                f"What differs: {'; '.join(changed)}"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no config.json: it is not a run; take a new folder")
    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(configs.to_json(config))
    part.replace(path)


class Run:
    """What a run says of itself: its first lines, its checkpoints' record, its samples and held-out evaluations."""

    def __init__(self, config: configs.Config, workdir: pathlib.Path, images, schedule, net, key, interrupt):
        self.config, self.workdir, self.images, self.key, self.interrupt = config, workdir, images, key, interrupt
        self.count = min(config.evaluation.images, len(images.test))

        def apply(params, x_t, t):
            return net.apply({"params": params}, x_t, t)

        def sampler(params):
            return objects.sampler(config, schedule, objects.denoiser(config, schedule, partial(apply, params)))

        def examine(params, keys, x0):
            of = partial(apply, params)
            examination = held_out.examination(
                schedule, of, objects.denoiser(config, schedule, of), objects.example_loss(config, images.levels),
                mix=config.sampling.mix, levels=images.levels, strata=config.evaluation.strata,
            )  # fmt: skip
            return examination(keys, x0)

        self.examine = jax.jit(examine)
        self.tiles = generate.over_devices(generate.program(sampler, objects.times(config), images.train.shape[1:]))

    def introduce(self, state, devices, start: int) -> None:
        """The first lines: where, on what, how large, from when to when."""
        config, leaves = self.config, jax.tree.leaves(state.params)
        print(f"run       {self.workdir}" + (f", continued from step {start}" if start else ""))
        print(f"devices   {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
        print(f"network   {sum(leaf.size for leaf in leaves):,} parameters, compute in {config.net.dtype}")
        print(f"data      {data.summary(self.images)}")
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
        save, look = (
            min((start // every + 1) * every, config.steps)
            for every in (config.save_every, config.sample_every or config.steps)
        )
        print(f"steps     {start} of {config.steps}; next checkpoint ({size:.1f} MB) at {save}, next samples at {look}")
        print("          the time left is said as soon as the first steps are compiled and done", flush=True)

    def meta(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {
            "step": step,
            "config": dataclasses.asdict(self.config),
            "image": {"shape": list(self.images.train.shape[1:]), "levels": self.images.levels},
            "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
        }

    def look(self, step: int, params) -> dict[str, Any]:
        """Draws a grid of samples, says what they look like and evaluates held-out images; nothing, if interrupted."""
        config, levels = self.config, self.images.levels
        parts, tile = [], config.sampling.tile
        for part in generate.draw(self.tiles, params, seed=config.seed, start=0, num=config.sampling.num, tile=tile):
            parts.append(part.x)
            if self.interrupt.requested:
                return {}
        integers = data.to_integer(np.concatenate(parts), levels)
        picture = self.workdir / "samples" / f"{step}.png"
        data.write_png(picture, data.grid(integers, levels), scale=data.preview_scale(integers.shape))
        x0 = np.asarray(data.to_unit(self.images.test[: self.count], levels))
        found = held_out.held_out(partial(self.examine, params), self.key, x0, min(config.batch, self.count))
        bits = f"{found.bits_per_dim:.3f} ± {found.standard_error:.3f} bits/dim ({self.count} images, estimated bound)"
        tenths = monitors.by_tenth(found.times, found.losses, config.schedule.T)
        monitored = monitors.report(integers, self.reference)
        print(f"step {step}: held-out loss {found.loss:.4f}, {bits}; samples in {picture}")
        for line in (monitors.line_by_tenth(tenths), *monitors.lines(monitored)):
            print(f"  {line}")
        sys.stdout.flush()
        return {
            "held_out_loss": found.loss,
            "held_out_bits_per_dim": found.bits_per_dim,
            "held_out_bits_per_dim_se": found.standard_error,
            "held_out_loss_by_tenth_of_t": tenths,
            **monitors.metrics(monitored),
        }

    @functools.cached_property
    def reference(self) -> monitors.Reference:
        """What samples are compared with: the training images, as training sees them."""
        train = self.images.train
        seen = np.concatenate([train, train[:, :, ::-1]]) if self.config.data.flip else train
        return monitors.reference(seen, self.images.test[: self.count], self.images.levels)


class Watch:
    """Collects the metrics of the steps, a step or two late so that the host never waits, and notices bad ones."""

    def __init__(self, config: configs.Config, workdir: pathlib.Path, start: int):
        self.config, self.workdir = config, workdir
        self.file = log.MetricsLog(workdir / "metrics.jsonl", start)
        self.pending: collections.deque[tuple[int, Any, Any]] = collections.deque()
        self.settled: list[dict[str, Any]] = []
        self.row: list[tuple[int, Any]] = []
        self.clock = time.perf_counter()

    @property
    def bad(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return len(self.row) >= self.config.optim.max_skipped

    def add(self, step: int, metrics, indices) -> None:
        """Takes in a step's metrics, still on the device.

        As soon as one step was skipped nothing is left pending, so that the parameters cannot change after the last
        of too many skipped ones.
        """
        self.pending.append((step, metrics, indices))
        late = 0 if self.row else min(2, self.config.optim.max_skipped - 1)
        while len(self.pending) > late:
            self._settle_one()

    def settle(self) -> None:
        """Waits for all metrics."""
        while self.pending:
            self._settle_one()

    def line(self, step: int) -> dict[str, Any]:
        """Writes the mean since the last line to metrics.jsonl and returns it."""
        self.settle()
        rows, seconds = self.settled, time.perf_counter() - self.clock
        good = [row for row in rows if not row["skipped"]]
        line: dict[str, Any] = {"step": step}
        if good:
            share = np.sum([row["quarter_share"] for row in good], axis=0)
            quarters = np.sum([row["quarter_loss"] for row in good], axis=0) / np.maximum(share, 1e-12)
            line["loss"] = float(np.mean([row["loss"] for row in good]))
            line["loss_by_quarter_of_t"] = [float(q) if n else None for q, n in zip(quarters, share, strict=True)]
            line["grad_norm"] = float(np.mean([row["grad_norm"] for row in good]))
        line |= {"skipped": len(rows) - len(good), "steps_per_s": len(rows) / seconds}
        line["images_per_s"] = line["steps_per_s"] * self.config.batch
        self.file.write(line)
        self.settled, self.clock = [], time.perf_counter()
        return line

    def note(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of its own; the time it took does not count as training."""
        if values:
            self.file.write({"step": step, **values})
        self.clock = time.perf_counter()

    def give_up(self, state, images) -> int:
        """Leaves a record from which the first bad step can be taken again, and says so."""
        import jax

        step, indices = self.row[0]
        path = self.workdir / f"nonfinite-step-{step}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state.params))[0]
        arrays = {"params" + jax.tree_util.keystr(where): leaf for where, leaf in leaves}
        np.savez(path, step=step, indices=indices, images=images.train[indices], **arrays)
        print(f"train.py: loss or gradient not finite in {len(self.row)} steps in a row, the first being step {step}; "
              f"stopped. Checkpoints are as they were. {path} holds the parameters before that step and its "
              "images; its keys follow from the run's seed.", file=sys.stderr)  # fmt: skip
        return 3

    def _settle_one(self) -> None:
        step, metrics, indices = self.pending.popleft()
        values = jax.device_get(metrics)
        self.settled.append(values)
        self.row = [*self.row, (step, indices)] if values["skipped"] else []


class Model:
    """A trained network, as one checkpoint of a run holds it, ready to draw images.

    Args:
        workdir: the run's folder; it is only read.
        step: which checkpoint; None is the newest that can be read.
        weights: "ema", the moving average of the parameters, or "raw".
        sampling: fields of `config.Sampling` in place of the config's own.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint.
        ValueError: if a field of `sampling` is unknown or has a value that the config refuses.
    """

    def __init__(self, workdir: str | pathlib.Path, *, step: int | None, weights: str, sampling: dict[str, Any]):
        self.workdir, self.weights = pathlib.Path(workdir), weights
        if not (self.workdir / "checkpoints").is_dir():
            raise FileNotFoundError(f"{workdir} holds no checkpoints: it is not the folder of a run")
        part = {"ema": "ema", "raw": "params"}[weights]
        with checkpoint.Checkpoints(self.workdir / "checkpoints", read_only=True) as saved:
            meta = saved.meta(step)
            config = configs.from_dict(meta["config"])
            self.shape, self.levels = tuple(meta["image"]["shape"]), meta["image"]["levels"]
            net = objects.network(config, channels=self.shape[-1])
            x, t = np.zeros((1, *self.shape), np.float32), np.ones(1, np.int32)
            target = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
            self.step, self.params, meta = saved.restore_part(part, target, step=step)
        resolved = dataclasses.asdict(config.sampling) | sampling
        self.config = dataclasses.replace(config, sampling=configs.from_dict(resolved, configs.Sampling))
        configs.check(self.config)
        self.fingerprint = meta["fingerprint"][part]
        self.times = objects.times(self.config)
        self.schedule, self._net = objects.noise_schedule(config), net

    def describe(self) -> str:
        """One line: which weights, which sampler."""
        c = self.config.sampling
        how = f"eta {c.eta:g}" if c.sampler == "ddim" else f"mix {c.mix:g}"
        return f"{self.workdir}, step {self.step}, {self.weights} weights; {c.sampler}, {c.steps} steps, {how}"

    def draw(
        self, *, seed: int, start: int, num: int, batch: int | None = None, keep: Sequence[int] = ()
    ) -> Iterator[generate.Drawn]:
        """The images start ... start + num - 1 of a seed, tile by tile; see `generate.draw` and `generate.program`."""
        tiles = generate.over_devices(generate.program(self.sampler, self.times, self.shape, keep))
        tile = self.config.sampling.tile
        return generate.draw(tiles, self.params, seed=seed, start=start, num=num, tile=tile, batch=batch)

    def manifest(self) -> dict[str, Any]:
        """What says how images came about, but for their seed and indices."""
        device = jax.devices()[0]
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "weights": self.weights,
            "sampling": dataclasses.asdict(self.config.sampling),
            "times": self.times.tolist(),
            "image": {"shape": list(self.shape), "levels": self.levels},
            "machine": {"platform": device.platform, "kind": device.device_kind, "devices": jax.local_device_count()},
            "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
        }

    def denoiser(self, params):
        """The `gaussian.Denoiser` of the network with these parameters."""
        net = self._net

        def predict(x_t, t):
            return net.apply({"params": params}, x_t, t)

        return objects.denoiser(self.config, self.schedule, predict)

    def sampler(self, params):
        """The `samplers.Sampler` of the network with these parameters."""
        return objects.sampler(self.config, self.schedule, self.denoiser(params))


def image_hash(image: np.ndarray) -> str:
    """sha256 of an image's integers, in the order of memory."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
