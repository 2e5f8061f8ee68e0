"""Trackers of a run: TensorBoard and Weights & Biases, which follow metrics.jsonl.

A tracker shows the lines of metrics.jsonl, the grids of samples/ and the config.  When a run starts or continues, the
tracker first catches up with metrics.jsonl, so it has each step once, whatever a killed process had written or lost.
"""

import contextlib
import dataclasses
import importlib
import itertools
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ddpm_jax import config as configs
from ddpm_jax import data, tracking
from ddpm_jax.config import flags
from ddpm_jax.trainer import profiler
from ddpm_jax.trainer.step_metrics import StepMetrics

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""The package of each value of --log; the extra of that name installs it."""

QUARTERS, TENTHS = "loss_by_quarter_of_t", "held_out_loss_by_tenth_of_t"
"""The metrics that are a loss for each of equal parts of 1..T: both histograms, and the first also curves."""

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""


def check_tracking(options: flags.TrackingOptions, steps: int) -> None:
    """Checks the flags, for a run of so many steps, and that the packages of the trackers are installed.

    Raises:
        ValueError: as `parse_steps`; or naming the extra that installs a missing package.
    """
    profiler.parse_steps(options.profile, steps)
    for name in options.log:
        _import(name)


def _import(tracker: str, module: str = "") -> Any:
    """The package of a tracker, or a module of it."""
    package = PACKAGES[tracker]
    try:
        return importlib.import_module(f"{package}{module}")
    except ImportError:
        raise ValueError(
            f"--log {tracker} needs {package}, which is not installed: pip install 'ddpm-jax[{tracker}]'"
        ) from None


@contextlib.contextmanager
def track(names: Sequence[str], config: configs.Config, workdir: pathlib.Path, start: int) -> Iterator[StepMetrics]:
    """Context with the run's `StepMetrics`, whose progress is shown and whose metrics.jsonl trackers follow.

    A tracker that fails later, such as one whose process was killed, prints why and is left out; training goes on.

    Args:
        names: keys of `PACKAGES`; of one that is named twice there is one tracker.
        start: the step from which the run continues.

    Raises:
        ValueError: if W&B refuses the run.
    """
    step_metrics = StepMetrics(config, workdir, start)
    log = step_metrics.file
    rows = tracking.read_metrics(log.path) if names and log.active and log.path.exists() else []
    rows = [row for row in rows if "step" in row]
    with step_metrics.progress, contextlib.ExitStack() as stack:
        for name in dict.fromkeys(names if log.active else ()):
            tracker = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}[name](config, workdir, rows)
            stack.enter_context(_following(log, name, tracker))
        yield step_metrics


@contextlib.contextmanager
def _following(log: tracking.MetricsLog, name: str, tracker: "TensorBoard | WeightsAndBiases") -> Iterator[None]:
    """Context in which a tracker gets each new line of a log, until it fails; then it is closed."""

    def show(error: Exception) -> None:
        message = f"train: --log {name} failed: {error!r}. Training goes on; the next start adds what is missing"
        print(message, file=sys.stderr, flush=True)

    def follow(row: Row) -> None:
        try:
            tracker.write(row)
        except Exception as error:
            show(error)
            log.followers.remove(follow)

    log.followers.append(follow)
    failed = True
    try:
        yield
        failed = False
    finally:
        try:
            tracker.close(failed=failed)
        except Exception as error:
            show(error)


class TensorBoard:
    """The run's event file for TensorBoard, in RUN/tensorboard.

    It replaces the file of an earlier process: all lines of metrics.jsonl are written anew.  Their times are computed
    from the speeds in these lines.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path, rows: Sequence[Row]) -> None:
        self.events, self.summaries = (_import("tensorboard", f".proto.{name}_pb2") for name in ("event", "summary"))
        self.workdir, self.T = workdir, config.schedule.T
        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        times = _wall_times(rows, time.time())
        name = f"events.out.tfevents.{times[-1]:.0f}.{socket.gethostname()}.{os.getpid()}"
        self.file = _import("tensorboard").RecordWriter(str(folder / name))
        self._add(0, times[0], file_version="brain.Event:2")
        # a TensorBoard that is open drops what it has read of the former file
        log = self.events.SessionLog
        self._add(0, times[0], session_log=log(status=log.START))
        summary = _import("tensorboard", ".summary")
        text = summary.text("config", "".join(f"    {line}\n" for line in configs.to_json(config).splitlines()))
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in configs.flatten(config).items()}
        experiment, start, _ = summary.hparams(flat, {"held_out/bits_per_dim": 0, "held_out/loss": 0})
        for each in (text, experiment, start):
            self._add(0, times[0], summary=each)
        for row, when in zip(rows, times[1:], strict=True):
            self._add_row(row, when)
        self.file.flush()

    def write(self, row: Row) -> None:
        """Adds a line of metrics.jsonl, and its grid of samples if it has one; both are in the file on return."""
        self._add_row(row, time.time())
        self.file.flush()

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self.file.close()

    def _add_row(self, row: Row, when: float) -> None:
        Summary = self.summaries.Summary
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        for tag, (edges, heights) in histograms(row, self.T).items():
            total = math.fsum(heights)
            mean = [h * (low + high) / 2 for h, low, high in zip(heights, edges, edges[1:], strict=False)]
            histogram = self.summaries.HistogramProto(
                min=edges[0], max=edges[-1], num=total, sum=math.fsum(mean), bucket_limit=edges[1:], bucket=heights
            )
            values.append(Summary.Value(tag=tag, histo=histogram))
        grid = grid_path(row, self.workdir)
        if grid:
            height, width, channels = data.read_png(grid).image.shape
            image = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=grid.read_bytes()
            )
            values.append(Summary.Value(tag="samples/grid", image=image))
        self._add(row["step"], when, summary=Summary(value=values))

    def _add(self, step: int, when: float, **content: Any) -> None:
        self.file.write(self.events.Event(step=step, wall_time=when, **content).SerializeToString())


class WeightsAndBiases:
    """The run at Weights & Biases, with its files in RUN/wandb.

    A run that continues is the same run there, by the id in RUN/wandb/run_id; what W&B does not have yet is sent from
    metrics.jsonl.  W&B takes a step only once, so the lines of a step are sent together: when that of a later step
    comes, or at the end, unless the step's evaluation is missing.  Offline, W&B begins new files at each start and
    `wandb sync` replaces the run by them, so they hold all lines.

    Raises:
        ValueError: if W&B refuses the run.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path, rows: Sequence[Row]) -> None:
        self.wandb, self.config, self.workdir = _import("wandb"), config, workdir
        self.step, self.values = -1, {}
        known = workdir / "wandb" / "run_id"
        settings = self.wandb.setup().settings
        try:
            self.run = self.wandb.init(
                id=known.read_text(encoding="utf-8") if known.exists() else None,
                resume=None if settings.mode == "offline" else "allow", project=settings.project or "ddpm_jax",
                dir=str(workdir), name=workdir.resolve().name,
                config=dataclasses.asdict(config), allow_val_change=True,
            )  # fmt: skip
        except self.wandb.Error as error:
            raise ValueError(f"--log wandb: {error} (WANDB_MODE=offline needs no account)") from error
        known.parent.mkdir(exist_ok=True)
        known.write_text(self.run.id, encoding="utf-8")
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        """Adds a line of metrics.jsonl, and its grid of samples if it has one, unless W&B has the step already."""
        if row["step"] < self.run.starting_step:
            return
        if row["step"] != self.step:
            self._send()
        self.step = row["step"]
        self.values |= scalars(row)
        for tag, (edges, heights) in histograms(row, self.config.schedule.T).items():
            self.values[tag] = self.wandb.Histogram(np_histogram=(heights, edges))
        grid = grid_path(row, self.workdir)
        if grid:
            self.values["samples/grid"] = self.wandb.Image(str(grid))

    def close(self, *, failed: bool) -> None:
        """Sends what is complete and waits until W&B has it."""
        every = self.config.sample_every
        due = self.step == self.config.steps or (every and self.step % every == 0)
        if not due or "held_out/loss" in self.values:
            self._send()
        self.run.finish(exit_code=int(failed))

    def _send(self) -> None:
        if self.values:
            self.run.log(self.values, step=self.step, commit=True)
        self.values = {}


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by tag, such as training/loss, held_out/loss or samples/copied_share.

    A list of numbers has a tag for each, NAME_1, NAME_2, ...; null, texts and the losses by tenth of t have none.
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            numbers = name != TENTHS and all(each is None or isinstance(each, float) for each in value)
            found |= {f"{_tag(row, name)}_{i}": each for i, each in enumerate(value if numbers else (), 1)}
        elif name != "step":
            found[_tag(row, name)] = value
    return {tag: value for tag, value in found.items() if isinstance(value, int | float)}


def histograms(row: Row, T: int) -> dict[str, tuple[list[float], list[float]]]:
    """Edges in 0..T and heights of the losses by t in a line of metrics.jsonl, by tag; a part without images has 0."""
    return {
        _tag(row, name): ([T * i / len(row[name]) for i in range(len(row[name]) + 1)], [x or 0.0 for x in row[name]])
        for name in (QUARTERS, TENTHS)
        if name in row
    }


def grid_path(row: Row, workdir: pathlib.Path) -> pathlib.Path | None:
    """The grid of samples that was drawn for a line of metrics.jsonl; None if there is none."""
    path = workdir / "samples" / f"{row['step']}.png"
    return path if "held_out_loss" in row and path.exists() else None


def _tag(row: Row, name: str) -> str:
    if "seen" in row:
        return f"training/{name}"
    return f"held_out/{name.removeprefix('held_out_')}" if name.startswith("held_out_") else f"samples/{name}"


def _wall_times(rows: Sequence[Row], end: float) -> list[float]:
    """Seconds since 1970 at the start and at each line, if the last one is of `end`: metrics.jsonl has speeds only."""
    times = [end]
    for before, row in reversed(list(itertools.pairwise([{"step": 0}, *rows]))):
        times.append(times[-1] - (row["step"] - before["step"]) / (row.get("steps_per_s") or math.inf))
    return times[::-1]
