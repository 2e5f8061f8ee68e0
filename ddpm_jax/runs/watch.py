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
from ddpm_jax import log, process

_LATE = 2
"""Calls whose metrics are not waited for: as many can be in the devices' queue."""


class Watch:
    """Collects the metrics of the steps, a call or two late so that the devices never wait, and notices bad ones.

    Attributes:
        word: whether one of several processes has spread the word to stop, see `runs.over_devices`.
        noted: whether the file has what was seen in samples and held-out images after the step `start`; where another
            process writes it, True.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path, start: int):
        self.config, self.workdir = config, workdir
        self.file = log.MetricsLog(workdir / "metrics.jsonl", start, active=process.first())
        self.noted = not process.first() or any("held_out_loss" in row for row in self.file.of_start)
        self.pending: collections.deque[tuple[int, Any, np.ndarray]] = collections.deque()
        self.settled: list[dict[str, Any]] = []
        self.row: list[tuple[int, Any]] = []
        self.seen = hashlib.sha256()
        self.word = False
        self.clock = time.perf_counter()

    @property
    def bad(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return len(self.row) >= self.config.optim.max_skipped

    def add(self, step: int, metrics, indices: np.ndarray) -> None:
        """Takes in the metrics of k steps, `step` the last, still on the device, and their images [k, batch].

        To hear of bad steps late does no harm: after too many the devices take no more (see `runs.train_step`).
        """
        self.seen.update(np.asarray(indices, "<i4").tobytes())
        self.pending.append((step, metrics, indices))
        while len(self.pending) > _LATE:
            self._settle_one()

    def settle(self) -> None:
        """Waits for all metrics."""
        while self.pending:
            self._settle_one()

    def line(self, step: int) -> dict[str, Any]:
        """Writes the mean since the last line to metrics.jsonl and returns it.

        "seen" witnesses the images of these steps: the first 16 hexadecimal digits of the sha256 of their indices in
        the training split, batch after batch, as little-endian int32.
        """
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
        line["seen"] = self.seen.hexdigest()[:16]
        self.file.write(line)
        self.settled, self.seen, self.clock = [], hashlib.sha256(), time.perf_counter()
        return line

    def note(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of its own; the time it took does not count as training."""
        if values:
            self.file.write({"step": step, **values})
        self.clock = time.perf_counter()

    def give_up(self, state, images, rows) -> int:
        """Leaves a record from which the first bad step can be taken again, and says so.

        Args:
            rows: indices -> what is said of these images, see `said.Said.rows`.
        """
        step, indices = self.row[0]
        path = self.workdir / f"nonfinite-step-{step}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(state.params))[0]
        arrays = {"params" + jax.tree_util.keystr(where): leaf for where, leaf in leaves}
        said = {f"said.{name}": leaf for name, leaf in rows(indices)._asdict().items() if leaf is not None}
        if not process.first():  # the others have seen the same
            return 3
        np.savez(path, step=step, indices=indices, images=images.train[indices], levels=images.levels, **arrays, **said)
        print(f"train.py: loss or gradient not finite in {len(self.row)} steps in a row, the first being step {step}; "
              "stopped. Checkpoints are as they were. To take that step again, layer by layer: "
              f"ddpm-jax replay {path}", file=sys.stderr)  # fmt: skip
        return 3

    def _settle_one(self) -> None:
        last, metrics, indices = self.pending.popleft()
        values = jax.device_get(metrics)
        self.word |= bool(values.pop("word", 0))
        for i, taken in enumerate(indices):
            if self.bad:
                break
            self.settled.append({name: value[i] for name, value in values.items()})
            skipped = self.settled[-1]["skipped"]
            self.row = [*self.row, (last - len(indices) + 1 + i, taken)] if skipped else []
