"""Training metrics, and the record of steps that were not finite."""

import collections
import hashlib
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import data, process, tracking, training
from ddpm_jax.guidance import Condition

_MAX_PENDING = 2
"""Calls in flight before `add` waits for the oldest."""


class StepMetrics:
    """Logs training metrics to metrics.jsonl without waiting for the devices, and counts consecutive skipped steps.

    A step is skipped if its loss or gradient is not finite.

    Args:
        start: the last step of the checkpoint; lines of later steps are dropped from the file.

    Attributes:
        stop_received: True if one of several processes has asked all to stop, see `trainer.parallelise`.
        progress: the steps whose metrics have come from the devices, and the loss of the last line.
        has_evaluation: True if the file has the evaluation of the step `start`; also where another process writes it.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path, start: int) -> None:
        self.config, self.workdir = config, workdir
        self.file = tracking.MetricsLog(workdir / "metrics.jsonl", start, active=process.is_main_process())
        evaluated = any("held_out_loss" in row for row in self.file.start_rows)
        self.has_evaluation = evaluated or not process.is_main_process()
        self.pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()
        self.collected: list[dict[str, Any]] = []
        self.skipped_in_a_row: list[tuple[int, Any]] = []
        self.batch_digest = hashlib.sha256()
        self.stop_received = False
        self.progress = tracking.Progress(config.steps, start=start, active=process.is_main_process())
        self.clock = time.perf_counter()

    @property
    def skip_limit_reached(self) -> bool:
        """True if the last `optim.max_skipped` steps were all skipped."""
        return len(self.skipped_in_a_row) >= self.config.optim.max_skipped

    def add(self, step: int, metrics: dict[str, jax.Array], indices: np.ndarray) -> None:
        """Queues the metrics [k, ...] of k steps, still on the device, and their images' indices [k, batch].

        `step` is the last of the steps.  Late detection is harmless: after `optim.max_skipped` the devices skip every
        step, see `trainer.train_step`.
        """
        self.batch_digest.update(np.asarray(indices, "<i4").tobytes())
        self.pending.append((step, metrics, indices))
        while len(self.pending) > _MAX_PENDING:
            self._collect_oldest()

    def flush(self) -> None:
        """Waits for all queued metrics and collects them; writes nothing."""
        while self.pending:
            self._collect_oldest()

    def write_metrics(self, step: int) -> None:
        """Writes a line of metrics.jsonl: means over the steps since the last one that were not skipped.

        "seen" identifies the images of these steps: the first 16 hexadecimal digits of the sha256 of their indices in
        the training split, batch after batch, as little-endian int32.
        """
        self.flush()
        rows, seconds = self.collected, time.perf_counter() - self.clock
        good = [row for row in rows if not row["skipped"]]
        line: dict[str, Any] = {"step": step}
        if good:
            shares = np.sum([row["quarter_share"] for row in good], axis=0)
            quarters = np.sum([row["quarter_loss"] for row in good], axis=0) / np.maximum(shares, 1e-12)
            line["loss"] = float(np.mean([row["loss"] for row in good]))
            line["loss_by_quarter_of_t"] = [float(q) if n else None for q, n in zip(quarters, shares, strict=True)]
            line["grad_norm"] = float(np.mean([row["grad_norm"] for row in good]))
        line |= {"skipped": len(rows) - len(good), "steps_per_s": len(rows) / seconds}
        line["images_per_s"] = line["steps_per_s"] * self.config.batch
        line["seen"] = self.batch_digest.hexdigest()[:16]
        self.file.write(line)
        self.progress.update(step, line.get("loss"))
        self.collected, self.batch_digest, self.clock = [], hashlib.sha256(), time.perf_counter()

    def write_evaluation(self, step: int, evaluate: Callable[[], dict[str, Any]]) -> None:
        """Evaluates and writes a line of the results, if there are any; its time does not count as training."""
        start = time.perf_counter()
        values = evaluate()
        if values:
            self.file.write({"step": step, **values})
        self.clock += time.perf_counter() - start

    def dump_nonfinite(
        self, state: training.TrainState, dataset: data.Dataset, gather: Callable[[np.ndarray], Condition]
    ) -> int:
        """Writes a record from which the first skipped step can be replayed, prints how, and returns exit status 3.

        Args:
            gather: indices -> the conditions of these images, see `DatasetConditions.gather`.
        """
        self.progress.close()
        step, indices = self.skipped_in_a_row[0]
        path = self.workdir / f"nonfinite-step-{step}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state.params))[0]
        arrays = {"params" + jax.tree_util.keystr(where): leaf for where, leaf in leaves}
        condition = {f"said.{name}": leaf for name, leaf in gather(indices)._asdict().items() if leaf is not None}
        if not process.is_main_process():  # the others have seen the same
            return 3
        images = dataset.train[indices]
        np.savez(path, step=step, indices=indices, images=images, levels=dataset.levels, **arrays, **condition)
        print(f"train: loss or gradient not finite in {len(self.skipped_in_a_row)} steps in a row, "
              f"the first being step {step}; "
              "stopped. Checkpoints are as they were. To take that step again, layer by layer: "
              f"ddpm-jax replay {path}", file=sys.stderr)  # fmt: skip
        return 3

    def _collect_oldest(self) -> None:
        """Fetches the oldest queued metrics, one row per step; drops the steps after the limit of skipped ones."""
        last, metrics, indices = self.pending.popleft()
        values = jax.device_get(metrics)
        self.stop_received |= bool(values.pop("stop", 0))
        for i, step_indices in enumerate(indices):
            if self.skip_limit_reached:
                break
            row = {name: value[i] for name, value in values.items()}
            self.collected.append(row)
            step = last - len(indices) + 1 + i
            self.skipped_in_a_row = [*self.skipped_in_a_row, (step, step_indices)] if row["skipped"] else []
        self.progress.update(last)
