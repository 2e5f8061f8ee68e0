"""The watch over a run's steps: their metrics, and what is done about bad ones."""

import collections
import hashlib
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import process, tracking

_MAX_PENDING = 2
"""Calls whose metrics are not waited for: as many can be in the devices' queue."""


class StepMetrics:
    """Collects the metrics of the steps, a call or two late so that the devices never wait, and notices bad ones.

    Attributes:
        stop_received: whether one of several processes has spread the word to stop, see `trainer.parallelise`.
        has_evaluation: whether the file has what was seen in samples and held-out images after the step `start`;
            where another process writes it, True.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path, start: int):
        self.config, self.workdir = config, workdir
        self.file = tracking.MetricsLog(workdir / "metrics.jsonl", start, active=process.is_main_process())
        self.has_evaluation = not process.is_main_process() or any(
            "held_out_loss" in row for row in self.file.start_rows
        )
        self.pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()
        self.collected: list[dict[str, Any]] = []
        self.skipped_in_a_row: list[tuple[int, Any]] = []
        self.batch_digest = hashlib.sha256()
        self.stop_received = False
        self.clock = time.perf_counter()

    @property
    def too_many_skipped(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return len(self.skipped_in_a_row) >= self.config.optim.max_skipped

    def add(self, step: int, metrics, indices: np.ndarray) -> None:
        """Takes in the metrics of k steps, `step` the last, still on the device, and their images [k, batch].

        To hear of bad steps late does no harm: after too many the devices take no more (see `trainer.train_step`).
        """
        self.batch_digest.update(np.asarray(indices, "<i4").tobytes())
        self.pending.append((step, metrics, indices))
        while len(self.pending) > _MAX_PENDING:
            self._collect_oldest()

    def flush(self) -> None:
        """Waits for all metrics."""
        while self.pending:
            self._collect_oldest()

    def write_metrics(self, step: int) -> dict[str, Any]:
        """Writes the mean since the last line to metrics.jsonl and returns it.

        "seen" witnesses the images of these steps: the first 16 hexadecimal digits of the sha256 of their indices in
        the training split, batch after batch, as little-endian int32.
        """
        self.flush()
        rows, seconds = self.collected, time.perf_counter() - self.clock
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
        line["seen"] = self.batch_digest.hexdigest()[:16]
        self.file.write(line)
        self.collected, self.batch_digest, self.clock = [], hashlib.sha256(), time.perf_counter()
        return line

    def write_evaluation(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of its own; the time it took does not count as training."""
        if values:
            self.file.write({"step": step, **values})
        self.clock = time.perf_counter()

    def dump_nonfinite(self, state, images, conditions) -> int:
        """Leaves a record from which the first bad step can be taken again, and says so.

        Args:
            conditions: indices -> what is said of these images, see `said.DatasetConditions.gather`.
        """
        step, indices = self.skipped_in_a_row[0]
        path = self.workdir / f"nonfinite-step-{step}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state.params))[0]
        arrays = {"params" + jax.tree_util.keystr(where): leaf for where, leaf in leaves}
        said = {f"said.{name}": leaf for name, leaf in conditions(indices)._asdict().items() if leaf is not None}
        if not process.is_main_process():  # the others have seen the same
            return 3
        np.savez(path, step=step, indices=indices, images=images.train[indices], levels=images.levels, **arrays, **said)
        print(f"train: loss or gradient not finite in {len(self.skipped_in_a_row)} steps in a row, "
              f"the first being step {step}; "
              "stopped. Checkpoints are as they were. To take that step again, layer by layer: "
              f"ddpm-jax replay {path}", file=sys.stderr)  # fmt: skip
        return 3

    def _collect_oldest(self) -> None:
        last, metrics, indices = self.pending.popleft()
        values = jax.device_get(metrics)
        self.stop_received |= bool(values.pop("stop", 0))
        for i, taken in enumerate(indices):
            if self.too_many_skipped:
                break
            self.collected.append({name: value[i] for name, value in values.items()})
            skipped = self.collected[-1]["skipped"]
            self.skipped_in_a_row = [*self.skipped_in_a_row, (last - len(indices) + 1 + i, taken)] if skipped else []
