"""Averages of a run's parameters, of any length: post-hoc EMA from its snapshots."""

import pathlib
from typing import Any

import jax
import numpy as np

from ddpm_jax import checkpoint, keys, posthoc_ema
from ddpm_jax.checkpoint import snapshots
from ddpm_jax.model import Model

FOLDER = "snapshots"
"""The folder of the snapshots in a run's folder."""

MAX_ERROR = 0.1
"""The largest relative error of a profile that is accepted, see `posthoc_ema.fit`."""


class KeptAverages:
    """The averages that a run kept up to a checkpoint: those of its earlier snapshots, and those in the checkpoint.

    Args:
        step: of the checkpoint; None is the newest that can be read.

    Raises:
        ValueError: if the run keeps no averages, or had none yet.
        FileNotFoundError, CheckpointError: as `Checkpoints.restore_part` and `snapshots.meta`.

    Attributes:
        step: of the checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, saved: checkpoint.Checkpoints, model: Model, step: int | None):
        self._lengths = model.config.optim.ema_lengths
        if not self._lengths:
            hint = "it was trained without --optim.ema-lengths, such as 0.05 0.1; its weights are 'ema' and 'raw'"
            raise ValueError(f"{workdir} kept no averages for post-hoc EMA: {hint}")
        self.workdir, self._folder = workdir, workdir / FOLDER
        target = jax.eval_shape(lambda key: model.optimizer.init(model.init(key)), keys.from_seed(0))
        restored = saved.restore_part("opt_state", target, step=step)
        last = posthoc_ema.kept_averages(restored.tree)
        self.step, self._last, self._count = restored.step, last.averages, int(last.count)
        if not self._count:
            raise ValueError(f"{workdir} has no averages at step {self.step} yet: training adds to them at each step")
        counts = {each: snapshots.meta(self._folder, each)["count"] for each in snapshots.steps(self._folder)}
        self._steps = [step for step, count in counts.items() if 0 < count < self._count]
        gammas = [posthoc_ema.gamma_of_length(length) for length in self._lengths]
        ends = [*(counts[step] for step in self._steps), self._count]
        self._profiles = posthoc_ema.Profiles(np.tile(gammas, len(ends)), np.repeat(ends, len(gammas)).astype(float))

    def can_reconstruct(self, length: float) -> bool:
        """True if the profile of this length is approximated well enough."""
        return posthoc_ema.fit(self._profiles, length, self._count)[1] <= MAX_ERROR

    def weights(self, length: float) -> np.ndarray:
        """The weights [averages of the run] that give an average of this length, those of the checkpoint last.

        Raises:
            ValueError: if the length is out of reach, with the nearest that is not.
        """
        weights, error = posthoc_ema.fit(self._profiles, length, self._count)
        if error > MAX_ERROR:
            grid = [*self._lengths, *np.geomspace(0.001, posthoc_ema.MAX_LENGTH, 100).round(4)[:-1]]
            nearest = min(filter(self.can_reconstruct, grid), key=lambda other: abs(np.log(other / length)))
            raise ValueError(
                f"{self.workdir}, step {self.step}: 'ema:{length:g}' is out of reach of {len(self._steps)} snapshots "
                f"of the averages {' and '.join(f'{length:g}' for length in self._lengths)}: its profile would be "
                f"wrong by {error:.0%}, and at most {MAX_ERROR:.0%} is accepted; the nearest that can be had is "
                f"'ema:{nearest:g}'. Training with a smaller --snapshot-every reaches further"
            )
        return weights

    def reconstruct(self, length: float) -> Any:
        """The average of this length that ends at the checkpoint, a tree of numpy arrays.

        Raises:
            ValueError: as `weights`.
            CheckpointError: if a snapshot cannot be read.
        """
        rows, target = self.weights(length).reshape(-1, len(self._lengths)), self._last
        used = [(row, step) for row, step in zip(rows, [*self._steps, None], strict=True) if row.any()]
        trees = (self._last if step is None else snapshots.load(self._folder, step, target) for _, step in used)
        return posthoc_ema.weighted_sum(
            (weight for row, _ in used for weight in row), (average for tree in trees for average in tree)
        )
