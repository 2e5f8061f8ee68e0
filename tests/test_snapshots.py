"""Snapshots: whole files of a tree, verified when they are read."""

import numpy as np
import pytest

from ddpm_jax import checkpoint
from ddpm_jax.checkpoint import snapshots

TREE = {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float32)}


def test_a_tree_and_its_values_come_back(tmp_path):
    snapshots.save(tmp_path, 20, TREE, {"step": 20, "count": 19})
    found = snapshots.load(tmp_path, 20, TREE)
    np.testing.assert_array_equal(found["conv"]["kernel"], TREE["conv"]["kernel"])
    np.testing.assert_array_equal(found["bias"], TREE["bias"])
    assert snapshots.meta(tmp_path, 20) == {"step": 20, "count": 19}
    with pytest.raises(ValueError, match="bias"):
        snapshots.load(tmp_path, 20, TREE | {"bias": np.ones(4, np.float32)})
    (tmp_path / "20.npz").write_bytes((tmp_path / "20.npz").read_bytes()[:-30])
    with pytest.raises(checkpoint.CheckpointError, match=r"20\.npz cannot be read"):
        snapshots.load(tmp_path, 20, TREE)


def test_a_run_that_goes_back_takes_the_later_ones_again(tmp_path):
    assert snapshots.steps(tmp_path / "none") == []
    for step in (5, 10, 100):
        snapshots.save(tmp_path, step, TREE, {})
    snapshots.remove_after(tmp_path, 10)
    assert snapshots.steps(tmp_path) == [5, 10]
